//! Rotary embeddings and gated activations in 16 bits, one pass over memory each.

use tch::{Kind, Tensor};

use super::launch::{Argument, HalfKernels, Kernel, Kernels};
use super::{address, aligned};
use crate::Result;
use crate::kernels::cpu::Heads;

const THREADS: u32 = 256;
/// Adjacent values per thread.
const EIGHT: i64 = 8;

/// Rotary embedding of the first `heads` of each row.
pub struct Rotation<'a> {
    /// Heads to rotate.
    pub heads: Heads,
    /// f32 `[rows, dim]`.
    pub cos: &'a Tensor,
    /// f32 `[rows, dim]`.
    pub sin: &'a Tensor,
    /// Rotates by the negative angle, for gradients.
    pub back: bool,
}

impl Rotation<'_> {
    /// x `[rows, ..]`, rotated in place; `false` if no kernel supports it.
    pub fn in_place(&self, x: &Tensor) -> Result<bool> {
        Ok(self.fits(x) && self.run(x, x)?)
    }

    /// x `[rows, ..]` rotated, with its other columns unchanged; `None` if no kernel supports it.
    pub fn of(&self, x: &Tensor) -> Result<Option<Tensor>> {
        if !self.fits(x) {
            return Ok(None);
        }
        let to = x.f_empty_like()?;
        Ok(self.run(x, &to)?.then_some(to))
    }

    fn fits(&self, x: &Tensor) -> bool {
        let Heads { count, dim } = self.heads;
        let (dim, turned) = (dim as i64, (count * dim) as i64);
        let table = |t: &Tensor| {
            t.kind() == Kind::Float
                && t.numel() as i64 == x.size()[0] * dim
                && t.is_contiguous()
                && t.device() == x.device()
                && aligned(t)
        };
        whole(x)
            && dim % (2 * EIGHT) == 0
            && columns(x) % EIGHT == 0
            && turned <= columns(x)
            && table(self.cos)
            && table(self.sin)
    }

    /// `to` is `from` or has its shape.
    fn run(&self, from: &Tensor, to: &Tensor) -> Result<bool> {
        let eights = |columns: i64| (columns / EIGHT) as i32;
        let Heads { count, dim } = self.heads;
        let (columns, turned, half) = (
            eights(columns(from)),
            eights((count * dim) as i64),
            eights(dim as i64 / 2),
        );
        let sign: f32 = if self.back { -1.0 } else { 1.0 };
        let rows = from.size()[0] as u64;
        let [from_at, to_at, cos, sin] = [from, to, self.cos, self.sin].map(address);
        let arguments = [
            Argument::new(&from_at),
            Argument::new(&to_at),
            Argument::new(&cos),
            Argument::new(&sin),
            Argument::new(&sign),
            Argument::new(&rows),
            Argument::new(&columns),
            Argument::new(&turned),
            Argument::new(&half),
        ];
        let items = rows * (columns - turned / 2) as u64;
        launch(from, |half| half.rotate, items, &arguments)
    }
}

/// silu(gate) · up, of the same shape; `None` if no kernel supports it.
pub fn gated(gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    if !alike(&[gate, up]) {
        return Ok(None);
    }
    let y = gate.f_empty_like()?;
    let n = gate.numel() as u64 / EIGHT as u64;
    let [from, by, to] = [gate, up, &y].map(address);
    let arguments = [
        Argument::new(&from),
        Argument::new(&by),
        Argument::new(&to),
        Argument::new(&n),
    ];
    Ok(launch(gate, |half| half.gated, n, &arguments)?.then_some(y))
}

/// Gradient of silu(gate) · up → gradients of gate and up; `None` if no kernel supports it.
pub fn gated_backward(gradient: &Tensor, gate: &Tensor, up: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
    if !alike(&[gradient, gate, up]) {
        return Ok(None);
    }
    let (for_gate, for_up) = (gate.f_empty_like()?, up.f_empty_like()?);
    let n = gate.numel() as u64 / EIGHT as u64;
    let addresses = [gradient, gate, up, &for_gate, &for_up].map(address);
    let [gradient, gate_at, up, to_gate, to_up] = addresses.each_ref().map(Argument::new);
    let arguments = [gradient, gate_at, up, to_gate, to_up, Argument::new(&n)];
    let made = launch(gate, |half| half.gated_backward, n, &arguments)?;
    Ok(made.then_some((for_gate, for_up)))
}

/// Values per row.
fn columns(x: &Tensor) -> i64 {
    x.numel() as i64 / x.size()[0].max(1)
}

/// Whether shapes, dtypes and devices are equal, and rows are multiples of eight values.
fn alike(tensors: &[&Tensor]) -> bool {
    let first = tensors[0];
    tensors.iter().all(|tensor| {
        tensor.size() == first.size()
            && tensor.kind() == first.kind()
            && tensor.device() == first.device()
            && whole(tensor)
            && tensor.numel() as i64 % EIGHT == 0
    })
}

/// Layout for the kernel.
fn whole(tensor: &Tensor) -> bool {
    tensor.device().is_cuda() && tensor.numel() > 0 && tensor.is_contiguous() && aligned(tensor)
}

/// Launches one thread per item; `false` if no kernel supports x's dtype, or there are too many items.
fn launch(
    x: &Tensor,
    kernel: impl Fn(HalfKernels) -> Kernel,
    items: u64,
    arguments: &[Argument<'_>],
) -> Result<bool> {
    let Some((kernels, half)) = Kernels::half(x) else {
        return Ok(false);
    };
    let Ok(blocks) = u32::try_from(items.div_ceil(THREADS.into())) else {
        return Ok(false);
    };
    kernels
        .gpu
        .launch(kernel(half), (blocks, THREADS, 0), arguments)?;
    Ok(true)
}
