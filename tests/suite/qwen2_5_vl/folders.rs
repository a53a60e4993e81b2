//! Model folders as they are put together elsewhere: YaRN, a head beside a tied embedding, two sets of weights
//! (tests/fixtures/makers/folders.py).

use std::fs;
use std::path::{Path, PathBuf};

use medical_vision::checkpoint::Checkpoint;
use medical_vision::engine::{LoadOptions, Reader, folder_warnings};
use medical_vision::quant::Quantization;
use medical_vision::qwen2_5_vl::{Config, LogitsToKeep, Model, ModelOptions, Packed, Sequence};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::goldens::{TOLERANCE, check_folder, goldens, grids, ids, load, max_abs, tensors};
use crate::suite::program::{ModelCopy, code, golden_page, run, stderr, stdout, text};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn copy(model: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/models")
        .join(model);
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn edit(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// The tensors of `model.safetensors`, changed.
fn change_weights(dir: &Path, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
    let path = dir.join("model.safetensors");
    let mut all = Tensor::read_safetensors(&path).unwrap();
    change(&mut all);
    Tensor::write_safetensors(&all, &path).unwrap();
}

pub fn yarn_folder() -> tempfile::TempDir {
    let dir = copy("untied-flat-sharded");
    edit(dir.path(), |config| {
        config["rope_scaling"] = json!({
            "type": "yarn", "mrope_section": [2, 3, 3], "factor": 4.0, "original_max_position_embeddings": 512
        });
    });
    dir
}

/// Logits of a text's ids in one pass.
fn prefilled(model: &Model, ids: &[i64]) -> Tensor {
    let mut cache = model.cache(ids.len()).unwrap();
    let prefill = model
        .prefill(ids, None, &[], &mut cache, LogitsToKeep::All)
        .unwrap();
    model.logits(&prefill.hidden).unwrap()
}

#[test]
fn yarn_computes_what_transformers_computes() {
    let dir = yarn_folder();
    for case in ["ragged", "text"] {
        let plain = goldens("untied-flat-sharded", case);
        let mut golden = tensors(&format!("goldens/folders-yarn-{case}.safetensors"));
        let moved = max_abs(&plain["logits"], &golden["logits"]);
        assert!(moved > 100.0 * TOLERANCE, "the test cannot fail: {moved}");
        for key in [
            "pixel_values",
            "image_grid_thw",
            "image_features",
            "position_ids",
            "rope_delta",
        ] {
            if let Some(tensor) = plain.get(key) {
                golden.insert(key.to_owned(), tensor.shallow_clone());
            }
        }
        // The prompt in one pass, then 24 tokens one at a time: the CPU's kernel.
        check_folder(dir.path(), "yarn", case, &golden);
    }
}

#[test]
fn yarn_is_the_same_a_token_at_a_time_and_packed() {
    let dir = yarn_folder();
    let model = load(dir.path());
    let golden = tensors("goldens/folders-yarn-text.safetensors");
    let all = ids(&golden["input_ids"]);
    let mut cache = model.cache(all.len()).unwrap();
    let first = model
        .prefill(&all[..1], None, &[], &mut cache, LogitsToKeep::All)
        .unwrap();
    let mut logits = vec![model.logits(&first.hidden).unwrap()];
    for &token in &all[1..] {
        logits.push(model.decode(token, &mut cache).unwrap());
    }
    let worst = max_abs(&Tensor::cat(&logits, 0), &golden["logits"]);
    assert!(worst <= TOLERANCE, "a token at a time: {worst}");

    let page = goldens("untied-flat-sharded", "ragged");
    let golden = tensors("goldens/folders-yarn-ragged.safetensors");
    let (all, grids) = (ids(&golden["input_ids"]), grids(&page));
    let sequence = Sequence {
        ids: &all,
        pages: &[0],
    };
    let packed = Packed::new(model.config(), &grids, &[sequence]).unwrap();
    let rows: Vec<i64> = (0..all.len() as i64).collect();
    let hidden = model
        .packed_hidden(&packed, Some(&page["pixel_values"]), &rows, false)
        .unwrap();
    let worst = max_abs(&model.logits(&hidden).unwrap(), &golden["logits"]);
    assert!(worst <= TOLERANCE, "packed: {worst}");
}

#[test]
fn a_head_stored_beside_a_tied_embedding_counts() {
    let golden = tensors("goldens/folders-head.safetensors");
    let input = ids(&goldens("nested-bf16", "text")["input_ids"]);
    let dir = copy("nested-bf16");
    change_weights(dir.path(), |all| {
        all.push((HEAD.to_owned(), golden[HEAD].shallow_clone()))
    });
    let model = load(dir.path());
    let worst = max_abs(&prefilled(&model, &input), &golden["logits"]);
    assert!(worst <= TOLERANCE, "{worst}");
    let [warning] = model.warnings() else {
        panic!("{:?}", model.warnings());
    };
    for part in [HEAD, EMBEDDING, "tie_word_embeddings", "config.json"] {
        assert!(warning.contains(part), "{warning}");
    }
    assert_eq!(folder_warnings(dir.path(), None).unwrap(), model.warnings());
}

#[test]
fn a_head_that_is_the_embedding_or_stands_in_its_place_is_tied() {
    let golden = goldens("nested-bf16", "text");
    let input = ids(&golden["input_ids"]);
    for swapped in [false, true] {
        let dir = copy("nested-bf16");
        change_weights(dir.path(), |all| {
            let at = all.iter().position(|(name, _)| name == EMBEDDING).unwrap();
            match swapped {
                true => all[at].0 = HEAD.to_owned(),
                false => all.push((HEAD.to_owned(), all[at].1.copy())),
            }
        });
        let model = load(dir.path());
        assert!(model.warnings().is_empty(), "{:?}", model.warnings());
        let worst = max_abs(&prefilled(&model, &input), &golden["logits"]);
        assert!(worst <= TOLERANCE, "{swapped}: {worst}");
    }
    // Neither: the folder is incomplete.
    let dir = copy("nested-bf16");
    change_weights(dir.path(), |all| all.retain(|(name, _)| name != EMBEDDING));
    let config = Config::from_dir(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let error = Model::load(
        &checkpoint,
        &config,
        &Quantization::None,
        &ModelOptions::new(Kind::Float, Device::Cpu),
    );
    assert!(error.err().unwrap().to_string().contains(EMBEDDING));
}

/// A folder with the weights in shards, and in one file with another head.
fn two_sets() -> (tempfile::TempDir, Tensor) {
    let dir = copy("untied-flat-sharded");
    let mut all = Vec::new();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            all.extend(Tensor::read_safetensors(&path).unwrap());
        }
    }
    let head = all.iter_mut().find(|(name, _)| name == HEAD).unwrap();
    head.1 = &head.1 * 0.5;
    let head = head.1.copy();
    Tensor::write_safetensors(&all, dir.path().join("model.safetensors")).unwrap();
    (dir, head)
}

#[test]
fn of_two_sets_of_weights_the_single_file_is_read_with_a_warning() {
    let (dir, head) = two_sets();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let shape: Vec<usize> = head.size().iter().map(|&n| n as usize).collect();
    assert_eq!(
        checkpoint.load(HEAD, &shape, Kind::Float, Device::Cpu).unwrap(),
        head
    );
    let warning = checkpoint.warnings().join("\n");
    for part in [
        "model.safetensors ",
        "model.safetensors.index.json",
        text(dir.path()),
    ] {
        assert!(warning.contains(part), "{warning}");
    }
    // An index of the single file alone, as some tools write it, is no second set; one that is broken is.
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(
        &index,
        json!({"weight_map": {HEAD: "model.safetensors"}}).to_string(),
    )
    .unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap().warnings().is_empty());
    fs::write(&index, "{").unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().warnings().len(), 1);
    fs::remove_file(&index).unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap().warnings().is_empty());
}

/// Programs say it once, on standard error, and read the page all the same.
#[test]
fn programs_say_what_is_odd_about_a_folder() {
    let model = ModelCopy::new();
    let folder = PathBuf::from(model.folder());
    let index = json!({"weight_map": {EMBEDDING: "other.safetensors"}});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let page = golden_page("small_strip_rx.png");
    let flags = ["--device", "cpu", "--model", model.folder()];
    let read = run(&[&["extract"], &flags[..], &[text(&page.path)]].concat());
    assert_eq!(code(&read), 0, "{}", stderr(&read));
    let said = stderr(&read);
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("two sets of weights"))
        .collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(
        lines[0].starts_with("warning: ") && lines[0].contains(".index.json"),
        "{said}"
    );
    let doctor = run(&[&["doctor"], &flags[..]].concat());
    assert!(
        stdout(&doctor).contains("two sets of weights"),
        "{}",
        stdout(&doctor)
    );
    let reader = Reader::load(&folder, &LoadOptions::default()).unwrap();
    assert_eq!(reader.warnings().len(), 1);
}
