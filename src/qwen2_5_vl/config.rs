//! `config.json` of a Qwen2.5-VL folder: the hub's flat form and transformers 5's nested one.
//!
//! All shapes come from here. A value out of range is an error that names its key; a missing key has the default of
//! transformers' config classes ([`crate::checkpoint::config_defaults`]).

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::rope::Rope;
use crate::checkpoint::config_defaults::ConfigSection;
use crate::checkpoint::{JsonFile, ModelFolder};
use crate::{Error, Result};

/// Maximum value of any size in a config; above every published model and safe from overflow.
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

/// Configuration of the language model.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Hidden width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Maximum number of tokens of prompt, images and answer together; with YaRN the extended context length.
    pub max_position_embeddings: usize,
    /// Epsilon of RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
}

/// Configuration of the vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Hidden width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Colour channels.
    pub in_channels: usize,
    /// Patch side in pixels.
    pub patch_size: usize,
    /// Frames per patch.
    pub temporal_patch_size: usize,
    /// Patches per side that are merged into one token.
    pub spatial_merge_size: usize,
    /// Side of an attention window in pixels.
    pub window_size: usize,
    /// Output width: the language model's hidden width.
    pub out_hidden_size: usize,
    /// Blocks with full attention; the others use windows.
    pub fullatt_block_indexes: Vec<usize>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

impl VisionConfig {
    /// Values per patch: `in_channels * temporal_patch_size * patch_size²`.
    pub fn patch_values(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Merged tokens per side of a full window.
    pub fn window_tokens(&self) -> usize {
        self.window_size / self.spatial_merge_size / self.patch_size
    }
}

/// Configuration of the whole model.
///
/// Reference: [`Qwen2_5_VLConfig`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/configuration_qwen2_5_vl.py#L162-L215).
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// Whether the output head is the embedding table; what is stored takes precedence.
    pub tie_word_embeddings: bool,
    /// Id of the placeholder token of merged image tokens.
    pub image_token_id: i64,
}

impl Config {
    /// Reads `config.json` of the model folder `dir`.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        Self::from_json(ModelFolder::new(dir).config()?)
    }

    /// Reads a parsed `config.json`.
    pub fn from_json(file: &JsonFile) -> Result<Self> {
        let root = Section {
            path: &file.path,
            prefix: String::new(),
            part: ConfigSection::Root,
            map: &file.keys,
        };
        match root.map.get("model_type").and_then(Value::as_str) {
            Some("qwen2_5_vl") => {}
            other => {
                let found = other.unwrap_or("none");
                return Err(root.error(&format!(
                    "\"model_type\" is \"{found}\", but only \"qwen2_5_vl\" is supported: choose a Qwen2.5-VL folder"
                )));
            }
        }
        let text = match root.present("text_config") {
            Some(_) => root.section("text_config", ConfigSection::Text)?,
            None => Section {
                part: ConfigSection::Text,
                ..root.clone()
            },
        };
        let vision = root.section("vision_config", ConfigSection::Vision)?;
        let config = Self {
            text: text_config(&text)?,
            vision: vision_config(&vision)?,
            tie_word_embeddings: root.flag("tie_word_embeddings")? || text.flag("tie_word_embeddings")?,
            image_token_id: root.size("image_token_id")? as i64,
        };
        if config.image_token_id as usize >= config.text.vocab_size {
            return Err(root.error("\"image_token_id\" is outside the vocabulary (\"vocab_size\")"));
        }
        if config.vision.out_hidden_size != config.text.hidden_size {
            return Err(root.error(&format!(
                "\"vision_config.out_hidden_size\" ({}) must equal the language model's \"hidden_size\" ({}){}{}",
                config.vision.out_hidden_size,
                config.text.hidden_size,
                text.left_out(&["hidden_size"]),
                vision.left_out(&["out_hidden_size"]),
            )));
        }
        Ok(config)
    }
}

fn text_config(s: &Section<'_>) -> Result<TextConfig> {
    let heads = s.size("num_attention_heads")?;
    // `null` means as many as query heads; left out means the default.
    let kv_heads = match s.map.get("num_key_value_heads") {
        Some(Value::Null) => heads,
        _ => s.size("num_key_value_heads")?,
    };
    let hidden = s.size("hidden_size")?;
    if hidden % heads != 0 || heads % kv_heads != 0 || (hidden / heads) % 2 != 0 {
        let left_out = s.left_out(&["hidden_size", "num_attention_heads", "num_key_value_heads"]);
        return Err(s.error(&format!(
            "\"hidden_size\" ({hidden}), \"num_attention_heads\" ({heads}) and \"num_key_value_heads\" ({kv_heads}) \
             do not divide each other evenly{left_out}"
        )));
    }
    let head_dim = hidden / heads;
    if s.present("head_dim").is_some() && s.size("head_dim")? != head_dim {
        return Err(
            s.error("\"head_dim\" other than \"hidden_size\" / \"num_attention_heads\" is not supported")
        );
    }
    refuse_sliding_windows(s)?;
    let most = s.size("max_position_embeddings")?;
    let rope = Rope::read(s, head_dim, most)?;
    Ok(TextConfig {
        vocab_size: s.size("vocab_size")?,
        hidden_size: hidden,
        intermediate_size: s.size("intermediate_size")?,
        num_hidden_layers: s.size("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        hidden_act: s.activation("hidden_act")?,
        max_position_embeddings: most.max(rope.context()),
        rms_norm_eps: s.positive("rms_norm_eps")?,
        rope,
    })
}

/// Rejects layers with sliding-window attention, which is not implemented.
fn refuse_sliding_windows(s: &Section<'_>) -> Result<()> {
    let windows = match s.present("layer_types") {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind != "full_attention"),
        Some(_) => return Err(s.error("\"layer_types\" must be a list")),
        None => {
            s.flag("use_sliding_window")?
                && s.map.get("sliding_window") != Some(&Value::Null)
                && s.whole("max_window_layers")? < s.size("num_hidden_layers")?
        }
    };
    match windows {
        true => Err(s.error("layers with a sliding window (\"use_sliding_window\": true) are not supported")),
        false => Ok(()),
    }
}

