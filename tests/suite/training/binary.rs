//! `finetune_lora` as a program: training, outputs, messages; kills, full disks, bad input.

use std::fs;
use std::os::unix::process::CommandExt;

use medical_vision::lora::Adapter;
use medical_vision::records;
use serde_json::Value;

use super::project::{ADAPTER, CHECKPOINTS, TrainingProject, damage, killed, stderr};

#[test]
fn a_short_run_lowers_the_loss_and_writes_all_outputs() {
    let project = TrainingProject::new(8);
    let output = project.succeed(&[
        "--epochs",
        "8",
        "--eval-documents",
        "1",
        "--eval-steps",
        "8",
        "--warmup-ratio",
        "0",
    ]);
    let metrics = project.metrics();
    let first = metrics.extra["initial_loss"].as_f64().unwrap();
    let (last, steps) = (metrics.final_loss.unwrap(), metrics.loss_history.len());
    assert!(last < first / 2.0, "{first} -> {last}");
    assert_eq!(steps, 32);
    let validations = metrics.extra["validations"].as_array().unwrap();
    let loss = |validation: &Value| validation["loss"].as_f64().unwrap();
    assert_eq!(validations.len(), 4);
    assert!(loss(&validations[3]) < loss(&validations[0]));
    assert!(validations[3]["document_accuracy_pct"].is_number());
    let accuracy = |validation: &Value| validation["token_accuracy_pct"].as_f64().unwrap();
    assert!(accuracy(&validations[3]) > accuracy(&validations[0]));
    assert_eq!(metrics.trainable_params, Some(project_parameters(&project)));
    assert_eq!(
        (metrics.batch_size, metrics.effective_batch_size),
        (Some(2), Some(2))
    );
    assert_eq!(
        (metrics.training_samples, metrics.val_samples),
        (Some(8), Some(2))
    );
    assert_eq!(metrics.epochs_completed, Some(8.0));
    // 13,271,552 weights of the model, whose output head is its embedding.
    assert_eq!(
        metrics.total_params.unwrap() - metrics.trainable_params.unwrap(),
        13_271_552
    );
    assert_eq!(metrics.extra["options"]["lora_rank"], 4);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("qwen25-vl-nano-medical-lora") && text.contains("best validation"),
        "{text}"
    );
    let log = project.path("benchmarks/training");
    let lines = fs::read_to_string(log.join("metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 32 + 4);
    for line in lines.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    assert!(
        fs::read_to_string(log.join("loss.svg"))
            .unwrap()
            .contains("<polyline")
    );
    let events = fs::read_dir(&log).unwrap().flatten();
    assert_eq!(
        events
            .filter(|entry| entry.file_name().to_string_lossy().contains("tfevents"))
            .count(),
        1
    );
    assert!(!project.path(CHECKPOINTS).exists(), "a finished run removes them");
}

fn project_parameters(project: &TrainingProject) -> u64 {
    Adapter::read(&project.path(ADAPTER)).unwrap().parameters()
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let flags = [
        "--epochs",
        "3",
        "--checkpoint-steps",
        "1",
        "--eval-steps",
        "4",
        "--lora-dropout",
        "0.1",
    ];
    let unbroken = TrainingProject::new(7);
    unbroken.succeed(&flags);
    let broken = TrainingProject::new(7);
    let resumed = [&flags[..], &["--resume"]].concat();
    for (step, flags) in [(1, &flags[..]), (5, &resumed), (9, &resumed)] {
        let output = broken.interrupt(flags, step, libc::SIGKILL);
        assert!(killed(&output), "{}", stderr(&output));
    }
    broken.succeed(&resumed);
    assert!(broken.adapter() == unbroken.adapter(), "not the same adapter");
    let (ours, theirs) = (broken.metrics(), unbroken.metrics());
    assert_eq!(ours.loss_history, theirs.loss_history);
    assert_eq!(ours.extra["validations"], theirs.extra["validations"]);
    let steps = |project: &TrainingProject| -> Vec<u64> {
        let lines = fs::read_to_string(project.path("benchmarks/training/metrics.jsonl")).unwrap();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| line["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps(&broken), steps(&unbroken));
}

#[test]
fn ctrl_c_and_sigterm_leave_a_checkpoint() {
    let project = TrainingProject::new(8);
    let flags = [
        "--epochs",
        "50",
        "--checkpoint-steps",
        "1",
        "--max-val-samples",
        "0",
    ];
    let output = project.interrupt(&flags, 2, libc::SIGINT);
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("--resume"), "{}", stderr(&output));
    assert!(!project.path(records::paths::TRAINING_METRICS).exists());
    let before = *project.checkpoints().last().unwrap();
    // The number of epochs must match.
    let error = project.fail(&["--epochs", "2", "--max-val-samples", "0", "--resume"]);
    assert!(error.contains("epochs 50, this run 2"), "{error}");
    let output = project.interrupt(&[&flags[..], &["--resume"]].concat(), before + 1, libc::SIGTERM);
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(&format!("resuming after step {before}")),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_broken_checkpoint_is_reported_and_the_previous_one_used() {
    let project = TrainingProject::new(6);
    let flags = [
        "--epochs",
        "9",
        "--checkpoint-steps",
        "1",
        "--max-val-samples",
        "0",
    ];
    let output = project.interrupt(&flags, 3, libc::SIGKILL);
    assert!(killed(&output));
    let steps = project.checkpoints();
    let [.., before, newest] = steps[..] else {
        panic!("{steps:?}")
    };
    let file = |step: u64, name: &str| {
        project
            .path(CHECKPOINTS)
            .join(format!("step-{step:06}"))
            .join(name)
    };
    damage(&file(newest, "state.safetensors"));
    let resumed = [
        "--epochs",
        "9",
        "--checkpoint-steps",
        "100",
        "--max-val-samples",
        "0",
        "--resume",
    ];
    let output = project.succeed(&resumed);
    let said = stderr(&output);
    assert!(said.contains("is broken; trying the previous one"), "{said}");
    assert!(said.contains(&format!("resuming after step {before} ")), "{said}");
    // All of them.
    let output = project.interrupt(&flags, 2, libc::SIGKILL);
    assert!(killed(&output));
    for step in project.checkpoints() {
        fs::write(file(step, "manifest.json"), "{}").unwrap();
    }
    fs::remove_file(project.path(records::paths::TRAINING_METRICS)).unwrap();
    let error = project.fail(&resumed);
    assert!(error.contains("all checkpoints are broken"), "{error}");
}

#[test]
fn a_full_disk_ends_the_run_and_keeps_the_checkpoint_before() {
    let project = TrainingProject::new(6);
    let flags = [
        "--epochs",
        "9",
        "--checkpoint-steps",
        "1",
        "--max-val-samples",
        "0",
    ];
    assert!(killed(&project.interrupt(&flags, 1, libc::SIGKILL)));
    let before = project.checkpoints();
    // No file may grow beyond 64 KiB: writing fails as on a full disk.
    let mut command = project.command(&[&flags[..], &["--resume"]].concat());
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: 64 << 10,
                rlim_max: 64 << 10,
            };
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            Ok(())
        })
    };
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("state.safetensors"),
        "{}",
        stderr(&output)
    );
    assert!(!project.path(records::paths::TRAINING_METRICS).exists());
    assert!(
        before.iter().any(|step| project.checkpoints().contains(step)),
        "{before:?}"
    );
    let halves = fs::read_dir(project.path(CHECKPOINTS)).unwrap().flatten();
    assert_eq!(
        halves
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(".partial"))
            .count(),
        0
    );
    project.succeed(&[&flags[..], &["--resume"]].concat());
}

