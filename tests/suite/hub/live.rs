//! What the live hub does beside serving files: rate limits, renamed repositories, expiring URLs, and no network.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fake::{FakeHub, Fault, checksum};
use super::support::{
    MODEL, assert_complete, bytes, download_model, fail, folder, model_files, program, stderr, succeed,
};

const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];
const PUBMED: &str = "datasets/FreedomIntelligence/PubMedVision";

fn published() -> (FakeHub, tempfile::TempDir, Vec<(&'static str, Vec<u8>)>) {
    let (hub, files) = (FakeHub::start(), model_files());
    hub.publish(MODEL, 'a', &files);
    (hub, tempfile::tempdir().unwrap(), files)
}

fn rate_limited(seconds: u32) -> Fault {
    let headers = vec![
        ("RateLimit", format!("\"resolvers\";r=0;t={seconds}")),
        (
            "RateLimit-Policy",
            "\"fixed window\";\"resolvers\";q=3000;w=300".to_owned(),
        ),
    ];
    Fault::Status(429, headers)
}

#[test]
fn an_exhausted_rate_limit_pauses_all_transfers_and_is_shown_once() {
    let (hub, root, files) = published();
    for shard in SHARDS {
        hub.fail(&format!("resolve {shard}"), [rate_limited(1)]);
    }
    let start = Instant::now();
    let output = download_model(root.path(), &hub).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "one second more than the hub requests"
    );
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("exhausted")).collect();
    // A second transfer that starts after the first one's wait is limited, too.
    let waits = u32::try_from(lines.len()).unwrap();
    assert!((1..=2).contains(&waits), "{text}");
    assert!(start.elapsed() >= Duration::from_secs(2) * waits, "{text}");
    for part in [
        "the rate limit of 3000 requests (resolvers) per 300 s",
        "next attempt in 2 s",
        "HF_TOKEN",
    ] {
        assert!(lines[0].contains(part), "{text}");
    }
    assert_eq!(hub.pending_faults(), 0);
    assert_complete(&folder(root.path()), &files);
}

#[test]
fn a_wait_of_a_whole_window_is_accepted() {
    let (hub, root, _) = published();
    hub.fail_always("info", rate_limited(300));
    let mut child = download_model(root.path(), &hub).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("next attempt in 301 s"), "{line}");
}

/// Publishes rows that refer to `pictures` images in two archives, each image followed by `beside` other bytes.
fn archives(hub: &FakeHub, pictures: usize, beside: usize) {
    let mut picture = Vec::new();
    let mut encoder = png::Encoder::new(&mut picture, 8, 8);
    encoder.set_color(png::ColorType::Grayscale);
    encoder
        .write_header()
        .unwrap()
        .write_image_data(&[7; 64])
        .unwrap();
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let archive = |half: usize| {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for i in (0..pictures).filter(|i| i % 2 == half) {
            writer.start_file(format!("images/{i:05}.png"), stored).unwrap();
            writer.write_all(&picture).unwrap();
            writer.start_file(format!("images/other{i}.png"), stored).unwrap();
            writer.write_all(&bytes(beside, i as u64)).unwrap();
        }
        writer.finish().unwrap().into_inner()
    };
    // Shuffled: rows are seldom in the order of the archive.
    let rows: Vec<Value> = (0..pictures)
        .map(|i| (i * 7919) % pictures)
        .map(|i| {
            json!({"id": "x", "image": [format!("images/{i:05}.png")], "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Grey."}]})
        })
        .collect();
    let files = [
        (
            "PubMedVision_Alignment_VQA.json",
            Value::from(rows).to_string().into_bytes(),
        ),
        ("images_0.zip", archive(0)),
        ("images_1.zip", archive(1)),
    ];
    hub.publish(PUBMED, 'b', &files);
}

fn pubmed(root: &Path, hub: &FakeHub) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_download_datasets"), root, hub);
    command.args(["--dataset", "pubmedvision"]);
    command
}

fn count(root: &Path) -> Value {
    let summary = fs::read(root.join("datasets/download_summary.json")).unwrap();
    serde_json::from_slice::<Value>(&summary).unwrap()["datasets"][0]["count"].clone()
}

