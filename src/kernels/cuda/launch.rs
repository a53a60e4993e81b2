//! Loads compiled kernels and launches them on libtorch's stream.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
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
    include_str!("elementwise.cu"),
    include_str!("tiles.cu")
);

type Status = c_int;
type Handle = *mut c_void;

const MULTIPROCESSOR_COUNT: c_int = 16;
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;
const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: c_int = 97;
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
/// Static shared memory of the kernels in [`SOURCE`], at most.
pub(super) const STATIC_BYTES: u32 = 2048;
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
    launch_cooperative: unsafe extern "C" fn(
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
            launch_cooperative: function!("cuLaunchCooperativeKernel"),
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

/// A GPU that kernels run on.
#[derive(Clone, Copy)]
pub(super) struct Gpu {
    driver: &'static Driver,
    context: Handle,
    /// Compute capability.
    pub(super) capability: (i32, i32),
    /// Multiprocessors.
    pub(super) multiprocessors: u32,
    /// Maximum shared memory per block, bytes.
    pub(super) most_shared_bytes: u32,
}

// SAFETY: the handles belong to the process, not to a thread, and the driver's functions may be called from any.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// Blocks, threads per block, and bytes of dynamic shared memory per block.
pub(super) type Grid = (u32, u32, u32);

impl Gpu {
    /// The GPU `cuda:index`; the error is for a log.
    pub(super) fn find(index: usize) -> Result<Self, String> {
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
        let mut context = std::ptr::null_mut();
        // SAFETY: the primary context is libtorch's; it is held as long as the process lives.
        check("the GPU's context", unsafe {
            (driver.retain_context)(&mut context, device)
        })?;
        Ok(Self {
            driver,
            context,
            capability,
            multiprocessors: attribute(MULTIPROCESSOR_COUNT)?.unsigned_abs(),
            most_shared_bytes: attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.unsigned_abs(),
        })
    }

    /// Loads machine code; it stays loaded as long as the process lives. Returns its functions `names`, which may use all
    /// shared memory that the GPU has beside `static_bytes`.
    pub(super) fn load<const N: usize>(
        &self,
        code: &[u8],
        names: [&CStr; N],
        static_bytes: u32,
    ) -> Result<[Kernel; N], String> {
        let room = c_int::try_from(self.most_shared_bytes.saturating_sub(static_bytes))
            .map_err(|error| error.to_string())?;
        within(self.driver, self.context, || {
            let mut module = std::ptr::null_mut();
            // SAFETY: the compiler's own ELF image, in a context.
            check("loading the kernels", unsafe {
                (self.driver.load_module)(&mut module, code.as_ptr().cast())
            })?;
            let mut kernels = [Kernel(std::ptr::null_mut()); N];
            for (kernel, name) in kernels.iter_mut().zip(names) {
                // SAFETY: the module was just loaded; the name is terminated.
                check("finding a kernel", unsafe {
                    (self.driver.get_function)(&mut kernel.0, module, name.as_ptr())
                })?;
                // SAFETY: a function of this module, and a limit that the GPU named.
                check("a kernel's shared memory", unsafe {
                    (self.driver.set_attribute)(kernel.0, MAX_DYNAMIC_SHARED_SIZE_BYTES, room)
                })?;
            }
            Ok(kernels)
        })
    }

    /// Launches a kernel on libtorch's stream.
    pub(super) fn launch(&self, kernel: Kernel, grid: Grid, arguments: &[Argument<'_>]) -> Result<()> {
        self.start(kernel, grid, arguments, false)
    }

    /// Launches a kernel whose blocks are all resident at once, so that they can wait for each other.
    pub(super) fn launch_cooperative(
        &self,
        kernel: Kernel,
        grid: Grid,
        arguments: &[Argument<'_>],
    ) -> Result<()> {
        self.start(kernel, grid, arguments, true)
    }

    fn start(
        &self,
        kernel: Kernel,
        (blocks, threads, shared): Grid,
        arguments: &[Argument<'_>],
        cooperative: bool,
    ) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(|argument| argument.0).collect();
        let (function, pointers, none) = (kernel.0, pointers.as_mut_ptr(), std::ptr::null_mut());
        within(self.driver, self.context, || {
            // SAFETY: the arguments are those that the kernel declares, and what they point to on the GPU is alive: libtorch
            // frees memory in the order of this stream (the default one, which tch works on).
            check("starting a kernel", unsafe {
                if cooperative {
                    (self.driver.launch_cooperative)(
                        function, blocks, 1, 1, threads, 1, 1, shared, none, pointers,
                    )
                } else {
                    (self.driver.launch)(
                        function,
                        blocks,
                        1,
                        1,
                        threads,
                        1,
                        1,
                        shared,
                        none,
                        pointers,
                        std::ptr::null_mut(),
                    )
                }
            })
        })
        .map_err(|reason| Error::Device(format!("{reason}; see what nvidia-smi says")))
    }
}

/// The kernels for one GPU and one dtype.
pub(super) struct Kernels {
    pub(super) gpu: Gpu,
    pub(super) dequantize: Kernel,
    /// Kernels for 16-bit values.
    pub(super) half: Option<HalfKernels>,
}

/// Kernels for 16-bit values only.
#[derive(Clone, Copy)]
pub(super) struct HalfKernels {
    pub(super) product: Kernel,
    pub(super) rotate: Kernel,
    pub(super) gated: Kernel,
    pub(super) gated_backward: Kernel,
    pub(super) restore_tiles: Kernel,
}

/// A function on the GPU.
#[derive(Clone, Copy)]
pub(super) struct Kernel(Handle);

// SAFETY: the handle belongs to the process, not to a thread, and the driver's functions may be called from any.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

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
        let gpu = Gpu::find(index)?;
        let code = compile(SOURCE, gpu.capability, &[format!("-DVALUE_TYPE={value_type}")])?;
        if value_type == "0" {
            let [dequantize] = gpu.load(&code, [c"dequantize"], STATIC_BYTES)?;
            return Ok(Self {
                gpu,
                dequantize,
                half: None,
            });
        }
        let names = [
            c"dequantize",
            c"product",
            c"rotate",
            c"gated",
            c"gated_backward",
            c"restore_tiles",
        ];
        let [dequantize, product, rotate, gated, gated_backward, restore_tiles] =
            gpu.load(&code, names, STATIC_BYTES)?;
        let half = Some(HalfKernels {
            product,
            rotate,
            gated,
            gated_backward,
            restore_tiles,
        });
        Ok(Self {
            gpu,
            dequantize,
            half,
        })
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
