//! Runs that are killed at every rename: the next run writes the same bytes as an uninterrupted one.
//!
//! The child process is this test binary, which exits before the rename of a given number (see [`failpoint`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tch::Device;

use super::{
    BaseRun, Watch,
    awq::{self, AwqOptions},
    nf4::{self, Nf4Options},
    quantize_base,
};
use crate::benchmark::BenchmarkOptions;
use crate::data::CalibrationPage;
use crate::device::{DeviceChoice, select};
use crate::fs::failpoint;
use crate::processing::RgbPage;
use crate::project::Project;
use crate::records::{QuantizationInfo, paths, read};

const WORK: &str = "MEDVISION_TEST_KILLED_WORK";
const ROOT: &str = "MEDVISION_TEST_KILLED_ROOT";

/// Folder of the small model in a project.
const MODEL: &str = "models/small-base";
/// Decoder layers of the small model.
const LAYERS: usize = 2;

/// Writes the embedded model with two decoder layers and one vision block: fast, and its output does not matter.
fn small_model(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "chat_template.json",
    ] {
        fs::copy(nano.join(file), dir.join(file)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(nano.join("config.json")).unwrap()).unwrap();
    config["num_hidden_layers"] = json!(LAYERS);
    config["vision_config"]["depth"] = json!(1);
    config["vision_config"]["fullatt_block_indexes"] = json!([0]);
    fs::write(dir.join("config.json"), format!("{config:#}")).unwrap();
    let bytes = fs::read(nano.join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let number = |name: &str, prefix: &str| -> Option<usize> {
        name.strip_prefix(prefix)?.split('.').next()?.parse().ok()
    };
    let kept = all.iter().filter(|(name, _)| {
        number(name, "model.layers.").is_none_or(|layer| layer < LAYERS)
            && number(name, "visual.blocks.").is_none_or(|block| block < 1)
    });
    safetensors::serialize_to_file(kept, None, &dir.join("model.safetensors")).unwrap();
}

fn pages() -> Vec<CalibrationPage> {
    let (width, height) = (84, 56);
    vec![CalibrationPage {
        image: RgbPage::new(
            width,
            height,
            (0..width * height * 3).map(|i| (i * 7 % 251) as u8).collect(),
        ),
        prompt: "Read the page.".to_owned(),
        text: "Sodium 139 mmol/L\nPotassium 4.1 mmol/L".to_owned(),
    }]
}

/// The work that is killed, in the project `root`.
fn work(name: &str, root: &Path) {
    let model = root.join(MODEL);
    let nf4_options = Nf4Options {
        file_mib: 2,
        ..Nf4Options::default()
    };
    let awq_options = AwqOptions {
        rows: 32,
        ..AwqOptions::default()
    };
    match name {
        "nf4" => {
            let target = root.join("models/small-bnb-nf4");
            nf4::quantize_folder(&model, &target, &nf4_options, Watch::none()).unwrap();
        }
        "awq" => {
            let target = root.join("models/small-awq-int4");
            awq::quantize_folder(
                &model,
                &target,
                &awq_options,
                &pages(),
                Device::Cpu,
                Watch::none(),
            )
            .unwrap();
        }
        _ => {
            let project = Project::open(Some(root)).unwrap();
            let documents = BenchmarkOptions {
                documents: Some(root.join("documents.json")),
                max_new_tokens: 4,
                warm_up: false,
            };
            let run = BaseRun {
                project: &project,
                model: &model,
                selected: &select(DeviceChoice::Cpu).unwrap(),
                method: None,
                nf4: nf4_options,
                awq: awq_options,
                pages: 1,
                measured_pages: 1,
                documents: &documents,
            };
            let info = quantize_base(&run, Watch::none()).unwrap();
            assert!(info.bnb_setup.success && info.awq_attempt.success, "{info:?}");
        }
    }
}

/// Runs in a child process of the tests below.
#[test]
#[ignore = "a part of other tests"]
fn child() {
    let (Ok(name), Ok(root)) = (std::env::var(WORK), std::env::var(ROOT)) else {
        return;
    };
    // The order of summation must not depend on threads.
    tch::set_num_threads(1);
    work(&name, Path::new(&root));
    println!("renames: {}", failpoint::passed());
}

/// A project with the small model.
fn project() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    small_model(&root.path().join(MODEL));
    let document = json!({"id": "a", "filename": "a.png", "title": "A", "content": ["Sodium 139"], "prompt": "Read.",
                          "expected_terms": ["Sodium"], "expected_values": []});
    let documents = json!({"documents": [document]});
    fs::write(root.path().join("documents.json"), documents.to_string()).unwrap();
    root
}

