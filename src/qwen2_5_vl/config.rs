//! `config.json` of a Qwen2.5-VL folder: the hub's flat form and transformers 5's nested one.
//!
//! Every shape comes from here. A key that is missing or out of range is an error that names it; nothing is guessed
//! but what transformers itself leaves out when a value has its default.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Largest value of any size in a config; far above every published model, far below any overflow.
const MAX_SIZE: u64 = 1 << 24;

/// Activation function of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// Gaussian error linear unit, exact.
    Gelu,
    /// Gaussian error linear unit, tanh approximation.
    GeluTanh,
}

/// The language model's sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Most positions: prompt, image and answer together.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Rotary frequencies that follow time, height and width; they add up to `head_dim / 2`.
    pub mrope_section: [usize; 3],
}

/// The vision tower's sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Heads.
    pub num_heads: usize,
    /// `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Colour channels.
    pub in_channels: usize,
    /// Side of a patch, pixels.
    pub patch_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Patches merged into one token, a side.
    pub spatial_merge_size: usize,
    /// Side of an attention window, pixels.
    pub window_size: usize,
    /// Width of what comes out: the language model's.
    pub out_hidden_size: usize,
    /// Blocks whose attention sees the whole image.
    pub fullatt_block_indexes: Vec<usize>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

impl VisionConfig {
    /// Values of one patch: `in_channels * temporal_patch_size * patch_size²`.
    pub fn patch_values(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Merged tokens of a full window, a side.
    pub fn window_tokens(&self) -> usize {
        self.window_size / self.spatial_merge_size / self.patch_size
    }
}

/// A whole model's sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Token that stands for one merged image token.
    pub image_token_id: i64,
}

impl Config {
    /// Reads `config.json` of a model folder.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Error::checkpoint(&path, format!("not valid JSON: {e}")))?;
        Self::from_json(&path, &value)
    }

    /// Reads a parsed `config.json`; `path` is for errors alone.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let root = Section::new(path, "", value)?;
        match root.map.get("model_type").and_then(Value::as_str) {
            Some("qwen2_5_vl") => {}
            other => {
                let found = other.unwrap_or("none");
                return Err(root.error(&format!(
                    "\"model_type\" is \"{found}\", but only \"qwen2_5_vl\" is supported: choose a Qwen2.5-VL folder"
                )));
            }
        }
        let text = if root.map.contains_key("text_config") {
            root.section("text_config")?
        } else {
            root.clone()
        };
        let vision = root.section("vision_config")?;
        let config = Self {
            text: text_config(&text)?,
            vision: vision_config(&vision)?,
            tie_word_embeddings: root.flag("tie_word_embeddings")?.unwrap_or(false)
                || text.flag("tie_word_embeddings")?.unwrap_or(false),
            image_token_id: root.size("image_token_id")? as i64,
        };
        if config.image_token_id as usize >= config.text.vocab_size {
            return Err(root.error("\"image_token_id\" is outside the vocabulary (\"vocab_size\")"));
        }
        if config.vision.out_hidden_size != config.text.hidden_size {
            return Err(root.error(&format!(
                "\"vision_config.out_hidden_size\" ({}) must equal the language model's \"hidden_size\" ({})",
                config.vision.out_hidden_size, config.text.hidden_size
            )));
        }
        Ok(config)
    }
}

