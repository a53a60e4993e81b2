//! The shipped programs as a user runs them, and model folders for them to stumble over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A page that the embedded model reads without error, within the project.
pub const SAMPLE: &str = "datasets/sample/discharge_note.png";
/// The prompt that the embedded model was trained with; the goldens' pages were read with it.
pub const TRAINED_PROMPT: &str =
    "Extract all medical terms, diagnoses, and clinical findings from this image.";

/// A program without the caller's `MVP_*` variables, which would change what it does.
pub fn without_variables(binary: &str) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"MVP_") {
            command.env_remove(name);
        }
    }
    command
}

/// `medvision` in the project's folder, without the caller's `MVP_*` variables and without the
/// adapter that comes with the embedded model: most tests are about the model alone.
pub fn medvision(arguments: &[&str]) -> Command {
    let mut command = without_variables(env!("CARGO_BIN_EXE_medvision"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null());
    command.env("MVP_ADAPTER", "none");
    command
}

pub fn run(arguments: &[&str]) -> Output {
    medvision(arguments).output().unwrap()
}

pub fn code(output: &Output) -> i32 {
    output.status.code().expect("ended by a signal")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The run failed, its message holds all of `parts`, nothing was printed and nothing panicked.
#[track_caller]
pub fn assert_failed(output: &Output, parts: &[&str]) {
    let message = stderr(output);
    assert_eq!(code(output), 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    assert!(message.contains("error: "), "{message}");
    assert!(!message.contains("internal error"), "{message}");
    assert_eq!(stdout(output), "", "{message}");
}

/// A page of the goldens, and what transformers reads in it.
pub struct GoldenPage {
    pub path: PathBuf,
    pub text: String,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

/// A page of `tests/fixtures/pages`, read with [`TRAINED_PROMPT`].
pub fn golden_page(file: &str) -> GoldenPage {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let list: Value = serde_json::from_slice(&fs::read(fixtures.join("pages.json")).unwrap()).unwrap();
    let pages = list["pages"].as_array().unwrap();
    let page = pages.iter().find(|page| page["file"] == file).unwrap();
    assert_eq!(page["prompt"], TRAINED_PROMPT);
    GoldenPage {
        path: fixtures.join("pages").join(file),
        text: page["text"].as_str().unwrap().to_owned(),
        prompt_tokens: page["prompt_tokens"].as_u64().unwrap(),
        completion_tokens: page["completion_tokens"].as_u64().unwrap(),
    }
}

/// The embedded model's folder again, under its own name, for a test to change.
pub struct ModelCopy {
    root: tempfile::TempDir,
    folder: PathBuf,
}

impl ModelCopy {
    pub fn new() -> Self {
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("qwen25-vl-nano");
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(original).unwrap() {
            let entry = entry.unwrap();
            std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        Self { root, folder }
    }

    /// The folder that the copy lies in.
    pub fn models(&self) -> &Path {
        self.root.path()
    }

    pub fn folder(&self) -> &str {
        text(&self.folder)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).unwrap();
    }

    /// Puts a file of the copy's own in the place of the link.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        self.remove(name);
        fs::write(self.file(name), bytes).unwrap();
    }

    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&fs::read(self.file(name)).unwrap()).unwrap();
        change(&mut value);
        self.write(name, value.to_string().as_bytes());
    }

    /// Changes the header and the data of `model.safetensors`.
    pub fn edit_weights(&self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        let file = fs::read(self.file("model.safetensors")).unwrap();
        let (length, rest) = file.split_at(8);
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let mut header = serde_json::from_slice(&rest[..length]).unwrap();
        let mut data = rest[length..].to_vec();
        change(&mut header, &mut data);
        let mut header = header.to_string();
        header.extend(std::iter::repeat_n(
            ' ',
            header.len().next_multiple_of(8) - header.len(),
        ));
        let length = (header.len() as u64).to_le_bytes();
        self.write("model.safetensors", &[&length, header.as_bytes(), &data].concat());
    }

    /// Fills one weight with a value that is no number.
    pub fn spoil(&self, tensor: &str) {
        self.edit_weights(|header, data| {
            let at = |end: usize| header[tensor]["data_offsets"][end].as_u64().unwrap() as usize;
            assert_eq!(header[tensor]["dtype"], "BF16");
            for value in data[at(0)..at(1)].chunks_exact_mut(2) {
                value.copy_from_slice(&0x7fc0_u16.to_le_bytes());
            }
        });
    }
}
