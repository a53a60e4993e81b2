//! `download_datasets`: from the hub, from local copies, with everything that published rows hold.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use medical_vision::data::{RawDataset, RawRecord, SkippedRows};
use serde_json::{Value, json};

use crate::suite::hub::fake::{FakeHub, Fault};
use crate::suite::hub::support::{bytes, fail, program, stderr, succeed, with_full_disk};

const ROCO: &str = "datasets/eltorio/ROCOv2-radiology";
const PATH_VQA: &str = "datasets/flaviagiammarino/path-vqa";
const PUBMED: &str = "datasets/FreedomIntelligence/PubMedVision";
const REPORTS: &str = "datasets/rungalileo/medical_transcription_40";

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/published")
        .join(name);
    fs::read(path).unwrap()
}

fn download(root: &Path, hub: &FakeHub, datasets: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_download_datasets"), root, hub);
    for dataset in datasets {
        command.args(["--dataset", dataset]);
    }
    command
}

fn raw(root: &Path, name: &str) -> RawDataset {
    let dataset = RawDataset::open(&root.join("datasets/raw").join(name))
        .unwrap()
        .expect("complete");
    dataset.verify().unwrap();
    let left = dataset
        .folder()
        .parent()
        .unwrap()
        .join(format!(".{name}.incoming"));
    assert!(!left.exists(), "something is left");
    dataset
}

fn records(dataset: &RawDataset) -> Vec<RawRecord> {
    dataset.records().unwrap().map(Result::unwrap).collect()
}

fn summary(root: &Path) -> Value {
    serde_json::from_slice(&fs::read(root.join("datasets/download_summary.json")).unwrap()).unwrap()
}

fn png(grey: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 8, 8);
    encoder.set_color(png::ColorType::Grayscale);
    encoder
        .write_header()
        .unwrap()
        .write_image_data(&[grey; 64])
        .unwrap();
    bytes
}

