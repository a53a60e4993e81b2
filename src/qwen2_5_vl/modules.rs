//! The model's linear layers by name and shape, from its config alone.

use super::Config;

/// A linear layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearModule {
    /// The hub's name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Rows of its weight.
    pub outputs: usize,
    /// Columns of its weight.
    pub inputs: usize,
}

impl LinearModule {
    /// Every layer of the vision tower has a bias, of the language model the queries, keys and values.
    pub fn has_bias(&self) -> bool {
        let biased = [".q_proj", ".k_proj", ".v_proj"];
        self.name.starts_with("visual.") || biased.iter().any(|suffix| self.name.ends_with(suffix))
    }
}

impl Config {
    /// Every linear layer: the vision tower's, the language model's, the output head.
    pub fn linear_modules(&self) -> Vec<LinearModule> {
        let mut all = Vec::new();
        let mut add = |name: String, outputs: usize, inputs: usize| {
            all.push(LinearModule {
                name,
                outputs,
                inputs,
            });
        };
        let v = &self.vision;
        for i in 0..v.depth {
            let block = format!("visual.blocks.{i}");
            add(format!("{block}.attn.qkv"), 3 * v.hidden_size, v.hidden_size);
            add(format!("{block}.attn.proj"), v.hidden_size, v.hidden_size);
            add(
                format!("{block}.mlp.gate_proj"),
                v.intermediate_size,
                v.hidden_size,
            );
            add(format!("{block}.mlp.up_proj"), v.intermediate_size, v.hidden_size);
            add(
                format!("{block}.mlp.down_proj"),
                v.hidden_size,
                v.intermediate_size,
            );
        }
        let merged = v.hidden_size * v.spatial_merge_size * v.spatial_merge_size;
        add("visual.merger.mlp.0".to_owned(), merged, merged);
        add("visual.merger.mlp.2".to_owned(), v.out_hidden_size, merged);
        let t = &self.text;
        let kv = t.num_key_value_heads * t.head_dim;
        for i in 0..t.num_hidden_layers {
            let layer = format!("model.layers.{i}");
            add(format!("{layer}.self_attn.q_proj"), t.hidden_size, t.hidden_size);
            add(format!("{layer}.self_attn.k_proj"), kv, t.hidden_size);
            add(format!("{layer}.self_attn.v_proj"), kv, t.hidden_size);
            add(format!("{layer}.self_attn.o_proj"), t.hidden_size, t.hidden_size);
            add(
                format!("{layer}.mlp.gate_proj"),
                t.intermediate_size,
                t.hidden_size,
            );
            add(format!("{layer}.mlp.up_proj"), t.intermediate_size, t.hidden_size);
            add(
                format!("{layer}.mlp.down_proj"),
                t.hidden_size,
                t.intermediate_size,
            );
        }
        add("lm_head".to_owned(), t.vocab_size, t.hidden_size);
        all
    }
}
