//! One binary for machines with and without a GPU, which finds libtorch by itself.

use std::process::Command;

const BINARIES: [&str; 2] = [env!("CARGO_BIN_EXE_medvision"), env!("CARGO_BIN_EXE_server")];

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
    for binary in BINARIES {
        let section = dynamic_section(binary);
        let needed: Vec<&str> = section.lines().filter(|line| line.contains("(NEEDED)")).collect();
        assert!(
            needed.iter().any(|line| line.contains("[libtorch_cpu.so]")),
            "{needed:?}"
        );
        for unwanted in ["[libtorch.so]", "cuda", "nvidia"] {
            assert!(!needed.iter().any(|line| line.contains(unwanted)), "{needed:?}");
        }
    }
}

#[test]
fn the_binaries_start_in_an_empty_environment_and_name_their_commit() {
    for binary in BINARIES {
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
