//! The trained parameters and the optimizer's state, each in one flat buffer.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::options::TrainingOptions;
use crate::lora::{Adapter, LoraPair, finite};
use crate::torch::autograd::{AdamW, Moments, adamw_step, set_gradient};
use crate::{Error, Result};

/// An adapter in training, and the state of AdamW.
///
/// The adapter's tensors are views of one f32 buffer, their gradients views of another, so that a norm, an optimizer step,
/// an all-reduce or a copy is a single operation.
pub struct Parameters {
    /// The adapter; its tensors require gradients.
    pub adapter: Adapter,
    values: Tensor,
    gradients: Tensor,
    moments: Moments,
}

/// A copy of parameters and optimizer state, on the CPU.
pub struct State {
    /// Values of the parameters.
    pub values: Tensor,
    /// AdamW's first moments.
    pub first: Tensor,
    /// AdamW's second moments.
    pub second: Tensor,
}

impl Parameters {
    /// Moves `adapter` into buffers on `device`, in order of the module names, A before B.
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

    /// Number of parameters.
    pub fn count(&self) -> u64 {
        self.values.numel() as u64
    }

    /// The gradients, which a backward pass accumulates into.
    pub fn gradients(&mut self) -> &mut Tensor {
        &mut self.gradients
    }

    /// Sets the gradients to zero.
    pub fn zero_gradients(&mut self) -> Result<()> {
        let _ = self.gradients.f_zero_()?;
        Ok(())
    }

    /// L2 norm of all gradients.
    pub fn gradient_norm(&self) -> Result<f64> {
        Ok(self.gradients.f_norm()?.f_double_value(&[])?)
    }

    /// One step of AdamW, the `number`th from 1, with gradients of norm `norm`, which is first clipped to `max_grad_norm`.
    pub fn step(&mut self, number: u64, rate: f64, norm: f64, options: &TrainingOptions) -> Result<()> {
        if options.max_grad_norm > 0.0 && norm > options.max_grad_norm {
            // As torch.nn.utils.clip_grad_norm_.
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

    /// A copy of the parameters' values, on the CPU.
    pub fn values(&self) -> Result<Tensor> {
        Ok(self.values.f_to_device(Device::Cpu)?.f_detach_copy()?)
    }

    /// A copy of parameters and optimizer state, on the CPU.
    pub fn state(&self) -> Result<State> {
        let copy =
            |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_to_device(Device::Cpu)?.f_detach_copy()?) };
        Ok(State {
            values: copy(&self.values)?,
            first: copy(&self.moments.first)?,
            second: copy(&self.moments.second)?,
        })
    }

    /// Sets the parameters' values.
    pub fn set_values(&mut self, values: &Tensor) -> Result<()> {
        Ok(self.values.f_copy_(values)?)
    }

    /// Sets parameters and optimizer state.
    pub fn set_state(&mut self, state: &State) -> Result<()> {
        self.values.f_copy_(&state.values)?;
        self.moments.first.f_copy_(&state.first)?;
        Ok(self.moments.second.f_copy_(&state.second)?)
    }

    /// An error if a value is NaN or Inf: such an adapter is never written.
    pub fn check_finite(&self) -> Result<()> {
        if finite(&self.values)? {
            return Ok(());
        }
        Err(Error::NonFinite(
            "the adapter has non-finite values (NaN/Inf); not written".to_owned(),
        ))
    }
}
