//! AWQ quantization of a model folder to a folder in AutoAWQ's GEMM layout.
//!
//! One decoder layer is in memory at a time and is written to one file: a killed run resumes at the first missing layer.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::{Device, Kind};

use super::{
    calibration,
    decoder::DecoderLayer,
    layer::{self, LinearError},
    shapes::Shapes,
};
use crate::checkpoint::{StoredTensor, TensorFile, TensorPlan, tensor_bytes, write_tensors};
use crate::console::Unit;
use crate::data::CalibrationPage;
use crate::fs::{Manifest, Origin, Staged, Staging, read_bounded};
use crate::quant::Method;
use crate::quantize::{
    CHECKING, MAX_REPORT_BYTES, OutputFolder, Source, Watch, json_text,
    shards::{INDEX, index as index_text, shard_name},
};
use crate::qwen2_5_vl::Config;
use crate::{Error, Result};

/// File with the error of each quantized Linear on the calibration pages.
pub const REPORT: &str = "quantization_report.json";

/// Options of AWQ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwqOptions {
    /// Group size: inputs that share a scale and a zero point. If a model's sizes are not multiples of it, the largest of 128, 64
    /// and 32 that divides all of them.
    pub group_size: usize,
    /// Number of calibration tokens used in the searches, evenly spaced.
    pub rows: usize,
}

impl Default for AwqOptions {
    fn default() -> Self {
        Self {
            group_size: 128,
            rows: 2048,
        }
    }
}

/// Content of [`REPORT`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AwqReport {
    /// Means over the Linears.
    pub total: MeanError,
    /// By name.
    pub linears: BTreeMap<String, LinearError>,
}

/// Relative output error on the calibration pages: mean square error divided by the mean square.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MeanError {
    /// Rounded to nearest in the same groups.
    pub round_to_nearest: f64,
    /// AWQ: with scales and clipping.
    pub awq: f64,
}

impl AwqReport {
    fn new(linears: BTreeMap<String, LinearError>) -> Self {
        let mean =
            |of: fn(&LinearError) -> f64| linears.values().map(of).sum::<f64>() / linears.len().max(1) as f64;
        Self {
            total: MeanError {
                round_to_nearest: mean(|error| error.round_to_nearest),
                awq: mean(|error| error.awq),
            },
            linears,
        }
    }

    /// Reads the report in `dir`, if there is a valid one.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&read_bounded(&dir.join(REPORT), MAX_REPORT_BYTES).ok()?).ok()
    }
}

/// Quantizes the model in `source` to the folder `target`; keeps what an earlier run finished.
///
/// The searches run on `device`.
pub fn quantize_folder(
    source: &Path,
    target: &Path,
    options: &AwqOptions,
    pages: &[CalibrationPage],
    device: Device,
    watch: Watch<'_>,
) -> Result<OutputFolder> {
    let job = Job::new(source, options, pages)?;
    (watch.stage)(CHECKING, Unit::Nothing, 0);
    let origin = Origin {
        method: Method::Awq.name().to_owned(),
        options: json!({
            "group_size": job.shapes.group, "rows": options.rows, "pages": pages.len(),
            "pages_sha256": calibration::pages_digest(pages),
        }),
        source: job.source.name(),
        source_revision: job.source.revision()?,
        tool: format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")),
    };
    let mut staging = match Staging::open(target, origin)? {
        Staged::UpToDate(manifest) => return Ok(job.outcome(target, &manifest, true)),
        Staged::Work(staging) => staging,
    };
    staging.check_space(job.missing_bytes(&staging))?;
    let errors = tch::no_grad(|| job.write_layers(&mut staging, pages, device, watch))?;
    job.write_rest(&mut staging, watch)?;
    let report = AwqReport::new(
        errors
            .into_iter()
            .map(|error| (error.name.clone(), error))
            .collect(),
    );
    staging.write(REPORT, json_text(&report).as_bytes())?;
    staging.write(INDEX, job.index(staging.dir())?.as_bytes())?;
    job.source.copy_side_files(&mut staging)?;
    let config = half_precision(&job.source.config_with(&job.quantization_config())?);
    staging.write("config.json", config.as_bytes())?;
    let manifest = staging.finish()?;
    Ok(job.outcome(target, &manifest, false))
}

