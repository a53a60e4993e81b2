//! `download_model` under faults: interrupted transfers, corrupt files, rate limits, kills.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::fake::{FakeHub, Fault};
use super::support::{
    MODEL, assert_complete, assert_holds, download_model, fail, folder, model_files, stderr, succeed,
    with_full_disk,
};

const SHARD: &str = "model-00001-of-00002.safetensors";

fn published() -> (FakeHub, tempfile::TempDir, Vec<(&'static str, Vec<u8>)>) {
    let hub = FakeHub::start();
    let files = model_files();
    hub.publish(MODEL, 'a', &files);
    (hub, tempfile::tempdir().unwrap(), files)
}

fn status(status: u16, headers: &[(&'static str, &str)]) -> Fault {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned()));
    Fault::Status(status, headers.collect())
}

#[test]
fn a_partial_file_is_resumed_by_range() {
    let (hub, root, files) = published();
    hub.fail(
        SHARD,
        [Fault::Truncate(100_000), Fault::Truncate(50_000), Fault::Reset],
    );
    succeed(&mut download_model(root.path(), &hub));
    assert_complete(&folder(root.path()), &files);
    let requests = hub.take_requests();
    let storage = requests
        .iter()
        .filter(|one| one.path.starts_with("/storage/") && one.path.contains(SHARD));
    let starts: Vec<_> = storage
        .map(|request| request.range_start().unwrap_or(0))
        .collect();
    assert_eq!(starts, [0, 100_000, 150_000, 150_000]);
}

#[test]
fn transient_faults_are_retried() {
    let (hub, root, files) = published();
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    hub.fail(
        "info",
        [
            status(500, &[]),
            status(429, &[("Retry-After", "0")]),
            Fault::Truncate(10),
            Fault::Reset,
        ],
    );
    hub.fail(
        SHARD,
        [
            status(429, &[("Retry-After", "0")]),
            status(429, &[("Retry-After", date)]),
            status(500, &[]),
            status(502, &[]),
            status(503, &[("Retry-After", "never")]),
            // Progress resets the retry count.
            Fault::Truncate(270_000),
            Fault::WrongRange,
            Fault::Truncate(1000),
            Fault::IgnoreRange,
        ],
    );
    // An expired signed URL: the hub gives a new one.
    hub.fail(
        "model-00002-of-00002.safetensors",
        [status(403, &[]), Fault::WrongLength(7), Fault::Corrupt],
    );
    hub.fail(
        "config.json",
        [Fault::Corrupt, Fault::Truncate(3), Fault::Corrupt],
    );
    succeed(download_model(root.path(), &hub).args(["--retries", "8"]));
    assert_complete(&folder(root.path()), &files);
    assert_eq!(hub.pending_faults(), 0);
}

#[test]
fn a_stalled_connection_is_a_failure() {
    let (hub, root, files) = published();
    hub.fail(SHARD, [Fault::Stall(10_000), Fault::Stall(0)]);
    hub.fail("info", [Fault::Stall(20)]);
    succeed(download_model(root.path(), &hub).args(["--stall-seconds", "0.2"]));
    assert_complete(&folder(root.path()), &files);
    hub.fail_always("config.json", Fault::Stall(3));
    fs::remove_dir_all(folder(root.path())).unwrap();
    fail(
        download_model(root.path(), &hub).args(["--stall-seconds", "0.1", "--retries", "1"]),
        &[
            "config.json",
            "the connection stalled",
            "2 attempts",
            "run the same command to resume",
        ],
    );
}

#[test]
fn a_trickle_is_a_failure_too() {
    let (hub, root, _) = published();
    hub.fail_always(SHARD, Fault::Slow(Duration::from_millis(150)));
    let mut command = download_model(root.path(), &hub);
    command.args(["--stall-seconds", "0.3", "--retries", "1"]);
    fail(&mut command, &[SHARD, "bytes received in", "2 attempts"]);
}

#[test]
fn a_redirect_loop_ends_with_an_error() {
    let (hub, root, _) = published();
    let circle = format!("/owner/tiny/resolve/{}/config.json", "a".repeat(40));
    hub.fail_always("config.json", status(302, &[("Location", circle.as_str())]));
    fail(
        &mut download_model(root.path(), &hub),
        &["config.json", "too many redirects"],
    );
    hub.fail_always("config.json", status(307, &[("Location", "file:///etc/passwd")]));
    fail(
        &mut download_model(root.path(), &hub),
        &["config.json", "redirects to an invalid location"],
    );
}

#[test]
fn corrupt_files_never_reach_their_final_path() {
    let (hub, root, files) = published();
    for fault in [Fault::Corrupt, Fault::WrongLength(1)] {
        hub.fail_always(SHARD, fault);
        fail(
            &mut download_model(root.path(), &hub),
            &[SHARD, "3 times", "discarded", "proxy"],
        );
        assert!(!folder(root.path()).exists());
    }
    hub.clear_faults();
    hub.announce_size(MODEL, "config.json", 5);
    fail(
        &mut download_model(root.path(), &hub),
        &["config.json", "the hub announces 5"],
    );
    assert!(!folder(root.path()).exists());
    hub.publish(MODEL, 'a', &files);
    succeed(&mut download_model(root.path(), &hub));
    assert_complete(&folder(root.path()), &files);
}

#[test]
fn a_run_that_exhausts_its_retries_is_resumed_by_the_next() {
    let (hub, root, files) = published();
    hub.fail(SHARD, [Fault::Truncate(200_000)]);
    hub.fail_always(SHARD, status(503, &[]));
    fail(
        download_model(root.path(), &hub).args(["--retries", "2"]),
        &[SHARD, "HTTP 503", "run the same command to resume"],
    );
    assert!(!folder(root.path()).exists());
    hub.clear_faults();
    hub.take_requests();
    succeed(&mut download_model(root.path(), &hub));
    assert_complete(&folder(root.path()), &files);
    let requests = hub.take_requests();
    let shard = requests
        .iter()
        .find(|one| one.path.starts_with("/storage/") && one.path.contains(SHARD));
    assert_eq!(shard.unwrap().range_start(), Some(200_000));
}

#[test]
fn a_requested_wait_beyond_the_limit_is_an_error() {
    let (hub, root, _) = published();
    hub.fail_always("info", status(429, &[("Retry-After", "86400")]));
    fail(
        &mut download_model(root.path(), &hub),
        &["retry after 86400 s", "HTTP 429"],
    );
}

#[test]
fn an_endpoint_that_is_not_a_hub_is_an_error() {
    let (hub, root, _) = published();
    let mut command = download_model(root.path(), &hub);
    command.args(["--retries", "1"]);
    // A port without a listener: bound and released.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    command.env("HF_ENDPOINT", format!("http://{free}"));
    fail(&mut command, &["cannot be reached", "could not connect"]);
    hub.fail_always("info", status(200, &[]));
    fail(
        &mut download_model(root.path(), &hub),
        &["is not valid", "HF_ENDPOINT"],
    );
}

#[test]
fn a_full_disk_is_an_error_and_the_next_run_resumes() {
    let (hub, root, files) = published();
    let mut command = download_model(root.path(), &hub);
    with_full_disk(&mut command, 100_000);
    fail(&mut command, &["File too large"]);
    assert!(!folder(root.path()).exists());
    assert!(!root.path().join("benchmarks/download_info.json").exists());
    succeed(&mut download_model(root.path(), &hub));
    assert_complete(&folder(root.path()), &files);
}

#[test]
fn a_killed_run_is_resumed_by_the_next() {
    let (hub, root, files) = published();
    for (name, _) in &files {
        hub.fail_always(name, Fault::Slow(Duration::from_millis(2)));
    }
    let (mut runs, mut resumed) = (0, 0);
    loop {
        let mut child = download_model(root.path(), &hub).spawn().unwrap();
        hub.wait_for("/api/");
        thread::sleep(Duration::from_millis(5 + 40 * runs));
        runs += 1;
        child.kill().unwrap();
        let status = child.wait().unwrap();
        // The folder appears only when it is complete.
        if folder(root.path()).exists() {
            assert_holds(&folder(root.path()), &files);
        }
        let requests = hub.take_requests();
        resumed += requests
            .iter()
            .filter(|request| request.range_start().is_some())
            .count();
        if status.code() == Some(0) {
            break;
        }
        assert!(runs < 200, "no progress");
    }
    assert!(runs > 2, "every run finished before it was killed");
    assert!(resumed > 0, "nothing was resumed in {runs} runs");
    assert_complete(&folder(root.path()), &files);
}

#[test]
fn a_second_run_for_the_same_folder_is_refused() {
    let (hub, root, files) = published();
    hub.fail_always("info", Fault::Stall(0));
    let mut first = download_model(root.path(), &hub).spawn().unwrap();
    hub.wait_for("/api/");
    fail(&mut download_model(root.path(), &hub), &["another download"]);
    first.kill().unwrap();
    first.wait().unwrap();
    hub.clear_faults();
    succeed(&mut download_model(root.path(), &hub));
    assert_complete(&folder(root.path()), &files);
}

/// Whether `folder` has a file of `size` bytes, at any depth.
fn has_file_of(folder: &Path, size: u64) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| match path.is_dir() {
        true => has_file_of(&path, size),
        false => fs::metadata(&path).is_ok_and(|metadata| metadata.len() == size),
    })
}

#[test]
fn ctrl_c_and_sigterm_exit_with_130_and_the_next_run_resumes() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let (hub, root, files) = published();
        hub.fail_always(SHARD, Fault::Stall(100_000));
        let child = download_model(root.path(), &hub).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !has_file_of(&root.path().join("models"), 100_000) {
            assert!(Instant::now() < deadline, "no partial file");
            thread::sleep(Duration::from_millis(5));
        }
        // SAFETY: the process is a child of this one and has not been waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
        let output = child.wait_with_output().unwrap();
        let messages = stderr(&output);
        assert_eq!(output.status.code(), Some(130), "signal {signal}: {messages}");
        assert!(messages.contains("interrupted"), "{messages}");
        assert!(!folder(root.path()).exists());

        hub.clear_faults();
        hub.take_requests();
        succeed(&mut download_model(root.path(), &hub));
        assert_complete(&folder(root.path()), &files);
        let requests = hub.take_requests();
        assert!(
            requests
                .iter()
                .any(|request| request.path.contains(SHARD) && request.range_start() == Some(100_000)),
            "not resumed"
        );
    }
}
