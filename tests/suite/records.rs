//! The records' files: the original's are read without loss, broken ones are refused by name.

use std::fs;
use std::path::{Path, PathBuf};

use medical_vision::Result;
use medical_vision::records::{self, paths};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The original project's records.
pub fn original() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/records/original")
}

/// Reads a file as one kind of record and writes that to another.
type Copy = fn(&Path, &Path) -> Result<()>;

fn copy<T: Serialize + DeserializeOwned>(from: &Path, to: &Path) -> Result<()> {
    records::write(to, &records::read::<T>(from)?)
}

fn copy_list<T: Serialize + DeserializeOwned>(from: &Path, to: &Path) -> Result<()> {
    records::write_list(to, &records::read::<Vec<T>>(from)?)
}

/// Every record of the contract that a run leaves.
const RECORDS: [(&str, Copy); 13] = [
    (paths::ENVIRONMENT, copy::<records::Environment>),
    (paths::DOWNLOAD_INFO, copy::<records::DownloadInfo>),
    (paths::BASELINE_FP16, copy::<records::Benchmark>),
    (paths::QUANTIZED_INT4, copy::<records::Benchmark>),
    (paths::FINETUNED_STANDARD_BENCH, copy::<records::Benchmark>),
    (paths::QUANTIZATION_INFO, copy::<records::QuantizationInfo>),
    (
        "models/qwen25-vl-7b-bnb-nf4/quantization_config.json",
        copy::<records::Nf4QuantizationConfig>,
    ),
    (paths::DOWNLOAD_SUMMARY, copy::<records::DownloadSummary>),
    (paths::TRAIN, copy_list::<records::DataSample>),
    (paths::VAL, copy_list::<records::DataSample>),
    (paths::DATA_SUMMARY, copy::<records::DataSummary>),
    (paths::TRAINING_METRICS, copy::<records::TrainingMetrics>),
    (paths::EVALUATION_FINETUNED, copy::<records::EvaluationFinetuned>),
];

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Everything in `expected` is in `found`; numbers by value, since `2` and `2.0` are the same number.
fn contained(expected: &Value, found: &Value, at: &str) -> std::result::Result<(), String> {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => expected.iter().try_for_each(|(key, value)| {
            let there = found.get(key).ok_or_else(|| format!("{at}.{key} is lost"))?;
            contained(value, there, &format!("{at}.{key}"))
        }),
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            let mut pairs = expected.iter().zip(found).enumerate();
            pairs.try_for_each(|(index, (expected, found))| {
                contained(expected, found, &format!("{at}[{index}]"))
            })
        }
        (Value::Number(expected), Value::Number(found)) if expected.as_f64() == found.as_f64() => Ok(()),
        _ if expected == found => Ok(()),
        _ => Err(format!("{at}: {expected} became {found}")),
    }
}

#[test]
fn the_originals_records_come_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    for (name, copy) in RECORDS {
        let (from, to) = (original().join(name), folder.path().join(name));
        copy(&from, &to).unwrap();
        contained(&json(&from), &json(&to), name).unwrap();
        let text = fs::read_to_string(&to).unwrap();
        assert!(
            text.starts_with("{\n  \"") || text.starts_with("[\n  {\n    \""),
            "{name} is indented otherwise"
        );
    }
}

#[test]
fn a_written_record_names_its_version_and_keeps_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/folder/download_info.json");
    copy::<records::DownloadInfo>(&original().join(paths::DOWNLOAD_INFO), &path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with("{\n  \"model_id\": \"Qwen/Qwen2.5-VL-7B-Instruct\",\n  \"local_dir\""),
        "{text}"
    );
    assert!(text.ends_with("\n  \"record_version\": 1\n}\n"), "{text}");
}

/// The error that reading `text` as a baseline gives.
fn refusal(text: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("baseline_fp16.json");
    fs::write(&path, text).unwrap();
    let message = records::read::<records::Benchmark>(&path)
        .unwrap_err()
        .to_string();
    let place = format!("{}: ", path.display());
    message.strip_prefix(&place).expect(&message).to_owned()
}

#[test]
fn a_broken_record_is_refused_with_its_key() {
    let baseline = json(&original().join(paths::BASELINE_FP16));
    let with = |pointer: &str, value: Value| {
        let mut record = baseline.clone();
        *record.pointer_mut(pointer).unwrap() = value;
        refusal(record.to_string().as_bytes())
    };
    let message = with("/vram/post_load_mb/allocated_mb", "much".into());
    assert!(
        message.starts_with("\"vram.post_load_mb.allocated_mb\": invalid type: string"),
        "{message}"
    );
    let message = with("/inference_results/2/latency_seconds", Value::Null);
    assert!(
        message.starts_with("\"inference_results[2].latency_seconds\": invalid type: null"),
        "{message}"
    );
    let mut record = baseline.clone();
    record.as_object_mut().unwrap().remove("model_name");
    let message = refusal(record.to_string().as_bytes());
    assert!(message.contains("missing field `model_name`"), "{message}");
}

