//! Host-to-device copies through page-locked (pinned) memory (`transfer.cpp`).

use std::ffi::{c_char, c_int, c_void};

use tch::kind::Element;
use tch::{Device, TchError, Tensor};

use crate::{Error, Result, torch};

unsafe extern "C" {
    /// In `transfer.cpp`.
    fn medvision_pin(
        tensor: *const c_void,
        out: *mut *mut c_void,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// `tensor`, which is on the CPU, in page-locked (pinned) memory for copies to `device`; unchanged if that is a CPU.
pub fn pinned(tensor: Tensor, device: Device) -> Result<Tensor> {
    if !device.is_cuda() {
        return Ok(tensor);
    }
    let mut out = std::ptr::null_mut();
    // SAFETY: a live tensor; `out` and the message buffer are valid for the call, which throws nothing.
    torch::call(|message, room| unsafe { medvision_pin(tensor.as_ptr().cast(), &mut out, message, room) })
        .map_err(|text| Error::Torch(TchError::Torch(text)))?;
    // SAFETY: a new tensor; this becomes its owner.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// `values` as a 1-D tensor on `device`. The copy to a GPU is asynchronous: a synchronous one would wait for all queued work.
pub fn upload<T: Element>(values: &[T], device: Device) -> Result<Tensor> {
    let tensor = pinned(Tensor::f_from_slice(values)?, device)?;
    Ok(tensor.f_to_device_(device, T::KIND, true, false)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_gets_the_values_as_they_are() {
        let values = [3i64, -1, 2];
        let uploaded = upload(&values, Device::Cpu).unwrap();
        assert_eq!(Vec::<i64>::try_from(&uploaded).unwrap(), values);
        assert_eq!(upload::<f32>(&[], Device::Cpu).unwrap().numel(), 0);
    }
}
