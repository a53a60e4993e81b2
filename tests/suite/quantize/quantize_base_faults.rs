//! `quantize_base` as it is shipped: records, kills, full disks, memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use medical_vision::Error;
use medical_vision::fs::{MANIFEST, Manifest};
use medical_vision::quantize::{
    Watch,
    nf4::{Nf4Options, REPORT, quantize_folder},
};
use medical_vision::records::{self, Nf4QuantizationConfig, QuantizationInfo};
use safetensors::{Dtype, tensor::TensorView};

use crate::suite::fixtures;
use crate::suite::program::without_variables;

const BINARY: &str = env!("CARGO_BIN_EXE_quantize_base");

fn command(root: &Path, model: &Path) -> Command {
    let mut command = without_variables(BINARY);
    command
        .args(["--device", "cpu", "--method", "nf4", "--root"])
        .arg(root)
        .arg("--model")
        .arg(model);
    command
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn record(root: &Path) -> QuantizationInfo {
    records::read(&root.join(records::paths::QUANTIZATION_INFO)).unwrap()
}

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano")
}

/// A model folder of `count` weights of `rows` x 1024 in bf16, which is quantized but not loaded: nothing else fits.
fn large_model(dir: &Path, count: usize, rows: usize) {
    fs::create_dir_all(dir).unwrap();
    for file in ["config.json", "preprocessor_config.json"] {
        fs::copy(fixtures().join("models/nested-bf16").join(file), dir.join(file)).unwrap();
    }
    let columns = 1024;
    let mut state = 1u32;
    let mut bytes = Vec::with_capacity(rows * columns * 2);
    for _ in 0..rows * columns {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = half::bf16::from_f32((state >> 8) as f32 / 1e8 - 0.08);
        bytes.extend(value.to_le_bytes());
    }
    let names: Vec<String> = (0..count)
        .map(|i| format!("model.layers.{i}.mlp.up_proj.weight"))
        .collect();
    let views = names.iter().map(|name| {
        (
            name,
            TensorView::new(Dtype::BF16, vec![rows, columns], &bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

/// Every file's bytes, but the report's, whose last digits a run that goes on may round anew, and the manifest's, which holds
/// its hash.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    named
        .filter(|(name, _)| name != MANIFEST && name != REPORT)
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect()
}

#[test]
fn the_embedded_model_is_quantized_recorded_and_loads() {
    let root = tempfile::tempdir().unwrap();
    let out = run(&mut command(root.path(), &nano()));
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let printed = text(&out.stdout);
    assert!(
        printed.contains("qwen25-vl-nano-bnb-nf4") && printed.contains("active: bitsandbytes_NF4"),
        "{printed}"
    );
    let (info, folder) = (
        record(root.path()),
        root.path().join("models/qwen25-vl-nano-bnb-nf4"),
    );
    let setup = &info.bnb_setup;
    assert!(setup.success && setup.error.is_none() && !info.awq_attempt.success);
    assert_eq!(info.active_method.as_deref(), Some("bitsandbytes_NF4"));
    assert_eq!(setup.total_params, Some(13_271_552));
    assert_eq!(setup.output_dir.as_deref(), Some(folder.to_str().unwrap()));
    assert!(setup.time_seconds.is_some() && setup.load_time_seconds.is_some());
    let error = &setup.extra["weight_error"];
    assert!(error["cosine"].as_f64().unwrap() > 0.99 && error["rmse"].as_f64().unwrap() > 0.0);
    // The weights at rest are the file's: four bits, and the embedding in 16.
    let bytes = fs::metadata(folder.join("model.safetensors")).unwrap().len();
    assert!(bytes < 11 << 20, "{bytes}");
    let config: Nf4QuantizationConfig = records::read(&folder.join("quantization_config.json")).unwrap();
    assert_eq!(
        (config.method.as_str(), config.config.load_in_4bit),
        ("bitsandbytes_NF4", true)
    );
    let manifest = Manifest::read(&folder).unwrap();
    assert!(manifest.complete && manifest.origin.source_revision.len() == 64);

    let before = fs::metadata(folder.join("model.safetensors")).unwrap().ino();
    let out = run(&mut command(root.path(), &nano()));
    assert!(text(&out.stdout).contains("up to date"), "{}", text(&out.stdout));
    assert_eq!(
        fs::metadata(folder.join("model.safetensors")).unwrap().ino(),
        before
    );
    // A file that was damaged is noticed and made again.
    let whole = fs::read(folder.join("model.safetensors")).unwrap();
    let mut damaged = whole.clone();
    damaged[100_000] ^= 1;
    fs::write(folder.join("model.safetensors"), damaged).unwrap();
    assert_eq!(run(&mut command(root.path(), &nano())).status.code(), Some(0));
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == whole);
}

#[test]
fn options_that_make_no_sense_are_usage_errors_without_a_record() {
    let root = tempfile::tempdir().unwrap();
    for (flags, word) in [
        (["--blocksize", "48"], "--blocksize"),
        (["--skip-modules", "no_such_layer"], "no_such_layer"),
        (["--quant-type", "int3"], "--quant-type"),
    ] {
        let out = run(command(root.path(), &nano()).args(flags));
        assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains(word), "{}", text(&out.stderr));
    }
    assert!(!root.path().join("benchmarks").exists() && !root.path().join("models").exists());
}

#[test]
fn memory_stays_below_three_times_the_largest_tensor() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("models/large-base");
    large_model(&model, 4, 16_384);
    let out = run(&mut command(root.path(), &model));
    // It cannot be loaded, which costs nothing of what was made.
    assert_eq!(out.status.code(), Some(1));
    let setup = record(root.path()).bnb_setup;
    let error = setup.error.unwrap();
    assert!(!setup.success && error.contains("large-bnb-nf4"), "{error}");
    let peak = setup.extra["peak_memory_mb"].as_f64().unwrap();
    assert!(peak < 3.0 * 32.0, "{peak} MiB for a tensor of 32 MiB");
    assert!(
        root.path()
            .join("models/large-bnb-nf4/model.safetensors")
            .is_file()
    );
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_half_and_the_next_run_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("models/large-base");
    large_model(&model, 5, 2048);
    let target = root.path().join("models/large-bnb-nf4");
    let shards = ["--file-mib", "4"];
    run(command(root.path(), &model).args(shards));
    let whole = contents(&target);
    assert!(whole.contains_key("model-00005-of-00005.safetensors"));
    for milliseconds in [40, 110, 160, 230] {
        fs::remove_dir_all(&target).unwrap();
        let mut child = command(root.path(), &model)
            .args(shards)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        if target.exists() {
            let manifest = Manifest::read(&target).unwrap();
            assert!(manifest.complete && manifest.intact(&target).len() == manifest.files.len());
        }
        run(command(root.path(), &model).args(shards));
        assert!(contents(&target) == whole, "after {milliseconds} ms");
        assert!(!root.path().join("models/large-bnb-nf4.partial").exists());
    }
}

#[test]
fn what_is_finished_is_not_made_again() {
    let root = tempfile::tempdir().unwrap();
    let (model, target) = (root.path().join("large"), root.path().join("made"));
    large_model(&model, 5, 512);
    let options = Nf4Options {
        file_mib: 1,
        ..Nf4Options::default()
    };
    let stop = AtomicBool::new(false);
    let done = std::sync::atomic::AtomicU64::new(0);
    let stop_at_third = |_| {
        if done.fetch_add(1, Ordering::Relaxed) == 2 {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let watch = Watch {
        stage: &|_, _, _| {},
        total: &|_| {},
        progress: &stop_at_third,
        stop: &stop,
    };
    let error = quantize_folder(&model, &target, &options, watch).unwrap_err();
    assert!(matches!(error, Error::Interrupted) && !target.exists());
    let partial = root.path().join("made.partial");
    let shard = |dir: &Path, i: u8| dir.join(format!("model-0000{i}-of-00005.safetensors"));
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let first = inode(&shard(&partial, 1));
    let second = fs::read(shard(&partial, 2)).unwrap();
    // The second is damaged in the meantime: it alone is made again.
    fs::write(shard(&partial, 2), b"torn").unwrap();
    stop.store(false, Ordering::Relaxed);
    quantize_folder(&model, &target, &options, watch).unwrap();
    assert_eq!(inode(&shard(&target, 1)), first, "it was made again");
    assert_eq!(fs::read(shard(&target, 2)).unwrap(), second);
}

#[test]
fn a_full_disk_is_an_error_and_the_next_run_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("models/large-base");
    large_model(&model, 1, 2048);
    let plain = command(root.path(), &model);
    // Files of more than 128 KiB cannot be written: what a full disk does, without filling one.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 256; exec \"$0\" \"$@\"", BINARY])
        .args(plain.get_args());
    let out = run(&mut limited);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    let error = record(root.path()).bnb_setup.error.unwrap();
    assert!(error.contains("model.safetensors"), "{error}");
    assert!(text(&out.stdout).contains(&error), "{}", text(&out.stdout));
    let target = root.path().join("models/large-bnb-nf4");
    assert!(!target.exists());
    let left = contents(&root.path().join("models/large-bnb-nf4.partial"));
    assert!(
        left.keys().all(|name| !name.contains("safetensors")),
        "{:?}",
        left.keys()
    );
    run(&mut command(root.path(), &model));
    assert!(target.join("model.safetensors").is_file());
}
