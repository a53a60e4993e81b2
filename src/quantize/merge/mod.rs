//! Merging an adapter into its base to a bf16 folder, in chunks of rows, and the error of the result.

mod base;

use std::path::Path;

use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use self::base::{Base, Weight};
use crate::checkpoint::{StoredTensor, TensorFile, TensorPlan, tensor_bytes};
use crate::console::Unit;
use crate::fs::{FileDigest, Manifest, Origin, Staged, Staging, json::read_object, revision};
use crate::lora::{ADAPTER_CONFIG, Adapter, EMBEDDING_MODULE, LoraPair};
use crate::processing::PREPROCESSOR_CONFIG;
use crate::quantize::{
    OutputFolder, Source, Watch, json_text,
    shards::{INDEX, Shard, index},
};
use crate::{Error, Result};

/// transformers 5's file with the image processor's settings.
const PROCESSOR_CONFIG: &str = "processor_config.json";
/// Maximum size of a shard; a killed run repeats at most this much work.
const FILE_BYTES: u64 = 2 << 30;
/// Values per chunk.
const PIECE_VALUES: i64 = 4 << 20;

/// Error of merged weights against W + s·B·A in f32.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MergeError {
    /// Number of weights that the adapter changes.
    pub weights: usize,
    /// Root mean square of the exact values.
    pub rms: f64,
    /// Root mean square error.
    pub rmse: f64,
    /// Maximum absolute error.
    pub max_abs: f64,
    /// Module with the maximum error.
    pub worst: String,
}

/// Writes the model in `base` with `adapter` merged into it to the folder `target`, in bf16; keeps what an earlier run
/// finished. An NF4 base is dequantized.
pub fn merge_folder(base: &Path, adapter: &Adapter, target: &Path, watch: Watch<'_>) -> Result<OutputFolder> {
    let source = Source::open_any(base)?;
    adapter.check(&source.config().adaptable_modules())?;
    let opened = Base::open(base)?;
    // An adapter of one of the tied tensors unties them: attached, it does not change the other one.
    let adapted = ["lm_head", EMBEDDING_MODULE]
        .iter()
        .any(|end| adapter.pairs.contains_key(*end));
    let untied = opened.untied().filter(|_| adapted);
    let apart = untied.is_some() || !opened.is_tied();
    let tensors = opened.tensors().into_iter().chain(untied);
    let files = Shard::plan(tensors, FILE_BYTES, |(_, shape)| bytes(shape));
    let origin = Origin {
        method: "lora_merge".to_owned(),
        options: json!({"adapter_revision": adapter_revision(adapter)?}),
        source: source.name(),
        source_revision: source.revision()?,
        tool: format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")),
    };
    let outcome = |manifest: &Manifest, up_to_date| OutputFolder {
        folder: target.to_owned(),
        up_to_date,
        parameters: files.iter().map(|file| file.bytes() / 2).sum(),
        bytes: files
            .iter()
            .filter_map(|file| manifest.files.get(&file.name))
            .map(|digest| digest.bytes)
            .sum(),
    };
    let mut staging = match Staging::open(target, origin)? {
        Staged::UpToDate(manifest) => return Ok(outcome(&manifest, true)),
        Staged::Work(staging) => staging,
    };
    watch.begin("merging", Unit::Bytes, files.iter().map(Shard::bytes).sum())?;
    let (dir, base) = (base, opened);
    for file in &files {
        if staging.has(&file.name) {
            watch.done(file.bytes())?;
            continue;
        }
        let digest = file.write(&staging, &base, adapter, watch)?;
        staging.add(&file.name, digest)?;
    }
    if files.len() > 1 {
        let entries = files.iter().flat_map(|file| {
            let names = file.tensors.iter().map(|(stored, _)| stored.name.clone());
            names.map(|name| (name, file.name.clone()))
        });
        let total = files.iter().map(Shard::bytes).sum();
        staging.write(INDEX, index(&entries.collect(), total).as_bytes())?;
    }
    source.copy_side_files(&mut staging)?;
    if let Some(images) = &adapter.images {
        staging.write(PREPROCESSOR_CONFIG, images.settings().to_string().as_bytes())?;
        // If the base has transformers 5's file, that has precedence.
        if let Some(mut processor) = read_object(&dir.join(PROCESSOR_CONFIG))? {
            processor.insert("image_processor".to_owned(), images.settings());
            staging.write(PROCESSOR_CONFIG, Value::Object(processor).to_string().as_bytes())?;
        }
    }
    staging.write(
        "config.json",
        merged_config(source.config_text(), apart)?.as_bytes(),
    )?;
    let manifest = staging.finish()?;
    Ok(outcome(&manifest, false))
}

