//! `download_model` where all goes well, and where the answer is no.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::Value;

use super::fake::{FakeHub, Fault, checksum};
use super::support::{
    MODEL, assert_complete, download_model, fail, folder, model_files, safetensors, stderr, succeed, wanted,
};

fn published() -> (FakeHub, tempfile::TempDir, Vec<(&'static str, Vec<u8>)>) {
    let hub = FakeHub::start();
    let files = model_files();
    hub.publish(MODEL, 'a', &files);
    (hub, tempfile::tempdir().unwrap(), files)
}

fn json(path: std::path::PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_download_writes_all_files_a_manifest_and_a_record() {
    let (hub, root, files) = published();
    let summary = succeed(download_model(root.path(), &hub).env("HF_TOKEN", "hf_secret"));
    assert!(summary.contains("models/tiny: 6 files"), "{summary}");
    assert!(
        summary.contains(&"a".repeat(40)) && summary.contains("verified against: hub"),
        "{summary}"
    );
    assert_complete(&folder(root.path()), &files);

    let record = json(root.path().join("benchmarks/download_info.json"));
    assert_eq!(record["model_id"], "owner/tiny");
    assert_eq!(record["local_dir"], "models/tiny");
    assert!(record["download_time_seconds"].as_f64().unwrap() > 0.0);
    let total: usize = wanted(&files).map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(
        (&record["bytes"], &record["new_bytes"]),
        (&total.into(), &total.into())
    );
    assert_eq!(record["revision"], "a".repeat(40));

    let manifest = json(folder(root.path()).join("download_manifest.json"));
    for (name, bytes) in wanted(&files) {
        let listed = manifest["files"].as_array().unwrap();
        let file = listed.iter().find(|file| file["path"] == *name).unwrap();
        assert_eq!(file["sha256"], checksum("x.bin", bytes).to_string());
    }

    let requests = hub.take_requests();
    let with_token = |path: &str| {
        let mut of_path = requests.iter().filter(|request| request.path.starts_with(path));
        of_path.all(|request| request.headers.contains_key("authorization"))
    };
    assert!(with_token("/api/") && with_token("/owner/"));
    let storage = requests
        .iter()
        .filter(|request| request.path.starts_with("/storage/"));
    assert!(
        storage.clone().count() == 2
            && storage
                .clone()
                .all(|one| !one.headers.contains_key("authorization"))
    );
    assert!(
        !requests
            .iter()
            .any(|request| request.is_for("README.md") || request.is_for("training_args.bin"))
    );
}

#[test]
fn existing_files_are_verified_and_not_downloaded_again() {
    let (hub, root, mut files) = published();
    succeed(&mut download_model(root.path(), &hub));
    hub.take_requests();
    let summary = succeed(&mut download_model(root.path(), &hub));
    assert!(summary.contains("0.00 GiB downloaded"), "{summary}");
    assert_eq!(hub.take_requests().len(), 1, "the description alone");

    // One file is damaged locally, one changed on the hub, one was removed there: the first two are downloaded.
    fs::write(
        folder(root.path()).join("config.json"),
        "{\"model_type\": \"timy\"}",
    )
    .unwrap();
    files.retain(|(name, _)| *name != "empty.txt");
    let shard = files
        .iter_mut()
        .find(|(name, _)| name.starts_with("model-00002"))
        .unwrap();
    shard.1 = safetensors("b", 200_000, 3);
    hub.publish(MODEL, 'b', &files);
    succeed(&mut download_model(root.path(), &hub));
    assert_complete(&folder(root.path()), &files);
    let fetched: Vec<String> = hub
        .take_requests()
        .into_iter()
        .map(|request| request.path)
        .collect();
    // The description, and per file the redirect and the content.
    assert_eq!(fetched.len(), 1 + 2 + 2, "{fetched:?}");

    fail(
        download_model(root.path(), &hub).args(["--revision", &"a".repeat(40)]),
        &["has no revision", "omit --revision"],
    );
}

#[test]
fn access_errors_say_the_cause_and_the_next_step() {
    let (hub, root, _) = published();
    let attempt = |token: &str, parts: &[&str]| {
        hub.take_requests();
        fail(download_model(root.path(), &hub).env("HF_TOKEN", token), parts);
        assert_eq!(hub.take_requests().len(), 1, "no second attempt");
    };
    hub.refuse(MODEL, 403, "GatedRepo");
    attempt(
        "hf_x",
        &[
            "is gated",
            "accept its conditions at",
            "account that HF_TOKEN belongs to",
        ],
    );
    attempt("", &["is gated", "set HF_TOKEN"]);
    hub.refuse(MODEL, 401, "");
    attempt("", &["HTTP 401", "set HF_TOKEN to a read token"]);
    attempt("hf_x", &["HTTP 401", "HF_TOKEN is not valid"]);
    hub.refuse(MODEL, 404, "RepoNotFound");
    attempt(
        "",
        &[
            "no such repository",
            "private and HF_TOKEN is not set",
            "check the name",
        ],
    );
    assert!(!folder(root.path()).exists());
    assert!(!root.path().join("benchmarks/download_info.json").exists());
}

#[test]
fn offline_runs_send_no_request_and_verify_local_files() {
    let (hub, root, _) = published();
    let mut offline = download_model(root.path(), &hub);
    offline.env("HF_HUB_OFFLINE", "1");
    fail(&mut offline, &["models/tiny does not exist", "--source"]);
    assert_eq!(hub.take_requests().len(), 0);
    succeed(&mut download_model(root.path(), &hub));
    hub.take_requests();
    succeed(&mut offline);
    let shard = folder(root.path()).join("model-00001-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&shard, &bytes).unwrap();
    fail(&mut offline, &["model-00001-of-00002.safetensors", "is damaged"]);
    fs::remove_file(&shard).unwrap();
    fail(&mut offline, &["model-00001-of-00002.safetensors", "is missing"]);
    assert_eq!(hub.take_requests().len(), 0);
}

#[test]
fn a_local_copy_is_verified_by_the_metadata_of_the_hubs_tools() {
    let (hub, root, files) = published();
    // The hub's cache: links to blobs named by their checksums.
    let cache = root.path().join("cache");
    let (blobs, snapshot) = (cache.join("blobs"), cache.join("snapshots/abc"));
    fs::create_dir_all(&blobs).unwrap();
    for (name, bytes) in &files {
        let blob = blobs.join(checksum(name, bytes).to_string());
        fs::write(&blob, bytes).unwrap();
        let link = snapshot.join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(blob, link).unwrap();
    }
    let mut copy = download_model(root.path(), &hub);
    copy.arg("--source").arg(&snapshot);
    let summary = succeed(&mut copy);
    assert!(
        summary.contains("verified against: notes of the local copy"),
        "{summary}"
    );
    assert_complete(&folder(root.path()), &files);
    assert!(!folder(root.path()).join("config.json").is_symlink());

    let (name, bytes) = &files[5];
    let mut changed = bytes.clone();
    changed[1000] ^= 1;
    fs::write(blobs.join(checksum(name, bytes).to_string()), changed).unwrap();
    fs::remove_dir_all(folder(root.path())).unwrap();
    fail(&mut copy, &[name, "is damaged"]);
    assert!(!folder(root.path()).exists());
    assert_eq!(hub.take_requests().len(), 0);
}

#[test]
fn a_copy_without_metadata_is_verified_by_its_structure() {
    let (hub, root, files) = published();
    let source = root.path().join("copy");
    for (name, bytes) in &files {
        let path = source.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let mut copy = download_model(root.path(), &hub);
    copy.args(["--source", "copy"]);
    assert!(succeed(&mut copy).contains("verified against: structure"));
    fs::remove_dir_all(folder(root.path())).unwrap();
    fs::write(source.join(files[5].0), &files[5].1[..1000]).unwrap();
    fail(
        &mut copy,
        &["model-00001-of-00002.safetensors", "download it again"],
    );
}

#[test]
fn pickle_is_rejected_and_other_models_are_not_replaced() {
    let (hub, root, _) = published();
    let pickle = [
        ("config.json", b"{}".to_vec()),
        ("pytorch_model.bin", b"pickle".to_vec()),
    ];
    hub.publish("models/owner/pickled", 'c', &pickle);
    let mut pickled = download_model(root.path(), &hub);
    fail(
        pickled.args(["--model-id", "owner/pickled"]),
        &["pytorch_model.bin", "pickle", "can run any code"],
    );
    assert!(!root.path().join("models/pickled").exists());

    succeed(&mut download_model(root.path(), &hub));
    for name in ["tiny", "models/tiny"] {
        let mut other = download_model(root.path(), &hub);
        other.args(["--model-id", "owner/pickled", "--model", name]);
        fail(&mut other, &["models/tiny: holds owner/tiny", "--model"]);
    }
    let mut embedded = download_model(root.path(), &hub);
    fail(
        embedded.args(["--model", "qwen25-vl-nano"]),
        &["comes with the program"],
    );
}

#[test]
fn unsafe_names_are_rejected_before_anything_is_written() {
    let (hub, root, files) = published();
    for name in ["../evil.json", "/tmp/evil.json", "a/../../evil.json"] {
        let mut files = files.clone();
        files.push((name, b"evil".to_vec()));
        hub.publish(MODEL, 'a', &files);
        fail(
            &mut download_model(root.path(), &hub),
            &["evil.json", "is refused"],
        );
    }
    assert!(!folder(root.path()).exists());
    assert!(!root.path().join("evil.json").exists() && !root.path().join("models/evil.json").exists());
}

#[test]
fn too_little_disk_space_is_an_error_before_the_download() {
    let (hub, root, _) = published();
    hub.announce_size(MODEL, "config.json", 1 << 60);
    fail(
        &mut download_model(root.path(), &hub),
        &["not enough disk space", "needed", "free some"],
    );
    assert_eq!(hub.take_requests().len(), 1);
}

#[test]
fn an_invalid_setting_is_named() {
    let (hub, root, _) = published();
    for endpoint in ["not an address", "ftp://hub", "http://user:secret@hub"] {
        let text = fail(
            download_model(root.path(), &hub).env("HF_ENDPOINT", endpoint),
            &["HF_ENDPOINT"],
        );
        assert!(!text.contains("secret"), "{text}");
    }
    let output = download_model(root.path(), &hub)
        .arg("--jobs=0")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    fail(
        download_model(root.path(), &hub).args(["--model-id", "../x"]),
        &["OWNER/NAME"],
    );
}

#[test]
fn checksums_missing_from_the_list_are_requested_per_file() {
    let (hub, root, files) = published();
    hub.list_names_only(MODEL);
    succeed(&mut download_model(root.path(), &hub));
    assert_complete(&folder(root.path()), &files);
    let requests = hub.take_requests();
    assert!(
        requests
            .iter()
            .any(|request| request.method == "HEAD" && request.is_for("config.json"))
    );
}

#[test]
fn neither_the_token_nor_a_signed_url_is_shown() {
    let (hub, root, _) = published();
    hub.fail_always("model-00001-of-00002.safetensors", Fault::Truncate(5));
    let mut command = download_model(root.path(), &hub);
    command
        .args(["-vvv", "--retries", "1"])
        .env("HF_TOKEN", "hf_canary");
    let text = fail(&mut command, &["the connection"]);
    assert!(
        !text.contains("hf_canary") && !text.contains("signature=secret"),
        "{text}"
    );
}
