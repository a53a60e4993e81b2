//! CUDA without linking to it: the driver's library lists the GPUs; libtorch's CUDA part is loaded if there is one.
//!
//! The binaries link against `libtorch_cpu` only, so that one build serves machines with and without a GPU.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::device_name;
use crate::torch::attention::disable_cudnn_attention;

/// Why a GPU cannot be used, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaUnavailable {
    /// `libcuda.so.1` cannot be loaded.
    #[error("no NVIDIA driver found")]
    NoDriver,
    /// The driver refused to start.
    #[error("the NVIDIA driver does not work: {0}; see what nvidia-smi says")]
    Driver(String),
    /// The driver shows no GPU.
    #[error("the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES empty?)")]
    NoGpu,
    /// The index is not below the number of GPUs.
    #[error("no such GPU: there {} (cuda:0{})", counted(*.count), last(*.count))]
    NoSuchIndex {
        /// Number of GPUs visible to CUDA.
        count: usize,
    },
    /// libtorch's CUDA part, or a library it needs, is not installed.
    #[error("libtorch's CUDA libraries are not installed ({0}); run `make setup` on this machine")]
    Libraries(String),
    /// The libraries are there, but libtorch finds no CUDA.
    #[error("{0}")]
    Libtorch(String),
}

fn counted(count: usize) -> String {
    if count == 1 {
        "is 1".to_owned()
    } else {
        format!("are {count}")
    }
}

fn last(count: usize) -> String {
    if count > 1 {
        format!(" to {}", device_name(tch::Device::Cuda(count - 1)))
    } else {
        String::new()
    }
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Index among the GPUs visible to CUDA.
    pub index: usize,
    /// Product name.
    pub name: String,
    /// Total memory, bytes.
    pub total_bytes: u64,
    /// Compute capability, such as (9, 0).
    pub compute_capability: (i32, i32),
}

/// Memory of one GPU, all processes together; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// Total.
    pub total_bytes: u64,
    /// In use by any process.
    pub used_bytes: u64,
}

/// Waits until a GPU has done all that it was asked for; nothing for a CPU.
pub fn synchronize(device: tch::Device) {
    if let tch::Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// All GPUs visible to CUDA.
pub fn gpus() -> Result<Vec<Gpu>, CudaUnavailable> {
    let driver = Driver::get()?;
    (0..driver.count()?).map(|index| driver.gpu(index)).collect()
}

/// Memory of one GPU. Creates a CUDA context on it if there is none (some hundred MB of its memory).
pub fn gpu_memory(index: usize) -> Result<GpuMemory, CudaUnavailable> {
    Driver::get()?.memory(index)
}

/// Newest CUDA version that the driver supports, as (major, minor).
pub fn driver_version() -> Result<(i32, i32), CudaUnavailable> {
    Driver::get()?.version()
}

/// Prepares one GPU: loads libtorch's CUDA part and runs one operation on the GPU.
pub(super) fn start(index: usize) -> Result<Gpu, CudaUnavailable> {
    let driver = Driver::get()?;
    let count = driver.count()?;
    if count == 0 {
        return Err(CudaUnavailable::NoGpu);
    }
    if index >= count {
        return Err(CudaUnavailable::NoSuchIndex { count });
    }
    let gpu = driver.gpu(index)?;
    load_libtorch_cuda()?;
    disable_cudnn_attention();
    if !tch::Cuda::is_available() {
        let (major, minor) = driver.version()?;
        return Err(CudaUnavailable::Libtorch(format!(
            "libtorch cannot use the NVIDIA driver, which supports CUDA {major}.{minor}; update the driver"
        )));
    }
    try_out(index).map_err(|error| {
        let (major, minor) = gpu.compute_capability;
        CudaUnavailable::Libtorch(format!(
            "{} (compute capability {major}.{minor}) fails a first operation: {}",
            gpu.name,
            error.to_string().lines().next().unwrap_or_default()
        ))
    })?;
    Ok(gpu)
}

/// Tries a matrix product on the GPU: detects missing kernels and a lack of free memory.
fn try_out(index: usize) -> Result<(), tch::TchError> {
    let options = (tch::Kind::Float, tch::Device::Cuda(index));
    let ones = tch::Tensor::f_ones([16, 16], options)?;
    let sum = ones.f_matmul(&ones)?.f_sum(tch::Kind::Float)?;
    let sum = f64::try_from(sum)?;
    if sum == 4096.0 {
        Ok(())
    } else {
        Err(tch::TchError::Torch(format!("a sum of 4096 came out as {sum}")))
    }
}

/// Folder of the libtorch in use.
pub fn libtorch_folder() -> Option<PathBuf> {
    folder_in_use("libtorch_cpu.so")
}

/// Folder of a loaded library whose file name starts with a prefix.
pub fn folder_in_use(name: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps
        .lines()
        .filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    let named = |path: &&Path| {
        path.file_name()
            .is_some_and(|file| file.as_encoded_bytes().starts_with(name.as_bytes()))
    };
    Some(paths.filter(named).find_map(Path::parent)?.to_owned())
}

/// Loads libtorch's CUDA part, which registers itself on loading: once, before the first tensor.
fn load_libtorch_cuda() -> Result<(), CudaUnavailable> {
    static LOADED: OnceLock<Result<Library, CudaUnavailable>> = OnceLock::new();
    let load = || {
        let folder = libtorch_folder()
            .ok_or_else(|| CudaUnavailable::Libraries("libtorch_cpu.so's folder is unknown".to_owned()))?;
        let path = folder.join("libtorch_cuda.so");
        if !path.is_file() {
            return Err(CudaUnavailable::Libraries(format!(
                "{} is missing",
                path.display()
            )));
        }
        // SAFETY: the library's initialisers are those of the libtorch this process already runs on.
        unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }
            .map_err(|error| CudaUnavailable::Libraries(error.to_string()))
    };
    LOADED
        .get_or_init(load)
        .as_ref()
        .map(|_| ())
        .map_err(Clone::clone)
}