#[test]
fn two_thousand_archived_images_take_a_few_dozen_requests() {
    let (hub, root) = (FakeHub::start(), tempfile::tempdir().unwrap());
    archives(&hub, 2000, 20_000);
    succeed(&mut pubmed(root.path(), &hub));
    assert_eq!(count(root.path()), 2000);
    let requests = hub.take_requests();
    for archive in ["images_0.zip", "images_1.zip"] {
        let asked = requests.iter().filter(|request| request.is_for(archive));
        let (storage, resolved): (Vec<_>, Vec<_>) = asked.partition(|request| request.is_for_storage());
        assert_eq!(resolved.len(), 1, "the signed address is kept");
        assert!(storage.len() <= 20, "{} requests", storage.len());
    }
}

#[test]
fn an_expired_signed_url_is_requested_again() {
    let (hub, root) = (FakeHub::start(), tempfile::tempdir().unwrap());
    archives(&hub, 200, 100_000);
    hub.expire_urls_after(3);
    succeed(pubmed(root.path(), &hub).args(["--retries", "0"]));
    assert_eq!(count(root.path()), 200);
    let requests = hub.take_requests();
    let resolved = requests
        .iter()
        .filter(|request| request.is_for("images_0.zip") && !request.is_for_storage());
    assert!(resolved.count() > 1);
}

#[test]
fn a_failure_cancels_all_readers_without_a_panic() {
    let (hub, root) = (FakeHub::start(), tempfile::tempdir().unwrap());
    archives(&hub, 100, 1000);
    // One archive waits minutes for its next attempt, the other does not exist.
    hub.fail_always("images_0.zip", Fault::Reset);
    let gone = Fault::Status(404, vec![("X-Error-Code", "EntryNotFound".to_owned())]);
    hub.fail_always("resolve images_1.zip", gone);
    let start = Instant::now();
    let mut command = pubmed(root.path(), &hub);
    command.env("MVP_RETRY_SECONDS", "50").args(["--retries", "100"]);
    let text = fail(&mut command, &["lists \"images_1.zip\" but does not serve it"]);
    assert!(
        !text.contains("internal error") && !text.contains("panicked"),
        "{text}"
    );
    assert!(
        start.elapsed() < Duration::from_secs(40),
        "it waited for the other reader"
    );
}

/// An address that never accepts a connection: its backlog is full.
fn black_hole() -> (String, Vec<std::net::TcpStream>, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // SAFETY: a system call on an open socket; it sets the smallest backlog.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let mut queue = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        queue.push(stream);
        assert!(queue.len() < 1000, "no end of the queue");
    }
    (format!("http://{address}"), queue, listener)
}

#[test]
fn without_network_one_line_says_what_to_do() {
    let (hub, root, _) = published();
    let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (hole, _queue, _listener) = black_hole();
    for endpoint in [format!("http://{refused}"), "http://hub.invalid".to_owned(), hole] {
        for datasets in [false, true] {
            let mut command = match datasets {
                true => program(env!("CARGO_BIN_EXE_download_datasets"), root.path(), &hub),
                false => download_model(root.path(), &hub),
            };
            command
                .env("HF_ENDPOINT", &endpoint)
                .env("MVP_RETRY_SECONDS", "1");
            let start = Instant::now();
            let output = command.output().unwrap();
            let (text, elapsed) = (stderr(&output), start.elapsed());
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
            for part in [
                endpoint.as_str(),
                "cannot be reached",
                "--source",
                "--offline",
                "HTTPS_PROXY",
            ] {
                assert!(text.contains(part), "no {part} in: {text}");
            }
            // 5 s on an idle machine; the stall timeout is 30 s.
            assert!(elapsed < Duration::from_secs(25), "{elapsed:?}: {text}");
        }
    }
    // An unreachable proxy counts as no network.
    let mut command = download_model(root.path(), &hub);
    command.env("http_proxy", format!("http://{refused}"));
    fail(&mut command, &["cannot be reached", "HTTPS_PROXY"]);
}

#[test]
fn redirects_of_renamed_repositories_and_mirrors_are_followed() {
    let (hub, root, files) = published();
    hub.rename("old/name", "owner/tiny");
    succeed(download_model(root.path(), &hub).env("MVP_MODEL_ID", "old/name"));
    assert_complete(&root.path().join("models/name"), &files);
    let (hub, root, files) = published();
    hub.act_as_mirror("/huggingface");
    let mut command = download_model(root.path(), &hub);
    command.env("HF_ENDPOINT", format!("{}/huggingface/", hub.endpoint()));
    succeed(&mut command);
    assert_complete(&folder(root.path()), &files);
}

