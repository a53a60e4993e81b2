//! Several processes that train together: torchrun's variables, libtorch's own process group.
//!
//! Each process is started with `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`, as torchrun, Slurm's and Kubernetes'
//! launchers set them, and `LOCAL_RANK` names its GPU. CPU tensors are added up by gloo (c10d's `ProcessGroupGloo`), GPU
//! tensors by NCCL. The traffic is neither encrypted nor authenticated, as torch.distributed's is not: keep it within one
//! machine or a private network.

mod nccl;

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use self::nccl::Communicator;
use crate::{Error, Result, torch};

/// How long members wait for each other.
const TIMEOUT: Duration = Duration::from_secs(600);

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

/// Where a process stands among its like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 0; the first writes files and speaks.
    pub rank: usize,
    /// Processes.
    pub size: usize,
    /// From 0 on this machine: its GPU.
    pub local_rank: usize,
    /// Where the first one, or who started them, listens.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// Who started the processes holds the store (torchrun does).
    pub store_is_elsewhere: bool,
}

impl Place {
    /// What torchrun's variables say; `None` without `WORLD_SIZE`, or where it is 1.
    pub fn from_env() -> Result<Option<Self>> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let Some(size) = variable("WORLD_SIZE") else {
            return Ok(None);
        };
        let fault = |name: &str, reason: &str| {
            Error::Distributed(format!(
                "{name} {reason}; start the processes with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
            ))
        };
        let number = |name: &str, text: String| {
            text.trim()
                .parse::<usize>()
                .map_err(|_| fault(name, &format!("is {text:?}, not a number")))
        };
        let needed = |name: &str| variable(name).ok_or_else(|| fault(name, "is not set beside WORLD_SIZE"));
        let size = number("WORLD_SIZE", size)?;
        if size <= 1 {
            return Ok(None);
        }
        let rank = number("RANK", needed("RANK")?)?;
        if rank >= size {
            return Err(fault("RANK", &format!("is {rank} of {size}")));
        }
        let local_rank = variable("LOCAL_RANK").map_or(Ok(rank), |text| number("LOCAL_RANK", text))?;
        let port = number("MASTER_PORT", needed("MASTER_PORT")?)?;
        Ok(Some(Self {
            rank,
            size,
            local_rank,
            host: needed("MASTER_ADDR")?,
            port: u16::try_from(port).map_err(|_| fault("MASTER_PORT", &format!("is {port}")))?,
            store_is_elsewhere: variable("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
        }))
    }
}

/// The processes that train together, seen from one of them.
pub struct Group {
    place: Place,
    /// c10d's group.
    handle: *mut c_void,
    /// On GPUs.
    nccl: Option<Communicator>,
}

impl Group {
    /// Joins the others; waits until all are there. `device` is where this process computes.
    pub fn join(place: Place, device: Device) -> Result<Self> {
        let text = |text: &str| {
            CString::new(text).map_err(|_| Error::Distributed(format!("{text:?} is no name of a host")))
        };
        let host = text(&place.host)?;
        let interface = text(&std::env::var("GLOO_SOCKET_IFNAME").unwrap_or_default())?;
        let local = matches!(place.host.as_str(), "127.0.0.1" | "localhost" | "::1");
        let number = |value: usize| {
            c_int::try_from(value).map_err(|_| Error::Distributed(format!("{value} processes are too many")))
        };
        let (rank, size) = (number(place.rank)?, number(place.size)?);
        let server = c_int::from(place.rank == 0 && !place.store_is_elsewhere);
        let mut handle = std::ptr::null_mut();
        torch::call(|message, capacity| {
            // SAFETY: the strings are terminated and outlive the call, as the places for results do; it throws nothing.
            unsafe {
                medvision_group_join(
                    host.as_ptr(),
                    place.port,
                    server,
                    rank,
                    size,
                    interface.as_ptr(),
                    c_int::from(local),
                    TIMEOUT.as_millis() as i64,
                    &mut handle,
                    message,
                    capacity,
                )
            }
        })
        .map_err(|reason| {
            Error::Distributed(format!(
                "process {rank} of {size} cannot join the others at {}:{}: {}",
                place.host,
                place.port,
                torch::first_line(&reason)
            ))
        })?;
        let mut group = Self {
            place,
            handle,
            nccl: None,
        };
        if let Device::Cuda(index) = device {
            group.nccl = Some(group.communicator(index)?);
        }
        Ok(group)
    }

