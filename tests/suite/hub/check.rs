//! `download_model --check`: published folders by their headers, and what is wrong with a folder by tensor.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Map, Value, json};

use super::fake::FakeHub;
use super::support::{MODEL, download_model, fail, program, stderr};

/// Every folder of the corpus (`tests/fixtures/makers/headers.py`) with its tensors, files and linear layers in four bits.
const CORPUS: [(&str, usize, usize, u64); 9] = [
    ("3b", 824, 2, 0),
    ("7b", 729, 5, 0),
    ("32b", 1161, 18, 0),
    ("72b", 1353, 38, 0),
    ("7b-transformers5", 729, 4, 0),
    ("3b-awq", 1328, 1, 252),
    ("7b-awq", 1121, 2, 196),
    ("7b-bnb", 2509, 2, 356),
    ("3b-bnb-plain", 1580, 1, 252),
];

/// A tensor of a file: name, dtype, shape, and its bytes if they matter.
#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    bytes: Option<String>,
}

impl Tensor {
    fn length(&self) -> u64 {
        let width = match self.dtype.as_str() {
            "BF16" | "F16" => 2,
            "F32" | "I32" => 4,
            _ => 1,
        };
        width * self.shape.iter().product::<u64>()
    }
}

/// A folder of the corpus: `config.json`, and the files with their tensors.
#[derive(Clone)]
struct Folder {
    config: Value,
    files: Vec<(String, Vec<Tensor>)>,
}

impl Folder {
    fn read(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/headers");
        let text = fs::read_to_string(folder.join(format!("{name}.txt"))).unwrap();
        let mut files: Vec<(String, Vec<Tensor>)> = Vec::new();
        for line in text.lines() {
            if let Some(file) = line.strip_prefix("= ") {
                files.push((file.to_owned(), Vec::new()));
                continue;
            }
            let mut words = line.splitn(4, ' ');
            let mut next = || words.next().unwrap();
            let (pattern, dtype, shape) = (next(), next(), next());
            let tensor = Tensor {
                name: String::new(),
                dtype: dtype.to_owned(),
                shape: shape.split('x').map(|n| n.parse().unwrap()).collect(),
                bytes: words.next().map(str::to_owned),
            };
            let tensors = &mut files.last_mut().unwrap().1;
            tensors.extend(expanded(pattern).into_iter().map(|name| Tensor {
                name,
                ..tensor.clone()
            }));
        }
        let config = fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        Self {
            config: serde_json::from_str(&config).unwrap(),
            files,
        }
    }

    /// Returns the tensor `name` for changes.
    fn tensor(&mut self, name: &str) -> &mut Tensor {
        let mut all = self.files.iter_mut().flat_map(|(_, tensors)| tensors);
        all.find(|tensor| tensor.name == name).unwrap()
    }

    fn remove(&mut self, name: &str) {
        for (_, tensors) in &mut self.files {
            tensors.retain(|tensor| tensor.name != name);
        }
    }

    fn index(&self) -> Option<Vec<u8>> {
        if self.files.len() == 1 {
            return None;
        }
        let each = |(file, tensors): &(String, Vec<Tensor>)| {
            let file = Value::from(file.as_str());
            tensors
                .iter()
                .map(|tensor| (tensor.name.clone(), file.clone()))
                .collect::<Vec<_>>()
        };
        let map: Map<String, Value> = self.files.iter().flat_map(each).collect();
        Some(json!({"weight_map": map}).to_string().into_bytes())
    }

    fn small_files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut files = vec![
            ("config.json", self.config.to_string().into_bytes()),
            ("tokenizer.json", b"{}".to_vec()),
            ("chat_template.jinja", b"x".to_vec()),
        ];
        files.extend(self.index().map(|index| ("model.safetensors.index.json", index)));
        files
    }

    /// Writes the folder with sparse weight files: zero except for headers and states.
    fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for (name, bytes) in self.small_files() {
            fs::write(folder.join(name), bytes).unwrap();
        }
        for (name, tensors) in &self.files {
            let (head, size) = header(tensors);
            let mut file = File::create(folder.join(name)).unwrap();
            file.write_all(&head).unwrap();
            file.set_len(size).unwrap();
            let mut at = head.len() as u64;
            for tensor in tensors {
                if let Some(bytes) = &tensor.bytes {
                    file.seek(SeekFrom::Start(at)).unwrap();
                    file.write_all(bytes.as_bytes()).unwrap();
                }
                at += tensor.length();
            }
        }
    }
}