#[test]
fn errors_quote_the_hubs_own_message() {
    let (hub, root, _) = published();
    hub.refuse(MODEL, 401, "");
    let mut command = download_model(root.path(), &hub);
    fail(
        command.env("HF_TOKEN", "hf_wrong"),
        &[
            "HTTP 401 \"Invalid credentials in Authorization header\"",
            "HF_TOKEN is not valid",
        ],
    );
    hub.refuse(MODEL, 403, "Disabled");
    fail(
        &mut download_model(root.path(), &hub),
        &["Access to this resource is disabled."],
    );
    hub.refuse(MODEL, 403, "GatedRepo");
    fail(
        &mut download_model(root.path(), &hub),
        &["owner/tiny is gated", "accept its conditions"],
    );
}

#[test]
fn programs_and_hidden_files_are_not_downloaded() {
    let (hub, root, files) = published();
    let mut more = files.clone();
    for name in [
        "modeling_qwen.py",
        ".git/config",
        "sub/.git/hooks/post-checkout",
        "setup.sh",
    ] {
        more.push((name, b"run me".to_vec()));
    }
    hub.publish(MODEL, 'b', &more);
    succeed(&mut download_model(root.path(), &hub));
    assert_complete(&folder(root.path()), &files);
    let requests = hub.take_requests();
    assert!(
        !requests
            .iter()
            .any(|request| request.path.contains(".git/") || request.path.contains(".py"))
    );
}

/// A folder in the layout of the hub's cache: `models--owner--tiny`.
fn cache(root: &Path, files: &[(&'static str, Vec<u8>)]) -> PathBuf {
    let cache = root.join("hub/models--owner--tiny");
    let snapshot = cache.join("snapshots").join("c".repeat(40));
    for folder in [cache.join("blobs"), cache.join("refs"), snapshot.clone()] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(cache.join("refs/main"), "c".repeat(40)).unwrap();
    for (name, bytes) in files {
        let blob = cache.join("blobs").join(checksum(name, bytes).to_string());
        fs::write(&blob, bytes).unwrap();
        let link = snapshot.join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&blob, link).unwrap();
    }
    cache
}

#[test]
fn a_folder_of_the_hubs_cache_is_a_local_copy() {
    let (hub, root, files) = published();
    let cache = cache(root.path(), &files);
    succeed(download_model(root.path(), &hub).args(["--source", "hub/models--owner--tiny"]));
    assert_complete(&folder(root.path()), &files);
    let manifest: Value =
        serde_json::from_slice(&fs::read(folder(root.path()).join("download_manifest.json")).unwrap())
            .unwrap();
    assert_eq!(manifest["commit"], "c".repeat(40));
    assert_eq!(manifest["checked_against"], "notes of the local copy");
    assert!(hub.take_requests().is_empty());
    // As --model it is read in place: errors name the file in the snapshot.
    let mut check = program(env!("CARGO_BIN_EXE_download_model"), root.path(), &hub);
    fail(
        check.args(["--check", "--model", "hub/models--owner--tiny"]),
        &["snapshots/cccc", "config.json", "model_type"],
    );
    // A damaged blob does not match its name.
    fs::remove_dir_all(folder(root.path())).unwrap();
    let blob = fs::read_link(cache.join("snapshots").join("c".repeat(40)).join(SHARDS[0])).unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    fail(
        download_model(root.path(), &hub).args(["--source", "hub/models--owner--tiny"]),
        &[SHARDS[0], "is damaged"],
    );
}

#[test]
fn a_named_pipe_is_rejected_without_blocking() {
    let (hub, root, files) = published();
    let copy = root.path().join("copy");
    fs::create_dir(&copy).unwrap();
    for (name, bytes) in files.iter().filter(|(name, _)| !name.contains('/')) {
        fs::write(copy.join(name), bytes).unwrap();
    }
    let config = copy.join("config.json");
    fs::remove_file(&config).unwrap();
    let status = Command::new("mkfifo").arg(&config).status().unwrap();
    assert!(status.success());
    let mut check = program(env!("CARGO_BIN_EXE_download_model"), root.path(), &hub);
    fail(
        check.args(["--check", "--source", "copy"]),
        &["config.json", "FIFO", "regular file"],
    );
}
