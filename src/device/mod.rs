//! Where and in which dtype the model computes: CPU or CUDA, precision, CPU threads, memory figures.

mod cuda;
mod load;
mod memory;
mod precision;
mod processor;
mod threads;

use std::fmt;
use std::str::FromStr;

pub use self::cuda::{
    CudaUnavailable, Gpu, GpuMemory, driver_version, folder_in_use, gpu_memory, gpus, libtorch_folder,
    synchronize,
};
pub use self::load::{ProcessorShares, ProcessorTimes, load_average};
pub use self::memory::{
    HostMemory, ModelMemory, ProcessMemory, host_memory, keep_freed_memory, model_memory, process_memory,
    return_freed_memory, share_freed_memory,
};
pub use self::precision::{Precision, device_name, kind_name};
pub use self::processor::{cpu_info, cpu_name};
pub use self::threads::{default_threads, physical_cores, set_threads};

use crate::{Error, Result};

/// `--device` as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU when CUDA works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU; with several processes, one per process.
    Gpu,
    /// The GPU with this index among those visible to CUDA.
    Cuda(usize),
}

impl DeviceChoice {
    /// Index of the requested GPU.
    pub fn gpu(self) -> Option<usize> {
        match self {
            Self::Auto | Self::Cpu => None,
            Self::Gpu => Some(0),
            Self::Cuda(index) => Some(index),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Gpu),
            other => other
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Gpu => formatter.write_str("cuda"),
            Self::Cuda(index) => formatter.write_str(&device_name(tch::Device::Cuda(*index))),
        }
    }
}

/// A working device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// libtorch's device.
    pub device: tch::Device,
    /// One line for the user: the device, and why it is not a GPU.
    pub description: String,
    /// The GPU, if it is one.
    pub gpu: Option<Gpu>,
}

/// Selects and initializes a device; for a GPU, loads CUDA's part of libtorch and runs one operation on it.
///
/// Call it before the first tensor is made. [`DeviceChoice::Auto`] never fails.
///
/// # Errors
/// [`Error::Device`] with reason and remedy if a requested GPU does not work.
pub fn select(choice: DeviceChoice) -> Result<Selected> {
    let asked_for = |index| {
        cuda::start(index)
            .map(on_gpu)
            .map_err(|reason| Error::Device(format!("{choice} cannot be used: {reason}")))
    };
    match choice {
        DeviceChoice::Cpu => Ok(cpu("as asked for")),
        DeviceChoice::Gpu => asked_for(0),
        DeviceChoice::Cuda(index) => asked_for(index),
        DeviceChoice::Auto => Ok(match cuda::start(0) {
            Ok(gpu) => on_gpu(gpu),
            Err(reason) => cpu(&reason.to_string()),
        }),
    }
}

fn cpu(reason: &str) -> Selected {
    Selected {
        device: tch::Device::Cpu,
        description: format!("cpu ({reason})"),
        gpu: None,
    }
}

fn on_gpu(gpu: Gpu) -> Selected {
    Selected {
        device: tch::Device::Cuda(gpu.index),
        description: format!("{} ({})", device_name(tch::Device::Cuda(gpu.index)), gpu.name),
        gpu: Some(gpu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_read() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("CPU", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Gpu),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda0"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_cpu_can_always_be_chosen() {
        assert_eq!(select(DeviceChoice::Cpu).unwrap().device, tch::Device::Cpu);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_with_a_reason() {
        let message = select(DeviceChoice::Cuda(9999)).unwrap_err().to_string();
        assert!(message.starts_with("cuda:9999 cannot be used: "), "{message}");
    }
}
