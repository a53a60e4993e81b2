//! Which tensors store a four-bit weight, known without reading them.

use std::fmt;

use safetensors::Dtype;

use super::awq::layout::PER_WORD;
use super::nf4::{BLOCKSIZES, QuantState, QuantType, dynamic_map};
use super::{Awq, Quantization};
use crate::checkpoint::StoredTensor;

/// One of the tensors that store a four-bit weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    /// Suffix after the weight's (bitsandbytes) or the module's (AWQ) name and a dot; empty for the weight itself.
    pub suffix: &'static str,
    /// Supported dtypes.
    pub dtypes: &'static [Dtype],
    pub size: SizeSpec,
}

/// Expected size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SizeSpec {
    /// Number of values, in any shape.
    Values(usize),
    /// A shape.
    Shape([usize; 2]),
}

impl TensorSpec {
    fn new(suffix: &'static str, dtypes: &'static [Dtype], size: SizeSpec) -> Self {
        Self { suffix, dtypes, size }
    }

    /// Whether a tensor of `dtype` and `shape` matches.
    pub(crate) fn fits(&self, dtype: Dtype, shape: &[usize]) -> bool {
        let size = match &self.size {
            SizeSpec::Values(values) => shape.iter().product::<usize>() == *values,
            SizeSpec::Shape(wanted) => shape == wanted,
        };
        size && self.dtypes.contains(&dtype)
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtypes: Vec<String> = self.dtypes.iter().map(ToString::to_string).collect();
        match &self.size {
            SizeSpec::Values(values) => write!(formatter, "{} of {values} values", dtypes.join(" or ")),
            SizeSpec::Shape(shape) => write!(formatter, "{} {shape:?}", dtypes.join(" or ")),
        }
    }
}

impl QuantState {
    /// The tensors of a weight with this state, except the state itself.
    pub(crate) fn tensors(&self) -> Vec<TensorSpec> {
        let values: usize = self.shape.iter().product();
        let blocks = values.div_ceil(self.blocksize);
        let new = |suffix, dtypes, values| TensorSpec::new(suffix, dtypes, SizeSpec::Values(values));
        let (bytes, floats): (&[Dtype], &[Dtype]) = (&[Dtype::U8], &[Dtype::F32]);
        let mut tensors = vec![
            new("", bytes, values.div_ceil(2)),
            new("quant_map", floats, self.quant_type.table().len()),
        ];
        match self.nested_blocksize {
            Some(blocksize) => tensors.extend([
                new("absmax", bytes, blocks),
                new("nested_absmax", floats, blocks.div_ceil(blocksize)),
                new("nested_quant_map", floats, dynamic_map().len()),
            ]),
            None => tensors.push(new("absmax", floats, blocks)),
        }
        tensors
    }

    /// Infers the state of a weight of `shape` from its scales `absmax`, for checks that do not read the state itself; `None` if
    /// their number fits no block size.
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
    /// The tensors of a weight `[rows, columns]`, or why the layout cannot hold it.
    pub(crate) fn tensors(&self, [rows, columns]: [usize; 2]) -> Result<[TensorSpec; 3], String> {
        let group = self.group_size.unwrap_or(columns);
        if !columns.is_multiple_of(group) || !group.is_multiple_of(2) || !rows.is_multiple_of(PER_WORD) {
            return Err(format!(
                "{rows} x {columns} values in groups of {group} (\"group_size\" in config.json)"
            ));
        }
        let (groups, words) = (columns / group, rows / PER_WORD);
        let new = |suffix, dtypes, shape| TensorSpec::new(suffix, dtypes, SizeSpec::Shape(shape));
        Ok([
            new("qweight", &[Dtype::I32], [columns, words]),
            new("qzeros", &[Dtype::I32], [groups, words]),
            new("scales", &[Dtype::F16, Dtype::BF16], [groups, rows]),
        ])
    }
}

/// How one weight is stored.
pub(crate) enum Storage<'a> {
    /// Unquantized.
    Dense,
    /// bitsandbytes, with the tensor of its state.
    BitsAndBytes(QuantType, &'a StoredTensor),
    /// AWQ.
    Awq(&'a Awq),
}

impl Quantization {
    /// How the weight of canonical `name` (`….weight`) is stored, judged by the tensors that exist.
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
