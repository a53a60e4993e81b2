//! Sizes of a language model that the decode step's kernel is compiled for.

/// Columns of `down` that a block keeps as activations, at most.
const MAX_SPLIT_COLUMNS: usize = 5632;
/// As `DENSE_COLUMNS` in `stream.cu`.
const DENSE_COLUMNS: usize = 64;
/// As `INNER_WARPS` in `stream.cu`.
const INNER_WARPS: usize = 8;
/// How the linear layers' weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepForm {
    /// NF4 or FP4 in the tiles of `tiles.cu`.
    Tiles,
    /// AWQ in the tiles of `tiles.cu`.
    GroupedTiles,
    /// `[out, in]` in the 16-bit type of the model.
    Rows,
}

/// Sizes of the language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepShape {
    /// Hidden width.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Rows of the output head.
    pub vocab: usize,
}

impl StepShape {
    /// Parts of the columns of the MLP's last matrix, each the work of a share of the blocks; `None` if it cannot be divided.
    pub fn splits(&self, form: StepForm) -> Option<usize> {
        let unit = form.columns();
        let tiles = self.intermediate / unit;
        (1..=tiles)
            .find(|&splits| tiles.is_multiple_of(splits) && self.intermediate / splits <= MAX_SPLIT_COLUMNS)
    }

    /// Stages that multiply by weights.
    pub(super) fn stages(&self) -> u32 {
        4 * self.layers as u32 + 1
    }

    /// As `most_parts` in `lora.cu`.
    pub(super) fn inner_parts(&self, splits: usize) -> usize {
        let of = |width: usize| (width / DENSE_COLUMNS).div_ceil(INNER_WARPS);
        let o = self.kv_heads * of(self.heads / self.kv_heads * self.head_dim);
        of(self.hidden)
            .max(o)
            .max(splits * of(self.intermediate / splits))
    }

    /// Why the kernel does not support the shape.
    pub(super) fn unsupported(&self, form: StepForm) -> Option<String> {
        let unit = form.columns();
        let group = self.heads.checked_div(self.kv_heads).unwrap_or(0);
        let reason = if !matches!(self.head_dim, 64 | 128) {
            format!("heads of {} values: 64 and 128 are supported", self.head_dim)
        } else if group == 0 || group > 8 || group * self.kv_heads != self.heads {
            format!("{} query heads for {} key heads", self.heads, self.kv_heads)
        } else if !self.hidden.is_multiple_of(unit) || !self.intermediate.is_multiple_of(unit) {
            format!(
                "{} x {} weights: multiples of {unit} are supported",
                self.hidden, self.intermediate
            )
        } else if !(group * self.head_dim).is_multiple_of(unit) {
            format!("{group} query heads of {} values for a key head", self.head_dim)
        } else if !self.vocab.is_multiple_of(16) {
            format!("{} output tokens: multiples of 16 are supported", self.vocab)
        } else {
            return None;
        };
        Some(reason)
    }
}

impl StepForm {
    /// Columns of a tile.
    fn columns(self) -> usize {
        match self {
            Self::Tiles | Self::GroupedTiles => 128,
            Self::Rows => 64,
        }
    }
}

/// The LoRA adapters of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepAdapters {
    /// How many there are.
    pub count: usize,
    /// The largest rank of their pairs.
    pub rank: usize,
}

impl StepAdapters {
    /// The rank that the kernel has room for, whole tiles of it; 0 without adapters.
    pub(super) fn ranks(&self) -> usize {
        self.rank.next_multiple_of(DENSE_COLUMNS)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const FORMS: [StepForm; 3] =
        [StepForm::Tiles, StepForm::GroupedTiles, StepForm::Rows];

    pub(in super::super) const SHAPES: [(&str, StepShape); 5] = [
        ("7B", shape(3584, 18944, 28, 4, 128, 28, 152_064)),
        ("3B", shape(2048, 11008, 16, 2, 128, 36, 151_936)),
        ("32B", shape(5120, 27648, 40, 8, 128, 64, 152_064)),
        ("72B", shape(8192, 29568, 64, 8, 128, 80, 152_064)),
        ("embedded", shape(256, 768, 4, 2, 64, 6, 8192)),
    ];

    const fn shape(
        hidden: usize,
        intermediate: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        layers: usize,
        vocab: usize,
    ) -> StepShape {
        StepShape {
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_dim,
            layers,
            vocab,
        }
    }

    #[test]
    fn every_published_shape_is_supported() {
        for (name, shape) in SHAPES {
            for form in FORMS {
                assert_eq!(shape.unsupported(form), None, "{name}");
                let splits = shape.splits(form).unwrap();
                assert!(
                    (shape.intermediate / splits).is_multiple_of(form.columns()),
                    "{name}"
                );
                assert!(shape.intermediate / splits <= MAX_SPLIT_COLUMNS, "{name}");
            }
        }
        assert_eq!(SHAPES[0].1.splits(StepForm::Tiles), Some(4));
    }

    #[test]
    fn other_shapes_are_refused_with_the_reason() {
        let (_, good) = SHAPES[0];
        let wrong = [
            (StepShape { head_dim: 80, ..good }, "80 values"),
            (StepShape { heads: 27, ..good }, "27 query heads"),
            (StepShape { kv_heads: 0, ..good }, "0 key heads"),
            (StepShape { kv_heads: 2, ..good }, "2 key heads"),
            (StepShape { hidden: 3600, ..good }, "multiples of 128"),
            (
                StepShape {
                    vocab: 152_063,
                    ..good
                },
                "multiples of 16",
            ),
        ];
        for (shape, reason) in wrong {
            let found = shape.unsupported(StepForm::Tiles).unwrap();
            assert!(found.contains(reason), "{found}");
        }
    }
}