/// Returns a zip archive of images, the last of which is damaged.
fn archive(entries: &[(&str, Vec<u8>)], damaged: &str) -> Vec<u8> {
    let mut cursor = std::io::Cursor::new(Vec::new());
    let mut writer = zip::ZipWriter::new(&mut cursor);
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in entries {
        writer.start_file(*name, stored).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.start_file(damaged, stored).unwrap();
    writer.write_all(b"MARK of a picture").unwrap();
    writer.finish().unwrap();
    let mut bytes = cursor.into_inner();
    let at = bytes.windows(4).position(|window| window == b"MARK").unwrap();
    bytes[at] ^= 1;
    bytes
}

fn conversation(image: &str, answer: Value) -> Value {
    json!({"id": "x", "image": [image], "modality": "CT", "body_part": "abdomen", "conversations": [
        {"from": "human", "value": "<image>\nWhat is shown?"}, {"from": "gpt", "value": answer}]})
}

/// Starts a hub with every data set; ROCO is missing, its fallback PathVQA exists.
fn everything() -> (FakeHub, tempfile::TempDir) {
    let hub = FakeHub::start();
    let pictures = fixture("pictures.parquet");
    let path_vqa = [
        ("README.md", b"# rows".to_vec()),
        ("data/train-00000-of-00002.parquet", pictures.clone()),
        ("data/train-00001-of-00002.parquet", pictures.clone()),
        ("data/test-00000-of-00001.parquet", pictures),
    ];
    hub.publish(PATH_VQA, 'a', &path_vqa);
    let rows = json!([
        conversation("images/plain.png", json!("A plain file.")),
        conversation("images/zipped.png", json!("In an archive, under another folder.")),
        conversation("images/nowhere.png", json!("Nowhere.")),
        conversation("images/damaged.png", json!("Damaged.")),
        conversation("images/zipped.png", json!(null)),
        conversation("images/zipped.png", json!(7)),
        "no object",
        conversation("../../outside.png", json!("Outside.")),
        conversation("images/second.png", json!("In the second archive.")),
    ]);
    let filler = ("filler.bin", bytes(700_000, 7));
    let first = archive(&[filler, ("deep/zipped.png", png(1))], "deep/damaged.png");
    let second = archive(&[("images/second.png", png(2))], "none.png");
    let pubmed = [
        ("PubMedVision_Alignment_VQA.json", rows.to_string().into_bytes()),
        ("PubMedVision_InstructionTuning_VQA.json", b"[]".to_vec()),
        ("images/plain.png", png(3)),
        ("images_0.zip", first),
        ("images_1.zip", second),
    ];
    hub.publish(PUBMED, 'b', &pubmed);
    hub.publish(
        REPORTS,
        'c',
        &[("data/train-00000-of-00001.parquet", fixture("reports.parquet"))],
    );
    (hub, tempfile::tempdir().unwrap())
}

#[test]
fn every_data_set_is_downloaded_and_checked_row_by_row() {
    let (hub, root) = everything();
    let root = root.path();
    let table = succeed(&mut download(root, &hub, &[]));
    assert!(table.contains("3 data sets"), "{table}");

    let roco = raw(root, "roco");
    let manifest = roco.manifest();
    assert_eq!(
        (manifest.label.as_str(), manifest.source.as_str()),
        ("PathVQA", "flaviagiammarino/path-vqa")
    );
    assert_eq!(manifest.revision.as_deref(), Some("a".repeat(40).as_str()));
    assert_eq!(
        (manifest.rows, manifest.records, manifest.source_files.len()),
        (14, 6, 2)
    );
    let skipped = SkippedRows {
        without_text: 2,
        without_image: 2,
        broken_image: 4,
        malformed: 0,
    };
    assert_eq!(manifest.skipped, skipped);
    let kept = records(&roco);
    assert_eq!(
        kept.iter().map(|record| record.row).collect::<Vec<_>>(),
        [0, 1, 6, 7, 8, 13]
    );
    let names: Vec<_> = kept.iter().map(|record| record.image.clone().unwrap()).collect();
    assert_eq!(
        names[..3],
        ["images/000000.jpg", "images/000001.png", "images/000006.png"]
    );
    assert_eq!(kept[2].text, "a spleen");
    assert_eq!(kept[1].question.as_deref(), Some("what is 1?"));
    let first = fs::read(roco.image_path(&kept[0]).unwrap()).unwrap();
    assert!(first.starts_with(&[0xff, 0xd8]), "byte for byte a JPEG");

    let pubmed = raw(root, "pubmedvision");
    let kept = records(&pubmed);
    let texts: Vec<&str> = kept.iter().map(|record| record.text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "A plain file.",
            "In an archive, under another folder.",
            "In the second archive."
        ]
    );
    assert_eq!(fs::read(pubmed.image_path(&kept[1]).unwrap()).unwrap(), png(1));
    assert_eq!(kept[0].question.as_deref(), Some("What is shown?"));
    let skipped = SkippedRows {
        without_text: 1,
        without_image: 2,
        broken_image: 1,
        malformed: 2,
    };
    assert_eq!(pubmed.manifest().skipped, skipped);

    let reports = raw(root, "mtsamples");
    let texts: Vec<String> = records(&reports).into_iter().map(|record| record.text).collect();
    assert_eq!(
        texts,
        [
            "CHIEF COMPLAINT: cough.",
            "PLAN: aspirin 81 mg daily.",
            "µg and ≥ survive"
        ]
    );

    let summary = summary(root);
    assert_eq!(
        (&summary["total_successful"], &summary["total_samples"]),
        (&json!(3), &json!(12))
    );
    let names: Vec<_> = summary["datasets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(names, ["roco", "pubmedvision", "mtsamples"]);
    assert_eq!(summary["datasets"][0]["count"], 6);
    assert_eq!(summary["datasets"][0]["error"], Value::Null);

    // Only the needed ranges of the large archive were downloaded, and nothing was downloaded twice.
    hub.take_requests();
    let again = succeed(&mut download(root, &hub, &[]));
    assert!(again.contains("12 samples"), "{again}");
    let requests = hub.take_requests();
    assert!(
        requests.iter().all(|request| request.path.starts_with("/api/")),
        "{requests:?}"
    );
}

#[test]
fn a_row_limit_downloads_only_the_files_that_it_needs() {
    let (hub, root) = everything();
    hub.publish(
        ROCO,
        'd',
        &[
            ("train-0.parquet", fixture("pictures.parquet")),
            ("train-1.parquet", fixture("pictures.parquet")),
        ],
    );
    succeed(download(root.path(), &hub, &["roco"]).args(["--limit", "2"]));
    let roco = raw(root.path(), "roco");
    assert_eq!(
        (
            roco.manifest().label.as_str(),
            roco.manifest().rows,
            roco.manifest().records
        ),
        ("ROCO", 2, 2)
    );
    assert!(
        !hub.take_requests()
            .iter()
            .any(|request| request.is_for("train-1.parquet"))
    );
    // Another limit downloads the data set again.
    succeed(download(root.path(), &hub, &["roco"]).args(["--limit", "9"]));
    assert_eq!(raw(root.path(), "roco").manifest().rows, 9);
    // A damaged data set is downloaded again.
    fs::remove_file(root.path().join("datasets/raw/roco/images/000000.jpg")).unwrap();
    let output = download(root.path(), &hub, &["roco"])
        .args(["--limit", "9"])
        .output()
        .unwrap();
    assert!(
        output.status.success() && stderr(&output).contains("downloading it again"),
        "{}",
        stderr(&output)
    );
    raw(root.path(), "roco");
}

#[test]
fn two_of_three_data_sets_are_enough_and_one_is_not() {
    let (hub, root) = everything();
    hub.refuse(PUBMED, 403, "GatedRepo");
    let output = download(root.path(), &hub, &[]).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains("pubmedvision: FreedomIntelligence/PubMedVision is gated"),
        "{text}"
    );
    hub.refuse(REPORTS, 404, "RepoNotFound");
    let parts = ["no such repository", "too few datasets"];
    fs::remove_dir_all(root.path().join("datasets")).unwrap();
    fail(&mut download(root.path(), &hub, &[]), &parts);
    let summary = summary(root.path());
    assert_eq!(summary["total_successful"], 1);
    assert_eq!(summary["datasets"][2]["success"], false);
    assert!(
        summary["datasets"][2]["error"]
            .as_str()
            .unwrap()
            .contains("no such repository")
    );
    assert!(!root.path().join("datasets/raw/mtsamples").exists());
}