/// One quantization.
struct Job<'a> {
    source: Source,
    config: Config,
    shapes: Shapes,
    options: &'a AwqOptions,
    stored: Vec<StoredTensor>,
}

impl<'a> Job<'a> {
    fn new(source: &Path, options: &'a AwqOptions, pages: &[CalibrationPage]) -> Result<Self> {
        let source = Source::open(source)?;
        let config = source.config().clone();
        let shapes = Shapes::choose(&config.text, options.group_size);
        if shapes.is_empty() {
            return Err(Error::unsuitable(
                source.dir().join("config.json"),
                format!(
                    "no Linear of the language model has a multiple of {} inputs and of 8 outputs: AWQ cannot hold \
                     them; use --method nf4",
                    shapes.group
                ),
            ));
        }
        if pages.is_empty() {
            return Err(Error::unsuitable(
                source.dir(),
                "AWQ needs at least one calibration page: raise --calibration-pages",
            ));
        }
        Ok(Self {
            stored: source.checkpoint().stored(),
            source,
            config,
            shapes,
            options,
        })
    }

    fn layers(&self) -> usize {
        self.config.text.num_hidden_layers
    }

    /// Name of file `index`: one per layer, and one for everything else.
    fn file(&self, index: usize) -> String {
        shard_name(index, self.layers() + 1)
    }

    /// Bytes of the source's layer `index`.
    fn layer_bytes(&self, index: usize) -> u64 {
        let prefix = format!("model.layers.{index}.");
        let tensors = self.stored.iter().filter(|t| t.canonical.starts_with(&prefix));
        tensors.map(|tensor| tensor.place.len() as u64).sum()
    }

    /// Estimated size of the missing files: four bits, scales and zero points for the layers' matrices, otherwise half precision.
    fn missing_bytes(&self, staging: &Staging) -> u64 {
        let done: Vec<String> = (0..self.layers())
            .filter(|&index| self.earlier_errors(staging, index).is_some())
            .map(|index| format!("model.layers.{index}."))
            .collect();
        let missing = |name: &str| !done.iter().any(|prefix| name.starts_with(prefix));
        let tensors = self.stored.iter().filter(|tensor| missing(&tensor.canonical));
        tensors
            .map(|tensor| {
                let values = tensor.shape.iter().product::<usize>() as u64;
                let packed = tensor.shape.len() == 2 && tensor.canonical.starts_with("model.layers.");
                if packed { values * 9 / 16 } else { values * 2 }
            })
            .sum()
    }

    fn write_layers(
        &self,
        staging: &mut Staging,
        pages: &[CalibrationPage],
        device: Device,
        watch: Watch<'_>,
    ) -> Result<Vec<LinearError>> {
        let mut errors = Vec::new();
        let done: Vec<_> = (0..self.layers())
            .map(|index| self.earlier_errors(staging, index))
            .collect();
        let last = done.iter().rposition(Option::is_none);
        let mut prompts = match last {
            Some(_) => {
                watch.begin(
                    "reading the calibration pages",
                    Unit::Of("pages"),
                    pages.len() as u64,
                )?;
                calibration::prompts(&self.source, &self.config, pages, device, watch)?
            }
            None => Vec::new(),
        };
        let bytes = self.stored.iter().map(|tensor| tensor.place.len() as u64);
        watch.begin("quantizing to AWQ", Unit::Bytes, bytes.sum())?;
        for (index, earlier) in done.into_iter().enumerate() {
            watch.done(0)?;
            let layer = || DecoderLayer::load(self.source.checkpoint(), &self.config.text, index, device);
            if let Some(earlier) = earlier {
                errors.extend(earlier);
                if Some(index) < last {
                    layer::advance(&layer()?, &mut prompts)?;
                }
            } else {
                let (file, rows) = (self.file(index), self.options.rows as i64);
                let made = layer::quantize(&layer()?, &mut prompts, &self.shapes, rows, watch)?;
                let digest = write_tensors(&staging.dir().join(&file), &made.tensors)?;
                staging.add_with(&file, digest, json!(made.errors))?;
                errors.extend(made.errors);
            }
            watch.done(self.layer_bytes(index))?;
        }
        Ok(errors)
    }