/// `a.{0-2,5}.b` → `a.0.b`, `a.1.b`, `a.2.b`, `a.5.b`.
fn expanded(pattern: &str) -> Vec<String> {
    let Some((start, rest)) = pattern.split_once('{') else {
        return vec![pattern.to_owned()];
    };
    let (numbers, end) = rest.split_once('}').unwrap();
    let run = |run: &str| {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        first.parse::<u32>().unwrap()..=last.parse().unwrap()
    };
    numbers
        .split(',')
        .flat_map(run)
        .map(|n| format!("{start}{n}{end}"))
        .collect()
}

/// Returns the start of a file with these tensors, stored one after the other, and its size.
fn header(tensors: &[Tensor]) -> (Vec<u8>, u64) {
    let (mut entries, mut at) = (Map::new(), 0);
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    for tensor in tensors {
        let end = at + tensor.length();
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]});
        entries.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut text = Value::from(entries).to_string();
    text.extend(std::iter::repeat_n(
        ' ',
        text.len().next_multiple_of(8) - text.len(),
    ));
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend_from_slice(text.as_bytes());
    let size = head.len() as u64 + at;
    (head, size)
}

fn check(root: &Path, hub: &FakeHub) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_download_model"), root, hub);
    command.arg("--check");
    command
}

fn found(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

/// Returns the output of `--check --json` for the local copy `folder`.
fn local(root: &Path, folder: &Folder) -> Value {
    let path = root.join("copy");
    if path.exists() {
        fs::remove_dir_all(&path).unwrap();
    }
    folder.write(&path);
    let hub = FakeHub::start();
    let output = check(root, &hub)
        .args(["--json", "--source", "copy"])
        .output()
        .unwrap();
    let found = found(&output);
    assert_eq!(
        output.status.code(),
        Some(i32::from(found["fits"] != true)),
        "{found}"
    );
    assert!(hub.take_requests().is_empty(), "a local check asks nobody");
    found
}

#[test]
fn every_published_folder_can_be_loaded() {
    let root = tempfile::tempdir().unwrap();
    for (name, tensors, files, quantized) in CORPUS {
        let found = local(root.path(), &Folder::read(name));
        assert_eq!(found["fits"], true, "{name}: {found}");
        assert_eq!(found["tensors"]["unused"], json!([]), "{name}");
        assert_eq!(
            (
                &found["tensors"]["tensors"],
                &found["weight_files"],
                &found["tensors"]["quantized"]
            ),
            (&json!(tensors), &json!(files), &json!(quantized)),
            "{name}"
        );
    }
}

#[test]
fn checking_a_published_model_takes_a_few_hundred_kilobytes() {
    let hub = FakeHub::start();
    let root = tempfile::tempdir().unwrap();
    for (name, most) in [("7b", 400_000), ("7b-bnb", 700_000)] {
        let folder = Folder::read(name);
        hub.publish(MODEL, 'a', &folder.small_files());
        let disk = tempfile::tempdir().unwrap();
        folder.write(disk.path());
        for (file, _) in &folder.files {
            hub.publish_from_disk(MODEL, file, &disk.path().join(file));
        }
        hub.take_requests();
        let mut command = check(root.path(), &hub);
        command.env("MVP_MODEL_ID", "owner/tiny");
        let output = command.arg("--json").output().unwrap();
        let found = found(&output);
        assert_eq!(found["fits"], true, "{name}: {found}");
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(found["revision"], "a".repeat(40));
        let bytes = found["fetched_bytes"].as_u64().unwrap();
        assert!(bytes < most, "{name}: {bytes}");
        let requests = hub.take_requests();
        // The URL of each large file is requested once.
        let resolved = |file: &str| {
            requests
                .iter()
                .filter(|request| request.is_for(file) && !request.is_for_storage())
                .count()
        };
        assert!(
            folder.files.iter().all(|(file, _)| resolved(file) == 1),
            "{requests:?}"
        );
        let text = check(root.path(), &hub)
            .env("MVP_MODEL_ID", "owner/tiny")
            .output()
            .unwrap();
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(
            text.contains("this program can load it") && text.contains("downloaded"),
            "{text}"
        );
        assert!(!root.path().join("models").exists(), "nothing is written");
    }
}

/// Returns the mismatch of the tensor whose name contains `part`.
#[track_caller]
fn misfit<'a>(found: &'a Value, part: &str) -> &'a Value {
    let misfits = found["tensors"]["misfits"].as_array().unwrap();
    let mut all = misfits
        .iter()
        .filter(|misfit| misfit["tensor"].as_str().unwrap().contains(part));
    all.next().unwrap_or_else(|| panic!("no {part} in {found}"))
}

