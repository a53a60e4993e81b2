//! `prepare_training_data` as a user runs it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::suite::program::without_variables;
use medical_vision::data::{RAW_FORMAT, RawManifest, RawRecord, RawWriter, SkippedRows, calibration_pages};
use medical_vision::processing::{DecodeLimits, decode};
use medical_vision::project::Project;
use medical_vision::prompts::PROMPTS;
use medical_vision::records::DataSample;
use medical_vision::rendering::{encode_grey, text_lines, text_page};
use medical_vision::synthetic::{empty_answer, whole_page_prompt};
use serde_json::Value;
use tempfile::TempDir;

const LISTS: [&str; 3] = ["train", "val", "test"];

fn command(root: &Path, arguments: &[&str]) -> Command {
    let mut command = without_variables(env!("CARGO_BIN_EXE_prepare_training_data"));
    command
        .args(arguments)
        .arg("--root")
        .arg(root)
        .stdin(Stdio::null());
    // Samples of the raw data sets only, unless a test enables generated ones.
    command.env("MVP_CLINICAL", "0");
    command
}

fn prepare(root: &Path, arguments: &[&str]) -> Output {
    command(root, arguments).output().unwrap()
}

fn stdout_of_success(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Returns a report whose text is distinct from that of every other number.
fn report(number: usize) -> String {
    let words = [
        "pain", "fever", "cough", "edema", "rash", "nausea", "tremor", "syncope",
    ];
    let lines = (0..3 + number % 9).map(|line| {
        let word = words[(number + line) % words.len()];
        format!("Section {line}: patient {number} denies {word}, takes {} mg twice a day and returns in {} weeks.", number * 7 + line, line + 1)
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn picture(number: usize) -> Vec<u8> {
    let mut file = Vec::new();
    encode_grey(&text_page(&[format!("picture {number}")]), &mut file).unwrap();
    file
}

fn record(row: usize, text: &str) -> RawRecord {
    RawRecord {
        row: row as u64,
        image: None,
        question: None,
        text: text.to_owned(),
        specialty: Some("General Medicine".to_owned()),
    }
}

fn raw(root: &Path, name: &str, label: &str, rows: Vec<(RawRecord, Option<Vec<u8>>)>) -> PathBuf {
    let folder = root.join("datasets/raw").join(name);
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    let mut writer = RawWriter::create(&folder).unwrap();
    let count = rows.len() as u64;
    for (record, image) in rows {
        writer
            .push(record, image.as_deref().map(|bytes| (bytes, "png")))
            .unwrap();
    }
    let manifest = RawManifest {
        format: RAW_FORMAT,
        name: name.to_owned(),
        label: label.to_owned(),
        source: "local".to_owned(),
        revision: None,
        source_files: Vec::new(),
        row_limit: None,
        rows: count,
        records: 0,
        skipped: SkippedRows::default(),
        records_sha256: String::new(),
        image_bytes: 0,
        tool: "test".to_owned(),
    };
    writer.finish(manifest).unwrap();
    folder
}

/// Creates a project with `different` reports, every third of which occurs twice.
fn project(different: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let again = (0..different).step_by(3);
    let texts = (0..different).chain(again).map(report);
    let rows = texts
        .enumerate()
        .map(|(row, text)| (record(row, &text), None))
        .collect();
    raw(folder.path(), "mtsamples", "MTSamples", rows);
    folder
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .unwrap()
}

fn list(root: &Path, name: &str) -> Vec<Value> {
    json(root.join(format!("datasets/formatted/{name}.json")))
        .as_array()
        .unwrap()
        .clone()
}

fn summary(root: &Path) -> Value {
    json(root.join("datasets/formatted/data_summary.json"))
}

/// Returns every file below `datasets/formatted`, by name.
fn formatted(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let folder = root.join("datasets/formatted");
    let mut files = BTreeMap::new();
    for folder in [folder.clone(), folder.join("images")] {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

#[test]
fn reports_become_pages_prompts_and_responses_in_three_splits() {
    let folder = project(300);
    let root = folder.path();
    let said = stdout_of_success(&prepare(root, &[]));
    assert!(said.starts_with("400 samples: "), "{said}");
    assert!(
        said.contains("300 distinct texts, 100 duplicates; 0 test samples"),
        "{said}"
    );
    assert!(said.contains("300 images created, 0 kept"), "{said}");
    let mut texts: Vec<HashSet<String>> = Vec::new();
    for name in LISTS {
        let samples = list(root, name);
        assert!(!samples.is_empty(), "{name}");
        for sample in &samples {
            assert_eq!(sample["source"], "MTSamples");
            assert!(PROMPTS.contains(&sample["prompt"].as_str().unwrap()));
            let page = fs::read(root.join(sample["image_path"].as_str().unwrap())).unwrap();
            let page = decode(&page, &DecodeLimits::default()).unwrap();
            assert_eq!(
                page,
                text_page(&text_lines(sample["response"].as_str().unwrap())).to_rgb()
            );
        }
        texts.push(
            samples
                .iter()
                .map(|sample| sample["response"].as_str().unwrap().to_owned())
                .collect(),
        );
    }
    assert!(
        texts[0].is_disjoint(&texts[1]) && texts[0].is_disjoint(&texts[2]) && texts[1].is_disjoint(&texts[2])
    );
    assert!((0..300).all(|number| texts.iter().any(|texts| texts.contains(&report(number)))));
    assert_eq!(
        calibration_pages(&Project::open(Some(root)).unwrap(), 3)
            .unwrap()
            .source,
        "training split"
    );
}

#[test]
fn the_first_hundred_distinct_texts_are_held_out_and_counted_separately() {
    let folder = project(300);
    let root = folder.path();
    stdout_of_success(&prepare(root, &[]));
    let unseen: HashSet<String> = list(root, "test")
        .iter()
        .filter(|sample| sample["unseen"] == true)
        .map(|sample| sample["response"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(unseen, (0..100).map(report).collect());
    for name in ["train", "val"] {
        assert!(
            list(root, name)
                .iter()
                .all(|sample| sample.get("unseen").is_none())
        );
    }
    let summary = summary(root);
    // 100 texts, of which 34 occur twice.
    assert_eq!(summary["unseen"]["samples"], 134);
    assert_eq!(summary["unseen"]["different_texts"], 100);
    assert_eq!(summary["unseen"]["source_counts"]["MTSamples"], 134);
    assert_eq!(summary["test"]["samples"], summary["test_count"]);
    assert_eq!(summary["duplicate_samples"], 100);
    assert_eq!(
        (&summary["random_seed"], &summary["split_ratio"]),
        (&42.into(), &"80/10/10".into())
    );
    let counts = ["train_count", "val_count", "test_count"].map(|key| summary[key].as_u64().unwrap());
    assert_eq!(counts.iter().sum::<u64>(), 400);
    assert_eq!(summary["total_samples"], 400);
    assert_eq!(counts[1], 40);
}

#[test]
fn the_original_split_reports_its_leakage() {
    let folder = project(300);
    let root = folder.path();
    let said = stdout_of_success(&prepare(root, &["--split", "original"]));
    let summary = summary(root);
    let counts = ["train_count", "val_count", "test_count"].map(|key| summary[key].as_u64().unwrap());
    assert_eq!(counts, [320, 40, 40]);
    let trained: HashSet<String> = list(root, "train")
        .iter()
        .map(|sample| sample["response"].to_string())
        .collect();
    let leaked = list(root, "test")
        .iter()
        .filter(|sample| trained.contains(&sample["response"].to_string()))
        .count();
    assert!(leaked > 0, "every third text occurs twice");
    assert_eq!(summary["test_samples_whose_text_is_trained_on"], leaked);
    assert!(
        said.contains(&format!(
            "{leaked} test samples whose text is in the training split"
        )),
        "{said}"
    );
}

#[test]
fn output_is_identical_for_any_number_of_threads() {
    let (one, two) = (project(60), project(60));
    stdout_of_success(&prepare(one.path(), &["--threads", "1"]));
    stdout_of_success(&prepare(two.path(), &["--threads", "4"]));
    let files = formatted(one.path());
    assert_eq!(files.len(), 64);
    assert_eq!(files, formatted(two.path()));
    let said = stdout_of_success(&prepare(one.path(), &[]));
    assert!(said.contains("up to date"), "{said}");
    assert_eq!(files, formatted(one.path()));
    // Another seed: other splits, the same pages.
    let said = stdout_of_success(&prepare(one.path(), &["--seed", "7"]));
    assert!(said.contains("0 images created, 60 kept"), "{said}");
    assert_ne!(
        files["datasets/formatted/train.json"],
        formatted(one.path())["datasets/formatted/train.json"]
    );
}

#[test]
fn a_run_after_a_kill_reuses_images_and_gives_the_same_output() {
    let undisturbed = project(240);
    stdout_of_success(&prepare(undisturbed.path(), &[]));
    let expected = formatted(undisturbed.path());
    let folder = project(240);
    let images = folder.path().join("datasets/formatted/images");
    let made = || {
        fs::read_dir(&images).map_or(0, |entries| {
            entries
                .filter(|entry| {
                    entry
                        .as_ref()
                        .is_ok_and(|entry| entry.file_name().to_string_lossy().ends_with(".png"))
                })
                .count()
        })
    };
    let mut killed = 0;
    for moment in [1, 60, 140] {
        let mut run = command(folder.path(), &["--threads", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while made() < moment && run.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        run.kill().unwrap();
        killed += usize::from(run.wait().unwrap().code().is_none());
        for (name, bytes) in formatted(folder.path()) {
            // A file with its final name is complete.
            if name.ends_with(".png") {
                assert_eq!(bytes, expected[&name], "{name}");
            }
        }
    }
    assert!(killed > 0, "at least the first run is killed at its first page");
    let before = made();
    let said = stdout_of_success(&prepare(folder.path(), &[]));
    assert!(
        said.contains(&format!("{} images created, {before} kept", 240 - before))
            || said.contains("up to date"),
        "{said}"
    );
    assert_eq!(formatted(folder.path()), expected);
}

#[test]
fn damaged_and_missing_images_are_created_again() {
    let folder = project(40);
    let root = folder.path();
    stdout_of_success(&prepare(root, &[]));
    let expected = formatted(root);
    let mut pages = expected.keys().filter(|name| name.ends_with(".png"));
    let (cut, gone) = (root.join(pages.next().unwrap()), root.join(pages.next().unwrap()));
    fs::write(&cut, &fs::read(&cut).unwrap()[..500]).unwrap();
    fs::remove_file(gone).unwrap();
    fs::write(
        root.join("datasets/formatted/images/mt_0000000000000000.png"),
        "of an older run",
    )
    .unwrap();
    fs::write(root.join("datasets/formatted/images/.medvision-x.tmp"), "half").unwrap();
    fs::write(root.join("datasets/formatted/images/mine.png"), "not ours").unwrap();
    let said = stdout_of_success(&prepare(root, &[]));
    assert!(said.contains("2 images created, 38 kept"), "{said}");
    let mut found = formatted(root);
    assert_eq!(
        found.remove("datasets/formatted/images/mine.png").unwrap(),
        b"not ours"
    );
    assert_eq!(found, expected);
    // An unreadable summary does not stop the run.
    fs::write(root.join("datasets/formatted/data_summary.json"), "{").unwrap();
    stdout_of_success(&prepare(root, &[]));
    assert_eq!(summary(root)["total_samples"], 54);
}

#[test]
fn a_full_disk_is_an_error_and_leaves_no_partial_files() {
    let folder = project(30);
    let mut limited = command(folder.path(), &[]);
    // SAFETY: between fork and exec there are only two system calls, which do not allocate.
    unsafe {
        limited.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: 1024,
                rlim_max: 1024,
            };
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let output = limited.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(
        message.contains("error: ") && message.contains("datasets/formatted/images/mt_"),
        "{message}"
    );
    assert!(formatted(folder.path()).is_empty(), "nothing is left");
    stdout_of_success(&prepare(folder.path(), &[]));
}

#[test]
fn rows_without_text_and_corrupt_images_are_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let caption = |number: usize| {
        format!("Chest radiograph number {number} shows an opacity of the left lower lobe, {number} cm.")
    };
    let asked = |row, text: &str| RawRecord {
        question: Some("What is shown?".to_owned()),
        ..record(row, text)
    };
    let vqa = vec![
        (asked(0, &caption(0)), Some(picture(0))),
        (asked(1, &caption(1)), Some(b"\x89PNG\r\n\x1a\nbroken".to_vec())),
        (asked(2, "yes"), Some(picture(2))),
        (asked(3, &caption(3)), Some(picture(3))),
        (asked(4, &caption(4)), Some(picture(0))),
        (record(5, &caption(5)), Some(picture(5))),
    ];
    let vqa = raw(root, "roco", "PathVQA", vqa);
    fs::remove_file(vqa.join("images/000003.png")).unwrap();
    raw(
        root,
        "mtsamples",
        "MTSamples",
        vec![
            (record(0, " \n "), None),
            (record(1, "too short"), None),
            (record(2, &report(2)), None),
            (record(3, &report(3)), None),
        ],
    );
    let output = prepare(root, &[]);
    let said = stdout_of_success(&output);
    assert!(
        stderr(&output).contains("datasets/raw/pubmedvision: not downloaded"),
        "{}",
        stderr(&output)
    );
    assert!(said.contains("MTSamples 2, PathVQA 3"), "{said}");
    let summary = summary(root);
    assert_eq!(
        summary["skipped"],
        serde_json::json!({"without_text": 1, "shorter_than_50_characters": 2, "broken_image": 2})
    );
    let samples: Vec<Value> = LISTS.iter().flat_map(|name| list(root, name)).collect();
    let vqa: Vec<&Value> = samples
        .iter()
        .filter(|sample| sample["source"] == "PathVQA")
        .collect();
    assert_eq!(vqa.len(), 3);
    for sample in vqa {
        let bytes = fs::read(root.join(sample["image_path"].as_str().unwrap())).unwrap();
        let number = if sample["response"] == caption(5) { 5 } else { 0 };
        assert_eq!(bytes, picture(number), "taken over as it is");
        assert_eq!(
            PROMPTS.contains(&sample["prompt"].as_str().unwrap()),
            number == 5,
            "a question of its own goes first"
        );
    }
    // Two questions about one image are one group.
    assert_eq!(summary["different_texts"], 4);
}

#[test]
fn an_invalid_raw_data_set_is_named_with_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let output = prepare(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("run download_datasets first"),
        "{}",
        stderr(&output)
    );
    assert!(!folder.path().join("datasets/formatted/train.json").exists());

    let folder = project(5);
    let records = folder.path().join("datasets/raw/mtsamples/records.jsonl");
    let text = fs::read_to_string(&records).unwrap();
    fs::write(&records, text.replacen("\"text\":", "\"txt\":", 1)).unwrap();
    let output = prepare(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(
        message.contains("records.jsonl: line 1: ") && message.contains("`text`"),
        "{message}"
    );
    assert!(
        !folder
            .path()
            .join("datasets/formatted/data_summary.json")
            .exists()
    );
}

#[test]
fn a_second_concurrent_run_is_refused() {
    let folder = project(5);
    let formatted = folder.path().join("datasets/formatted");
    fs::create_dir_all(&formatted).unwrap();
    let lock = fs::File::open(&formatted).unwrap();
    lock.try_lock().unwrap();
    let output = prepare(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("another prepare_training_data"),
        "{}",
        stderr(&output)
    );
}

/// The reports that the embedded model was not trained on are recognized by their text: the first hundred of the file.
#[test]
fn the_first_hundred_texts_of_the_published_collection_are_unseen() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/mtsamples.jsonl.gz");
    let Ok(file) = fs::File::open(file) else { return };
    let mut text = String::new();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    let texts: Vec<String> = text
        .lines()
        .take(260)
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["transcription"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let mut first: Vec<&String> = Vec::new();
    for text in &texts {
        if first.len() < 100 && !first.contains(&text) {
            first.push(text);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    // Reversed: the order of the reports does not matter.
    let rows = texts
        .iter()
        .rev()
        .enumerate()
        .map(|(row, text)| (record(row, text), None))
        .collect();
    raw(folder.path(), "mtsamples", "MTSamples", rows);
    stdout_of_success(&prepare(folder.path(), &[]));
    let beginning = |text: &str| text.chars().take(1500).collect::<String>();
    let unseen: HashSet<String> = list(folder.path(), "test")
        .iter()
        .filter(|sample| sample["unseen"] == true)
        .map(|sample| sample["response"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(unseen, first.iter().map(|text| beginning(text)).collect());
}

#[test]
fn clinical_pages_need_no_data_set_and_have_exact_answers() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let said = stdout_of_success(&prepare(root, &["--only-clinical", "--clinical", "40"]));
    assert!(
        said.starts_with("176 samples: 160 train, 8 val, 8 test (ClinicalDocuments 176)"),
        "{said}"
    );
    let mut tasks = HashSet::new();
    let mut texts: Vec<HashSet<String>> = Vec::new();
    for name in LISTS {
        let samples = list(root, name);
        for sample in &samples {
            let (prompt, response) = (
                sample["prompt"].as_str().unwrap(),
                sample["response"].as_str().unwrap(),
            );
            assert!(!prompt.is_empty() && !response.is_empty());
            tasks.insert(sample["task"].as_str().unwrap().to_owned());
            let page = fs::read(root.join(sample["image_path"].as_str().unwrap())).unwrap();
            let page = decode(&page, &DecodeLimits::default()).unwrap();
            assert!(page.width >= 84);
            if name != "train" {
                let items: Vec<&str> = sample["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|item| item.as_str().unwrap())
                    .collect();
                let answer = if items.is_empty() {
                    empty_answer().to_owned()
                } else {
                    items.join("\n")
                };
                assert_eq!(response, answer);
                // A label may have less text than a page, which has at least this height.
                let least = if page.height >= 560 { 4 } else { 0 };
                assert!(sample["text"].as_str().unwrap().lines().count() > least);
            }
        }
        texts.push(
            samples
                .iter()
                .map(|sample| sample["response"].as_str().unwrap().to_owned())
                // Headings are shared, and may be all the text of a label.
                .filter(|text| text != empty_answer() && text.len() > 40)
                .collect(),
        );
    }
    assert!(texts.iter().all(|texts| !texts.is_empty()));
    assert!(tasks.len() >= 8, "{tasks:?}");
    assert!(texts[0].is_disjoint(&texts[1]) && texts[0].is_disjoint(&texts[2]));
    let again = stdout_of_success(&prepare(root, &["--only-clinical", "--clinical", "40"]));
    assert!(again.contains("up to date"), "{again}");
}

#[test]
fn clinical_pages_are_shuffled_among_the_others_for_any_number_of_threads() {
    let (one, two) = (project(30), project(30));
    stdout_of_success(&prepare(one.path(), &["--clinical", "20", "--threads", "1"]));
    stdout_of_success(&prepare(two.path(), &["--clinical", "20", "--threads", "3"]));
    assert_eq!(formatted(one.path()), formatted(two.path()));
    let train = list(one.path(), "train");
    let generated = |samples: &[Value]| {
        samples
            .iter()
            .filter(|sample| sample["source"] == "ClinicalDocuments")
            .count()
    };
    assert_eq!(generated(&train), 80);
    let half = generated(&train[..train.len() / 2]);
    assert!((16..=64).contains(&half), "mixed, not appended: {half}");
    for sample in train.iter().filter(|sample| sample["source"] == "MTSamples") {
        // By the contract the response is the start of the report; the page's text is stored separately.
        assert_eq!(sample["task"], "transcribe");
        let sample: DataSample = serde_json::from_value(sample.clone()).unwrap();
        let (asked, answer) = sample.exchange();
        assert_eq!(asked, whole_page_prompt());
        let shown = text_lines(&sample.response).join("\n");
        assert_eq!(answer, shown);
    }
    // Another count generates other pages and removes the old ones.
    stdout_of_success(&prepare(one.path(), &["--clinical", "0"]));
    let left = formatted(one.path());
    assert!(left.keys().all(|name| !name.contains("clinical_")));
}
