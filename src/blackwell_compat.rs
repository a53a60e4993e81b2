//! Integer `prod` and `cumprod` on NVIDIA's Blackwell GPUs, by way of the CPU.
//!
//! libtorch compiles `prod` on a GPU when it is first used, with the NVRTC it was shipped with. The NVRTC of CUDA 12.8
//! does not know every GPU of compute capability 12 (12.1, the GB10, came with CUDA 12.9), so that the first integer
//! reduction ends in `nvrtc: error: invalid value for --gpu-architecture`.
//!
//! **Needed** where all of this holds: the GPU's compute capability is 12.0 or higher, libtorch was built for CUDA 12.8
//! or older (`libtorch 2.x+cu128`), and products of integer tensors are computed on the GPU.
//!
//! **Not needed** on any other GPU, on a CPU, for floats, or with the libtorch that `make setup` installs (CUDA 13.0,
//! which knows them all). The detour is taken on capability 12 and higher whatever the build: the tensors in question hold
//! a handful of sizes, a copy of which costs less than finding out.
//!
//! **In use**: the model computes the products of page sides here ([`TokenGrids`](crate::qwen2_5_vl::TokenGrids)), for the
//! windows of the vision tower and the positions of the language model. `medvision doctor` and `validate_environment`
//! [`check`] products on the GPU against the CPU's.
//!
//! The results are identical: integer products wrap around in 64 bits on CPU and GPU.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{Result, device};

/// Compute capability, major and minor.
pub type Capability = (i32, i32);

static DETOURS: AtomicU64 = AtomicU64::new(0);

/// The lowest one whose integer reductions run on the CPU.
pub const FIRST_AFFECTED: Capability = (12, 0);

/// Reductions for one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reductions {
    capability: Option<Capability>,
}

impl Reductions {
    /// For tensors on `device`; the driver is queried once for all GPUs.
    pub fn on(device: Device) -> Self {
        static CAPABILITIES: OnceLock<Vec<Capability>> = OnceLock::new();
        let Device::Cuda(index) = device else {
            return Self { capability: None };
        };
        let ask = || {
            let gpus = device::gpus().unwrap_or_default();
            gpus.iter().map(|gpu| gpu.compute_capability).collect()
        };
        Self {
            capability: CAPABILITIES.get_or_init(ask).get(index).copied(),
        }
    }

    /// For a GPU of this compute capability; `None` is a CPU.
    pub fn with_capability(capability: Option<Capability>) -> Self {
        Self { capability }
    }

    /// Whether reductions of this dtype run on the CPU.
    pub fn through_cpu(self, kind: Kind) -> bool {
        // `prod` treats booleans as integers.
        let integer = matches!(
            kind,
            Kind::Bool | Kind::Uint8 | Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64
        );
        integer
            && self
                .capability
                .is_some_and(|capability| capability >= FIRST_AFFECTED)
    }

    /// Product of all elements, or along one dimension; of integers as 64-bit integers, on the tensor's own device.
    pub fn prod(self, tensor: &Tensor, dimension: Option<i64>, keep_dimension: bool) -> Result<Tensor> {
        self.reduce(tensor, |tensor| match dimension {
            Some(dimension) => tensor.f_prod_dim_int(dimension, keep_dimension, None),
            None => tensor.f_prod(None),
        })
    }

    /// Cumulative product along one dimension; of integers as 64-bit integers, on the tensor's own device.
    pub fn cumprod(self, tensor: &Tensor, dimension: i64) -> Result<Tensor> {
        self.reduce(tensor, |tensor| tensor.f_cumprod(dimension, None))
    }

    fn reduce(
        self,
        tensor: &Tensor,
        reduction: impl Fn(&Tensor) -> Result<Tensor, tch::TchError>,
    ) -> Result<Tensor> {
        if !self.through_cpu(tensor.f_kind()?) {
            return Ok(reduction(tensor)?);
        }
        DETOURS.fetch_add(1, Ordering::Relaxed);
        let reduced = reduction(&tensor.f_to_device(Device::Cpu)?)?;
        Ok(reduced.f_to_device(tensor.device())?)
    }
}

/// Number of reductions that ran on the CPU since the program started.
pub fn detours() -> u64 {
    DETOURS.load(Ordering::Relaxed)
}

/// Result of [`check`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The GPU's compute capability, such as "12.1"; `None` without a GPU.
    pub capability: Option<String>,
    /// Products on the GPU fail or are wrong.
    pub needed: bool,
    /// Products run on the CPU.
    pub in_use: bool,
    /// Products as the model computes them equal the CPU's.
    pub checked: bool,
}

/// Compares integer `prod` and `cumprod` on `device`, directly and through `reductions`, with the CPU's. Does nothing without a
/// GPU.
pub fn check(device: Device, reductions: Reductions) -> Check {
    let Some((major, minor)) = reductions.capability else {
        return Check::default();
    };
    Check {
        capability: Some(format!("{major}.{minor}")),
        needed: !is_right(device, Reductions::with_capability(None)),
        in_use: reductions.through_cpu(Kind::Int64),
        checked: is_right(device, reductions),
    }
}

fn is_right(device: Device, reductions: Reductions) -> bool {
    let products = |device: Device, reductions: Reductions| -> Result<[Vec<i64>; 3]> {
        let grids = Tensor::f_from_slice(&[1i64, 34, 46, 2, 16, 20])?.f_view([2, 3])?;
        let grids = grids.f_to_device(device)?;
        let numbers = |tensor: Tensor| -> Result<Vec<i64>> {
            Ok(Vec::try_from(tensor.f_to_device(Device::Cpu)?.f_view([-1])?)?)
        };
        Ok([
            numbers(reductions.prod(&grids, None, false)?)?,
            numbers(reductions.prod(&grids, Some(-1), false)?)?,
            numbers(reductions.cumprod(&grids, 1)?)?,
        ])
    };
    let expected = [
        vec![34 * 46 * 640],
        vec![34 * 46, 640],
        vec![1, 34, 34 * 46, 2, 32, 640],
    ];
    products(device, reductions).is_ok_and(|found| found == expected)
}

