//! What goes wrong on a user's machine: every fault ends in one line that names the file and the cause, and in exit
//! code 1; nothing panics, and nothing half-written is left.

use std::fs::{self, File};
use std::io::Cursor;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::program::{ModelCopy, SAMPLE, assert_failed, code, medvision, run, stderr, stdout, text};

fn extract_with(model: &ModelCopy) -> Output {
    run(&["extract", SAMPLE, "--device", "cpu", "--model", model.folder()])
}

/// A copy of the model with one JSON file changed is refused with all of `parts`.
#[track_caller]
fn refused(name: &str, change: impl FnOnce(&mut Value), parts: &[&str]) {
    let model = ModelCopy::new();
    model.edit(name, change);
    assert_failed(&extract_with(&model), &[&[name], parts].concat());
}

fn remove(key: &str) -> impl FnOnce(&mut Value) {
    move |value| drop(value.as_object_mut().unwrap().remove(key).unwrap())
}

#[test]
fn a_key_of_the_config_whose_default_does_not_fit_is_named() {
    refused(
        "config.json",
        remove("hidden_size"),
        &["left out", "\"hidden_size\" (8192)", "mrope_section"],
    );
    refused(
        "config.json",
        |config| remove("out_hidden_size")(&mut config["vision_config"]),
        &["vision_config", "left out", "\"out_hidden_size\" (3584)"],
    );
    // As many blocks as the default has, of which the folder holds six.
    refused(
        "config.json",
        |config| remove("depth")(&mut config["vision_config"]),
        &["visual.blocks.6.", "is missing"],
    );
    refused(
        "config.json",
        remove("model_type"),
        &["\"model_type\"", "qwen2_5_vl"],
    );
    refused(
        "preprocessor_config.json",
        |config| config["patch_size"] = json!(16),
        &["patch_size is 16", "asks for 14"],
    );
}

#[test]
fn a_file_that_is_missing_or_broken_is_named() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let model = ModelCopy::new();
        model.remove(name);
        assert_failed(&extract_with(&model), &[model.folder(), name]);
    }
    for name in ["config.json", "tokenizer.json", "generation_config.json"] {
        let model = ModelCopy::new();
        model.write(name, b"{\"half\": ");
        assert_failed(&extract_with(&model), &[model.folder(), name]);
    }
}

#[test]
fn damaged_weights_are_refused() {
    let whole = fs::read(ModelCopy::new().file("model.safetensors")).unwrap();
    let mut lie = whole.clone();
    lie[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut scribbled = whole.clone();
    scribbled[8..64].fill(b'x');
    let cases: [(&[u8], &str); 6] = [
        (b"", "0 bytes are not a safetensors file"),
        (&whole[..5], "5 bytes are not a safetensors file"),
        (&whole[..3000], "truncated"),
        (&whole[..whole.len() - 1], "download it again"),
        (&lie, "truncated"),
        (&scribbled, "damaged"),
    ];
    for (bytes, cause) in cases {
        let model = ModelCopy::new();
        model.write("model.safetensors", bytes);
        assert_failed(
            &extract_with(&model),
            &[model.folder(), "model.safetensors", cause],
        );
    }
}

#[test]
fn a_shape_that_does_not_fit_is_named() {
    let model = ModelCopy::new();
    model.edit("config.json", |config| config["intermediate_size"] = json!(800));
    let parts = [
        "model.safetensors",
        "mlp.gate_proj.weight",
        "[768, 256]",
        "[800, 256]",
    ];
    assert_failed(&extract_with(&model), &parts);

    let model = ModelCopy::new();
    model.edit("config.json", |config| config["num_hidden_layers"] = json!(7));
    assert_failed(
        &extract_with(&model),
        &[model.folder(), "model.layers.6.", "missing"],
    );
}

#[test]
fn a_tokenizer_without_a_needed_token_is_refused() {
    refused(
        "tokenizer.json",
        |tokenizer| {
            let tokens = tokenizer["added_tokens"].as_array_mut().unwrap();
            tokens.retain(|token| token["content"] != "<|image_pad|>");
        },
        &["<|image_pad|>"],
    );
}

#[test]
fn weights_that_are_no_numbers_end_the_page_with_an_error() {
    for tensor in ["model.norm.weight", "visual.blocks.0.norm1.weight"] {
        let model = ModelCopy::new();
        model.spoil(tensor);
        let output = extract_with(&model);
        assert_failed(
            &output,
            &[
                SAMPLE,
                "not a finite number",
                "weights are damaged",
                model.folder(),
            ],
        );
        assert!(
            stderr(&output).contains("0 pages read, 1 failed") || !stderr(&output).contains("pages read")
        );
    }
}

/// A PNG of a header and next to nothing: had anyone tried to decode it, the error would be another.
fn claim(width: u32, height: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let encoder = png::Encoder::new(&mut file, width, height);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78]).unwrap();
    drop(writer);
    file
}

fn grey(width: u32, height: u32) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let picture = image::GrayImage::from_pixel(width, height, image::Luma([255]));
    picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

