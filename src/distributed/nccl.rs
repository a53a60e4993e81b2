//! NCCL's C interface; the library comes with libtorch's CUDA libraries.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_NOW};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Size of a communicator id, bytes.
pub(super) const ID_BYTES: usize = 128;

type Status = c_int;
type Handle = *mut c_void;

const SUM: c_int = 0;
const FLOAT: c_int = 7;
const DOUBLE: c_int = 8;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([c_char; ID_BYTES]);

/// The functions of NCCL used here (<https://docs.nvidia.com/deeplearning/nccl/>).
struct Nccl {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Status,
    init_rank: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> Status,
    all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Status,
    destroy: unsafe extern "C" fn(Handle) -> Status,
    get_error_string: unsafe extern "C" fn(Status) -> *const c_char,
    /// CUDA's: sets the current GPU of the calling thread.
    set_device: unsafe extern "C" fn(c_int) -> Status,
    /// Keeps the functions above loaded.
    _library: Library,
}

impl Nccl {
    fn get() -> Result<&'static Self> {
        static NCCL: OnceLock<Result<Nccl, String>> = OnceLock::new();
        NCCL.get_or_init(Self::load)
            .as_ref()
            .map_err(|reason| Error::Distributed(format!("cannot load NCCL: {reason}; run `make setup`")))
    }

    fn load() -> Result<Self, String> {
        // SAFETY: libtorch's CUDA libraries link to it, so it is already loaded.
        let library =
            unsafe { Library::open(Some("libnccl.so.2"), RTLD_NOW) }.map_err(|error| error.to_string())?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's C signature in NVIDIA's documentation.
                *unsafe { library.get($name) }.map_err(|error| error.to_string())?
            };
        }
        Ok(Self {
            get_unique_id: function!("ncclGetUniqueId"),
            init_rank: function!("ncclCommInitRank"),
            all_reduce: function!("ncclAllReduce"),
            destroy: function!("ncclCommDestroy"),
            get_error_string: function!("ncclGetErrorString"),
            // SAFETY: as above; the symbols of libtorch's CUDA libraries and their dependencies are global.
            set_device: *unsafe { Library::this().get(b"cudaSetDevice\0") }
                .map_err(|error| error.to_string())?,
            _library: library,
        })
    }

    /// Makes GPU `index` the current one of this thread.
    fn set_current(&self, index: c_int) -> Result<()> {
        // SAFETY: takes a plain integer.
        match unsafe { (self.set_device)(index) } {
            0 => Ok(()),
            status => Err(Error::Distributed(format!(
                "cannot use cuda:{index} (CUDA error {status})"
            ))),
        }
    }

    fn check(&self, what: &str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: NCCL returns a static string for every status.
        let reason = unsafe { CStr::from_ptr((self.get_error_string)(status)) };
        Err(Error::Distributed(format!(
            "NCCL {what} failed: {}; set NCCL_DEBUG=INFO for details",
            reason.to_string_lossy()
        )))
    }
}

/// A communicator id, created by rank 0 and shared by all ranks.
pub(super) fn unique_id() -> Result<[u8; ID_BYTES]> {
    let nccl = Nccl::get()?;
    let mut id = UniqueId([0; ID_BYTES]);
    // SAFETY: the pointer is valid for the call.
    nccl.check("ncclGetUniqueId", unsafe { (nccl.get_unique_id)(&mut id) })?;
    Ok(id.0.map(|byte| byte as u8))
}

/// This process's GPU in an NCCL communicator.
pub(super) struct Communicator {
    nccl: &'static Nccl,
    handle: Handle,
    index: c_int,
}

impl Communicator {
    /// Joins with GPU `index` of this machine; waits for the other ranks.
    pub(super) fn new(id: &[u8; ID_BYTES], rank: usize, size: usize, index: usize) -> Result<Self> {
        let nccl = Nccl::get()?;
        let index =
            c_int::try_from(index).map_err(|_| Error::Distributed(format!("cuda:{index} does not exist")))?;
        nccl.set_current(index)?;
        let mut handle = std::ptr::null_mut();
        let id = UniqueId(id.map(|byte| byte as c_char));
        // SAFETY: the pointer is valid for the call; all ranks pass the same id and size.
        nccl.check("ncclCommInitRank", unsafe {
            (nccl.init_rank)(&mut handle, size as c_int, id, rank as c_int)
        })?;
        Ok(Self { nccl, handle, index })
    }

    /// Sums `tensor`, contiguous and f32 or f64, over all ranks, in place.
    pub(super) fn all_reduce(&self, tensor: &mut Tensor) -> Result<()> {
        let kind = if tensor.kind() == Kind::Double {
            DOUBLE
        } else {
            FLOAT
        };
        let values = tensor.data_ptr();
        self.nccl.set_current(self.index)?;
        // SAFETY: the buffer holds that many values of this dtype; libtorch frees it in the order of this, the default stream.
        self.nccl.check("ncclAllReduce", unsafe {
            (self.nccl.all_reduce)(
                values,
                values,
                tensor.numel(),
                kind,
                SUM,
                self.handle,
                std::ptr::null_mut(),
            )
        })
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and not used after this.
        unsafe { (self.nccl.destroy)(self.handle) };
    }
}
