//! NF4 and FP4 quantization of a model folder to a folder that transformers and bitsandbytes load.
//!
//! The source is read in chunks and written tensor by tensor: memory holds the codes of one weight, whatever the model's size.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::checkpoint::{StoredTensor, TensorFile, TensorPlan};
use crate::console::Unit;
use crate::fs::{FileDigest, Manifest, Origin, Staged, Staging, digest_of};
use crate::quant::{
    Method,
    nf4::{
        BLOCKSIZES, QuantState, QuantType, WeightError, WeightErrors, compare, dynamic_map, quantize,
        quantize_scales, total,
    },
};
use crate::quantize::{
    CHECKING, OutputFolder, Source, Watch, json_text,
    shards::{INDEX, Shard, index},
    source::FileValues,
};
use crate::records::{self, Nf4Config, Nf4QuantizationConfig};
use crate::{Error, Result};

/// File with the error of each weight.
pub const REPORT: &str = "quantization_report.json";
/// Bytes per copied chunk.
const COPY_BYTES: usize = 4 << 20;

/// Options of NF4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nf4Options {
    /// 4-bit data type.
    pub quant_type: QuantType,
    /// Block size, one of [`BLOCKSIZES`].
    pub blocksize: usize,
    /// Double quantization: quantize the scales too.
    pub double_quant: bool,
    /// Modules to keep unquantized besides the output head: a full name, a prefix or a suffix at a dot.
    pub skip_modules: Vec<String>,
    /// Source MiB per shard; a killed run repeats at most this much work.
    pub file_mib: usize,
}

impl Default for Nf4Options {
    fn default() -> Self {
        Self {
            quant_type: QuantType::Nf4,
            blocksize: 64,
            double_quant: true,
            skip_modules: Vec::new(),
            file_mib: 2048,
        }
    }
}

impl Nf4Options {
    /// `quantization_config` of `config.json`, as transformers writes it.
    fn config(&self, skipped: &[String]) -> Map<String, Value> {
        let skip_modules = if self.skip_modules.is_empty() {
            Value::Null
        } else {
            json!(skipped)
        };
        let config = json!({
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "bnb_4bit_blocksize": self.blocksize,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": self.quant_type.name(),
            "bnb_4bit_use_double_quant": self.double_quant,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": skip_modules,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "quant_method": "bitsandbytes",
        });
        let Value::Object(mut config) = config else {
            return Map::new();
        };
        if self.blocksize == 64 {
            config.remove("bnb_4bit_blocksize");
        }
        config
    }
}

/// Quantizes the model in `source` to the folder `target`; keeps what an earlier run finished.
pub fn quantize_folder(
    source: &Path,
    target: &Path,
    options: &Nf4Options,
    watch: Watch<'_>,
) -> Result<OutputFolder> {
    let source = Source::open(source)?;
    let plan = Plan::new(&source, options)?;
    (watch.stage)(CHECKING, Unit::Nothing, 0);
    let origin = Origin {
        method: Method::Nf4.name().to_owned(),
        options: json!(options),
        source: source.name(),
        source_revision: source.revision()?,
        tool: format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")),
    };
    let outcome = |manifest: &Manifest, up_to_date| OutputFolder {
        folder: target.to_owned(),
        up_to_date,
        parameters: source.checkpoint().parameters(),
        bytes: plan
            .files
            .iter()
            .filter_map(|file| manifest.files.get(&file.name))
            .map(|digest| digest.bytes)
            .sum(),
    };
    let mut staging = match Staging::open(target, origin)? {
        Staged::UpToDate(manifest) => return Ok(outcome(&manifest, true)),
        Staged::Work(staging) => staging,
    };
    let missing = plan
        .files
        .iter()
        .filter(|file| staging.note(&file.name).is_none());
    staging.check_space(missing.map(|file| file.bytes()).sum())?;
    let bytes = plan.files.iter().map(Shard::source_bytes).sum();
    watch.begin("quantizing to NF4", Unit::Bytes, bytes)?;
    let mut errors = BTreeMap::new();
    for file in &plan.files {
        if let Some(made) = earlier_errors(&staging, &file.name) {
            errors.extend(made);
            watch.done(file.source_bytes())?;
            continue;
        }
        let (digest, made) = file.write(&staging, options, watch)?;
        staging.add_with(&file.name, digest, json!(made))?;
        errors.extend(made);
    }
    let report = WeightErrors {
        total: total(errors.values()),
        tensors: errors,
    };
    staging.write(REPORT, json_text(&report).as_bytes())?;
    if plan.files.len() > 1 {
        staging.write(INDEX, plan.index().as_bytes())?;
    }
    source.copy_side_files(&mut staging)?;
    let record = records::paths::NF4_QUANTIZATION_CONFIG;
    records::write(&staging.dir().join(record), &contract_config(&source, options))?;
    let digest = digest_of(&staging.dir().join(record))?;
    staging.add(record, digest)?;
    let config = source.config_with(&options.config(&plan.skipped))?;
    staging.write("config.json", config.as_bytes())?;
    let manifest = staging.finish()?;
    Ok(outcome(&manifest, false))
}

