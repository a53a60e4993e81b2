//! Names and shapes of all tensors of the model, derived from its config.

use super::Config;

/// The embedding table, and the output head if it is not tied to it.
pub(crate) const TABLES: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

/// A tensor that the model loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// The hub's name.
    pub name: String,
    /// Shape of its dequantized values.
    pub shape: Vec<usize>,
    /// Whether it is the weight of a linear layer, which may be stored in 4 bits.
    pub linear: bool,
}

impl Config {
    /// Every tensor that the model loads; with tied weights without the output head.
    pub fn expected_tensors(&self) -> Vec<ExpectedTensor> {
        let (v, t) = (&self.vision, &self.text);
        let mut all = Vec::new();
        let mut add = |name: String, shape: Vec<usize>, linear: bool| {
            all.push(ExpectedTensor { name, shape, linear });
        };
        let patch = vec![
            v.hidden_size,
            v.in_channels,
            v.temporal_patch_size,
            v.patch_size,
            v.patch_size,
        ];
        add("visual.patch_embed.proj.weight".to_owned(), patch, false);
        for i in 0..v.depth {
            for norm in ["norm1", "norm2"] {
                add(
                    format!("visual.blocks.{i}.{norm}.weight"),
                    vec![v.hidden_size],
                    false,
                );
            }
        }
        add("visual.merger.ln_q.weight".to_owned(), vec![v.hidden_size], false);
        add(TABLES[0].to_owned(), vec![t.vocab_size, t.hidden_size], false);
        for i in 0..t.num_hidden_layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                add(
                    format!("model.layers.{i}.{norm}.weight"),
                    vec![t.hidden_size],
                    false,
                );
            }
        }
        add("model.norm.weight".to_owned(), vec![t.hidden_size], false);
        for module in self.linear_modules() {
            if module.name == "lm_head" && self.tie_word_embeddings {
                continue;
            }
            if module.has_bias() {
                add(format!("{}.bias", module.name), vec![module.outputs], false);
            }
            add(
                format!("{}.weight", module.name),
                vec![module.outputs, module.inputs],
                true,
            );
        }
        all
    }

    /// If `name` is of a layer beyond the config's: the number of layers of its tower, and the config key for it.
    pub(crate) fn layer_beyond(&self, name: &str) -> Option<(usize, &'static str)> {
        let towers = [
            ("visual.blocks.", self.vision.depth, "vision_config.depth"),
            ("model.layers.", self.text.num_hidden_layers, "num_hidden_layers"),
        ];
        towers.into_iter().find_map(|(prefix, layers, key)| {
            let (number, _) = name.strip_prefix(prefix)?.split_once('.')?;
            (number.parse::<usize>().ok()? >= layers).then_some((layers, key))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::{Map, Value, json};
    use tch::{Device, Kind};

    use super::*;
    use crate::Result;
    use crate::checkpoint::{Checkpoint, JsonFile, LocalFolder, read_headers};
    use crate::quant::Quantization;
    use crate::qwen2_5_vl::{Model, ModelOptions, check_tensors};

    fn config(tied: bool) -> Value {
        json!({
            "model_type": "qwen2_5_vl", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": tied, "image_token_id": 5,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]},
            "vision_config": {
                "depth": 2, "hidden_size": 8, "intermediate_size": 6, "num_heads": 2, "in_channels": 3, "patch_size": 2,
                "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 8, "out_hidden_size": 8,
                "fullatt_block_indexes": [1], "hidden_act": "silu"
            }
        })
    }

    /// A folder with these tensors, all zero.
    fn write(folder: &Path, config: &Value, tensors: &[ExpectedTensor]) {
        let (mut header, mut end) = (Map::new(), 0);
        for tensor in tensors {
            let start = end;
            end += 4 * tensor.shape.iter().product::<usize>();
            let entry = json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]});
            header.insert(tensor.name.clone(), entry);
        }
        let header = Value::from(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + end, 0);
        fs::write(folder.join("model.safetensors"), file).unwrap();
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
    }

    fn load(folder: &Path, config: &Config) -> Result<Model> {
        let options = ModelOptions::new(Kind::Float, Device::Cpu);
        Model::load(&Checkpoint::open(folder)?, config, &Quantization::None, &options)
    }

    #[test]
    fn the_loader_reads_these_tensors_and_no_others() {
        for tied in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let value = config(tied);
            let config = JsonFile::new("config.json", value.clone()).unwrap();
            let config = Config::from_json(&config).unwrap();
            let expected = config.expected_tensors();
            write(folder.path(), &value, &expected);
            assert!(load(folder.path(), &config).is_ok());
            for (i, missing) in expected.iter().enumerate() {
                let mut others = expected.clone();
                others.remove(i);
                write(folder.path(), &value, &others);
                let error = load(folder.path(), &config)
                    .err()
                    .expect(&missing.name)
                    .to_string();
                assert!(error.contains(&missing.name), "{error}");
                let mut wrong = expected.clone();
                wrong[i].shape[0] += 1;
                write(folder.path(), &value, &wrong);
                let error = load(folder.path(), &config)
                    .err()
                    .expect(&missing.name)
                    .to_string();
                assert!(
                    error.contains(&missing.name) && error.contains("shape"),
                    "{error}"
                );
                // The check says the same.
                let stored = read_headers(&LocalFolder(folder.path().to_owned()))
                    .unwrap()
                    .stored;
                let check = check_tensors(&config, &Quantization::None, &stored, &mut |_| Ok(None)).unwrap();
                assert_eq!(check.misfits.len(), 1);
                assert_eq!(check.misfits[0].tensor, missing.name);
            }
        }
    }
}
