//! The dtype of a model's activations.

use std::fmt;

use tch::{Device, Kind};

use crate::{Error, Result};

/// Dtype of activations, as chosen by the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// f32 on a CPU, bf16 on a GPU.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision, GPU only.
    F16,
}

impl Precision {
    /// The dtype on `device`.
    pub fn kind(self, device: Device) -> Kind {
        match (self, device) {
            (Self::F32, _) | (Self::Auto, Device::Cpu) => Kind::Float,
            (Self::Bf16 | Self::Auto, _) => Kind::BFloat16,
            (Self::F16, _) => Kind::Half,
        }
    }

    /// As [`Self::kind`].
    ///
    /// # Errors
    /// [`Error::Device`] for half precision on a CPU.
    pub fn checked_kind(self, device: Device) -> Result<Kind> {
        match (self, device) {
            (Self::F16, Device::Cpu) => Err(Error::Device(
                "half precision needs a GPU: choose f32 or bf16 on a CPU".into(),
            )),
            _ => Ok(self.kind(device)),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// Name of a compute dtype in records: "FP32", "BF16" or "FP16".
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "BF16",
        Kind::Half => "FP16",
        _ => "FP32",
    }
}

/// "cpu" or "cuda:N".
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}
