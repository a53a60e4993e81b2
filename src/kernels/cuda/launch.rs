//! Loads compiled kernels and launches them on libtorch's stream.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library, RTLD_NOW};
use tch::{Device, Kind, Tensor};

use super::compiler::compile;
use crate::device::device_name;
use crate::{Error, Result};

/// Sources of the kernels.
pub(super) const SOURCE: &str = concat!(
    include_str!("values.cu"),
    include_str!("nf4.cu"),
    include_str!("elementwise.cu")
);

type Status = c_int;
type Handle = *mut c_void;

const MULTIPROCESSOR_COUNT: c_int = 16;
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;
const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: c_int = 97;
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
/// Minimum compute capability.
const OLDEST: (i32, i32) = (8, 0);

/// Functions of the CUDA driver API that launch kernels.
struct Driver {
    get: unsafe extern "C" fn(*mut c_int, c_int) -> Status,
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status,
    retain_context: unsafe extern "C" fn(*mut Handle, c_int) -> Status,
    push_context: unsafe extern "C" fn(Handle) -> Status,
    pop_context: unsafe extern "C" fn(*mut Handle) -> Status,
    load_module: unsafe extern "C" fn(*mut Handle, *const c_void) -> Status,
    get_function: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> Status,
    set_attribute: unsafe extern "C" fn(Handle, c_int, c_int) -> Status,
    #[allow(clippy::type_complexity)]
    launch: unsafe extern "C" fn(
        Handle,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        Handle,
        *mut *mut c_void,
        *mut *mut c_void,
    ) -> Status,
    /// Keeps the functions above loaded.
    _library: Library,
}

impl Driver {
    fn load() -> Result<Self, String> {
        // SAFETY: the NVIDIA driver's own library, which libtorch has loaded and started already.
        let library =
            unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) }.map_err(|error| error.to_string())?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's C signature in NVIDIA's documentation.
                *unsafe { library.get($name) }.map_err(|error| error.to_string())?
            };
        }
        Ok(Self {
            get: function!("cuDeviceGet"),
            attribute: function!("cuDeviceGetAttribute"),
            retain_context: function!("cuDevicePrimaryCtxRetain"),
            push_context: function!("cuCtxPushCurrent_v2"),
            pop_context: function!("cuCtxPopCurrent_v2"),
            load_module: function!("cuModuleLoadData"),
            get_function: function!("cuModuleGetFunction"),
            set_attribute: function!("cuFuncSetAttribute"),
            launch: function!("cuLaunchKernel"),
            _library: library,
        })
    }
}

fn check(what: &str, status: Status) -> Result<(), String> {
    match status {
        0 => Ok(()),
        status => Err(format!("{what} fails (CUDA driver error {status})")),
    }
}

/// A kernel argument, which must live until the launch.
pub(super) struct Argument<'a>(*mut c_void, PhantomData<&'a ()>);

impl<'a> Argument<'a> {
    /// `value` as the kernel declares it.
    pub(super) fn new<T>(value: &'a T) -> Self {
        Self(std::ptr::from_ref(value).cast_mut().cast(), PhantomData)
    }
}

/// The kernels for one GPU and one dtype.
pub(super) struct Kernels {
    driver: &'static Driver,
    context: Handle,
    pub(super) dequantize: Kernel,
    /// Kernels for 16-bit values.
    pub(super) half: Option<HalfKernels>,
    /// Multiprocessors of the GPU.
    pub(super) multiprocessors: u32,
    /// Maximum shared memory per block.
    pub(super) most_shared_bytes: u32,
}

/// Kernels for 16-bit values only.
#[derive(Clone, Copy)]
pub(super) struct HalfKernels {
    pub(super) product: Kernel,
    pub(super) rotate: Kernel,
    pub(super) gated: Kernel,
    pub(super) gated_backward: Kernel,
}

/// A function on the GPU.
#[derive(Clone, Copy)]
pub(super) struct Kernel(Handle);

// SAFETY: the handles belong to the process, not to a thread, and the driver's functions may be called from any.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