/// [`Reductions::prod`] for the tensor's device; part of the library's contract, the model itself uses [`Reductions`].
pub fn prod(tensor: &Tensor, dimension: Option<i64>, keep_dimension: bool) -> Result<Tensor> {
    Reductions::on(tensor.device()).prod(tensor, dimension, keep_dimension)
}

/// [`Reductions::cumprod`] for the tensor's device; part of the library's contract, the model itself uses [`Reductions`].
pub fn cumprod(tensor: &Tensor, dimension: i64) -> Result<Tensor> {
    Reductions::on(tensor.device()).cumprod(tensor, dimension)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEGERS: [Kind; 6] = [
        Kind::Bool,
        Kind::Uint8,
        Kind::Int8,
        Kind::Int16,
        Kind::Int,
        Kind::Int64,
    ];

    #[test]
    fn only_integers_on_capability_12_and_higher_take_the_cpu() {
        for (capability, affected) in [
            (None, false),
            (Some((7, 5)), false),
            (Some((9, 0)), false),
            (Some((10, 3)), false),
            (Some((11, 9)), false),
            (Some((12, 0)), true),
            (Some((12, 1)), true),
            (Some((13, 0)), true),
        ] {
            let reductions = Reductions::with_capability(capability);
            for kind in INTEGERS {
                assert_eq!(
                    reductions.through_cpu(kind),
                    affected,
                    "{kind:?} on {capability:?}"
                );
            }
            for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half] {
                assert!(!reductions.through_cpu(kind), "{kind:?} on {capability:?}");
            }
        }
    }

    #[test]
    fn a_cpu_needs_no_detour() {
        assert_eq!(Reductions::on(Device::Cpu), Reductions::with_capability(None));
        assert!(!Reductions::on(Device::Cuda(usize::MAX)).through_cpu(Kind::Int64));
    }

    #[test]
    fn both_ways_give_the_same_numbers() {
        let direct = Reductions::with_capability(Some((9, 0)));
        let detour = Reductions::with_capability(Some((12, 1)));
        let grid = Tensor::from_slice(&[1i64, 34, 46, 1, 16, 20]).view([2, 3]);
        for reductions in [direct, detour] {
            for kind in INTEGERS {
                let tensor = grid.to_kind(kind);
                let whole = if kind == Kind::Bool {
                    vec![1, 1]
                } else {
                    vec![34 * 46, 16 * 20]
                };
                let rows = reductions.prod(&tensor, Some(-1), false).unwrap();
                assert_eq!((rows.kind(), rows.size()), (Kind::Int64, vec![2]));
                assert_eq!(Vec::<i64>::try_from(rows).unwrap(), whole, "{kind:?}");
                let kept = reductions.prod(&tensor, Some(-1), true).unwrap();
                assert_eq!(kept.size(), [2, 1]);
                let all = reductions.prod(&tensor, None, false).unwrap();
                assert_eq!(all.int64_value(&[]), whole.iter().product::<i64>());
                let running = reductions.cumprod(&tensor, 1).unwrap();
                assert_eq!(running.kind(), Kind::Int64);
                assert_eq!(running.int64_value(&[1, 2]), whole[1], "{kind:?}");
            }
            let halves = Tensor::from_slice(&[0.5f32, 0.25]);
            let product = reductions.prod(&halves, None, false).unwrap();
            assert_eq!((product.kind(), product.double_value(&[])), (Kind::Float, 0.125));
        }
    }

    #[test]
    fn integers_wrap_around_as_on_a_gpu() {
        let large = Tensor::from_slice(&[i64::MAX, 2]);
        let reductions = Reductions::with_capability(Some((12, 0)));
        assert_eq!(reductions.prod(&large, None, false).unwrap().int64_value(&[]), -2);
    }

    #[test]
    fn no_such_dimension_is_an_error() {
        let tensor = Tensor::from_slice(&[1i64]);
        for capability in [None, Some((12, 1))] {
            let reductions = Reductions::with_capability(capability);
            assert!(reductions.prod(&tensor, Some(3), false).is_err());
            assert!(reductions.cumprod(&tensor, 3).is_err());
        }
    }

    #[test]
    fn a_trial_tells_what_is_needed_in_use_and_right() {
        let on = |capability| check(Device::Cpu, Reductions::with_capability(capability));
        assert_eq!(on(None), Check::default());
        let found = |capability: &str, in_use| Check {
            capability: Some(capability.to_owned()),
            needed: false,
            in_use,
            checked: true,
        };
        assert_eq!(on(Some((9, 0))), found("9.0", false));
        let before = detours();
        assert_eq!(on(Some((12, 1))), found("12.1", true));
        assert!(detours() >= before + 3);
        // A device that is not there: directly and by way of the CPU nothing comes out.
        let broken = check(Device::Cuda(99), Reductions::with_capability(Some((12, 0))));
        assert!(broken.needed && broken.in_use && !broken.checked);
    }

    /// The free functions ask the real device.
    #[test]
    fn the_tensors_own_device_decides() {
        let tensor = Tensor::from_slice(&[2i64, 3, 4]);
        assert_eq!(prod(&tensor, None, false).unwrap().int64_value(&[]), 24);
        assert_eq!(
            Vec::<i64>::try_from(cumprod(&tensor, 0).unwrap()).unwrap(),
            [2, 6, 24]
        );
    }
}