/// The original project's description of the folder.
fn contract_config(source: &Source, options: &Nf4Options) -> Nf4QuantizationConfig {
    let own = json!({"blocksize": options.blocksize, "skip_modules": options.skip_modules});
    Nf4QuantizationConfig {
        method: Method::Nf4.name().to_owned(),
        base_model_dir: source.dir().display().to_string(),
        config: Nf4Config {
            load_in_4bit: true,
            bnb_4bit_quant_type: options.quant_type.name().to_owned(),
            bnb_4bit_compute_dtype: "bfloat16".to_owned(),
            bnb_4bit_use_double_quant: options.double_quant,
            extra: own.as_object().cloned().unwrap_or_default(),
        },
        notes: Some(
            "The quantized weights are in this folder; transformers with bitsandbytes loads it as it stands."
                .to_owned(),
        ),
        extra: Map::new(),
    }
}

/// Errors of the weights in `file`, if an earlier run finished it.
fn earlier_errors(staging: &Staging, file: &str) -> Option<BTreeMap<String, WeightError>> {
    BTreeMap::deserialize(staging.note(file)?).ok()
}

/// What happens to each tensor, and the shards.
struct Plan {
    files: Vec<Shard<PlannedTensor>>,
    /// Unquantized modules, by transformers' names.
    skipped: Vec<String>,
}

struct PlannedTensor {
    stored: StoredTensor,
    quantize: Option<Layout>,
}

/// Sizes of a quantized weight.
#[derive(Clone, Copy)]
struct Layout {
    values: usize,
    blocks: usize,
    double_quant: bool,
}

impl Plan {
    fn new(source: &Source, options: &Nf4Options) -> Result<Self> {
        if !BLOCKSIZES.contains(&options.blocksize) {
            let blocksize = options.blocksize;
            return Err(Error::option(
                "--blocksize",
                format!("{blocksize}: bitsandbytes supports {BLOCKSIZES:?}"),
            ));
        }
        let stored = source.checkpoint().stored();
        let mut skipped = vec!["lm_head".to_owned()];
        for pattern in &options.skip_modules {
            let matched: Vec<String> = stored
                .iter()
                .filter_map(linear_name)
                .filter(|module| matches(pattern, module))
                .map(transformers_name)
                .collect();
            if matched.is_empty() {
                let reason = format!(
                    "{pattern:?} names no linear layer of the model (one is \"model.layers.0.mlp.up_proj\")"
                );
                return Err(Error::option("--skip-modules", reason));
            }
            skipped.extend(matched);
        }
        skipped.sort();
        skipped.dedup();
        let tensors = stored.into_iter().map(|stored| {
            let module = linear_name(&stored).map(transformers_name);
            let quantized = module.is_some_and(|module| !skipped.contains(&module));
            PlannedTensor {
                quantize: quantized.then(|| Layout::new(&stored, options)),
                stored,
            }
        });
        let limit = (options.file_mib as u64).saturating_mul(1 << 20);
        let files = Shard::plan(tensors, limit, |tensor| tensor.stored.place.len() as u64);
        Ok(Self { files, skipped })
    }

