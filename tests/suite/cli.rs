//! `medvision` as a user runs it.

use std::fs::{self, File};
use std::process::Command;

use super::program::{code, medvision, run, stderr, stdout, text};

#[test]
fn without_a_command_it_shows_the_map() {
    let output = run(&[]);
    assert_eq!(code(&output), 0);
    let map = stdout(&output);
    for command in ["extract", "server"] {
        assert!(map.contains(command), "{map}");
    }
    assert!(map.lines().count() <= 12, "{map}");
    assert_eq!(stderr(&output), "");
}

#[test]
fn help_tells_flags_variables_and_exit_codes() {
    let output = run(&["extract", "--help"]);
    assert_eq!(code(&output), 0);
    let help = stdout(&output);
    for part in [
        "--max-new-tokens",
        "MVP_DEVICE",
        "--root",
        "--log-format",
        "Exit codes",
        "130",
    ] {
        assert!(help.contains(part), "{part} is missing in {help}");
    }
}

/// Every program of the binary.
const PROGRAMS: [&str; 13] = [
    "medvision",
    "server",
    "demo_ui",
    "validate_environment",
    "download_model",
    "benchmark_baseline",
    "quantize_base",
    "benchmark_quantized",
    "download_datasets",
    "prepare_training_data",
    "finetune_lora",
    "evaluate_finetuned",
    "generate_report",
];

