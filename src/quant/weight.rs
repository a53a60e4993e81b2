//! One weight in four bits, of either format.

use tch::{Device, Kind, Tensor};

use super::{Quantization, awq::AwqWeight, nf4::Nf4Weight};
use crate::Result;
use crate::checkpoint::Checkpoint;

/// A weight in four bits.
pub enum QuantizedWeight {
    /// bitsandbytes.
    Nf4(Nf4Weight),
    /// AWQ.
    Awq(AwqWeight),
}

impl Quantization {
    /// Loads the weight of canonical `name` (`….weight`), which must be `[rows, columns]`, to `device`; `None` if it is dense.
    pub fn load_weight(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        shape: [usize; 2],
        device: Device,
    ) -> Result<Option<QuantizedWeight>> {
        Ok(match self {
            Self::None => None,
            Self::BitsAndBytes(_) => {
                Nf4Weight::load(checkpoint, name, shape, device)?.map(QuantizedWeight::Nf4)
            }
            Self::Awq(settings) => {
                AwqWeight::load(checkpoint, settings, name, shape, device)?.map(QuantizedWeight::Awq)
            }
        })
    }
}

impl QuantizedWeight {
    /// The values as f32 `[rows, columns]` on `device`, which is the weight's.
    pub fn dequantize(&self, device: Device) -> Result<Tensor> {
        let (rows, columns) = match self {
            Self::Nf4(weight) => weight.shape(),
            Self::Awq(weight) => weight.shape(),
        };
        let mut values = Tensor::f_empty([rows, columns], (Kind::Float, device))?;
        match self {
            Self::Nf4(weight) => weight.dequantize_into(&mut values)?,
            Self::Awq(weight) => weight.dequantize_into(&mut values)?,
        }
        Ok(values)
    }
}