#[test]
fn pickled_rows_are_rejected() {
    let (hub, root) = everything();
    hub.publish(REPORTS, 'e', &[("data.pkl", b"pickle".to_vec())]);
    fail(
        &mut download(root.path(), &hub, &["mtsamples"]),
        &["pickle, which can run any code"],
    );
    fs::write(root.path().join("mtsamples.pt"), b"pickle").unwrap();
    let mut local = download(root.path(), &hub, &["mtsamples"]);
    fail(
        local.args(["--source", "mtsamples.pt"]),
        &["mtsamples.pt", "pickle"],
    );
}

#[test]
fn corruption_in_transit_is_retried_and_corruption_on_the_hub_is_an_error() {
    let (hub, root) = everything();
    let file = "data/train-00000-of-00001.parquet";
    hub.fail(file, [Fault::Corrupt, Fault::Truncate(100)]);
    succeed(&mut download(root.path(), &hub, &["mtsamples"]));
    let mut broken = fixture("reports.parquet");
    let middle = broken.len() / 2;
    broken[middle..].iter_mut().for_each(|byte| *byte ^= 0xff);
    hub.publish(REPORTS, 'f', &[(file, broken)]);
    fail(
        &mut download(root.path(), &hub, &["mtsamples"]),
        &["train-00000-of-00001.parquet", "damaged"],
    );
    // The existing data set is unchanged.
    assert!(is_complete(root.path(), "mtsamples"));
}