/// Compares the weights in `merged`, dense or NF4, with those of `base` and `adapter` in f32.
pub fn merge_error(base: &Path, adapter: &Adapter, merged: &Path, watch: Watch<'_>) -> Result<MergeError> {
    let weights = adapter.pairs.len() as u64;
    watch.begin("comparing the merged weights", Unit::Of("weights"), weights)?;
    let (base, merged) = (Base::open(base)?, Base::open(merged)?);
    let mut error = MergeError {
        weights: adapter.pairs.len(),
        rms: 0.0,
        rmse: 0.0,
        max_abs: 0.0,
        worst: String::new(),
    };
    let mut values = 0.0;
    for (module, pair) in &adapter.pairs {
        let (_, inputs, outputs) = pair.sizes();
        let (name, shape) = (format!("{module}.weight"), [outputs, inputs]);
        let before = base.weight_with(adapter, &name, &shape)?;
        let after = merged.weight(&name, &shape)?;
        for (start, count) in pieces(before.size()) {
            let exact = exact(&before, Some(pair), start, count)?;
            let off = after.rows(start, count)?.f_sub(&exact)?;
            let sum = |tensor: &Tensor| tensor.f_square()?.f_sum(Kind::Double)?.f_double_value(&[]);
            error.rms += sum(&exact)?;
            error.rmse += sum(&off)?;
            let largest = off.f_abs()?.f_max()?.f_double_value(&[])?;
            if largest > error.max_abs || error.worst.is_empty() {
                error.max_abs = largest;
                error.worst = module.clone();
            }
            values += exact.numel() as f64;
            watch.done(0)?;
        }
        watch.done(1)?;
    }
    error.rms = (error.rms / values).sqrt();
    error.rmse = (error.rmse / values).sqrt();
    Ok(error)
}

/// Rows `start..start + count` of W + s·B·A, f32.
fn exact(weight: &Weight, pair: Option<&LoraPair>, start: i64, count: i64) -> Result<Tensor> {
    let mut rows = weight.rows(start, count)?;
    if let Some(pair) = pair {
        let b = pair.b.f_narrow(0, start, count)?.f_to_kind(Kind::Float)?;
        let b = b.f_mul_scalar(pair.scale)?;
        rows = rows.f_addmm_(&b, &pair.a.f_to_kind(Kind::Float)?)?;
    }
    Ok(rows)
}

/// Row ranges of about [`PIECE_VALUES`] values.
fn pieces([rows, columns]: [i64; 2]) -> impl Iterator<Item = (i64, i64)> {
    let step = (PIECE_VALUES / columns.max(1)).max(1);
    (0..rows)
        .step_by(step as usize)
        .map(move |start| (start, step.min(rows - start)))
}

/// sha256 over the adapter's files.
fn adapter_revision(adapter: &Adapter) -> Result<String> {
    let file = adapter.file();
    let mut files = vec![file.to_owned(), file.with_file_name(ADAPTER_CONFIG)];
    if adapter.images.is_some() {
        files.push(file.with_file_name(PREPROCESSOR_CONFIG));
    }
    revision(&files)
}

/// Size of a tensor in bf16.
fn bytes(shape: &[usize]) -> u64 {
    2 * shape.iter().product::<usize>() as u64
}

impl Shard<(StoredTensor, Vec<usize>)> {
    fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, shape)| bytes(shape)).sum()
    }

    fn write(
        &self,
        staging: &Staging,
        base: &Base,
        adapter: &Adapter,
        watch: Watch<'_>,
    ) -> Result<FileDigest> {
        let plans = self.tensors.iter().map(|(stored, shape)| TensorPlan {
            name: stored.name.clone(),
            dtype: Dtype::BF16,
            shape: shape.clone(),
        });
        let out = TensorFile::create(&staging.dir().join(&self.name), plans.collect(), Vec::new())?;
        for (stored, shape) in &self.tensors {
            let module = stored.canonical.strip_suffix(".weight");
            let pair = module.and_then(|module| adapter.pairs.get(module));
            let weight = base.weight_with(adapter, &stored.canonical, shape)?;
            let [_, columns] = weight.size();
            for (start, count) in pieces(weight.size()) {
                let merged = exact(&weight, pair, start, count)?.f_to_kind(Kind::BFloat16)?;
                if merged.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                    let reason = "is not finite in bf16 once merged";
                    return Err(Error::tensor(&stored.file, &stored.name, reason));
                }
                let merged = tensor_bytes(&merged)?;
                out.write(&stored.name, (start * columns) as u64 * 2, &merged)?;
                watch.done(merged.len() as u64)?;
            }
        }
        out.finish(&[])
    }
}

/// `config.json` without quantization and with dtype bf16; `apart`: untied embeddings.
fn merged_config(config: &str, apart: bool) -> Result<String> {
    let mut value: Value = serde_json::from_str(config)
        .map_err(|error| Error::invalid_file("config.json", format!("not valid JSON: {error}")))?;
    if let Some(map) = value.as_object_mut() {
        map.remove("quantization_config");
    }
    for section in ["", "/text_config", "/vision_config"] {
        let Some(map) = value.pointer_mut(section).and_then(Value::as_object_mut) else {
            continue;
        };
        if apart && let Some(tied) = map.get_mut("tie_word_embeddings") {
            *tied = json!(false);
        }
        for key in ["dtype", "torch_dtype"] {
            if let Some(dtype) = map.get_mut(key).filter(|dtype| dtype.is_string()) {
                *dtype = json!("bfloat16");
            }
        }
    }
    Ok(json_text(&value))
}
