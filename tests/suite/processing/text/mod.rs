//! Messages → ids → text: against transformers' own results, and on texts, templates and folders made to do harm.

mod attacks;
mod folders;
mod goldens;
mod plain_jinja;
mod qwen;
mod stream;
mod templates;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use medical_vision::processing::{Content, Message, Role, TextProcessor};
use serde_json::Value;

static NANO: LazyLock<TextProcessor> = LazyLock::new(|| TextProcessor::from_dir(&nano_dir()).unwrap());

fn nano_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano")
}

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<i64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_i64().unwrap())
        .collect()
}

fn text(text: &str) -> Content {
    Content::Text(text.to_owned())
}

fn user(content: Vec<Content>) -> Vec<Message> {
    vec![Message {
        role: Role::User,
        content,
    }]
}

/// A folder with nano's small files, to be changed by a test.
fn nano_copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.json",
    ] {
        std::fs::copy(nano_dir().join(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// Rewrites one JSON file of a folder.
fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(name);
    let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(&path, value.to_string()).unwrap();
}