/// Resets the project. Its folder is reused because output files contain its path.
fn empty(root: &Path) {
    let models = fs::read_dir(root.join("models"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let made = models.filter(|path| !path.ends_with("small-base"));
    for path in made.chain(["benchmarks", "datasets"].map(|folder| root.join(folder))) {
        if path.exists() {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

/// Runs the work `name` in `root` and returns the number of renames; with `kill` only up to that rename.
fn run(name: &str, root: &Path, kill: Option<u64>) -> u64 {
    // The test harness omits the crate's name.
    let child = format!("{}::child", module_path!().split_once("::").unwrap().1);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &child, "--ignored", "--nocapture"])
        .env(WORK, name)
        .env(ROOT, root)
        .stdin(Stdio::null());
    if let Some(kill) = kill {
        command.env(failpoint::VARIABLE, kill.to_string());
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match kill {
        Some(_) => {
            assert_eq!(output.status.code(), Some(137), "{said}");
            0
        }
        None => {
            assert!(
                output.status.success(),
                "{said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let line = said.lines().find_map(|line| line.split("renames: ").nth(1));
            line.unwrap_or_else(|| panic!("{said}")).trim().parse().unwrap()
        }
    }
}

/// All files below `dir` with their bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

fn assert_same(killed: &BTreeMap<PathBuf, Vec<u8>>, whole: &BTreeMap<PathBuf, Vec<u8>>, kill: u64) {
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(killed), names(whole), "killed at rename {kill}");
    for (name, bytes) in whole {
        assert!(
            killed[name] == *bytes,
            "{} after a kill at rename {kill}",
            name.display()
        );
    }
}

/// Kills the work at every rename and resumes it; the files must be those of an uninterrupted run.
fn killed_at_every_rename(name: &str) {
    let project = project();
    let root = project.path();
    let renames = run(name, root, None);
    let whole = files(&root.join("models"));
    assert!(
        renames > 15 && whole.len() > 10,
        "{renames} renames, {} files",
        whole.len()
    );
    for kill in 1..=renames {
        empty(root);
        run(name, root, Some(kill));
        run(name, root, None);
        assert_same(&files(&root.join("models")), &whole, kill);
    }
}

#[test]
fn nf4_killed_at_any_rename_resumes_to_the_same_folder() {
    killed_at_every_rename("nf4");
}

#[test]
fn awq_killed_at_any_rename_resumes_to_the_same_folder() {
    killed_at_every_rename("awq");
}

/// The record without figures that depend on time, memory or the run.
fn figures(root: &Path) -> Value {
    let info: QuantizationInfo = read(&root.join(paths::QUANTIZATION_INFO)).unwrap();
    let mut value = serde_json::to_value(info).unwrap();
    for part in ["bnb_setup", "awq_attempt"] {
        for key in [
            "time_seconds",
            "load_time_seconds",
            "vram_mb",
            "peak_memory_mb",
            "up_to_date",
            "output_dir",
        ] {
            value[part].as_object_mut().unwrap().remove(key);
        }
    }
    value.as_object_mut().unwrap().remove("base_model_dir");
    value
}

#[test]
fn measuring_killed_at_any_rename_resumes_without_repeating_finished_measurements() {
    let project = project();
    let root = project.path();
    let renames = run("base", root, None);
    let (whole, record) = (files(&root.join("models")), figures(root));
    assert_eq!(record["calibration"]["measured_pages"], 1);
    for part in ["bnb_setup", "awq_attempt"] {
        let figures = &record[part];
        assert!(
            figures["calibration"]["token_accuracy_pct"].is_number(),
            "{record:#}"
        );
        assert!(figures["documents"]["documents"].is_number(), "{record:#}");
    }
    // The next run removes the temporary file of a write that was killed.
    let left = || {
        files(&root.join("benchmarks"))
            .into_keys()
            .collect::<Vec<PathBuf>>()
    };
    assert_eq!(left(), [PathBuf::from("quantization_info.json")]);
    // The folders' renames are tested above; this test starts at the rename of the original's hidden states.
    let measuring = 12;
    let mut again = Vec::new();
    for kill in renames - measuring..=renames {
        empty(root);
        run("base", root, Some(kill));
        again.push(run("base", root, None));
        assert_same(&files(&root.join("models")), &whole, kill);
        assert_eq!(figures(root), record, "killed at rename {kill}");
        assert_eq!(
            left(),
            [PathBuf::from("quantization_info.json")],
            "killed at rename {kill}"
        );
    }
    // Finished work is not repeated: the later the kill, the fewer renames are left.
    assert!(again.is_sorted_by(|earlier, later| earlier >= later), "{again:?}");
    assert!(again[again.len() - 1] < measuring, "{again:?}");
}
