//! Names and shapes of the model's linear layers, derived from its config: what LoRA can target.

use super::Config;
use crate::lora::{EMBEDDING_MODULE, LinearModule};

impl Config {
    /// Every linear layer: vision tower, language model, output head.
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

    /// Every module that an adapter may change: the linear layers, and the embedding with the shape of its table.
    pub fn adaptable_modules(&self) -> Vec<LinearModule> {
        let table = LinearModule {
            name: EMBEDDING_MODULE.to_owned(),
            outputs: self.text.vocab_size,
            inputs: self.text.hidden_size,
        };
        let mut modules = self.linear_modules();
        modules.push(table);
        modules
    }
}
