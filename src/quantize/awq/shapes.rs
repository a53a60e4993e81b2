//! Which Linears of a model AWQ's layout supports.

use crate::quant::awq::layout::PER_WORD;
use crate::qwen2_5_vl::TextConfig;

/// Which Linears of the decoder layers are quantized; all layers have the same shapes.
///
/// The number of inputs must be a multiple of the group size, that of outputs a multiple of eight. Linears that other engines fuse
/// (q, k and v; gate and up) are quantized together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shapes {
    /// Group size.
    pub group: i64,
    /// q, k and v.
    pub qkv: bool,
    /// o.
    pub o: bool,
    /// gate and up.
    pub gate_up: bool,
    /// down.
    pub down: bool,
}

/// Group sizes that other engines' kernels support, in descending order.
const GROUPS: [usize; 3] = [128, 64, 32];

impl Shapes {
    /// The largest group size of at most `group` that fits all Linears; if there is none, `group` itself, and some Linears are
    /// left out.
    pub fn choose(config: &TextConfig, group: usize) -> Self {
        let smaller = GROUPS.into_iter().filter(|&smaller| smaller < group);
        std::iter::once(group)
            .chain(smaller)
            .map(|group| Self::new(config, group))
            .find(Self::is_whole)
            .unwrap_or_else(|| Self::new(config, group))
    }

    fn is_whole(&self) -> bool {
        self.qkv && self.o && self.gate_up && self.down
    }

    /// The Linears of `config` that groups of `group` fit.
    pub fn new(config: &TextConfig, group: usize) -> Self {
        let fits = |input: usize, out: usize| input.is_multiple_of(group) && out.is_multiple_of(PER_WORD);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let kv = config.num_key_value_heads * config.head_dim;
        Self {
            group: group as i64,
            qkv: fits(hidden, hidden) && fits(hidden, kv),
            o: fits(hidden, hidden),
            gate_up: fits(hidden, inner),
            down: fits(inner, hidden),
        }
    }

    /// Whether no Linear fits.
    pub fn is_empty(&self) -> bool {
        !(self.qkv || self.o || self.gate_up || self.down)
    }

    /// `modules_to_not_convert`: the vision tower under the hub's and transformers 5's name, the head, and Linears that do not fit.
    pub fn left_out(&self) -> Vec<&'static str> {
        let mut names = vec!["visual", "model.visual", "lm_head"];
        let rest = [
            (
                self.qkv,
                &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..],
            ),
            (self.o, &["self_attn.o_proj"]),
            (self.gate_up, &["mlp.gate_proj", "mlp.up_proj"]),
            (self.down, &["mlp.down_proj"]),
        ];
        for (fits, parts) in rest {
            if !fits {
                names.extend(parts);
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::qwen2_5_vl::Config;

    fn shapes(hidden: usize, inner: usize, heads: (usize, usize)) -> Shapes {
        let mut config = Config::from_dir(Path::new("models/qwen25-vl-nano")).unwrap().text;
        config.hidden_size = hidden;
        config.intermediate_size = inner;
        (config.num_attention_heads, config.num_key_value_heads) = heads;
        config.head_dim = hidden / heads.0;
        Shapes::choose(&config, 128)
    }

    #[test]
    fn the_published_models_keep_groups_of_128() {
        for (hidden, inner, heads) in [
            (2048, 11008, (16, 2)),
            (3584, 18944, (28, 4)),
            (8192, 29568, (64, 8)),
            (256, 768, (4, 2)),
        ] {
            let shapes = shapes(hidden, inner, heads);
            assert!(shapes.group == 128 && shapes.is_whole(), "{shapes:?}");
            assert_eq!(shapes.left_out(), ["visual", "model.visual", "lm_head"]);
        }
    }

    #[test]
    fn other_sizes_get_smaller_groups_before_anything_is_excluded() {
        assert_eq!(shapes(192, 320, (4, 2)).group, 64);
        assert_eq!(shapes(64, 96, (4, 2)).group, 32);
        let ragged = shapes(256, 700, (4, 2));
        assert!(ragged.group == 128 && ragged.qkv && !ragged.down && !ragged.gate_up);
        assert_eq!(
            ragged.left_out()[3..],
            ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        );
        assert!(shapes(60, 100, (4, 2)).is_empty());
    }
}