#[test]
fn a_file_that_is_no_record_is_refused_with_its_line() {
    let whole = fs::read(original().join(paths::BASELINE_FP16)).unwrap();
    let message = refusal(&whole[..whole.len() / 2]);
    assert!(
        message.starts_with("not valid JSON: EOF while parsing") && message.contains("line"),
        "{message}"
    );
    assert!(refusal(b"").starts_with("not valid JSON: EOF"));
    assert!(refusal(b"[]").contains("invalid type: sequence"));
    assert!(refusal(b"{\"model_name\": \"\xff\"}").starts_with("not UTF-8"));
    // Python writes this; JSON does not know it.
    assert!(refusal(b"{\"final_loss\": NaN}").starts_with("not valid JSON"));
    assert!(refusal(&b"[".repeat(100_000)).starts_with("not valid JSON: recursion limit"));
}

#[test]
fn a_newer_programs_record_is_refused_with_the_way_out() {
    let message = refusal(b"{\"record_version\": 2}");
    assert!(
        message.contains("\"record_version\" is 2, this program knows 1: a newer program wrote it"),
        "{message}"
    );
    for version in ["0", "-1", "1.5", "\"1\"", "null"] {
        let message = refusal(format!("{{\"record_version\": {version}}}").as_bytes());
        assert!(message.contains("must be a whole number"), "{message}");
    }
}

#[test]
fn a_missing_record_is_told_from_a_broken_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("environment.json");
    let read = records::read_if_present::<records::Environment>;
    assert_eq!(read(&path).unwrap(), None);
    let message = records::read::<records::Environment>(&path)
        .unwrap_err()
        .to_string();
    assert!(message.contains("environment.json"), "{message}");
    // Reading a folder or a pipe would fail or never end.
    fs::create_dir(&path).unwrap();
    assert!(
        read(&path)
            .unwrap_err()
            .to_string()
            .contains("expected a regular file")
    );
}

#[test]
fn a_record_that_cannot_be_written_leaves_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("download_info.json");
    copy::<records::DownloadInfo>(&original().join(paths::DOWNLOAD_INFO), &path).unwrap();
    let old = fs::read(&path).unwrap();
    struct Unwritable;
    impl Serialize for Unwritable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }
    records::write(&path, &Unwritable).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), old);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Any number that JSON can hold and f64 can keep.
fn number() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("finite", |number| number.is_finite())
}

/// What a mutation puts in.
#[derive(Debug, Clone)]
struct Noise {
    numbers: Vec<f64>,
    counts: Vec<u32>,
    texts: Vec<String>,
    unknown: Value,
}

fn noise() -> impl Strategy<Value = Noise> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let unknown = leaf.prop_recursive(3, 12, 4, |inner| {
        let list = proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from);
        let object = proptest::collection::btree_map("\\PC{0,8}", inner, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()));
        prop_oneof![list, object]
    });
    (
        proptest::collection::vec(number(), 5),
        proptest::collection::vec(any::<u32>(), 5),
        proptest::collection::vec(any::<String>(), 5),
        unknown,
    )
        .prop_map(|(numbers, counts, texts, unknown)| Noise {
            numbers,
            counts,
            texts,
            unknown,
        })
}

/// Other values of the same types everywhere, and an unknown key in every object.
fn disturb(value: &mut Value, noise: &Noise, seen: &mut usize) {
    *seen += 1;
    let pick = *seen;
    match value {
        Value::Object(map) => {
            // Maps of the user's own keys, whose values all have one type.
            let free = map.contains_key("PathVQA") || map.contains_key("torch");
            map.values_mut().for_each(|value| disturb(value, noise, seen));
            if !free {
                map.insert(format!("unknown {pick}"), noise.unknown.clone());
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| disturb(value, noise, seen)),
        Value::Number(number) if number.is_f64() => *value = noise.numbers[pick % 5].into(),
        Value::Number(_) => *value = noise.counts[pick % 5].into(),
        Value::String(_) => *value = noise.texts[pick % 5].clone().into(),
        Value::Bool(flag) => *flag ^= pick.is_multiple_of(2),
        Value::Null => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_goes_into_a_record_comes_out(noise in noise()) {
        let folder = tempfile::tempdir().unwrap();
        for (name, copy) in RECORDS {
            let mut record = json(&original().join(name));
            disturb(&mut record, &noise, &mut 0);
            let (from, once, twice) =
                (folder.path().join("from"), folder.path().join("once"), folder.path().join("twice"));
            fs::write(&from, record.to_string()).unwrap();
            copy(&from, &once).map_err(|error| TestCaseError::fail(format!("{name}: {error}")))?;
            contained(&record, &json(&once), name).map_err(TestCaseError::fail)?;
            copy(&once, &twice).unwrap();
            prop_assert_eq!(fs::read(&once).unwrap(), fs::read(&twice).unwrap(), "{}", name);
        }
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        fs::write(&path, &bytes).unwrap();
        let _ = records::read::<Map<String, Value>>(&path);
        for (_, copy) in RECORDS {
            let _ = copy(&path, &folder.path().join("copy.json"));
        }
    }
}
