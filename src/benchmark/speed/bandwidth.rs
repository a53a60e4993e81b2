//! Memory bandwidth of a device, by a large copy.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::device::synchronize;

/// Bytes of the copied tensor: more than any cache holds.
const GPU_BYTES: i64 = 1 << 30;
const CPU_BYTES: i64 = 256 << 20;
/// Copies that are timed, after one that is not.
const COPIES: usize = 8;

/// Bytes per second, read and written, of the fastest of several copies, by all threads on a CPU.
pub(super) fn copy_bandwidth(device: Device) -> Result<f64> {
    let bytes = match device {
        Device::Cuda(_) => GPU_BYTES,
        _ => CPU_BYTES,
    };
    let options = (Kind::Float, device);
    let from = Tensor::f_ones([bytes / 4], options)?;
    let mut to = Tensor::f_zeros([bytes / 4], options)?;
    let mut shortest = f64::INFINITY;
    for _ in 0..=COPIES {
        synchronize(device);
        let start = Instant::now();
        to.f_copy_(&from)?;
        synchronize(device);
        shortest = shortest.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * bytes as f64 / shortest)
}
