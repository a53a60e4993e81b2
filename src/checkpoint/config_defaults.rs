//! Defaults of keys that `config.json` of a Qwen2.5-VL folder lacks: those of transformers' config classes.
//!
//! transformers up to 4.50 did not write the vision part's defaults, so that many published folders lack them. The
//! values are those of `Qwen2_5_VLConfig`, `Qwen2_5_VLTextConfig` and `Qwen2_5_VLVisionConfig` of transformers 5.17; 4.49,
//! 4.51 and 4.57 have the same.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

/// A section of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConfigSection {
    /// The top level.
    Root,
    /// The language model: `text_config`, or the top level of a flat file.
    Text,
    /// The vision tower: `vision_config`.
    Vision,
    /// Rotary positions of the language model: `rope_scaling` or `rope_parameters`.
    Rope,
    /// Rotary positions of the vision tower.
    VisionRope,
}

impl ConfigSection {
    /// The default of `key`; `None` if the key is required.
    pub(crate) fn default_of(self, key: &str) -> Option<&'static Value> {
        static DEFAULTS: LazyLock<Value> = LazyLock::new(defaults);
        DEFAULTS[self.name()].get(key)
    }

    /// `map[key]`, or its default.
    pub(crate) fn get<'a>(self, map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
        map.get(key).or_else(|| self.default_of(key))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Text => "text",
            Self::Vision => "vision",
            Self::Rope => "rope",
            Self::VisionRope => "vision_rope",
        }
    }
}

fn defaults() -> Value {
    json!({
        "root": {
            "image_token_id": 151655,
            "vision_start_token_id": 151652,
            "vision_end_token_id": 151653,
            "tie_word_embeddings": false
        },
        "text": {
            "vocab_size": 152064,
            "hidden_size": 8192,
            "intermediate_size": 29568,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "use_sliding_window": false,
            "max_window_layers": 80
        },
        "vision": {
            "depth": 32,
            "hidden_size": 3584,
            "hidden_act": "silu",
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31]
        },
        "rope": {"mrope_section": [16, 24, 24], "beta_fast": 32.0, "beta_slow": 1.0},
        "vision_rope": {"rope_theta": 1e4}
    })
}
