//! Figures that several records share, units and rounding.

use tch::Device;

use crate::device::{ModelMemory, model_memory};
use serde::{Deserialize, Serialize};

use super::Extra;

const MIB: f64 = 1_048_576.0;

/// `value` to `decimals` places, halves away from zero.
pub fn round_to(value: f64, decimals: i32) -> f64 {
    let scale = 10f64.powi(decimals);
    let rounded = (value * scale).round() / scale;
    // A value too large to scale has no decimals.
    if rounded.is_finite() { rounded } else { value }
}

/// A duration for a record: 4 decimals.
pub fn seconds(value: f64) -> f64 {
    round_to(value, 4)
}

/// Bytes as MiB.
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

/// Bytes as GiB.
pub fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / (MIB * 1024.0)
}

/// Bytes as MiB, 2 decimals.
pub fn mib(bytes: u64) -> f64 {
    round_to(mebibytes(bytes), 2)
}

/// Bytes as GiB, 2 decimals.
pub fn gib(bytes: u64) -> f64 {
    round_to(gibibytes(bytes), 2)
}

/// `part` of `whole` in percent, 2 decimals; `None` if the whole is 0.
pub fn percent(part: f64, whole: f64) -> Option<f64> {
    let percent = part / whole * 100.0;
    (whole != 0.0 && percent.is_finite()).then(|| round_to(percent, 2))
}

/// Key of [`GpuMemory`] for memory that is not a GPU's.
const MEMORY_KIND: &str = "memory_kind";
const RESIDENT: &str = "resident";

/// Statistics of libtorch's caching allocator on a GPU, MiB, 2 decimals. On a CPU the resident memory of the process, with
/// `memory_kind` "resident".
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuMemory {
    /// In tensors.
    pub allocated_mb: f64,
    /// Reserved from the driver: tensors and cached blocks.
    pub reserved_mb: f64,
    /// Peak in tensors.
    pub max_allocated_mb: f64,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

impl GpuMemory {
    /// Current memory of a model on `device`; `None` if unknown.
    pub fn of(device: Device) -> Option<Self> {
        Some(match model_memory(device)? {
            ModelMemory::Gpu(stats) => {
                Self::from_bytes(stats.allocated_bytes, stats.reserved_bytes, stats.peak_bytes)
            }
            ModelMemory::Process(memory) => Self::resident(memory.resident_bytes, memory.peak_resident_bytes),
        })
    }

    /// From bytes.
    pub fn from_bytes(allocated: u64, reserved: u64, max_allocated: u64) -> Self {
        Self {
            allocated_mb: mib(allocated),
            reserved_mb: mib(reserved),
            max_allocated_mb: mib(max_allocated),
            extra: Extra::new(),
        }
    }

    /// Memory of a process that computes on a CPU, from bytes: resident now and peak.
    pub fn resident(now: u64, most: u64) -> Self {
        let mut memory = Self::from_bytes(now, now, most);
        memory.extra.insert(MEMORY_KIND.to_owned(), RESIDENT.into());
        memory
    }

    /// "resident" if this is not a GPU's memory.
    pub fn memory_kind(&self) -> Option<&str> {
        self.extra.get(MEMORY_KIND)?.as_str()
    }

    /// Returns this if it is a GPU's.
    pub fn on_gpu(&self) -> Option<&Self> {
        (self.memory_kind() != Some(RESIDENT)).then_some(self)
    }

    /// Returns this if it is a process's resident memory.
    pub fn in_process(&self) -> Option<&Self> {
        (self.memory_kind() == Some(RESIDENT)).then_some(self)
    }
}

/// Memory in a record: one number, MiB, or all of [`GpuMemory`]. Records of the original have either.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected MiB, or an object with allocated_mb, reserved_mb and max_allocated_mb"
)]
pub enum MemoryFigure {
    /// MiB in tensors.
    Megabytes(f64),
    /// All statistics.
    Allocator(GpuMemory),
}

impl MemoryFigure {
    /// MiB in tensors.
    pub fn allocated_mb(&self) -> f64 {
        match self {
            Self::Megabytes(megabytes) => *megabytes,
            Self::Allocator(memory) => memory.allocated_mb,
        }
    }

    /// Peak MiB in tensors, or the only number.
    pub fn peak_mb(&self) -> f64 {
        match self {
            Self::Megabytes(megabytes) => *megabytes,
            Self::Allocator(memory) => memory.max_allocated_mb,
        }
    }
}

/// Latencies of several readings, seconds, 4 decimals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyStats {
    /// Mean.
    pub avg_seconds: f64,
    /// Shortest.
    pub min_seconds: f64,
    /// Longest.
    pub max_seconds: f64,
    /// Median, the higher one if there are two: `sorted[n / 2]`.
    pub p50_seconds: f64,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

impl LatencyStats {
    /// From latencies in seconds; `None` without any.
    pub fn from_seconds(latencies: &[f64]) -> Option<Self> {
        let mut sorted = latencies.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (sorted.first()?, sorted.last()?);
        Some(Self {
            avg_seconds: seconds(sorted.iter().sum::<f64>() / sorted.len() as f64),
            min_seconds: seconds(*min),
            max_seconds: seconds(*max),
            p50_seconds: seconds(*sorted.get(sorted.len() / 2)?),
            extra: Extra::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_rounded_to_two_decimals() {
        let memory = GpuMemory::from_bytes(1_234_567_890, 1_300_000_000, u64::from(u32::MAX));
        assert_eq!(
            (memory.allocated_mb, memory.reserved_mb, memory.max_allocated_mb),
            (1177.38, 1239.78, 4096.0)
        );
        assert_eq!(GpuMemory::from_bytes(0, 0, 0), GpuMemory::default());
        let own = GpuMemory::of(Device::Cpu).unwrap();
        assert_eq!(own.memory_kind(), Some("resident"));
        assert!(own.allocated_mb > 1.0 && own.allocated_mb == own.reserved_mb);
        assert!(own.max_allocated_mb >= own.allocated_mb);
        let resident = GpuMemory::resident(3 << 20, 5 << 20);
        assert_eq!(
            serde_json::to_value(&resident).unwrap(),
            serde_json::json!({
                "allocated_mb": 3.0, "reserved_mb": 3.0, "max_allocated_mb": 5.0, "memory_kind": "resident",
            })
        );
        assert!(resident.on_gpu().is_none() && memory.on_gpu().is_some() && memory.in_process().is_none());
        assert_eq!(gib(16_594_821_939), 15.46);
    }

    #[test]
    fn latencies_are_rounded_to_four_decimals_and_the_median_is_the_higher_one() {
        let stats = LatencyStats::from_seconds(&[3.0, 1.0, 2.000_05, 4.0]).unwrap();
        assert_eq!(stats.avg_seconds, 2.5);
        assert_eq!((stats.min_seconds, stats.max_seconds), (1.0, 4.0));
        assert_eq!(stats.p50_seconds, 3.0);
        let one = LatencyStats::from_seconds(&[31.123_456]).unwrap();
        assert_eq!(one.p50_seconds, 31.1235);
        assert_eq!(one.avg_seconds, 31.1235);
        assert_eq!(LatencyStats::from_seconds(&[]), None);
    }

    #[test]
    fn a_percentage_of_zero_is_unknown() {
        assert_eq!(percent(5664.0, 15820.0), Some(35.8));
        assert_eq!(percent(1.0, 0.0), None);
        assert_eq!(percent(f64::NAN, 1.0), None);
    }
}
