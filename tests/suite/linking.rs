//! One binary for machines with and without a GPU, which finds libtorch by itself.

use std::process::Command;

const MEDVISION: &str = env!("CARGO_BIN_EXE_medvision");
/// Starts the one above under its own name.
const SERVER: &str = env!("CARGO_BIN_EXE_server");

/// The dynamic section of a binary, from the binutils that every C++ compiler comes with.
fn dynamic_section(binary: &str) -> String {
    let output = Command::new("readelf")
        .args(["--dynamic", "--wide", binary])
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_binaries_need_no_cuda_library_to_start() {
    for (binary, torch) in [(MEDVISION, true), (SERVER, false)] {
        let section = dynamic_section(binary);
        let needed: Vec<&str> = section.lines().filter(|line| line.contains("(NEEDED)")).collect();
        let linked = needed.iter().any(|line| line.contains("[libtorch_cpu.so]"));
        assert_eq!(linked, torch, "{needed:?}");
        for unwanted in ["[libtorch.so]", "cuda", "nvidia"] {
            assert!(!needed.iter().any(|line| line.contains(unwanted)), "{needed:?}");
        }
    }
}

#[test]
fn a_program_without_medvision_beside_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("server");
    std::fs::copy(SERVER, &alone).unwrap();
    let output = Command::new(&alone).arg("--version").output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    let missing = folder.path().join("medvision");
    assert!(message.contains(missing.to_str().unwrap()), "{message}");
    // With it, under the program's own name.
    std::os::unix::fs::symlink(MEDVISION, &missing).unwrap();
    let output = Command::new(&alone).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && help.contains("Usage: server "),
        "{help}"
    );
}

#[test]
fn the_binaries_start_in_an_empty_environment_and_name_their_commit() {
    for binary in [MEDVISION, SERVER] {
        let output = Command::new(binary)
            .arg("--version")
            .env_clear()
            .current_dir("/")
            .output()
            .unwrap();
        let version = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(version.contains(env!("CARGO_PKG_VERSION")) && version.contains(env!("MEDVISION_GIT_HASH")));
    }
}