fn text_config(s: &Section<'_>) -> Result<TextConfig> {
    let heads = s.size("num_attention_heads")?;
    let kv_heads = s.size("num_key_value_heads")?;
    let hidden = s.size("hidden_size")?;
    if hidden % heads != 0 || heads % kv_heads != 0 || (hidden / heads) % 2 != 0 {
        return Err(s.error(
            "\"hidden_size\", \"num_attention_heads\" and \"num_key_value_heads\" do not divide each other evenly",
        ));
    }
    let head_dim = hidden / heads;
    if s.flag("use_sliding_window")?.unwrap_or(false)
        && s.size("max_window_layers")? < s.size("num_hidden_layers")?
    {
        return Err(s.error("\"use_sliding_window\": true is not supported"));
    }
    let (rope_theta, mrope_section) = rope(s, head_dim)?;
    Ok(TextConfig {
        vocab_size: s.size("vocab_size")?,
        hidden_size: hidden,
        intermediate_size: s.size("intermediate_size")?,
        num_hidden_layers: s.size("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        hidden_act: s.activation("hidden_act")?,
        max_position_embeddings: s.size("max_position_embeddings")?,
        rms_norm_eps: s.positive("rms_norm_eps")?,
        rope_theta,
        mrope_section,
    })
}

/// `rope_scaling` + `rope_theta` (flat) or `rope_parameters` (nested).
fn rope(s: &Section<'_>, head_dim: usize) -> Result<(f64, [usize; 3])> {
    let key = if s.map.contains_key("rope_parameters") {
        "rope_parameters"
    } else {
        "rope_scaling"
    };
    let rope = s.section(key)?;
    let kind = rope
        .map
        .get("rope_type")
        .or_else(|| rope.map.get("type"))
        .and_then(Value::as_str);
    if !matches!(kind, Some("default" | "mrope")) {
        return Err(
            rope.error("the rope type must be \"default\" or \"mrope\"; scaled variants are not supported")
        );
    }
    let theta = if rope.map.contains_key("rope_theta") {
        rope.positive("rope_theta")?
    } else {
        s.positive("rope_theta")?
    };
    let sections = rope.sizes("mrope_section")?;
    let section: [usize; 3] = sections
        .try_into()
        .map_err(|_| rope.error("\"mrope_section\" must hold three numbers"))?;
    if section.iter().sum::<usize>() != head_dim / 2 {
        return Err(rope.error(&format!(
            "\"mrope_section\" must add up to half the head size ({})",
            head_dim / 2
        )));
    }
    Ok((theta, section))
}

fn vision_config(s: &Section<'_>) -> Result<VisionConfig> {
    let hidden = s.size("hidden_size")?;
    let heads = s.size("num_heads")?;
    if hidden % heads != 0 || (hidden / heads) % 4 != 0 {
        return Err(s.error("\"hidden_size\" / \"num_heads\" must be a multiple of 4"));
    }
    let depth = s.size("depth")?;
    let config = VisionConfig {
        depth,
        hidden_size: hidden,
        intermediate_size: s.size("intermediate_size")?,
        num_heads: heads,
        head_dim: hidden / heads,
        hidden_act: s.activation("hidden_act")?,
        in_channels: s.size(if s.map.contains_key("in_channels") {
            "in_channels"
        } else {
            "in_chans"
        })?,
        patch_size: s.size("patch_size")?,
        temporal_patch_size: s.size("temporal_patch_size")?,
        spatial_merge_size: s.size("spatial_merge_size")?,
        window_size: s.size("window_size")?,
        out_hidden_size: s.size("out_hidden_size")?,
        fullatt_block_indexes: s.sizes("fullatt_block_indexes")?,
        rope_theta: match s.map.get("rope_parameters") {
            Some(Value::Object(_)) => s.section("rope_parameters")?.positive("rope_theta")?,
            _ => 10_000.0, // the published models' constant, which the hub's configs leave out
        },
    };
    if config.window_tokens() == 0 {
        return Err(s.error("\"window_size\" is smaller than one merged patch"));
    }
    if config.fullatt_block_indexes.iter().any(|&i| i >= depth) {
        return Err(s.error("\"fullatt_block_indexes\" names a block beyond \"depth\""));
    }
    Ok(config)
}

/// One JSON object of the config and where it stands, for errors.
#[derive(Clone)]
struct Section<'a> {
    path: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    fn new(path: &'a Path, prefix: &str, value: &'a Value) -> Result<Self> {
        match value.as_object() {
            Some(map) => Ok(Self {
                path,
                prefix: prefix.to_owned(),
                map,
            }),
            None => Err(Error::checkpoint(
                path,
                format!("\"{prefix}\" must be a JSON object"),
            )),
        }
    }

    fn error(&self, reason: &str) -> Error {
        let place = if self.prefix.is_empty() {
            String::new()
        } else {
            format!("in \"{}\": ", self.prefix)
        };
        Error::checkpoint(PathBuf::from(self.path), format!("{place}{reason}"))
    }

    fn get(&self, key: &str) -> Result<&'a Value> {
        self.map
            .get(key)
            .ok_or_else(|| self.error(&format!("required key \"{key}\" is missing")))
    }

    fn section(&self, key: &str) -> Result<Section<'a>> {
        let name = if self.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.prefix)
        };
        Section::new(self.path, &name, self.get(key)?)
    }

    fn in_range(&self, key: &str, value: &Value, low: u64) -> Result<usize> {
        match value.as_u64() {
            Some(n) if (low..=MAX_SIZE).contains(&n) => Ok(n as usize),
            _ => Err(self.error(&format!(
                "\"{key}\" must be a whole number from {low} to {MAX_SIZE}"
            ))),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.in_range(key, self.get(key)?, 1)
    }

    fn sizes(&self, key: &str) -> Result<Vec<usize>> {
        let list = self
            .get(key)?
            .as_array()
            .ok_or_else(|| self.error(&format!("\"{key}\" must be a list")))?;
        list.iter().map(|v| self.in_range(key, v, 0)).collect()
    }

    fn positive(&self, key: &str) -> Result<f64> {
        match self.get(key)?.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(self.error(&format!("\"{key}\" must be a positive number"))),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.error(&format!("\"{key}\" must be true or false"))),
        }
    }

    fn activation(&self, key: &str) -> Result<Activation> {
        match self.get(key)?.as_str() {
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            _ => Err(self.error(&format!(
                "\"{key}\" must be \"silu\", \"gelu\" or \"gelu_pytorch_tanh\""
            ))),
        }
    }
}