/// Like `raw`, but allows the staging folder of an interrupted run.
fn is_complete(root: &Path, name: &str) -> bool {
    let folder = root.join("datasets/raw").join(name);
    let found = RawDataset::open(&folder).unwrap();
    let complete = found.inspect(|dataset| dataset.verify().unwrap()).is_some();
    assert!(complete || !folder.exists(), "half a data set");
    complete
}

#[test]
fn a_killed_run_is_resumed_by_the_next() {
    let (hub, root) = everything();
    for file in [
        "data/train-00000-of-00002.parquet",
        "images_0.zip",
        "PubMedVision_Alignment_VQA.json",
    ] {
        hub.fail_always(file, Fault::Slow(Duration::from_millis(1)));
    }
    let names = ["roco", "pubmedvision", "mtsamples"];
    let mut runs = 0;
    loop {
        let mut child = download(root.path(), &hub, &[]).spawn().unwrap();
        hub.wait_for("/api/");
        hub.take_requests();
        thread::sleep(Duration::from_millis(20 + 100 * runs));
        runs += 1;
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let complete = names.iter().filter(|name| is_complete(root.path(), name)).count();
        if status.code() == Some(0) {
            assert_eq!(complete, 3);
            break;
        }
        assert!(runs < 60, "no progress");
    }
    assert!(runs > 1, "killed too late to tell anything");
    for name in names {
        raw(root.path(), name);
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_no_partial_data_set() {
    let (hub, root) = everything();
    let mut command = download(root.path(), &hub, &["roco"]);
    with_full_disk(&mut command, 1000);
    fail(&mut command, &["File too large"]);
    assert!(!root.path().join("datasets/raw/roco").exists());
    succeed(&mut download(root.path(), &hub, &["roco"]));
    raw(root.path(), "roco");
}

#[test]
fn offline_runs_verify_existing_data_sets() {
    let (hub, root) = everything();
    let offline = || {
        let mut command = download(root.path(), &hub, &["mtsamples"]);
        command.arg("--offline");
        command
    };
    fail(
        &mut offline(),
        &["offline", "mtsamples does not exist", "--source"],
    );
    assert_eq!(hub.take_requests().len(), 0);
    succeed(&mut download(root.path(), &hub, &["mtsamples"]));
    hub.take_requests();
    succeed(&mut offline());
    let file = root.path().join("datasets/raw/mtsamples/records.jsonl");
    let mut text = fs::read(&file).unwrap();
    text[20] ^= 1;
    fs::write(&file, text).unwrap();
    fail(&mut offline(), &["does not exist or is not complete"]);
    assert_eq!(hub.take_requests().len(), 0);
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Returns JSON lines as published: five reports, a blank one and a malformed line.
fn synthetic_reports() -> Vec<u8> {
    let mut text = String::new();
    for number in 0..5 {
        let report = format!("SUBJECTIVE: report {number} with 12.5 mg b.i.d.\n\nPLAN: none.");
        text += &json!({"id": number, "medical_specialty": "Letters", "sample_name": "x", "description": "y",
                        "transcription": report, "keywords": ""})
        .to_string();
        text.push('\n');
    }
    text += "{\"id\": 5, \"transcription\": \" \"}\n{broken\n";
    gzip(&text)
}

#[test]
fn a_local_copy_is_read_like_the_published_data_set() {
    let hub = FakeHub::start();
    let root = tempfile::tempdir().unwrap();
    let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/mtsamples.jsonl.gz");
    let copy = root.path().join("mtsamples.jsonl.gz");
    fs::write(&copy, synthetic_reports()).unwrap();
    let run = |source: &Path| {
        let mut command = download(root.path(), &hub, &["mtsamples"]);
        succeed(command.arg("--offline").arg("--source").arg(source))
    };
    run(&copy);
    let dataset = raw(root.path(), "mtsamples");
    let manifest = dataset.manifest();
    assert_eq!((manifest.rows, manifest.records), (7, 5));
    assert_eq!(
        (manifest.skipped.without_text, manifest.skipped.malformed),
        (1, 1)
    );
    assert_eq!(
        (manifest.source.as_str(), manifest.revision.as_ref()),
        ("local", None)
    );
    let first = &records(&dataset)[0];
    assert_eq!(
        first.text,
        "SUBJECTIVE: report 0 with 12.5 mg b.i.d.\n\nPLAN: none."
    );
    assert_eq!(first.specialty.as_deref(), Some("Letters"));
    // The folder that contains it is accepted, too; nothing is rebuilt.
    let written = fs::metadata(dataset.folder()).unwrap().modified().unwrap();
    run(root.path());
    assert_eq!(
        fs::metadata(dataset.folder()).unwrap().modified().unwrap(),
        written
    );
    if real.is_file() {
        run(&real);
        let dataset = raw(root.path(), "mtsamples");
        assert_eq!(dataset.manifest().rows, 4_999);
        let mut texts: Vec<String> = records(&dataset).into_iter().map(|record| record.text).collect();
        texts.sort();
        texts.dedup();
        assert!((2_300..=2_376).contains(&texts.len()), "{}", texts.len());
    }
    assert_eq!(hub.take_requests().len(), 0);
}

#[test]
fn local_folders_csv_files_and_unknown_names() {
    let hub = FakeHub::start();
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    };
    let rows = [
        conversation("images/a.png", json!("First.")),
        conversation("images/b.png", json!("In an archive.")),
    ];
    write(
        "copies/PubMedVision/PubMedVision_Alignment_VQA.json",
        json!(rows).to_string().as_bytes(),
    );
    write("copies/PubMedVision/images/a.png", &png(9));
    write(
        "copies/PubMedVision/images_0.zip",
        &archive(&[("b.png", png(8))], "c.png"),
    );
    write(
        "copies/path-vqa/data/train-0.parquet",
        &fixture("pictures.parquet"),
    );
    let csv = write(
        "table.csv",
        b",transcription,medical_specialty\n0,\"A report, with commas\nand lines\", Surgery\n",
    );
    let mut command = download(root.path(), &hub, &[]);
    let source = format!("mtsamples={}", csv.display());
    succeed(command.args(["--offline", "--source", "copies", "--source", &source]));
    assert_eq!(raw(root.path(), "pubmedvision").manifest().records, 2);
    assert_eq!(raw(root.path(), "roco").manifest().label, "PathVQA");
    let reports = records(&raw(root.path(), "mtsamples"));
    assert_eq!(reports[0].text, "A report, with commas\nand lines");

    let output = download(root.path(), &hub, &[])
        .args(["--source", "table.csv"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("write NAME=table.csv"),
        "{}",
        stderr(&output)
    );
    let mut absent = download(root.path(), &hub, &["roco"]);
    fail(
        absent.args(["--source", "roco=absent"]),
        &["absent: no such file or folder"],
    );
    let empty = write("empty/README.md", b"#");
    let source = format!("roco={}", empty.parent().unwrap().display());
    fail(
        download(root.path(), &hub, &["roco"]).args(["--source", &source]),
        &["contains no .parquet"],
    );
    let useless = write("roco.csv", b"caption,image\n,x\nsome text,absent.png\n");
    let mut command = download(root.path(), &hub, &["roco"]);
    fail(
        command.arg("--source").arg(useless),
        &["none of its 2 rows", "1 without text, 1 without image"],
    );
}