    /// `model.safetensors.index.json`.
    fn index(&self) -> String {
        let mut map = BTreeMap::new();
        for file in &self.files {
            let (tensors, notes) = file.plans();
            let names = tensors.into_iter().map(|tensor| tensor.name).chain(notes);
            map.extend(names.map(|name| (name, file.name.clone())));
        }
        index(&map, self.files.iter().map(Shard::bytes).sum())
    }
}

/// The module of the weight `tensor`, by the hub's name, if transformers would quantize it.
fn linear_name(tensor: &StoredTensor) -> Option<&str> {
    let module = tensor.canonical.strip_suffix(".weight")?;
    let kept = ["lm_head", "model.embed_tokens"].contains(&module);
    (tensor.shape.len() == 2 && !kept).then_some(module)
}

/// transformers' name of a module.
fn transformers_name(module: &str) -> String {
    if let Some(rest) = module.strip_prefix("model.") {
        format!("model.language_model.{rest}")
    } else if module.starts_with("visual.") {
        format!("model.{module}")
    } else {
        module.to_owned()
    }
}

/// Whether `pattern` matches `module`, by either of its names.
fn matches(pattern: &str, module: &str) -> bool {
    [module, &transformers_name(module)].iter().any(|name| {
        let begins = name
            .strip_prefix(pattern)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let ends = name.strip_suffix(pattern).is_some_and(|rest| rest.ends_with('.'));
        begins || ends
    })
}

impl Layout {
    fn new(tensor: &StoredTensor, options: &Nf4Options) -> Self {
        let values: usize = tensor.shape.iter().product();
        Self {
            values,
            blocks: values.div_ceil(options.blocksize),
            double_quant: options.double_quant,
        }
    }

    fn plans(self, name: &str) -> Vec<TensorPlan> {
        let plan = |suffix: &str, dtype, shape: &[usize]| TensorPlan {
            name: format!("{name}{suffix}"),
            dtype,
            shape: shape.to_vec(),
        };
        let mut plans = vec![
            plan("", Dtype::U8, &[self.values.div_ceil(2), 1]),
            plan(".quant_map", Dtype::F32, &[16]),
        ];
        if self.double_quant {
            plans.push(plan(".absmax", Dtype::U8, &[self.blocks]));
            plans.push(plan(".nested_absmax", Dtype::F32, &[self.blocks.div_ceil(256)]));
            plans.push(plan(".nested_quant_map", Dtype::F32, &[256]));
        } else {
            plans.push(plan(".absmax", Dtype::F32, &[self.blocks]));
        }
        plans
    }
}

impl Shard<PlannedTensor> {
    fn source_bytes(&self) -> u64 {
        self.tensors
            .iter()
            .map(|tensor| tensor.stored.place.len() as u64)
            .sum()
    }

    /// Bytes of its tensors without their small states.
    fn bytes(&self) -> u64 {
        self.plans().0.iter().map(TensorPlan::bytes).sum()
    }

    /// Its tensors, and the names of the states in the order of the quantized weights.
    fn plans(&self) -> (Vec<TensorPlan>, Vec<String>) {
        let (mut plans, mut notes) = (Vec::new(), Vec::new());
        for tensor in &self.tensors {
            let stored = &tensor.stored;
            match tensor.quantize {
                Some(layout) => {
                    plans.extend(layout.plans(&stored.name));
                    notes.push(format!("{}.quant_state", stored.name));
                }
                None => plans.push(TensorPlan {
                    name: stored.name.clone(),
                    dtype: stored.dtype,
                    shape: stored.shape.clone(),
                }),
            }
        }
        (plans, notes)
    }

