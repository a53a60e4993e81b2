//! libtorch's process group over gloo (`c10d.cpp`), which tch does not bind.

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use tch::{Device, Tensor};

use super::{call, first_line};

unsafe extern "C" {
    fn medvision_group_join(
        host: *const c_char,
        port: u16,
        server: c_int,
        rank: c_int,
        size: c_int,
        interface: *const c_char,
        local: c_int,
        timeout_ms: i64,
        group: *mut *mut c_void,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn medvision_group_leave(group: *mut c_void);
    fn medvision_group_sum(
        group: *mut c_void,
        tensor: *mut c_void,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn medvision_group_broadcast(
        group: *mut c_void,
        tensor: *mut c_void,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

type Collective = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_char, usize) -> c_int;

/// How the processes of a group find each other.
pub(crate) struct Rendezvous<'a> {
    /// Host of the store.
    pub(crate) host: &'a str,
    /// Port of the store.
    pub(crate) port: u16,
    /// Whether this process serves the store.
    pub(crate) serves: bool,
    /// Rank of this process.
    pub(crate) rank: usize,
    /// Number of processes.
    pub(crate) world_size: usize,
    /// Network interface; empty for the one that the machine's host name resolves to.
    pub(crate) interface: &'a str,
    /// Timeout of joining and of each collective.
    pub(crate) timeout: Duration,
}

/// A process group over gloo, for tensors on the CPU. Errors are libtorch's first lines.
pub(crate) struct GlooGroup {
    handle: *mut c_void,
}

impl GlooGroup {
    /// Joins the group; waits until all processes have joined.
    pub(crate) fn join(rendezvous: &Rendezvous<'_>) -> Result<Self, String> {
        let text = |text: &str| CString::new(text).map_err(|_| format!("{text:?} is not a host name"));
        let (host, interface) = (text(rendezvous.host)?, text(rendezvous.interface)?);
        let number = |value: usize| c_int::try_from(value).map_err(|_| format!("{value} is out of range"));
        let (rank, size) = (number(rendezvous.rank)?, number(rendezvous.world_size)?);
        let local = matches!(rendezvous.host, "127.0.0.1" | "localhost" | "::1");
        let mut handle = std::ptr::null_mut();
        call(|message, capacity| {
            // SAFETY: the strings are zero-terminated and, like the outputs, outlive the call; it does not throw.
            unsafe {
                medvision_group_join(
                    host.as_ptr(),
                    rendezvous.port,
                    c_int::from(rendezvous.serves),
                    rank,
                    size,
                    interface.as_ptr(),
                    c_int::from(local),
                    rendezvous.timeout.as_millis() as i64,
                    &mut handle,
                    message,
                    capacity,
                )
            }
        })
        .map_err(|reason| first_line(&reason).to_owned())?;
        Ok(Self { handle })
    }

    /// Sums `tensor`, contiguous on the CPU, over all processes, in place.
    pub(crate) fn all_reduce(&self, tensor: &mut Tensor) -> Result<(), String> {
        self.run(medvision_group_sum, tensor)
    }

    /// Copies rank 0's values of `tensor`, contiguous on the CPU, to all processes, in place.
    pub(crate) fn broadcast(&self, tensor: &mut Tensor) -> Result<(), String> {
        self.run(medvision_group_broadcast, tensor)
    }

    fn run(&self, collective: Collective, tensor: &mut Tensor) -> Result<(), String> {
        assert!(tensor.is_contiguous() && tensor.device() == Device::Cpu);
        call(|message, capacity| {
            // SAFETY: the group is alive; the tensor is a contiguous C++ tensor on the CPU, which outlives the call.
            unsafe { collective(self.handle, tensor.as_mut_ptr().cast(), message, capacity) }
        })
        .map_err(|reason| first_line(&reason).to_owned())
    }
}

impl Drop for GlooGroup {
    fn drop(&mut self) {
        // SAFETY: created by `medvision_group_join`, and not used after this.
        unsafe { medvision_group_leave(self.handle) };
    }
}