#[test]
fn unusable_data_is_named() {
    let project = TrainingProject::new(4);
    let once = ["--epochs", "1", "--max-val-samples", "0"];
    // One missing page is tolerated.
    fs::remove_file(project.path("datasets/formatted/images/1.png")).unwrap();
    let output = project.succeed(&once);
    assert!(
        stderr(&output).contains("1 with a missing or broken page"),
        "{}",
        stderr(&output)
    );
    let metrics = project.metrics();
    assert_eq!(metrics.training_samples, Some(3));
    assert_eq!(metrics.extra["left_out"]["broken_page"], 1);
    assert!(metrics.subsample_note.unwrap().contains("3 of 4"));
    // One answer is too long: skipped and counted.
    let mut samples: Vec<Value> = (0..4).map(|i| project.sample(i)).collect();
    samples[2]["response"] = Value::from("word ".repeat(200));
    project.write_split("train", &samples);
    let output = project.succeed(&[
        "--epochs",
        "1",
        "--max-val-samples",
        "0",
        "--max-seq-length",
        "100",
    ]);
    assert!(
        stderr(&output).contains("1 longer than 100 tokens"),
        "{}",
        stderr(&output)
    );
    assert_eq!(project.metrics().extra["left_out"]["too_long"], 1);
    fs::remove_file(project.path(records::paths::TRAINING_METRICS)).unwrap();
    let error = project.fail(&["--max-seq-length", "10"]);
    assert!(
        error.contains("no usable samples") && error.contains("--max-seq-length"),
        "{error}"
    );
    // Two broken pages of four are too many.
    fs::write(project.path("datasets/formatted/images/1.png"), "not a picture").unwrap();
    fs::remove_file(project.path("datasets/formatted/images/3.png")).unwrap();
    let error = project.fail(&once);
    assert!(
        error.contains("2 of 4 samples") && error.contains("images/1.png"),
        "{error}"
    );
    project.write_split("train", &[]);
    let error = project.fail(&once);
    assert!(
        error.contains("train.json: has no samples; create it with prepare_training_data"),
        "{error}"
    );
    fs::remove_file(project.path("datasets/formatted/train.json")).unwrap();
    let error = project.fail(&once);
    assert!(
        error.contains("there is no such file; create it with prepare_training_data"),
        "{error}"
    );
    fs::remove_file(project.path("models/qwen25-vl-nano-bnb-nf4")).unwrap();
    let error = project.fail(&once);
    assert!(
        error.contains("qwen25-vl-nano-bnb-nf4") && error.contains("run quantize_base"),
        "{error}"
    );
    let usage = project.run(&["--lora-dropout", "2"]);
    assert_eq!(usage.status.code(), Some(2), "{}", stderr(&usage));
}

