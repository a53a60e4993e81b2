//! Data-parallel training: torchrun's environment variables and libtorch's process group.
//!
//! Each process is started with `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`, as torchrun and the launchers of Slurm
//! and Kubernetes set them; `LOCAL_RANK` selects its GPU. CPU tensors are reduced with gloo (c10d's `ProcessGroupGloo`), GPU
//! tensors with NCCL. As with torch.distributed, the traffic is neither encrypted nor authenticated: keep it within one
//! machine or a private network.

mod nccl;

use std::time::Duration;

use tch::{Device, Kind, Tensor};

use self::nccl::Communicator;
use crate::torch::c10d::{GlooGroup, Rendezvous};
use crate::{Error, Result};

/// Timeout of joining and of each collective.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Rank, world size and rendezvous address of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Rank, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// Rank on this machine, from 0: index of the GPU.
    pub local_rank: usize,
    /// Host of the store.
    pub master_addr: String,
    /// Port of the store.
    pub master_port: u16,
    /// The launcher serves the store, as torchrun does, instead of rank 0.
    pub external_store: bool,
}

impl ProcessInfo {
    /// Whether this is rank 0, which writes files and messages.
    pub fn is_main_process(&self) -> bool {
        self.rank == 0
    }

    /// Reads torchrun's variables; `None` without `WORLD_SIZE`, or if it is 1.
    pub fn from_env() -> Result<Option<Self>> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let Some(world_size) = variable("WORLD_SIZE") else {
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
        let required = |name: &str| variable(name).ok_or_else(|| fault(name, "must be set with WORLD_SIZE"));
        let world_size = number("WORLD_SIZE", world_size)?;
        if world_size <= 1 {
            return Ok(None);
        }
        let rank = number("RANK", required("RANK")?)?;
        if rank >= world_size {
            return Err(fault(
                "RANK",
                &format!("is {rank}, but WORLD_SIZE is {world_size}"),
            ));
        }
        let local_rank = variable("LOCAL_RANK").map_or(Ok(rank), |text| number("LOCAL_RANK", text))?;
        let port = number("MASTER_PORT", required("MASTER_PORT")?)?;
        Ok(Some(Self {
            rank,
            world_size,
            local_rank,
            master_addr: required("MASTER_ADDR")?,
            master_port: u16::try_from(port).map_err(|_| fault("MASTER_PORT", &format!("is {port}")))?,
            external_store: variable("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
        }))
    }
}

/// The process group, as one of its processes sees it.
pub struct ProcessGroup {
    info: ProcessInfo,
    gloo: GlooGroup,
    /// On GPUs.
    nccl: Option<Communicator>,
}

impl ProcessGroup {
    /// Joins the group; waits until all processes have joined. `device` is where this process computes.
    pub fn join(info: ProcessInfo, device: Device) -> Result<Self> {
        let interface = std::env::var("GLOO_SOCKET_IFNAME").unwrap_or_default();
        let gloo = GlooGroup::join(&Rendezvous {
            host: &info.master_addr,
            port: info.master_port,
            serves: info.is_main_process() && !info.external_store,
            rank: info.rank,
            world_size: info.world_size,
            interface: &interface,
            timeout: TIMEOUT,
        })
        .map_err(|reason| {
            Error::Distributed(format!(
                "rank {} of {} cannot join the process group at {}:{}: {reason}",
                info.rank, info.world_size, info.master_addr, info.master_port,
            ))
        })?;
        let mut group = Self {
            info,
            gloo,
            nccl: None,
        };
        if let Device::Cuda(index) = device {
            group.nccl = Some(group.communicator(index)?);
        }
        Ok(group)
    }

    /// The NCCL communicator; rank 0's id is broadcast over gloo.
    fn communicator(&self, index: usize) -> Result<Communicator> {
        let id = match self.info.is_main_process() {
            true => nccl::unique_id()?.to_vec(),
            false => vec![0; nccl::ID_BYTES],
        };
        let mut id = Tensor::f_from_slice(&id)?;
        self.gloo.broadcast(&mut id).map_err(unreachable)?;
        let mut bytes = [0u8; nccl::ID_BYTES];
        id.f_copy_data_u8(&mut bytes, nccl::ID_BYTES)?;
        Communicator::new(&bytes, self.info.rank, self.info.world_size, index)
    }

    /// Rank, world size and rendezvous address of this process.
    pub fn info(&self) -> &ProcessInfo {
        &self.info
    }

    /// Sums `tensor`, contiguous and f32 or f64, over all processes, in place.
    ///
    /// All processes must call the collectives in the same order.
    pub fn all_reduce(&self, tensor: &mut Tensor) -> Result<()> {
        assert!(tensor.is_contiguous() && matches!(tensor.kind(), Kind::Float | Kind::Double));
        match (tensor.device(), &self.nccl) {
            (Device::Cpu, _) => self.gloo.all_reduce(tensor).map_err(unreachable),
            (_, Some(nccl)) => nccl.all_reduce(tensor),
            (_, None) => {
                let mut on_host = tensor.f_to_device(Device::Cpu)?;
                self.gloo.all_reduce(&mut on_host).map_err(unreachable)?;
                Ok(tensor.f_copy_(&on_host)?)
            }
        }
    }

    /// Copies rank 0's values of `tensor` to all processes, in place.
    pub fn broadcast(&self, tensor: &mut Tensor) -> Result<()> {
        let mut on_host = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
        self.gloo.broadcast(&mut on_host).map_err(unreachable)?;
        Ok(tensor.f_copy_(&on_host)?)
    }

    /// Waits until all processes have called it.
    pub fn barrier(&self) -> Result<()> {
        let mut value = Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?;
        self.gloo.all_reduce(&mut value).map_err(unreachable)
    }
}

fn unreachable(reason: String) -> Error {
    Error::Distributed(format!(
        "cannot reach the other processes: {reason}; if one of them failed, see its messages"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(variables: &[(&str, &str)]) -> Result<Option<ProcessInfo>> {
        ProcessInfo::from_variables(|name| {
            let found = variables.iter().find(|(one, _)| *one == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn torchruns_variables_are_read() {
        assert_eq!(info(&[]).unwrap(), None);
        assert_eq!(info(&[("WORLD_SIZE", "1")]).unwrap(), None);
        let all = [
            ("WORLD_SIZE", "4"),
            ("RANK", "3"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ];
        let found = info(&all).unwrap().unwrap();
        assert_eq!(
            (found.rank, found.world_size, found.local_rank, found.master_port),
            (3, 4, 1, 29500)
        );
        assert!(found.external_store && found.master_addr == "node0");
        for missing in 1..5 {
            let mut some = all.to_vec();
            let (name, _) = some.remove(missing);
            if name == "LOCAL_RANK" {
                assert_eq!(info(&some).unwrap().unwrap().local_rank, 3);
                continue;
            }
            let error = info(&some).unwrap_err().to_string();
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
            let error = info(&some).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(wrong), "{error}");
        }
    }
}