#[test]
fn mismatches_are_reported_per_tensor() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let good = Folder::read("3b");
    let query = "model.layers.7.self_attn.q_proj.weight";

    let mut wrong = good.clone();
    wrong.tensor(query).shape = vec![2048, 1024];
    let found = local(root, &wrong);
    assert_eq!(
        found["tensors"]["misfits"].as_array().unwrap().len(),
        1,
        "{found}"
    );
    let one = misfit(&found, query);
    assert!(
        one["expected"].as_str().unwrap().contains("[2048, 2048]"),
        "{one}"
    );
    assert_eq!(one["found"], "BF16 [2048, 1024]");
    assert!(one["file"].as_str().unwrap().starts_with("model-0000"), "{one}");

    let mut wrong = good.clone();
    wrong.tensor(query).dtype = "F8_E4M3".to_owned();
    assert_eq!(
        misfit(&local(root, &wrong), query)["found"],
        "F8_E4M3 [2048, 2048]"
    );

    let mut wrong = good.clone();
    wrong.remove(query);
    assert_eq!(misfit(&local(root, &wrong), query)["found"], "nothing");

    // A layer beyond the configuration belongs to another model.
    let mut wrong = good.clone();
    wrong.config["num_hidden_layers"] = json!(35);
    let one = local(root, &wrong);
    let one = misfit(&one, "model.layers.35.mlp.up_proj");
    assert!(
        one["expected"].as_str().unwrap().contains("beyond the 35"),
        "{one}"
    );

    // Unused tensors are reported, but are not an error.
    let mut more = good.clone();
    let extra = Tensor {
        name: "visual.rotary_pos_emb.inv_freq".to_owned(),
        dtype: "F32".to_owned(),
        shape: vec![20],
        bytes: None,
    };
    more.files[0].1.push(extra);
    let found = local(root, &more);
    assert_eq!(
        (&found["fits"], &found["tensors"]["unused"]),
        (&json!(true), &json!(["visual.rotary_pos_emb.inv_freq"]))
    );

    // Under both names.
    let mut wrong = good.clone();
    let twice = Tensor {
        name: "model.language_model.norm.weight".to_owned(),
        ..good.clone().tensor("model.norm.weight").clone()
    };
    wrong.files[1].1.push(twice);
    misfit(&local(root, &wrong), "norm.weight");

    // With tied embeddings a separate head is accepted, and so is the head alone.
    let mut other = good.clone();
    let head = Tensor {
        name: "lm_head.weight".to_owned(),
        ..good.clone().tensor("model.embed_tokens.weight").clone()
    };
    other.files[1].1.push(head);
    assert_eq!(local(root, &other)["fits"], true);
    other.remove("model.embed_tokens.weight");
    assert_eq!(local(root, &other)["fits"], true);
}

