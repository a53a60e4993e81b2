//! All values of an adapter in one buffer, as the optimizer, the checkpoints and other processes want them.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::options::TrainingOptions;
use crate::lora::{Adapter, LoraPair, finite};
use crate::torch::autograd::{AdamW, Moments, adamw_step, set_gradient};
use crate::{Error, Result};

/// An adapter in training and its optimizer's state.
///
/// The adapter's tensors are views of one f32 buffer, their gradients views of another: a norm, a step, a sum over
/// processes or a copy is one operation on all of them.
pub struct Parameters {
    /// The adapter; its tensors require gradients.
    pub adapter: Adapter,
    values: Tensor,
    gradients: Tensor,
    moments: Moments,
}

/// A copy of everything that training changes, on the CPU.
pub struct State {
    /// The adapter's values.
    pub values: Tensor,
    /// AdamW's mean of gradients.
    pub first: Tensor,
    /// AdamW's mean of squares.
    pub second: Tensor,
}

impl Parameters {
    /// Moves `adapter` into buffers on `device`; the order is that of the modules' names, A before B.
    pub fn new(mut adapter: Adapter, device: Device) -> Result<Self> {
        let parts: Vec<Tensor> = adapter
            .pairs
            .values()
            .flat_map(|pair| [&pair.a, &pair.b])
            .map(|half| half.f_to_kind(Kind::Float)?.f_reshape([-1]))
            .collect::<Result<_, _>>()?;
        let values = Tensor::f_cat(&parts, 0)?.f_to_device(device)?;
        let gradients = values.f_zeros_like()?;
        let moments = Moments {
            first: values.f_zeros_like()?,
            second: values.f_zeros_like()?,
        };
        let mut start = 0;
        let mut leaf = |half: &Tensor| -> Result<Tensor> {
            let (shape, length) = (half.size(), half.numel() as i64);
            let view = |buffer: &Tensor| buffer.f_narrow(0, start, length)?.f_view(&shape[..]);
            let mut leaf = view(&values)?.f_detach()?.f_set_requires_grad(true)?;
            set_gradient(&mut leaf, &view(&gradients)?)?;
            start += length;
            Ok(leaf)
        };
        let mut pairs = BTreeMap::new();
        for (name, pair) in &adapter.pairs {
            let pair = LoraPair {
                a: leaf(&pair.a)?,
                b: leaf(&pair.b)?,
                scale: pair.scale,
            };
            pairs.insert(name.clone(), pair);
        }
        adapter.pairs = pairs;
        Ok(Self {
            adapter,
            values,
            gradients,
            moments,
        })
    }

    /// Values that are trained.
    pub fn count(&self) -> u64 {
        self.values.numel() as u64
    }

    /// The gradients of all values, which a backward pass adds to.
    pub fn gradients(&mut self) -> &mut Tensor {
        &mut self.gradients
    }

    /// Forgets the gradients.
    pub fn clear_gradients(&mut self) -> Result<()> {
        let _ = self.gradients.f_zero_()?;
        Ok(())
    }

    /// The norm of all gradients together.
    pub fn gradient_norm(&self) -> Result<f64> {
        Ok(self.gradients.f_norm()?.f_double_value(&[])?)
    }

    /// One step of AdamW; gradients of norm `norm` are first scaled to `max_grad_norm` where they are longer.
    pub fn step(&mut self, number: u64, rate: f64, norm: f64, options: &TrainingOptions) -> Result<()> {
        if options.max_grad_norm > 0.0 && norm > options.max_grad_norm {
            // As PyTorch: never quite 1 above the bound.
            let _ = self
                .gradients
                .f_mul_scalar_(options.max_grad_norm / (norm + 1e-6))?;
        }
        let settings = AdamW {
            learning_rate: rate,
            beta1: options.adam_beta1,
            beta2: options.adam_beta2,
            weight_decay: options.weight_decay,
            epsilon: options.adam_epsilon,
        };
        adamw_step(
            &mut self.values,
            &mut self.gradients,
            &mut self.moments,
            number,
            &settings,
        )
    }

    /// A copy of the adapter's values, on the CPU.
    pub fn values(&self) -> Result<Tensor> {
        Ok(self.values.f_to_device(Device::Cpu)?.f_detach_copy()?)
    }

    /// A copy of everything.
    pub fn state(&self) -> Result<State> {
        let copy =
            |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_to_device(Device::Cpu)?.f_detach_copy()?) };
        Ok(State {
            values: copy(&self.values)?,
            first: copy(&self.moments.first)?,
            second: copy(&self.moments.second)?,
        })
    }

    /// Takes the adapter's values alone.
    pub fn set_values(&mut self, values: &Tensor) -> Result<()> {
        Ok(self.values.f_copy_(values)?)
    }

    /// Takes everything.
    pub fn set_state(&mut self, state: &State) -> Result<()> {
        self.values.f_copy_(&state.values)?;
        self.moments.first.f_copy_(&state.first)?;
        Ok(self.moments.second.f_copy_(&state.second)?)
    }

    /// The error where a value is not a number: such an adapter is never written.
    pub fn check_finite(&self) -> Result<()> {
        if finite(&self.values)? {
            return Ok(());
        }
        Err(Error::Numeric(
            "the adapter holds values that are no numbers; it is not written".to_owned(),
        ))
    }
}
