//! Runs the programs as a user does, and publishes a small model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::fake::FakeHub;

/// The model that the tests publish.
pub const MODEL: &str = "models/owner/tiny";

/// Returns a command in the project folder `root`, without the caller's variables and with short retry delays.
pub fn program(binary: &str, root: &Path, hub: &FakeHub) -> Command {
    let mut command = Command::new(binary);
    command
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("MVP_")
            || name.starts_with("HF_")
            || name.to_ascii_lowercase().ends_with("_proxy")
        {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", root)
        .env("HF_ENDPOINT", hub.endpoint())
        .env("MVP_RETRY_SECONDS", "0.001")
        .env("MVP_STALL_SECONDS", "10");
    command
}

pub fn download_model(root: &Path, hub: &FakeHub) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_download_model"), root, hub);
    command.env("MVP_MODEL_ID", "owner/tiny");
    command
}

pub fn folder(root: &Path) -> PathBuf {
    root.join("models/tiny")
}

/// Runs `command`, which must succeed. Returns its standard output.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `command`, which must fail with exit code 1 and an error that contains all `parts`. Returns its standard error.
#[track_caller]
pub fn fail(command: &mut Command, parts: &[&str]) -> String {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    text
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns `size` pseudo-random bytes.
pub fn bytes(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

/// A safetensors file with one tensor of `size` bytes.
pub fn safetensors(name: &str, size: usize, seed: u64) -> Vec<u8> {
    let header = serde_json::json!({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}});
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend(bytes(size, seed));
    file
}

/// Returns the files of a model in two shards, with documentation and pickle.
pub fn model_files() -> Vec<(&'static str, Vec<u8>)> {
    let (one, two) = (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    );
    let index = serde_json::json!({"weight_map": {"a": one, "b": two}});
    vec![
        ("README.md", b"# A model".to_vec()),
        ("LICENSE", b"free".to_vec()),
        (".gitattributes", b"* lfs".to_vec()),
        ("config.json", b"{\"model_type\": \"tiny\"}".to_vec()),
        ("model.safetensors.index.json", index.to_string().into_bytes()),
        (one, safetensors("a", 300_000, 1)),
        (two, safetensors("b", 200_000, 2)),
        ("training_args.bin", b"pickle".to_vec()),
        ("sub folder/notes #1.txt", b"an odd name".to_vec()),
        ("empty.txt", Vec::new()),
    ]
}

/// Returns those of `files` that a download writes.
pub fn wanted<'a>(files: &'a [(&'static str, Vec<u8>)]) -> impl Iterator<Item = &'a (&'static str, Vec<u8>)> {
    let skipped =
        |name: &str| ["README.md", "LICENSE", ".gitattributes", "training_args.bin"].contains(&name);
    files.iter().filter(move |(name, _)| !skipped(name))
}

/// Asserts that the folder contains exactly `files` and their manifest, without staging folders beside it.
#[track_caller]
pub fn assert_complete(folder: &Path, files: &[(&'static str, Vec<u8>)]) {
    assert_holds(folder, files);
    let beside = fs::read_dir(folder.parent().unwrap()).unwrap();
    let names = beside.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| name.ends_with(".incoming")).collect();
    assert_eq!(left, Vec::<String>::new());
}

/// Asserts that the folder contains exactly `files` and their manifest.
#[track_caller]
pub fn assert_holds(folder: &Path, files: &[(&'static str, Vec<u8>)]) {
    for (name, bytes) in wanted(files) {
        assert!(fs::read(folder.join(name)).unwrap() == *bytes, "{name} differs");
    }
    let mut found = Vec::new();
    list(folder, folder, &mut found);
    let mut expected: Vec<String> = wanted(files).map(|(name, _)| (*name).to_owned()).collect();
    expected.push("download_manifest.json".to_owned());
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

fn list(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(root, &path, found);
        } else {
            found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
}

/// Limits the size of files that `command` writes to `bytes`, as if the disk were full.
pub fn with_full_disk(command: &mut Command, bytes: u64) {
    use std::os::unix::process::CommandExt;
    let limit = move || {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: bytes,
        };
        // SAFETY: both calls are async-signal-safe and affect only the new process; the limit is a valid struct.
        let failed = unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit)
        };
        if failed != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and makes the two calls above.
    unsafe { command.pre_exec(limit) };
}