#[test]
fn completions_cover_every_program() {
    for shell in ["bash", "elvish", "fish", "zsh"] {
        let output = run(&["completions", shell]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let script = stdout(&output);
        for program in PROGRAMS {
            assert!(script.contains(program), "{shell}: {program}");
        }
        for flag in ["max-new-tokens", "lora-rank", "queue-deadline-seconds"] {
            assert!(script.contains(flag), "{shell}: {flag}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("completions.bash");
    fs::write(&script, stdout(&run(&["completions", "bash"]))).unwrap();
    let bash = Command::new("bash")
        .args([
            "-c",
            r#"source "$1" && complete -p "${@:2}""#,
            "bash",
            text(&script),
        ])
        .args(PROGRAMS)
        .output()
        .unwrap();
    assert_eq!(code(&bash), 0, "{}", stderr(&bash));
    assert_eq!(stdout(&bash).lines().count(), PROGRAMS.len());
    assert_eq!(code(&run(&["completions", "powershell"])), 2);
}

#[test]
fn every_program_and_command_has_a_manual_page() {
    for page in PROGRAMS
        .iter()
        .chain(&["medvision-extract", "medvision-pipeline"])
    {
        let output = run(&["man", page]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let roff = stdout(&output);
        assert!(roff.contains(&format!(".TH {page} 1 ")), "{roff}");
        for part in [".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", "Exit codes"] {
            assert!(roff.contains(part) || *page == "medvision", "{page}: {part}");
        }
        assert!(
            roff.contains("MVP_ROOT") || *page == "medvision",
            "{page}: {roff}"
        );
    }
    assert_eq!(stdout(&run(&["man"])), stdout(&run(&["man", "medvision"])));
    let unknown = run(&["man", "no-such-program"]);
    assert_eq!(code(&unknown), 1);
    assert!(
        stderr(&unknown).contains("medvision-extract"),
        "{}",
        stderr(&unknown)
    );
}

#[test]
fn version_names_the_package_version_and_a_commit() {
    let output = run(&["--version"]);
    assert_eq!(code(&output), 0);
    let version = stdout(&output);
    assert!(
        version.starts_with(concat!("medvision ", env!("CARGO_PKG_VERSION"), " (")),
        "{version}"
    );
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    for arguments in [
        &["extract"][..],
        &["extract", "page.png", "--no-such-flag"],
        &["extract", "page.png", "--device", "gpu"],
        &["extract", "page.png", "--precision", "int8"],
        &["extract", "page.png", "--top-p", "2"],
        &["extract", "page.png", "--max-new-tokens", "0"],
        &["extract", "page.png", "--threads", "0"],
        &["no-such-command"],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(stderr(&output).starts_with("error: "), "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

#[test]
fn a_flag_goes_before_its_variable() {
    let from_variable = medvision(&["extract", "none.png"])
        .env("MVP_DEVICE", "gpu")
        .output()
        .unwrap();
    assert_eq!(code(&from_variable), 2);
    let from_flag = medvision(&["extract", "none.png", "--device", "cpu"])
        .env("MVP_DEVICE", "gpu")
        .output()
        .unwrap();
    assert_eq!(code(&from_flag), 1, "{}", stderr(&from_flag));
}

#[test]
fn switches_by_variable_take_the_usual_words() {
    for (value, speaks) in [("1", false), ("true", false), ("0", true), ("false", true)] {
        let output = medvision(&["extract", "none.png"])
            .env("MVP_QUIET", value)
            .output()
            .unwrap();
        assert_eq!(
            stderr(&output).contains("qwen25-vl-nano"),
            speaks,
            "MVP_QUIET={value}"
        );
    }
}

#[test]
fn a_missing_model_folder_is_named_with_the_way_to_get_one() {
    let output = run(&["extract", "page.png", "--model", "models/absent"]);
    assert_eq!(code(&output), 1);
    let message = stderr(&output);
    assert!(message.contains("models/absent: no such folder"), "{message}");
    assert!(
        message.contains("to get the 7B model: download_model"),
        "{message}"
    );
}

#[test]
fn a_missing_project_folder_is_named() {
    let output = run(&["extract", "page.png", "--root", "/does/not/exist"]);
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("/does/not/exist: no such folder"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn every_page_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let prose = folder.path().join("prose.png");
    fs::write(&prose, "This is no picture.").unwrap();
    let absent = folder.path().join("absent.png");
    let output = run(&["extract", text(&absent), text(&prose)]);
    assert_eq!(code(&output), 1);
    let messages = stderr(&output);
    assert!(
        messages.contains(&format!("error: {}: No such file", absent.display())),
        "{messages}"
    );
    assert!(
        messages.contains(&format!("error: {}: not a supported file", prose.display())),
        "{messages}"
    );
    assert!(messages.contains("0 pages read, 2 failed"), "{messages}");
    assert_eq!(stdout(&output), "");
}

#[test]
fn a_file_over_the_limit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large.png");
    File::create(&large).unwrap().set_len((1 << 20) + 1).unwrap();
    let output = run(&["extract", text(&large), "--max-file-size", "1"]);
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("larger than 1 MiB"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn too_long_a_prompt_is_refused_before_any_work() {
    let prompt = "x".repeat(100_000);
    let output = run(&[
        "extract",
        "absent.png",
        "--model",
        "models/absent",
        "--prompt",
        &prompt,
    ]);
    assert_eq!(code(&output), 2);
    let message = stderr(&output);
    assert!(
        message.contains("the prompt has 100000 characters; the limit is"),
        "{message}"
    );
    assert!(
        !message.contains("xxxx") && !message.contains("absent"),
        "{message}"
    );
}

#[test]
fn messages_in_json_are_one_object_a_line() {
    let output = run(&["extract", "absent.png", "other.png", "--log-format", "json"]);
    assert_eq!(code(&output), 1);
    let messages = stderr(&output);
    assert!(messages.lines().count() >= 3, "{messages}");
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap();
        for key in ["timestamp", "level", "message"] {
            assert!(message[key].is_string(), "{line}");
        }
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = medvision(&[]).stdout(full).output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("cannot write to standard output: No space left"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = medvision(&[]).stdout(writer).output().unwrap();
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
}

#[test]
fn a_text_that_begins_with_a_hyphen_is_a_text_and_a_flag_is_not() {
    let page = "tests/fixtures/pages/small_meds.png";
    let flags = [
        "extract",
        page,
        "--device",
        "cpu",
        "--max-new-tokens",
        "1",
        "--stop",
        "- end",
    ];
    let output = run(&[&flags[..], &["--prompt", "- list\n- doses"]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for flags in [["--prompt", "--json"], ["-p", "-r"], ["--stop", "--json"]] {
        let output = run(&["extract", page, flags[0], flags[1]]);
        assert_eq!(code(&output), 2, "{}", stderr(&output));
        assert!(
            stderr(&output).contains("reads like a flag"),
            "{}",
            stderr(&output)
        );
    }
    let output = run(&["trace", "--out", "x.safetensors", "--prompt", "--image"]);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("reads like a flag"),
        "{}",
        stderr(&output)
    );
}
