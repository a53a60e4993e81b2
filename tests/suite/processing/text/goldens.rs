//! Equality with transformers.

use std::path::Path;

use medical_vision::processing::{ChatTemplate, Content, Grid, Message, Role};
use safetensors::SafeTensors;
use serde_json::Value;

use super::{NANO, golden, ids, nano_dir, text, user};

pub(super) fn messages(value: &Value) -> Vec<Message> {
    let part = |part: &Value| match part["type"].as_str().unwrap() {
        "image" => Content::Image,
        _ => text(part["text"].as_str().unwrap()),
    };
    let message = |message: &Value| Message {
        role: match message["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        },
        content: match &message["content"] {
            Value::String(string) => vec![text(string)],
            parts => parts.as_array().unwrap().iter().map(part).collect(),
        },
    };
    value.as_array().unwrap().iter().map(message).collect()
}

#[test]
fn the_template_renders_as_in_transformers() {
    let template = ChatTemplate::from_dir(&nano_dir()).unwrap();
    let golden = golden();
    let cases = golden["chat"].as_array().unwrap();
    assert!(cases.len() >= 15);
    for case in cases {
        let messages = messages(&case["messages"]);
        let rendered: String = template
            .render(&messages)
            .unwrap()
            .iter()
            .map(AsRef::as_ref)
            .collect();
        assert_eq!(rendered, case["rendered"].as_str().unwrap(), "{}", case["name"]);
    }
}

#[test]
fn plain_text_encodes_as_in_transformers() {
    let golden = golden();
    for key in ["encode", "encode_as_plain_text"] {
        let cases = golden[key].as_array().unwrap();
        assert!(cases.len() >= 10);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(NANO.encode_plain(text).unwrap(), ids(&case["ids"]), "{text:?}");
        }
    }
}

#[test]
fn ids_decode_as_in_transformers() {
    let golden = golden();
    let cases = golden["decode"].as_array().unwrap();
    assert!(cases.len() >= 25);
    for case in cases {
        let ids = ids(&case["ids"]);
        assert_eq!(
            NANO.decode(&ids).unwrap(),
            case["text"].as_str().unwrap(),
            "{ids:?}"
        );
    }
}

/// `input_ids` of the model goldens: template, special tokens, image places and text together.
#[test]
fn whole_conversations_encode_as_in_transformers() {
    for case in ["ragged", "several", "text"] {
        let path = format!("tests/fixtures/goldens/nano-{case}.safetensors");
        let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let prompt = &header.metadata().as_ref().unwrap()["prompt"];
        let numbers = |name: &str| -> Vec<i64> {
            let data = tensors
                .tensor(name)
                .map(|tensor| tensor.data().to_vec())
                .unwrap_or_default();
            data.chunks_exact(8)
                .map(|n| i64::from_le_bytes(n.try_into().unwrap()))
                .collect()
        };
        let grids: Vec<Grid> = numbers("image_grid_thw")
            .chunks_exact(3)
            .map(|g| Grid {
                t: g[0] as usize,
                h: g[1] as usize,
                w: g[2] as usize,
            })
            .collect();
        assert_eq!(grids.is_empty(), case == "text");
        let mut content = vec![Content::Image; grids.len()];
        content.push(text(prompt));
        assert_eq!(
            NANO.encode_chat(&user(content), &grids).unwrap(),
            numbers("input_ids"),
            "{case}"
        );
    }
}