    /// NCCL's part: the first one's id goes round through gloo.
    fn communicator(&self, index: usize) -> Result<Communicator> {
        let id = match self.place.rank {
            0 => nccl::unique_id()?.to_vec(),
            _ => vec![0; nccl::ID_BYTES],
        };
        let id = Tensor::f_from_slice(&id)?;
        self.gloo(medvision_group_broadcast, &id)?;
        let mut bytes = [0u8; nccl::ID_BYTES];
        id.f_copy_data_u8(&mut bytes, nccl::ID_BYTES)?;
        Communicator::new(&bytes, self.place.rank, self.place.size, index)
    }

    /// Where this process stands.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Adds up `tensor`, contiguous and f32 or f64, over all processes, in place; every process must call it in the same order.
    pub fn sum(&self, tensor: &mut Tensor) -> Result<()> {
        assert!(tensor.is_contiguous() && matches!(tensor.kind(), Kind::Float | Kind::Double));
        match (tensor.device(), &self.nccl) {
            (Device::Cpu, _) => self.gloo(medvision_group_sum, tensor),
            (_, Some(nccl)) => nccl.sum(tensor),
            (_, None) => {
                let on_host = tensor.f_to_device(Device::Cpu)?;
                self.gloo(medvision_group_sum, &on_host)?;
                Ok(tensor.f_copy_(&on_host)?)
            }
        }
    }

    /// The first process's values of `tensor` to all, in place.
    pub fn broadcast(&self, tensor: &mut Tensor) -> Result<()> {
        let on_host = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
        self.gloo(medvision_group_broadcast, &on_host)?;
        Ok(tensor.f_copy_(&on_host)?)
    }

    /// Waits until all processes have come here.
    pub fn barrier(&self) -> Result<()> {
        self.gloo(
            medvision_group_sum,
            &Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?,
        )
    }

    fn gloo(
        &self,
        operation: unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_char, usize) -> c_int,
        tensor: &Tensor,
    ) -> Result<()> {
        torch::call(|message, capacity| {
            // SAFETY: the group lives; the tensor is a C++ tensor on the CPU, which outlives the call.
            unsafe { operation(self.handle, tensor.as_ptr().cast_mut().cast(), message, capacity) }
        })
        .map_err(|reason| {
            Error::Distributed(format!(
                "the other processes cannot be reached: {}; one of them may have failed, see its messages",
                torch::first_line(&reason)
            ))
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: made by `medvision_group_join`, and not used any more.
        unsafe { medvision_group_leave(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::from_variables(|name| {
            let found = variables.iter().find(|(one, _)| *one == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn torchruns_variables_are_read() {
        assert_eq!(place(&[]).unwrap(), None);
        assert_eq!(place(&[("WORLD_SIZE", "1")]).unwrap(), None);
        let all = [
            ("WORLD_SIZE", "4"),
            ("RANK", "3"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ];
        let found = place(&all).unwrap().unwrap();
        assert_eq!(
            (found.rank, found.size, found.local_rank, found.port),
            (3, 4, 1, 29500)
        );
        assert!(found.store_is_elsewhere && found.host == "node0");
        for missing in 1..5 {
            let mut some = all.to_vec();
            let (name, _) = some.remove(missing);
            if name == "LOCAL_RANK" {
                assert_eq!(place(&some).unwrap().unwrap().local_rank, 3);
                continue;
            }
            let error = place(&some).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("torchrun"), "{error}");
        }
        for (name, wrong) in [
            ("RANK", "4"),
            ("RANK", "x"),
            ("MASTER_PORT", "70000"),
            ("WORLD_SIZE", "-1"),
        ] {
            let mut some: Vec<_> = all.iter().copied().filter(|(one, _)| *one != name).collect();
            some.push((name, wrong));
            let error = place(&some).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(wrong), "{error}");
        }
    }
}