fn vision_config(s: &Section<'_>) -> Result<VisionConfig> {
    let hidden = s.size("hidden_size")?;
    let heads = s.size("num_heads")?;
    if hidden % heads != 0 || (hidden / heads) % 4 != 0 {
        return Err(s.error(&format!(
            "\"hidden_size\" ({hidden}) / \"num_heads\" ({heads}) must be a multiple of 4"
        )));
    }
    let rope = s.section("rope_parameters", ConfigSection::VisionRope)?;
    if !matches!(rope.text("rope_type"), None | Some("default" | "axial")) {
        return Err(rope.error("\"rope_type\" must be \"axial\""));
    }
    let config = VisionConfig {
        depth: s.size("depth")?,
        hidden_size: hidden,
        intermediate_size: s.size("intermediate_size")?,
        num_heads: heads,
        head_dim: hidden / heads,
        hidden_act: s.activation("hidden_act")?,
        in_channels: s.size("in_channels")?,
        patch_size: s.size("patch_size")?,
        temporal_patch_size: s.size("temporal_patch_size")?,
        spatial_merge_size: s.size("spatial_merge_size")?,
        window_size: s.size("window_size")?,
        out_hidden_size: s.size("out_hidden_size")?,
        // An index beyond the depth names no block, as in transformers: a shallow model may keep the default.
        fullatt_block_indexes: s.sizes("fullatt_block_indexes")?,
        rope_theta: rope.positive("rope_theta")?,
    };
    if config.window_tokens() == 0 {
        return Err(s.error("\"window_size\" is smaller than one merged patch"));
    }
    Ok(config)
}

/// One JSON object of the config, with its path for errors.
#[derive(Clone)]
pub(super) struct Section<'a> {
    path: &'a Path,
    prefix: String,
    /// Whose defaults apply.
    part: ConfigSection,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    fn new(path: &'a Path, prefix: &str, part: ConfigSection, value: &'a Value) -> Result<Self> {
        match value.as_object() {
            Some(map) => Ok(Self {
                path,
                prefix: prefix.to_owned(),
                part,
                map,
            }),
            None => Err(Error::invalid_file(
                path,
                format!("\"{prefix}\" must be a JSON object"),
            )),
        }
    }

    pub(super) fn error(&self, reason: &str) -> Error {
        let place = if self.prefix.is_empty() {
            String::new()
        } else {
            format!("in \"{}\": ", self.prefix)
        };
        Error::invalid_file(PathBuf::from(self.path), format!("{place}{reason}"))
    }

    /// The value in the file, unless it is absent or null.
    pub(super) fn present(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The value in the file or its default.
    fn get(&self, key: &str) -> Result<&'a Value> {
        self.part
            .get(self.map, key)
            .ok_or_else(|| self.error(&format!("required key \"{key}\" is missing")))
    }

    /// For error messages: those of `keys` that are missing in the file, with their defaults.
    pub(super) fn left_out(&self, keys: &[&str]) -> String {
        let named: Vec<String> = keys
            .iter()
            .filter(|key| !self.map.contains_key(**key))
            .filter_map(|key| Some(format!("\"{key}\" ({})", self.part.default_of(key)?)))
            .collect();
        match named.is_empty() {
            true => String::new(),
            false => format!(
                "; left out, and so with transformers' default: {}",
                named.join(", ")
            ),
        }
    }

    /// Whether it is nested in another object, as in transformers 5's form.
    pub(super) fn is_nested(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// The default of the number `key`.
    pub(super) fn default(&self, key: &str) -> Result<f64> {
        let default = self.part.default_of(key).and_then(Value::as_f64);
        default.ok_or_else(|| self.error(&format!("required key \"{key}\" is missing")))
    }

    /// The object `key`; an empty one if it is absent or null.
    pub(super) fn section(&self, key: &str, part: ConfigSection) -> Result<Section<'a>> {
        static NOTHING: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
        let name = if self.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.prefix)
        };
        Section::new(self.path, &name, part, self.present(key).unwrap_or(&NOTHING))
    }

    fn in_range(&self, key: &str, value: &Value, low: u64) -> Result<usize> {
        match value.as_u64() {
            Some(n) if (low..=MAX_SIZE).contains(&n) => Ok(n as usize),
            _ => Err(self.error(&format!(
                "\"{key}\" must be a whole number from {low} to {MAX_SIZE}"
            ))),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        self.in_range(key, self.get(key)?, 1)
    }

    fn whole(&self, key: &str) -> Result<usize> {
        self.in_range(key, self.get(key)?, 0)
    }

    pub(super) fn sizes(&self, key: &str) -> Result<Vec<usize>> {
        let list = self
            .get(key)?
            .as_array()
            .ok_or_else(|| self.error(&format!("\"{key}\" must be a list")))?;
        list.iter().map(|v| self.in_range(key, v, 0)).collect()
    }

    pub(super) fn positive(&self, key: &str) -> Result<f64> {
        match self.get(key)?.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(self.error(&format!("\"{key}\" must be a positive number"))),
        }
    }

    /// The flag `key`; false if it is absent or null.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        match self.present(key) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.error(&format!("\"{key}\" must be true or false"))),
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.present(key).and_then(Value::as_str)
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
