//! What a weight in four bits is stored in, known without its bytes.

use std::fmt;

use safetensors::Dtype;

use super::awq::layout::PER_WORD;
use super::nf4::{BLOCKSIZES, QuantState, QuantType, dynamic_map};
use super::{Awq, Quantization};
use crate::checkpoint::StoredTensor;

/// A tensor of a weight in four bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// What its name adds to the weight's (bitsandbytes) or the module's (AWQ), after a dot; empty for the weight itself.
    pub suffix: &'static str,
    /// Number formats that are read.
    pub dtypes: &'static [Dtype],
    pub size: PartSize,
}

/// How many values a part has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PartSize {
    /// So many, in any shape.
    Values(usize),
    /// In this shape.
    Shape([usize; 2]),
}

impl Part {
    fn new(suffix: &'static str, dtypes: &'static [Dtype], size: PartSize) -> Self {
        Self { suffix, dtypes, size }
    }

    /// Whether a tensor can be this part.
    pub(crate) fn fits(&self, dtype: Dtype, shape: &[usize]) -> bool {
        let size = match &self.size {
            PartSize::Values(values) => shape.iter().product::<usize>() == *values,
            PartSize::Shape(wanted) => shape == wanted,
        };
        size && self.dtypes.contains(&dtype)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtypes: Vec<String> = self.dtypes.iter().map(ToString::to_string).collect();
        match &self.size {
            PartSize::Values(values) => write!(formatter, "{} of {values} values", dtypes.join(" or ")),
            PartSize::Shape(shape) => write!(formatter, "{} {shape:?}", dtypes.join(" or ")),
        }
    }
}

impl QuantState {
    /// The tensors of a weight in this state, beside the state itself.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let values: usize = self.shape.iter().product();
        let blocks = values.div_ceil(self.blocksize);
        let new = |suffix, dtypes, values| Part::new(suffix, dtypes, PartSize::Values(values));
        let (bytes, floats): (&[Dtype], &[Dtype]) = (&[Dtype::U8], &[Dtype::F32]);
        let mut parts = vec![
            new("", bytes, values.div_ceil(2)),
            new("quant_map", floats, self.quant_type.table().len()),
        ];
        match self.nested_blocksize {
            Some(blocksize) => parts.extend([
                new("absmax", bytes, blocks),
                new("nested_absmax", floats, blocks.div_ceil(blocksize)),
                new("nested_quant_map", floats, dynamic_map().len()),
            ]),
            None => parts.push(new("absmax", floats, blocks)),
        }
        parts
    }

    /// The state of a weight of `shape` whose scales are `absmax`, where its own is not read; `None` where the scales are
    /// too many or too few for any.
    pub(crate) fn inferred(quant_type: QuantType, shape: [usize; 2], absmax: &StoredTensor) -> Option<Self> {
        let values: usize = shape.iter().product();
        let blocks: usize = absmax.shape.iter().product();
        let blocksize = BLOCKSIZES
            .into_iter()
            .find(|size| values.div_ceil(*size) == blocks)?;
        let nested = (absmax.dtype == Dtype::U8).then_some(0.0);
        Some(Self::new(quant_type, blocksize, "bfloat16", &shape, nested))
    }
}

impl Awq {
    /// The tensors of a weight `[rows, columns]`; the reason where it cannot be stored so.
    pub(crate) fn parts(&self, [rows, columns]: [usize; 2]) -> Result<[Part; 3], String> {
        let group = self.group_size.unwrap_or(columns);
        if !columns.is_multiple_of(group) || !group.is_multiple_of(2) || !rows.is_multiple_of(PER_WORD) {
            return Err(format!(
                "{rows} x {columns} values in groups of {group} (\"group_size\" in config.json)"
            ));
        }
        let (groups, words) = (columns / group, rows / PER_WORD);
        let new = |suffix, dtypes, shape| Part::new(suffix, dtypes, PartSize::Shape(shape));
        Ok([
            new("qweight", &[Dtype::I32], [columns, words]),
            new("qzeros", &[Dtype::I32], [groups, words]),
            new("scales", &[Dtype::F16, Dtype::BF16], [groups, rows]),
        ])
    }
}

/// How one weight is stored.
pub(crate) enum Storage<'a> {
    /// As numbers.
    Dense,
    /// bitsandbytes, with the tensor that holds its state.
    BitsAndBytes(QuantType, &'a StoredTensor),
    /// AWQ.
    Awq(&'a Awq),
}

impl Quantization {
    /// How the weight of canonical `name` (`….weight`) is stored, by the tensors that are there.
    pub(crate) fn storage<'a>(
        &'a self,
        name: &str,
        find: impl Fn(&str) -> Option<&'a StoredTensor>,
    ) -> Storage<'a> {
        match self {
            Self::None => Storage::Dense,
            Self::BitsAndBytes(_) => [QuantType::Nf4, QuantType::Fp4]
                .into_iter()
                .find_map(|kind| Some(Storage::BitsAndBytes(kind, find(&kind.state_name(name))?)))
                .unwrap_or(Storage::Dense),
            Self::Awq(settings) => {
                let module = name.strip_suffix(".weight").unwrap_or(name);
                match find(&format!("{module}.qweight")) {
                    Some(_) => Storage::Awq(settings),
                    None => Storage::Dense,
                }
            }
        }
    }
}