#[test]
fn file_errors_are_reported_per_file() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let hub = FakeHub::start();
    let folder = Folder::read("3b");
    let copy = root.join("copy");
    let second = "model-00002-of-00002.safetensors";
    let reason = |change: &dyn Fn()| {
        folder.write(&copy);
        change();
        let output = check(root, &hub).args(["--source", "copy"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = reason(&|| fs::remove_file(copy.join(second)).unwrap());
    assert!(
        text.contains(&format!("{second}: this shard is missing")),
        "{text}"
    );
    // Its tensors are missing, too; the output is shortened.
    assert!(text.contains("and ") && text.lines().count() < 30, "{text}");
    let size = fs::metadata(copy.join("model-00001-of-00002.safetensors"))
        .unwrap()
        .len();
    let text = reason(&|| {
        File::options()
            .write(true)
            .open(copy.join(second))
            .unwrap()
            .set_len(1000)
            .unwrap()
    });
    assert!(text.contains(second) && text.contains("truncated"), "{text}");
    let text = reason(&|| {
        let file = File::options()
            .write(true)
            .open(copy.join("model-00001-of-00002.safetensors"))
            .unwrap();
        file.set_len(size - 7).unwrap();
    });
    assert!(
        text.contains("promises") && text.contains("download it again"),
        "{text}"
    );
    let text = reason(&|| fs::remove_file(copy.join("tokenizer.json")).unwrap());
    assert!(
        text.contains("tokenizer.json: no such file") && text.contains("1 problem"),
        "{text}"
    );
    fs::remove_dir_all(&copy).unwrap();
    folder.write(&copy);
    fs::remove_file(copy.join("config.json")).unwrap();
    let text = fail(
        check(root, &hub).args(["--source", "copy"]),
        &["config.json", "no such file"],
    );
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn quantized_weights_are_checked_part_by_part() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let good = Folder::read("7b-bnb");
    let weight = "model.layers.3.mlp.down_proj.weight";
    type Change = fn(&mut Tensor);
    let changes: [(&str, Change, &str); 6] = [
        ("", |tensor| tensor.shape[0] -= 8, "U8 of"),
        (".absmax", |tensor| tensor.shape[0] -= 1, "U8 of"),
        (
            ".nested_absmax",
            |tensor| tensor.dtype = "F16".to_owned(),
            "F32 of",
        ),
        (".quant_map", |tensor| tensor.shape = vec![8], "F32 of 16"),
        (
            ".nested_quant_map",
            |tensor| tensor.shape = vec![255],
            "F32 of 256",
        ),
        (
            ".quant_state.bitsandbytes__nf4",
            |tensor| {
                let text = tensor.bytes.as_mut().unwrap();
                *text = text.replace("[3584", "[3585");
            },
            "[3584, 18944]",
        ),
    ];
    for (suffix, change, expected) in changes {
        let mut wrong = good.clone();
        change(wrong.tensor(&format!("{weight}{suffix}")));
        let found = local(root, &wrong);
        let one = misfit(&found, weight);
        assert!(
            one["expected"].as_str().unwrap().contains(expected),
            "{suffix}: {one}"
        );
        assert_eq!(
            found["tensors"]["misfits"].as_array().unwrap().len(),
            1,
            "{suffix}: {found}"
        );
    }
    let mut wrong = good.clone();
    wrong.remove(&format!("{weight}.absmax"));
    assert_eq!(misfit(&local(root, &wrong), ".absmax")["found"], "nothing");
    // A packed weight without its state is incomplete.
    let mut wrong = good.clone();
    wrong.remove(&format!("{weight}.quant_state.bitsandbytes__nf4"));
    assert!(
        misfit(&local(root, &wrong), weight)["expected"]
            .as_str()
            .unwrap()
            .contains("BF16")
    );

    let mut wrong = Folder::read("3b-awq");
    wrong.tensor("model.layers.3.mlp.down_proj.qzeros").shape = vec![86, 255];
    let found = local(root, &wrong);
    assert_eq!(misfit(&found, "down_proj.qzeros")["expected"], "I32 [86, 256]");
    let mut wrong = Folder::read("3b-awq");
    wrong.config["quantization_config"]["group_size"] = json!(96);
    assert!(local(root, &wrong).to_string().contains("groups of 96"));
}

#[test]
fn offline_the_local_folder_is_checked() {
    let (hub, root) = (FakeHub::start(), tempfile::tempdir().unwrap());
    Folder::read("3b").write(&root.path().join("models/tiny"));
    let mut command = download_model(root.path(), &hub);
    let output = command.args(["--check", "--offline"]).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(
        output.status.success() && text.contains("models/tiny: this program can load it (824 tensors"),
        "{text}"
    );
    assert!(hub.take_requests().is_empty());
}
