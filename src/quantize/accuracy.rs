//! Teacher-forced token accuracy on pages with known text, and the distance of a quantized model's logits from the original's.
//!
//! The model gets the page, the extraction prompt and the text, and is judged on each next token: one forward pass per page.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::Watch;
use crate::checkpoint::{Checkpoint, ModelFolder};
use crate::data::CalibrationPage;
use crate::device::Precision;
use crate::lora::Adapter;
use crate::processing::{Content, Grid, ImageProcessor, Message, Role, TextProcessor};
use crate::prompts::EXTRACTION_PROMPT;
use crate::quant::Quantization;
use crate::qwen2_5_vl::{Config, LogitsToKeep, Model, ModelOptions};
use crate::records::round_to;
use crate::rendering::collapse_whitespace;
use crate::{Error, Result};

/// Maximum number of logits computed at once.
const LOGITS: usize = 4 << 20;

/// Accuracy of a model on pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PageAccuracy {
    /// Number of pages.
    pub pages: usize,
    /// Number of tokens in their texts.
    pub tokens: usize,
    /// Top-1 accuracy of the next token, percent.
    pub token_accuracy_pct: f64,
    /// Mean negative log-likelihood per token, nats.
    pub mean_loss: f64,
    /// Error of the logits against the original model's, if those are known.
    #[serde(flatten)]
    pub outputs: Option<OutputError>,
}

/// A quantized model's logits against the original's, over all tokens of the pages' texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputError {
    /// Mean cosine similarity of both models' logits per token.
    pub output_cosine: f64,
    /// Root mean square error.
    pub output_rmse: f64,
    /// Maximum absolute error.
    pub output_max_abs: f64,
}

/// Result of measuring a model on pages.
pub struct Measured {
    /// Figures.
    pub accuracy: PageAccuracy,
    /// Hidden states of the texts' tokens before the final norm, per page: `[tokens, hidden]`, on the CPU.
    pub hidden: Vec<Tensor>,
}

/// Encodes pages to token ids and patches.
pub(super) struct PageEncoder {
    text: TextProcessor,
    images: ImageProcessor,
    most_tokens: usize,
}

/// An encoded page.
pub(super) struct EncodedPage {
    /// Prompt and answer.
    pub(super) ids: Vec<i64>,
    /// Number of prompt tokens among them.
    pub(super) prompt: usize,
    pub(super) pixels: Tensor,
    pub(super) grid: Grid,
}

impl PageEncoder {
    pub(super) fn new(folder: &ModelFolder, config: &Config) -> Result<Self> {
        Ok(Self {
            text: TextProcessor::from_folder(folder)?,
            images: ImageProcessor::from_dir(folder.dir())?,
            most_tokens: config.text.max_position_embeddings,
        })
    }

    /// Encodes the page with `prompt`, and its text as the answer, with white space collapsed as models write it.
    pub(super) fn encode(&self, page: &CalibrationPage, prompt: &str) -> Result<EncodedPage> {
        let grid = self.images.grid(page.image.height, page.image.width)?;
        let messages = [Message {
            role: Role::User,
            content: vec![Content::Image, Content::Text(prompt.to_owned())],
        }];
        let mut ids = self.text.encode_chat(&messages, &[grid])?;
        let prompt = ids.len();
        let lines = page.text.lines().map(collapse_whitespace);
        let answer = lines.collect::<Vec<_>>().join("\n");
        ids.extend(self.text.encode_plain(&answer)?);
        ids.truncate(self.most_tokens);
        Ok(EncodedPage {
            ids,
            prompt,
            pixels: self.images.process(&page.image)?.pixel_values,
            grid,
        })
    }
}

/// Measures the model in `dir` on `pages`; `original` are the hidden states that the original model had.
pub fn measure(
    dir: &Path,
    pages: &[CalibrationPage],
    device: Device,
    original: Option<&[Tensor]>,
) -> Result<Measured> {
    measure_with(dir, None, pages, device, original, Watch::none())
}

