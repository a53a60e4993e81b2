//! Data-parallel training, started as torchrun does.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Output};
use std::time::Duration;

use super::project::{CHECKPOINTS, TrainingProject, stderr};

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Starts rank `rank` of two, which meet at `port`.
fn start_rank(project: &TrainingProject, flags: &[&str], rank: u8, port: u16) -> Child {
    let mut command = project.command(flags);
    command
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", "2")
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string());
    command.spawn().unwrap()
}

/// Runs two ranks; returns their outputs by rank.
fn two_ranks(project: &TrainingProject, flags: &[&str]) -> Vec<Output> {
    let port = free_port();
    let ranks: Vec<Child> = (0..2)
        .map(|rank| start_rank(project, flags, rank, port))
        .collect();
    ranks
        .into_iter()
        .map(|rank| rank.wait_with_output().unwrap())
        .collect()
}

#[test]
fn a_rank_that_waits_for_the_other_ends_at_the_first_signal() {
    let project = TrainingProject::new(2);
    let port = free_port();
    let rank = start_rank(&project, &[], 0, port);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let process = i32::try_from(rank.id()).unwrap();
    // SAFETY: the process is this test's child and was not waited for.
    assert_eq!(unsafe { libc::kill(process, libc::SIGTERM) }, 0);
    let output = rank.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted"), "{}", stderr(&output));
}

#[test]
fn two_ranks_train_the_same_adapter_as_one_process() {
    let flags = [
        "--epochs",
        "2",
        "--eval-steps",
        "2",
        "--eval-documents",
        "2",
        "--lora-dropout",
        "0.1",
    ];
    let alone = TrainingProject::new(7);
    alone.succeed(&[&flags[..], &["--grad-accum-steps", "2"]].concat());
    let shared = TrainingProject::new(7);
    let outputs = two_ranks(&shared, &flags);
    for output in &outputs {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    }
    assert!(String::from_utf8_lossy(&outputs[0].stdout).contains("best validation"));
    assert!(
        outputs[1].stdout.is_empty() && outputs[1].stderr.is_empty(),
        "{}",
        stderr(&outputs[1])
    );
    let (ours, theirs) = (shared.metrics(), alone.metrics());
    assert_eq!(ours.effective_batch_size, Some(4));
    assert_eq!(ours.effective_batch_size, theirs.effective_batch_size);
    // Two batches per step: their gradients are summed in a single order, so that the result is bit-identical.
    assert!(shared.adapter() == alone.adapter(), "not the same adapter");
    assert_eq!(ours.loss_history.len(), theirs.loss_history.len());
    for (ours, theirs) in ours.loss_history.iter().zip(&theirs.loss_history) {
        assert!((ours.loss - theirs.loss).abs() < 1e-6, "{ours:?} {theirs:?}");
    }
    assert_eq!(ours.extra["processes"], 2);
}

#[test]
fn ranks_fail_together_and_start_over() {
    let project = TrainingProject::new(7);
    let flags = [
        "--epochs",
        "2",
        "--checkpoint-steps",
        "1",
        "--max-val-samples",
        "0",
        "--max-steps",
        "4",
    ];
    // A finished run removes its checkpoints, a failed one keeps them.
    let broken = [
        &flags[..],
        &[
            "--learning-rate",
            "1e30",
            "--max-grad-norm",
            "0",
            "--warmup-ratio",
            "0",
        ],
    ]
    .concat();
    for output in two_ranks(&project, &broken) {
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("not finite"), "{}", stderr(&output));
    }
    assert!(project.path(CHECKPOINTS).exists());
    for output in two_ranks(&project, &flags) {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    assert_eq!(project.metrics().loss_history.len(), 4);
}