#[test]
fn non_finite_gradients_are_skipped_and_end_the_run() {
    let project = TrainingProject::new(6);
    let flags = [
        "--learning-rate",
        "1e30",
        "--max-grad-norm",
        "0",
        "--warmup-ratio",
        "0",
        "--epochs",
        "9",
    ];
    let error = project.fail(&[&flags[..], &["--max-val-samples", "0"]].concat());
    assert!(
        error.contains("not finite") && error.contains("--learning-rate"),
        "{error}"
    );
    assert!(!project.path(ADAPTER).exists());
    let lines = fs::read_to_string(project.path("benchmarks/training/metrics.jsonl")).unwrap();
    assert!(lines.contains("\"skipped\":true"), "{lines}");
}

#[test]
fn the_unquantized_base_and_gradient_checkpointing_train_too() {
    let project = TrainingProject::new(4);
    let flags = [
        "--epochs",
        "2",
        "--base",
        "bf16",
        "--freeze-vision",
        "--warmup-ratio",
        "0",
    ];
    project.succeed(&flags);
    let plain = project.adapter();
    let metrics = project.metrics();
    assert_eq!(
        metrics.total_params.unwrap() - metrics.trainable_params.unwrap(),
        13_271_552
    );
    let adapter = Adapter::read(&project.path(ADAPTER)).unwrap();
    assert!(adapter.pairs.keys().all(|name| !name.starts_with("visual.")));
    project.succeed(&[&flags[..], &["--gradient-checkpointing"]].concat());
    assert!(project.adapter() == plain, "recomputation is exact");
    assert_eq!(project.metrics().extra["gradient_checkpointing"], true);
}