    /// Errors of the layer `index`, if an earlier run finished its file.
    fn earlier_errors(&self, staging: &Staging, index: usize) -> Option<Vec<LinearError>> {
        Vec::deserialize(staging.note(&self.file(index))?).ok()
    }

    /// Writes everything except the layers, in half precision like them: other engines use the stored dtypes and do not support
    /// two of them.
    fn write_rest(&self, staging: &mut Staging, watch: Watch<'_>) -> Result<()> {
        let rest: Vec<&StoredTensor> = self
            .stored
            .iter()
            .filter(|tensor| !tensor.canonical.starts_with("model.layers."))
            .collect();
        let file = self.file(self.layers());
        if !staging.has(&file) {
            let plans = rest.iter().map(|tensor| TensorPlan {
                name: tensor.canonical.clone(),
                dtype: Dtype::F16,
                shape: tensor.shape.clone(),
            });
            let out = TensorFile::create(&staging.dir().join(&file), plans.collect(), Vec::new())?;
            for tensor in &rest {
                let (name, shape) = (&tensor.canonical, &tensor.shape);
                let values = self
                    .source
                    .checkpoint()
                    .load(name, shape, Kind::Float, Device::Cpu)?;
                out.write(name, 0, &tensor_bytes(&layer::half(name, &values)?)?)?;
            }
            staging.add(&file, out.finish(&[])?)?;
        }
        watch.done(rest.iter().map(|tensor| tensor.place.len() as u64).sum())
    }

    /// `model.safetensors.index.json`, from the files in `dir`.
    fn index(&self, dir: &Path) -> Result<String> {
        let (mut map, mut total) = (BTreeMap::new(), 0);
        for index in 0..=self.layers() {
            let file = self.file(index);
            let path = dir.join(&file);
            let mut header = std::fs::File::open(&path).map_err(|error| Error::io(&path, error))?;
            for (name, bytes) in tensor_sizes(&mut header).map_err(|error| Error::io(&path, error))? {
                map.insert(name, file.clone());
                total += bytes;
            }
        }
        Ok(index_text(&map, total))
    }

    fn quantization_config(&self) -> Map<String, Value> {
        let config = json!({
            "bits": 4,
            "group_size": self.shapes.group,
            "modules_to_not_convert": self.shapes.left_out(),
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": true,
        });
        match config {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn outcome(&self, target: &Path, manifest: &Manifest, up_to_date: bool) -> OutputFolder {
        let weights = manifest
            .files
            .iter()
            .filter(|(name, _)| name.ends_with(".safetensors"));
        OutputFolder {
            folder: target.to_owned(),
            up_to_date,
            parameters: self.source.checkpoint().parameters(),
            bytes: weights.map(|(_, digest)| digest.bytes).sum(),
        }
    }
}

/// Names and sizes of the tensors in a safetensors file.
fn tensor_sizes(file: &mut std::fs::File) -> std::io::Result<Vec<(String, u64)>> {
    use std::io::Read;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = String::new();
    file.take(u64::from_le_bytes(length))
        .read_to_string(&mut header)?;
    let header: Map<String, Value> = serde_json::from_str(&header)?;
    let size = |value: &Value| {
        let offset = |i: usize| value["data_offsets"][i].as_u64().unwrap_or(0);
        offset(1).saturating_sub(offset(0))
    };
    Ok(header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, value)| (name.clone(), size(value)))
        .collect())
}

/// The config with dtype float16, the only one that other engines' AWQ kernels support.
fn half_precision(config: &str) -> String {
    ["torch_dtype", "dtype"]
        .iter()
        .flat_map(|key| ["bfloat16", "float32"].map(|kind| (key, kind)))
        .fold(config.to_owned(), |config, (key, kind)| {
            config.replace(
                &format!("\"{key}\": \"{kind}\""),
                &format!("\"{key}\": \"float16\""),
            )
        })
}