#[test]
fn bad_pictures_are_named_and_the_good_ones_among_them_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let strip = fs::read("tests/fixtures/pages/small_strip_labs.png").unwrap();
    let cases: [(&str, &[u8], &str); 6] = [
        ("a-empty.png", b"", "the image is empty (0 bytes)"),
        ("b-text.png", b"Dear colleague,", "not a supported file"),
        (
            "c-truncated.png",
            &strip[..strip.len() / 2],
            "damaged or incomplete",
        ),
        (
            "e-huge.png",
            &claim(22_000, 22_000),
            "22000x22000 pixels; the limit is 40000000",
        ),
        (
            "f-line.png",
            &grey(20_000, 1),
            "differ by more than a factor of 200 (20000x1)",
        ),
        ("g-large.png", &vec![0; (1 << 20) + 1], "larger than 1 MiB"),
    ];
    for (name, bytes, _) in &cases {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    fs::write(folder.path().join("d-good.png"), &strip).unwrap();
    fs::write(folder.path().join("h-dot.png"), grey(1, 1)).unwrap();
    let output = run(&[
        "extract",
        text(folder.path()),
        "--device",
        "cpu",
        "--max-file-size",
        "1",
        "--max-new-tokens",
        "100",
        "--json",
    ]);
    let messages = stderr(&output);
    assert_eq!(code(&output), 1, "{messages}");
    for (name, _, cause) in &cases {
        let line = format!("error: {}", folder.path().join(name).display());
        let line = messages.lines().find(|found| found.starts_with(&line));
        assert!(
            line.is_some_and(|line| line.contains(cause)),
            "{name}: {messages}"
        );
    }
    assert!(messages.contains("2 pages read, 6 failed"), "{messages}");
    assert!(!messages.contains("internal error"), "{messages}");
    let records: Vec<Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let files: Vec<&str> = records
        .iter()
        .map(|record| record["file"].as_str().unwrap())
        .collect();
    assert!(
        files[0].ends_with("d-good.png") && files[1].ends_with("h-dot.png") && files.len() == 2,
        "{files:?}"
    );
}

#[test]
fn a_prompt_of_a_hundred_thousand_characters_is_refused_before_any_work() {
    let prompt = "x".repeat(100_000);
    for arguments in [
        &[
            "extract",
            "absent.png",
            "--model",
            "models/absent",
            "--prompt",
            &prompt,
        ][..],
        &[
            "trace",
            "--image",
            "absent.png",
            "--out",
            "/absent/out",
            "--model",
            "models/absent",
            "--prompt",
            &prompt,
        ],
    ] {
        let output = run(arguments);
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
}

#[test]
fn what_does_not_fit_the_context_is_refused() {
    let output = run(&["extract", SAMPLE, "--device", "cpu", "--max-new-tokens", "4000"]);
    assert_failed(
        &output,
        &[
            SAMPLE,
            "4000 for the answer",
            "context holds 4096",
            "shorter answer",
        ],
    );
}

#[test]
fn a_full_disk_under_standard_output_is_an_error() {
    let strip = "tests/fixtures/pages/small_strip_labs.png";
    for arguments in [
        &["extract", strip, "--device", "cpu"][..],
        &["extract", strip, "--device", "cpu", "--json"],
        &["doctor", "--device", "cpu", "--json"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = medvision(arguments).stdout(full).output().unwrap();
        assert_failed(&output, &["cannot write to standard output: No space left"]);
    }
}

/// Lets `command` write files of at most `bytes`: writing more fails, as on a full disk, rather than ending the process.
fn with_full_disk(command: &mut Command, bytes: u64) -> &mut Command {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: between fork and exec only two system calls are made, on values that were copied before.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_trace_that_does_not_fit_the_disk_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    fs::write(&out, "the old one").unwrap();
    let strip = "tests/fixtures/pages/small_strip_labs.png";
    let mut command = medvision(&["trace", "--image", strip, "--device", "cpu", "--out", text(&out)]);
    assert_failed(
        &with_full_disk(&mut command, 1 << 16).output().unwrap(),
        &[text(&out), "File too large"],
    );
    assert_eq!(fs::read(&out).unwrap(), b"the old one");
    assert_eq!(names(folder.path()), ["out.safetensors"]);
}

#[test]
fn a_trace_of_a_bad_picture_or_to_a_bad_place_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let prose = folder.path().join("prose.png");
    fs::write(&prose, "This is no picture.").unwrap();
    let nowhere = folder.path().join("absent/out.safetensors");
    let out = folder.path().join("out.safetensors");
    for (image, out, parts) in [
        (text(&prose), text(&out), [text(&prose), "not a supported image"]),
        ("absent.png", text(&out), ["absent.png", "No such file"]),
        (
            SAMPLE,
            text(&nowhere),
            [text(nowhere.parent().unwrap()), "no such folder"],
        ),
        (
            SAMPLE,
            text(folder.path()),
            [text(folder.path()), "must name a file"],
        ),
    ] {
        let output = run(&["trace", "--image", image, "--device", "cpu", "--out", out]);
        assert_failed(&output, &parts);
    }
    assert_eq!(names(folder.path()), ["prose.png"]);
}
