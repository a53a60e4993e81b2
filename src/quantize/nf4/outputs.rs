//! Output error of each quantized linear layer on the original's inputs, on calibration pages.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::checkpoint::{Checkpoint, ModelFolder};
use crate::data::CalibrationPage;
use crate::device::Precision;
use crate::prompts::EXTRACTION_PROMPT;
use crate::quant::{Quantization, nf4::Nf4Weight};
use crate::quantize::{Watch, accuracy::PageEncoder};
use crate::qwen2_5_vl::{Config, InputSamples, LogitsToKeep, Model, ModelOptions};

/// Input rows per layer and page.
const ROWS: i64 = 32;

/// Output error of a quantized layer against the original, over the sampled rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LayerOutputError {
    /// Number of rows.
    pub rows: i64,
    /// Root mean square error.
    pub rmse: f64,
    /// Maximum absolute error.
    pub max_abs: f64,
    /// Cosine similarity of both outputs.
    pub cosine: f64,
}

/// Output errors of a model's layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerOutputErrors {
    /// Mean of the layers' cosines.
    pub mean_cosine: f64,
    /// The layer with the smallest cosine.
    pub worst: Option<String>,
    /// By the weight's hub name.
    pub layers: BTreeMap<String, LayerOutputError>,
}

/// Output errors of the quantized layers of the folder `made`, on the inputs of the original in `source` on `pages`.
pub fn output_errors(
    source: &Path,
    made: &Path,
    pages: &[CalibrationPage],
    device: Device,
    watch: Watch<'_>,
) -> Result<LayerOutputErrors> {
    let _guard = tch::no_grad_guard();
    let (source_weights, made) = (Checkpoint::open(source)?, Checkpoint::open(made)?);
    let mut layers = BTreeMap::new();
    for (module, rows) in inputs(source, &source_weights, pages, device, watch)? {
        let name = format!("{module}.weight");
        let stored = source_weights.bytes(&name)?.2;
        let Ok(shape) = <[usize; 2]>::try_from(stored) else {
            continue;
        };
        let Some(weight) = Nf4Weight::load(&made, &name, shape, Device::Cpu)? else {
            continue;
        };
        let original = source_weights.load(&name, &shape, Kind::Float, Device::Cpu)?;
        let mut restored = Tensor::f_empty_like(&original)?;
        weight.dequantize_into(&mut restored)?;
        let x = rows.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        let error = compare(
            &x.f_linear(&original, None::<Tensor>)?,
            &x.f_linear(&restored, None::<Tensor>)?,
        )?;
        layers.insert(name, error);
    }
    let sum: f64 = layers.values().map(|layer: &LayerOutputError| layer.cosine).sum();
    let worst = layers.iter().min_by(|a, b| a.1.cosine.total_cmp(&b.1.cosine));
    Ok(LayerOutputErrors {
        mean_cosine: sum / layers.len().max(1) as f64,
        worst: worst.map(|(name, _)| name.clone()),
        layers,
    })
}

/// Sampled inputs of each linear layer of the original.
fn inputs(
    dir: &Path,
    weights: &Checkpoint,
    pages: &[CalibrationPage],
    device: Device,
    watch: Watch<'_>,
) -> Result<BTreeMap<String, Tensor>> {
    let folder = ModelFolder::new(dir);
    let config = Config::from_json(folder.config()?)?;
    let encoder = PageEncoder::new(&folder, &config)?;
    let kind = Precision::Auto.kind(device);
    let samples = Arc::new(InputSamples::new(ROWS, pages.len()));
    let options = ModelOptions {
        samples: Some(Arc::clone(&samples)),
        ..ModelOptions::new(kind, device)
    };
    let model = Model::load(
        weights,
        &config,
        &Quantization::from_json(folder.config()?)?,
        &options,
    )?;
    for page in pages {
        let encoded = encoder.encode(page, EXTRACTION_PROMPT)?;
        let pixels = encoded.pixels.f_to_device(device)?;
        let features = model.image_features(&pixels, &[encoded.grid])?;
        let mut cache = model.cache(encoded.ids.len())?;
        model.prefill(
            &encoded.ids,
            Some(&features),
            &[encoded.grid],
            &mut cache,
            LogitsToKeep::All,
        )?;
        watch.done(1)?;
    }
    samples.take()
}

fn compare(original: &Tensor, restored: &Tensor) -> Result<LayerOutputError> {
    let sum = |t: Tensor| -> Result<f64> { Ok(t.f_sum(Kind::Double)?.f_double_value(&[])?) };
    let off = original.f_sub(restored)?;
    let lengths = sum(original.f_square()?)? * sum(restored.f_square()?)?;
    Ok(LayerOutputError {
        rows: original.size()[0],
        rmse: (sum(off.f_square()?)? / off.numel().max(1) as f64).sqrt(),
        max_abs: off.f_abs()?.f_max()?.f_double_value(&[])?,
        cosine: sum(original.f_mul(restored)?)? / lengths.sqrt().max(f64::MIN_POSITIVE),
    })
}