/// The same with an adapter attached, and with progress per page.
pub fn measure_with(
    dir: &Path,
    adapter: Option<&Adapter>,
    pages: &[CalibrationPage],
    device: Device,
    original: Option<&[Tensor]>,
    watch: Watch<'_>,
) -> Result<Measured> {
    let folder = ModelFolder::new(dir);
    let config = Config::from_json(folder.config()?)?;
    let encoder = PageEncoder::new(&folder, &config)?;
    let kind = Precision::Auto.kind(device);
    let options = ModelOptions {
        adapters: adapter.as_slice(),
        ..ModelOptions::new(kind, device)
    };
    let quantization = Quantization::from_json(folder.config()?)?;
    let model = Model::load(&Checkpoint::open(dir)?, &config, &quantization, &options)?;
    let (mut sums, mut hidden) = (Sums::default(), Vec::new());
    for (i, page) in pages.iter().enumerate() {
        let encoded = encoder.encode(page, EXTRACTION_PROMPT)?;
        let states = states(&model, &encoded, device)?;
        let answer = Tensor::f_from_slice(&encoded.ids[encoded.prompt..])?.f_to_device(device)?;
        let original = original.and_then(|pages| pages.get(i));
        // In chunks of rows: with a large vocabulary the logits of a whole page take gigabytes.
        let (rows, step) = (states.size()[0], logit_rows(&config));
        for row in (0..rows).step_by(step as usize) {
            let count = step.min(rows - row);
            let logits = model.logits(&states.f_narrow(0, row, count)?)?;
            sums.add_answer(&logits, &answer.f_narrow(0, row, count)?)?;
            if let Some(original) = original {
                let original = original.f_narrow(0, row, count)?.f_to_device(device)?;
                sums.add_outputs(&logits, &model.logits(&original.f_to_kind(kind)?)?)?;
            }
        }
        hidden.push(states.f_to_device(Device::Cpu)?);
        watch.done(1)?;
    }
    let accuracy = sums.figures(pages.len());
    if !accuracy.mean_loss.is_finite() {
        return Err(Error::NonFinite(
            "the loss on the calibration pages is NaN or infinite".to_owned(),
        ));
    }
    Ok(Measured { accuracy, hidden })
}

/// Number of rows whose logits are computed at once.
fn logit_rows(config: &Config) -> i64 {
    (LOGITS / config.text.vocab_size.max(1)).max(1) as i64
}

/// Hidden states that predict the answer's tokens: `[answer, hidden]`.
fn states(model: &Model, encoded: &EncodedPage, device: Device) -> Result<Tensor> {
    let pixels = encoded.pixels.f_to_device(device)?;
    let features = model.image_features(&pixels, &[encoded.grid])?;
    let mut cache = model.cache(encoded.ids.len())?;
    let prefill = model.prefill(
        &encoded.ids,
        Some(&features),
        &[encoded.grid],
        &mut cache,
        LogitsToKeep::All,
    )?;
    let answer = encoded.ids.len().saturating_sub(encoded.prompt) as i64;
    Ok(prefill
        .hidden
        .f_narrow(0, encoded.prompt as i64 - 1, answer)?
        .f_contiguous()?)
}

#[derive(Default)]
struct Sums {
    tokens: usize,
    right: f64,
    loss: f64,
    compared: f64,
    cosine: f64,
    squares: f64,
    values: f64,
    largest: f64,
}

impl Sums {
    fn add_answer(&mut self, logits: &Tensor, answer: &Tensor) -> Result<()> {
        self.tokens += answer.numel();
        let right = logits.f_argmax(-1, false)?.f_eq_tensor(answer)?;
        self.right += right.f_sum(Kind::Double)?.f_double_value(&[])?;
        let likely = logits
            .f_log_softmax(-1, Kind::Float)?
            .f_gather(-1, &answer.f_unsqueeze(-1)?, false)?;
        self.loss -= likely.f_sum(Kind::Double)?.f_double_value(&[])?;
        Ok(())
    }

    fn add_outputs(&mut self, logits: &Tensor, original: &Tensor) -> Result<()> {
        let rows = logits.size()[0];
        let cosine = Tensor::f_cosine_similarity(logits, original, 1, 1e-12)?;
        self.cosine += cosine.f_sum(Kind::Double)?.f_double_value(&[])?;
        let off = logits.f_sub(original)?;
        self.squares += off.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        if rows > 0 {
            self.largest = self.largest.max(off.f_abs()?.f_max()?.f_double_value(&[])?);
        }
        self.compared += rows as f64;
        self.values += logits.numel() as f64;
        Ok(())
    }

    fn figures(&self, pages: usize) -> PageAccuracy {
        let tokens = self.tokens.max(1) as f64;
        PageAccuracy {
            pages,
            tokens: self.tokens,
            token_accuracy_pct: round_to(self.right / tokens * 100.0, 3),
            mean_loss: round_to(self.loss / tokens, 6),
            outputs: (self.compared > 0.0).then(|| OutputError {
                output_cosine: round_to(self.cosine / self.compared, 6),
                output_rmse: round_to((self.squares / self.values).sqrt(), 6),
                output_max_abs: round_to(self.largest, 6),
            }),
        }
    }
}