#[test]
fn early_stopping_ends_a_run_without_improvement() {
    let project = TrainingProject::new(4);
    // This rate changes nothing: the first validation stays the best.
    let flags = [
        "--epochs",
        "50",
        "--eval-steps",
        "1",
        "--patience",
        "2",
        "--learning-rate",
        "1e-30",
        "--warmup-ratio",
        "0",
    ];
    project.succeed(&flags);
    let metrics = project.metrics();
    assert_eq!(metrics.extra["steps"], 3);
    assert_eq!(metrics.extra["best_validation"]["step"], 1);
}

#[test]
fn the_page_size_is_saved_with_the_adapter_and_the_previous_adapter_kept() {
    let project = TrainingProject::new(2);
    let flags = ["--epochs", "1", "--max-val-samples", "0"];
    let output = project.run(&[&flags[..], &["--min-pixels", "100000", "--max-pixels", "50000"]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("min_pixels"), "{}", stderr(&output));
    project.succeed(&[&flags[..], &["--min-pixels", "100000"]].concat());
    assert_eq!(project.metrics().extra["max_enlargement"], 1.5);
    let output = project.run(
        &[
            &flags[..],
            &["--min-pixels", "100000", "--max-enlargement", "0.5"],
        ]
        .concat(),
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("max_enlargement"), "{}", stderr(&output));
    let bound = |folder: &str| {
        let images = Adapter::read(&project.path(folder)).unwrap().images;
        images.map(|images| images.min_pixels())
    };
    assert_eq!(bound(ADAPTER), Some(100_000));
    assert_eq!(project.metrics().extra["min_pixels"], 100_000);
    let output = project.succeed(&flags);
    let previous = format!("{ADAPTER}.previous");
    assert!(stderr(&output).contains(&previous), "{}", stderr(&output));
    assert_eq!((bound(ADAPTER), bound(&previous)), (None, Some(100_000)));
}

#[test]
fn training_initializes_from_an_adapter_with_the_same_settings() {
    let project = TrainingProject::new(4);
    let flags = ["--epochs", "1", "--max-val-samples", "0", "--warmup-ratio", "0"];
    project.succeed(&flags);
    let first = project.adapter();
    let kept = project.path("models/first-lora");
    fs::rename(project.path(ADAPTER), &kept).unwrap();
    // This rate changes nothing: the result is the initial adapter.
    let still = [
        "--init-adapter",
        "first-lora",
        "--learning-rate",
        "1e-30",
        "--weight-decay",
        "0",
    ];
    project.succeed(&[&flags[..], &still].concat());
    assert!(project.adapter() == first);
    fs::remove_file(project.path(records::paths::TRAINING_METRICS)).unwrap();
    for (other, words) in [
        (&["--lora-rank", "2"][..], ["rank", "scale"]),
        (
            &["--target-modules", "q_proj"],
            ["mlp.down_proj", "not a target module"],
        ),
        (
            &[
                "--target-modules",
                "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,qkv",
            ],
            ["qkv", "no pair"],
        ),
    ] {
        let error = project.fail(&[&flags[..], &["--init-adapter", "first-lora"], other].concat());
        assert!(
            error.contains("first-lora: cannot initialize from this adapter")
                && words.iter().all(|word| error.contains(word)),
            "{error}"
        );
    }
    let error = project.fail(&[&flags[..], &["--init-adapter", "none-such"]].concat());
    assert!(error.contains("none-such"), "{error}");
    // An adapter of a base with other shapes.
    let config = project.path("models/first-lora/adapter_model.safetensors");
    let tensors = tch::Tensor::read_safetensors(&config).unwrap();
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let tensor = if name.ends_with("layers.0.self_attn.q_proj.lora_A.weight") {
                tensor.narrow(1, 0, 8).contiguous()
            } else {
                tensor
            };
            (name, tensor)
        })
        .collect();
    tch::Tensor::write_safetensors(&tensors, &config).unwrap();
    let error = project.fail(&[&flags[..], &["--init-adapter", "first-lora"]].concat());
    assert!(
        error.contains("layers.0.self_attn.q_proj\" has 8 inputs"),
        "{error}"
    );
}