type Status = c_int;
const SUCCESS: Status = 0;
const NO_DEVICE: Status = 100;
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;

/// Functions of the CUDA driver API that are used here (<https://docs.nvidia.com/cuda/cuda-driver-api/>).
struct Driver {
    get_error_string: unsafe extern "C" fn(Status, *mut *const c_char) -> Status,
    driver_get_version: unsafe extern "C" fn(*mut c_int) -> Status,
    device_get_count: unsafe extern "C" fn(*mut c_int) -> Status,
    device_get: unsafe extern "C" fn(*mut c_int, c_int) -> Status,
    device_get_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Status,
    device_get_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status,
    device_total_mem: unsafe extern "C" fn(*mut usize, c_int) -> Status,
    primary_context_retain: unsafe extern "C" fn(*mut *mut c_void, c_int) -> Status,
    primary_context_release: unsafe extern "C" fn(c_int) -> Status,
    context_push: unsafe extern "C" fn(*mut c_void) -> Status,
    context_pop: unsafe extern "C" fn(*mut *mut c_void) -> Status,
    mem_get_info: unsafe extern "C" fn(*mut usize, *mut usize) -> Status,
    /// Keeps the functions above loaded.
    _library: Library,
}

impl Driver {
    /// The driver, loaded and initialized once.
    fn get() -> Result<&'static Self, CudaUnavailable> {
        static DRIVER: OnceLock<Result<Driver, CudaUnavailable>> = OnceLock::new();
        DRIVER.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, CudaUnavailable> {
        // SAFETY: the NVIDIA driver's own library, found by the system's loader.
        let library = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) }
            .map_err(|_| CudaUnavailable::NoDriver)?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's C signature in NVIDIA's documentation.
                *unsafe { library.get($name) }.map_err(|error| CudaUnavailable::Driver(error.to_string()))?
            };
        }
        let init: unsafe extern "C" fn(c_uint) -> Status = function!("cuInit");
        let driver = Self {
            get_error_string: function!("cuGetErrorString"),
            driver_get_version: function!("cuDriverGetVersion"),
            device_get_count: function!("cuDeviceGetCount"),
            device_get: function!("cuDeviceGet"),
            device_get_name: function!("cuDeviceGetName"),
            device_get_attribute: function!("cuDeviceGetAttribute"),
            device_total_mem: function!("cuDeviceTotalMem_v2"),
            primary_context_retain: function!("cuDevicePrimaryCtxRetain"),
            primary_context_release: function!("cuDevicePrimaryCtxRelease_v2"),
            context_push: function!("cuCtxPushCurrent_v2"),
            context_pop: function!("cuCtxPopCurrent_v2"),
            mem_get_info: function!("cuMemGetInfo_v2"),
            _library: library,
        };
        // SAFETY: cuInit takes no pointers; its flags must be 0.
        driver.check(unsafe { init(0) })?;
        Ok(driver)
    }

    fn check(&self, status: Status) -> Result<(), CudaUnavailable> {
        match status {
            SUCCESS => Ok(()),
            NO_DEVICE => Err(CudaUnavailable::NoGpu),
            status => {
                let mut text = std::ptr::null();
                // SAFETY: the driver stores a pointer to a static string, or null for a code it does not know.
                let known =
                    unsafe { (self.get_error_string)(status, &mut text) } == SUCCESS && !text.is_null();
                let text = if known {
                    // SAFETY: not null, static and terminated, see above.
                    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
                } else {
                    "unknown error".to_owned()
                };
                Err(CudaUnavailable::Driver(format!("{text} (error {status})")))
            }
        }
    }

    fn version(&self) -> Result<(i32, i32), CudaUnavailable> {
        let mut version = 0;
        // SAFETY: the pointer is valid for the call.
        self.check(unsafe { (self.driver_get_version)(&mut version) })?;
        Ok((version / 1000, version % 1000 / 10))
    }

    fn count(&self) -> Result<usize, CudaUnavailable> {
        let mut count = 0;
        // SAFETY: the pointer is valid for the call.
        self.check(unsafe { (self.device_get_count)(&mut count) })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The driver's handle of a GPU.
    fn device(&self, index: usize) -> Result<c_int, CudaUnavailable> {
        let count = self.count()?;
        let ordinal = c_int::try_from(index).map_err(|_| CudaUnavailable::NoSuchIndex { count })?;
        let mut device = 0;
        // SAFETY: the pointer is valid for the call; an ordinal out of range is an error code.
        self.check(unsafe { (self.device_get)(&mut device, ordinal) })?;
        Ok(device)
    }

    fn gpu(&self, index: usize) -> Result<Gpu, CudaUnavailable> {
        let device = self.device(index)?;
        let mut name: [c_char; 256] = [0; 256];
        let mut total_bytes = 0;
        // SAFETY: the driver writes at most 255 characters and a terminator.
        self.check(unsafe { (self.device_get_name)(name.as_mut_ptr(), 255, device) })?;
        // SAFETY: the pointer is valid for the call.
        self.check(unsafe { (self.device_total_mem)(&mut total_bytes, device) })?;
        Ok(Gpu {
            index,
            // SAFETY: the array ends with a zero, since the driver was given one less than its length.
            name: unsafe { CStr::from_ptr(name.as_ptr()) }
                .to_string_lossy()
                .into_owned(),
            total_bytes: total_bytes as u64,
            compute_capability: (
                self.attribute(COMPUTE_CAPABILITY_MAJOR, device)?,
                self.attribute(COMPUTE_CAPABILITY_MINOR, device)?,
            ),
        })
    }

    fn attribute(&self, attribute: c_int, device: c_int) -> Result<i32, CudaUnavailable> {
        let mut value = 0;
        // SAFETY: the pointer is valid for the call.
        self.check(unsafe { (self.device_get_attribute)(&mut value, attribute, device) })?;
        Ok(value)
    }

    fn memory(&self, index: usize) -> Result<GpuMemory, CudaUnavailable> {
        let device = self.device(index)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the primary context is the one libtorch uses; retain and release are counted.
        self.check(unsafe { (self.primary_context_retain)(&mut context, device) })?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: `context` was just retained; it is pushed on this thread and popped again, so that the thread's own stays.
        let result = self
            .check(unsafe { (self.context_push)(context) })
            .and_then(|()| {
                // SAFETY: a context is current on this thread and the pointers are valid for the call.
                let result = self.check(unsafe { (self.mem_get_info)(&mut free, &mut total) });
                // SAFETY: pops what was pushed above.
                self.check(unsafe { (self.context_pop)(&mut context) })?;
                result
            });
        // SAFETY: releases what was retained above.
        self.check(unsafe { (self.primary_context_release)(device) })?;
        result?;
        Ok(GpuMemory {
            total_bytes: total as u64,
            used_bytes: total.saturating_sub(free) as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libtorch_in_use_is_found() {
        let folder = libtorch_folder().unwrap();
        assert!(folder.join("libtorch_cpu.so").is_file(), "{}", folder.display());
    }

    #[test]
    fn reasons_say_what_to_do() {
        let reason = CudaUnavailable::Libraries("libcudnn.so.9 is missing".to_owned()).to_string();
        assert!(reason.contains("make setup"), "{reason}");
        let reason = CudaUnavailable::NoSuchIndex { count: 2 }.to_string();
        assert_eq!(reason, "no such GPU: there are 2 (cuda:0 to cuda:1)");
    }

    /// Without a GPU every query fails; with one the figures are plausible.
    #[test]
    fn figures_or_a_reason() {
        match gpus() {
            Err(reason) => assert_eq!(gpu_memory(0), Err(reason)),
            Ok(gpus) => {
                for gpu in gpus {
                    let memory = gpu_memory(gpu.index).unwrap();
                    assert!(memory.used_bytes <= memory.total_bytes && memory.total_bytes > 1 << 28);
                }
            }
        }
    }
}