type Loaded = HashMap<(usize, &'static str), Option<Arc<Kernels>>>;

impl Kernels {
    /// Kernels for `kind` on `device`, compiled at the first call; `None` if that fails, with the reason in the log.
    pub(super) fn of(device: Device, kind: Kind) -> Option<Arc<Self>> {
        static LOADED: LazyLock<Mutex<Loaded>> = LazyLock::new(Mutex::default);
        let Device::Cuda(index) = device else {
            return None;
        };
        let value_type = match kind {
            Kind::Float => "0",
            Kind::BFloat16 => "1",
            Kind::Half => "2",
            _ => return None,
        };
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let kernels = loaded.entry((index, value_type)).or_insert_with(|| {
            Self::load(index, value_type)
                .inspect_err(|reason| {
                    tracing::warn!("no kernels of our own on {}: {reason}", device_name(device))
                })
                .ok()
                .map(Arc::new)
        });
        kernels.clone()
    }

    /// Kernels for 16-bit values, for x's device and dtype.
    pub(super) fn half(x: &Tensor) -> Option<(Arc<Self>, HalfKernels)> {
        let kernels = Self::of(x.device(), x.kind())?;
        let half = kernels.half?;
        Some((kernels, half))
    }

    fn load(index: usize, value_type: &str) -> Result<Self, String> {
        static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
        let driver = DRIVER.get_or_init(Driver::load).as_ref().map_err(Clone::clone)?;
        let ordinal = c_int::try_from(index).map_err(|error| error.to_string())?;
        let mut device = 0;
        // SAFETY: the pointer is valid for the call; an ordinal out of range is an error code.
        check("finding the GPU", unsafe { (driver.get)(&mut device, ordinal) })?;
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: the pointer is valid for the call.
            check("asking the GPU", unsafe {
                (driver.attribute)(&mut value, attribute, device)
            })
            .map(|()| value)
        };
        let capability = (
            attribute(COMPUTE_CAPABILITY_MAJOR)?,
            attribute(COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < OLDEST {
            return Err(format!(
                "compute capability {}.{} is too old",
                capability.0, capability.1
            ));
        }
        let most_shared = attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let code = compile(SOURCE, capability, &[format!("VALUE_TYPE={value_type}")])?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the primary context is libtorch's; it is held as long as the process lives.
        check("the GPU's context", unsafe {
            (driver.retain_context)(&mut context, device)
        })?;
        let (dequantize, half) = within(driver, context, || {
            let mut module = std::ptr::null_mut();
            // SAFETY: the compiler's own ELF image, in a context; the module stays loaded as long as the process lives.
            check("loading the kernels", unsafe {
                (driver.load_module)(&mut module, code.as_ptr().cast())
            })?;
            let function = |name: &std::ffi::CStr| {
                let mut function = std::ptr::null_mut();
                // SAFETY: the module was just loaded; the name is terminated.
                check("finding a kernel", unsafe {
                    (driver.get_function)(&mut function, module, name.as_ptr())
                })
                .map(|()| Kernel(function))
            };
            let dequantize = function(c"dequantize")?;
            if value_type == "0" {
                return Ok((dequantize, None));
            }
            let half = HalfKernels {
                product: function(c"product")?,
                rotate: function(c"rotate")?,
                gated: function(c"gated")?,
                gated_backward: function(c"gated_backward")?,
            };
            // SAFETY: a function of this module, and a limit that the GPU named.
            check("a kernel's shared memory", unsafe {
                (driver.set_attribute)(half.product.0, MAX_DYNAMIC_SHARED_SIZE_BYTES, most_shared)
            })?;
            Ok((dequantize, Some(half)))
        })?;
        Ok(Self {
            driver,
            context,
            dequantize,
            half,
            multiprocessors: attribute(MULTIPROCESSOR_COUNT)?.unsigned_abs(),
            most_shared_bytes: most_shared.unsigned_abs(),
        })
    }

    /// Launches a kernel on libtorch's stream; `(blocks, threads, shared memory in bytes)`.
    pub(super) fn launch(
        &self,
        kernel: Kernel,
        (blocks, threads, shared): (u32, u32, u32),
        arguments: &[Argument<'_>],
    ) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(|argument| argument.0).collect();
        within(self.driver, self.context, || {
            // SAFETY: the arguments are those that the kernel declares, and what they point to on the GPU is alive: libtorch
            // frees memory in the order of this stream (the default one, which tch works on).
            check("starting a kernel", unsafe {
                (self.driver.launch)(
                    kernel.0,
                    blocks,
                    1,
                    1,
                    threads,
                    1,
                    1,
                    shared,
                    std::ptr::null_mut(),
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            })
        })
        .map_err(|reason| Error::Device(format!("{reason}; see what nvidia-smi says")))
    }
}

/// `work` with `context` current on this thread.
fn within<T>(
    driver: &Driver,
    context: Handle,
    work: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    // SAFETY: the context is retained; it is popped again, so that the thread's own stays.
    check("the GPU's context", unsafe { (driver.push_context)(context) })?;
    let made = work();
    let mut popped = std::ptr::null_mut();
    // SAFETY: pops what was pushed above.
    check("the GPU's context", unsafe { (driver.pop_context)(&mut popped) })?;
    made
}
