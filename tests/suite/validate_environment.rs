//! `validate_environment` as a user runs it.

use std::path::Path;
use std::process::Output;

use crate::suite::program::without_variables;
use medical_vision::records::{self, Environment, paths};

fn validate(root: &Path, arguments: &[&str]) -> Output {
    let mut command = without_variables(env!("CARGO_BIN_EXE_validate_environment"));
    command
        .args(["--root", root.to_str().unwrap()])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_machine_without_a_gpu_is_valid_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let output = validate(folder.path(), &["--device", "cpu"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("valid: the pipeline can run"), "{text}");
    let record: Environment = records::read(&folder.path().join(paths::ENVIRONMENT)).unwrap();
    assert!(record.validation_passed && record.errors.is_empty());
    assert_eq!(record.python_version, None);
    assert!(record.pytorch_version.unwrap().starts_with("2."));
    assert_eq!(record.installed_packages["tch"].as_deref(), Some("0.24.0"));
    assert_eq!(record.gpu_count == 0, record.gpu_name.is_none());
    for key in [
        "cpu_name",
        "warnings",
        "tool_version",
        "integer_reductions_on_cpu",
    ] {
        assert!(record.extra.contains_key(key), "{key}");
    }
}

#[test]
fn what_keeps_the_pipeline_from_running_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["--device", "cuda:99"][..],
        &["--device", "cpu", "--model", "absent"],
    ] {
        let output = validate(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let record: Environment = records::read(&folder.path().join(paths::ENVIRONMENT)).unwrap();
        assert!(!record.validation_passed, "{arguments:?}");
        assert!(
            record.errors[0].contains(arguments.last().unwrap()),
            "{:?}",
            record.errors
        );
    }
    assert_eq!(
        validate(folder.path(), &["--device", "gpu"]).status.code(),
        Some(2)
    );
}