    fn write(
        &self,
        staging: &Staging,
        options: &Nf4Options,
        watch: Watch<'_>,
    ) -> Result<(FileDigest, BTreeMap<String, WeightError>)> {
        let (plans, notes) = self.plans();
        let state = format!(".bitsandbytes__{}", options.quant_type.name());
        let notes = notes.into_iter().map(|name| name + &state).collect();
        let out = TensorFile::create(&staging.dir().join(&self.name), plans, notes)?;
        let (mut states, mut errors) = (Vec::new(), BTreeMap::new());
        let mut files = BTreeMap::new();
        for tensor in &self.tensors {
            let path = &tensor.stored.file;
            let file = match files.get(path) {
                Some(file) => Arc::clone(file),
                None => {
                    let file = Arc::new(File::open(path).map_err(|error| Error::io(path, error))?);
                    files.insert(path.clone(), Arc::clone(&file));
                    file
                }
            };
            if tensor.quantize.is_some() {
                let (state, error) = tensor.write_quantized(&file, &out, options)?;
                states.push(state.to_json().into_bytes());
                errors.insert(tensor.stored.name.clone(), error);
            } else {
                tensor.copy(&file, &out)?;
            }
            watch.done(tensor.stored.place.len() as u64)?;
        }
        Ok((out.finish(&states)?, errors))
    }
}

impl PlannedTensor {
    /// Quantizes the tensor from `file` into `out`; returns its state and its error.
    fn write_quantized(
        &self,
        file: &Arc<File>,
        out: &TensorFile,
        options: &Nf4Options,
    ) -> Result<(QuantState, WeightError)> {
        let stored = &self.stored;
        let fault = |reason: &str| Error::tensor(&stored.file, &stored.name, reason);
        let dtype = match stored.dtype {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            _ => "bfloat16",
        };
        let values = FileValues::new(file, stored).ok_or_else(|| {
            fault(&format!(
                "is {}; F32, F16 and BF16 weights are supported",
                stored.dtype
            ))
        })?;
        let made = quantize(&values, options.quant_type, options.blocksize)?;
        if made.absmax.iter().any(|scale| !scale.is_finite()) {
            return Err(fault("has non-finite values (NaN/Inf): the model is damaged"));
        }
        let write = |suffix: &str, bytes: &[u8]| out.write(&format!("{}{suffix}", stored.name), 0, bytes);
        write("", &made.packed)?;
        write(".quant_map", &little_endian(options.quant_type.table()))?;
        let (scales, offset) = if options.double_quant {
            let nested = quantize_scales(&made.absmax)?;
            write(".absmax", &nested.codes)?;
            write(".nested_absmax", &little_endian(&nested.absmax))?;
            write(".nested_quant_map", &little_endian(dynamic_map()))?;
            (nested.restore(), Some(nested.offset))
        } else {
            write(".absmax", &little_endian(&made.absmax))?;
            (made.absmax, None)
        };
        let error = compare(
            &values,
            &made.packed,
            &scales,
            options.quant_type,
            options.blocksize,
        )?;
        let state = QuantState::new(
            options.quant_type,
            options.blocksize,
            dtype,
            &stored.shape,
            offset,
        );
        Ok((state, error))
    }

    /// Copies the tensor from `file` unchanged.
    fn copy(&self, file: &File, out: &TensorFile) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let place = &self.stored.place;
        let pieces: Vec<usize> = (0..place.len()).step_by(COPY_BYTES).collect();
        pieces
            .into_par_iter()
            .try_for_each_init(Vec::new, |buffer, start| {
                buffer.resize(COPY_BYTES.min(place.len() - start), 0);
                file.read_exact_at(buffer, (place.start + start) as u64)
                    .map_err(|error| Error::io(&self.stored.file, error))?;
                out.write(&self.stored.name, start as u64, buffer)
            })
    }
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_match_by_prefix_or_suffix_of_either_name() {
        let module = "model.layers.1.mlp.up_proj";
        for pattern in [
            "model.layers.1",
            "model.layers.1.mlp.up_proj",
            "model.language_model.layers.1.mlp",
            "model.language_model",
            "up_proj",
            "mlp.up_proj",
        ] {
            assert!(matches(pattern, module), "{pattern}");
        }
        for pattern in [
            "model.layers.11",
            "model.layers.1.ml",
            "p_proj",
            "layers",
            "visual",
            "down_proj",
        ] {
            assert!(!matches(pattern, module), "{pattern}");
        }
        assert!(matches("visual", "visual.blocks.0.attn.qkv"));
        assert!(matches("model.visual.blocks.0", "visual.blocks.0.attn.qkv"));
    }
}
