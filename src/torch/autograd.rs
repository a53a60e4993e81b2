//! Custom autograd functions, activation checkpointing, and fused AdamW steps (`autograd.cpp`).
//!
//! [`attach`] adds a node to autograd's graph: an output that was computed under `no_grad` gets a closure that turns its
//! gradient into the inputs' gradients. So a packed weight is dequantized again in the backward pass instead of being saved,
//! and a layer can be recomputed instead of saving its activations.

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

use crate::{Error, Result, torch};

type RawTensor = c_void;
/// Turns the output's gradient into the gradients of those inputs that need one.
type Closure = Box<dyn Fn(&Tensor, &[bool]) -> Result<Vec<Option<Tensor>>>>;
type RawBackward = unsafe extern "C" fn(
    *mut c_void,
    *const RawTensor,
    *const bool,
    *mut *mut RawTensor,
    usize,
    *mut c_char,
    usize,
) -> c_int;

/// Settings of one AdamW step; the layout of `medvision_adamw` in `autograd.cpp`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// This step's learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the denominator.
    pub epsilon: f64,
}

unsafe extern "C" {
    fn medvision_grad_enabled() -> c_int;
    fn medvision_attach(
        inputs: *const *const RawTensor,
        count: usize,
        output: *const RawTensor,
        closure: *mut c_void,
        backward: RawBackward,
        drop: unsafe extern "C" fn(*mut c_void),
        result: *mut *mut RawTensor,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn medvision_backward(
        output: *const RawTensor,
        gradient: *const RawTensor,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn medvision_set_gradient(
        parameter: *mut RawTensor,
        gradient: *const RawTensor,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn medvision_rms_norm_backward(
        gradient: *const RawTensor,
        input: *const RawTensor,
        factor: *const RawTensor,
        weight: *const RawTensor,
        result: *mut *mut RawTensor,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn medvision_adamw_step(
        parameters: *mut RawTensor,
        gradients: *mut RawTensor,
        first: *mut RawTensor,
        second: *mut RawTensor,
        step: *mut RawTensor,
        settings: *const AdamW,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Whether autograd tracks operations on these tensors: one requires a gradient, and gradients are enabled on this thread.
pub fn tracks(inputs: &[&Tensor]) -> bool {
    // SAFETY: reads a thread's flag.
    inputs.iter().any(|input| input.requires_grad()) && unsafe { medvision_grad_enabled() } != 0
}

/// Returns `output` as the result of an autograd node: `backward` turns its gradient into the gradients of `inputs`, in their
/// order; it is needed for an input only if its flag is set.
///
/// `output` must have been computed under [`tch::no_grad`]. It is returned unchanged if autograd does not track `inputs`.
/// `backward` must not save tracked tensors: save [`detached`] ones, and never the output.
///
/// `backward` may run on a thread of libtorch's while the thread that started the backward pass waits: what it saves needs no
/// lock if only that thread shares it.
pub fn attach(
    inputs: &[&Tensor],
    output: Tensor,
    backward: impl Fn(&Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + 'static,
) -> Result<Tensor> {
    if !tracks(inputs) {
        return Ok(output);
    }
    let closure: Box<Closure> = Box::new(Box::new(backward));
    let raw: Vec<*const RawTensor> = inputs.iter().map(|input| input.as_ptr().cast()).collect();
    let mut result: *mut RawTensor = std::ptr::null_mut();
    // SAFETY: inputs and output are live tensors; the closure's box goes over to the node, which drops it once.
    check(|message, capacity| unsafe {
        medvision_attach(
            raw.as_ptr(),
            raw.len(),
            output.as_ptr().cast(),
            Box::into_raw(closure).cast(),
            run_backward,
            drop_closure,
            &mut result,
            message,
            capacity,
        )
    })?;
    // SAFETY: a new tensor; this becomes its owner.
    Ok(unsafe { Tensor::from_ptr(result.cast()) })
}

/// Activation (gradient) checkpointing: `work(x)`, recomputed in the backward pass instead of saving its activations.
///
/// `work` must be deterministic. Leaves that it uses besides x get their gradients, too. x must be tracked, or nothing is.
pub fn recomputed(x: &Tensor, work: impl Fn(&Tensor) -> Result<Tensor> + 'static) -> Result<Tensor> {
    if !tracks(&[x]) {
        return work(x);
    }
    let kept = detached(x);
    let y = tch::no_grad(|| work(&kept))?;
    attach(&[x], y, move |gradient, _| {
        let x = detached(&kept).set_requires_grad(true);
        let y = tch::with_grad(|| work(&x))?;
        backward(&y, gradient)?;
        Ok(vec![Some(x.f_grad()?)])
    })
}

/// Runs the backward pass from `output`, whose gradient is `gradient`.
pub fn backward(output: &Tensor, gradient: &Tensor) -> Result<()> {
    // SAFETY: both are live tensors.
    check(|message, capacity| unsafe {
        medvision_backward(
            output.as_ptr().cast(),
            gradient.as_ptr().cast(),
            message,
            capacity,
        )
    })
}

/// The same values, not tracked by autograd.
pub fn detached(tensor: &Tensor) -> Tensor {
    tensor.detach()
}

/// Makes `gradient`, of the same shape, the accumulation buffer of the leaf `parameter`'s gradient.
pub fn set_gradient(parameter: &mut Tensor, gradient: &Tensor) -> Result<()> {
    // SAFETY: both are live tensors.
    check(|message, capacity| unsafe {
        medvision_set_gradient(
            parameter.as_mut_ptr().cast(),
            gradient.as_ptr().cast(),
            message,
            capacity,
        )
    })
}

/// Gradient of the input of libtorch's fused RMSNorm, on a GPU; `factor` is the second result of its forward.
pub fn rms_norm_backward(
    gradient: &Tensor,
    input: &Tensor,
    factor: &Tensor,
    weight: &Tensor,
) -> Result<Tensor> {
    let mut result: *mut RawTensor = std::ptr::null_mut();
    // SAFETY: live tensors.
    check(|message, capacity| unsafe {
        medvision_rms_norm_backward(
            gradient.as_ptr().cast(),
            input.as_ptr().cast(),
            factor.as_ptr().cast(),
            weight.as_ptr().cast(),
            &mut result,
            message,
            capacity,
        )
    })?;
    // SAFETY: a new tensor; this becomes its owner.
    Ok(unsafe { Tensor::from_ptr(result.cast()) })
}

/// AdamW moments; f32, of the parameters' shape and device.
pub struct Moments {
    /// Running mean of the gradients.
    pub first: Tensor,
    /// Running mean of their squares.
    pub second: Tensor,
}

/// One fused AdamW step on flat buffers, in place. `number` counts from 1.
pub fn adamw_step(
    parameters: &mut Tensor,
    gradients: &mut Tensor,
    moments: &mut Moments,
    number: u64,
    settings: &AdamW,
) -> Result<()> {
    // f32 as in libtorch's own optimizers; exact up to 16 million steps.
    let mut step = Tensor::f_full(
        [] as [i64; 0],
        number as f64,
        (tch::Kind::Float, parameters.device()),
    )?;
    // SAFETY: live tensors, borrowed mutably.
    check(|message, capacity| unsafe {
        medvision_adamw_step(
            parameters.as_mut_ptr().cast(),
            gradients.as_mut_ptr().cast(),
            moments.first.as_mut_ptr().cast(),
            moments.second.as_mut_ptr().cast(),
            step.as_mut_ptr().cast(),
            settings,
            message,
            capacity,
        )
    })
}

/// Calls into C++; an error is libtorch's.
fn check(work: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<()> {
    torch::call(work).map_err(|text| Error::Torch(tch::TchError::Torch(text)))
}

/// Called by the C++ node to run a closure.
unsafe extern "C" fn run_backward(
    closure: *mut c_void,
    gradient: *const RawTensor,
    wanted: *const bool,
    gradients: *mut *mut RawTensor,
    count: usize,
    message: *mut c_char,
    capacity: usize,
) -> c_int {
    let work = || -> Result<()> {
        // SAFETY: the box that `attach` gave away, not yet dropped.
        let closure = unsafe { &*closure.cast::<Closure>() };
        // SAFETY: `count` flags and entries; the gradient is a live tensor, of which this makes a second handle.
        let (gradient, wanted, slots) = unsafe {
            (
                Tensor::clone_from_ptr(gradient.cast_mut().cast()),
                std::slice::from_raw_parts(wanted, count),
                std::slice::from_raw_parts_mut(gradients, count),
            )
        };
        let made = closure(&gradient, wanted)?;
        for ((slot, wanted), made) in slots.iter_mut().zip(wanted).zip(made) {
            if let Some(mut made) = made.filter(|_| *wanted) {
                *slot = made.as_mut_ptr().cast();
                // The C++ node owns it now.
                std::mem::forget(made);
            }
        }
        Ok(())
    };
    let text = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a backward pass panicked".to_owned(),
    };
    let length = text.len().min(capacity.saturating_sub(1));
    // SAFETY: `capacity` bytes, which are zeros.
    let buffer = unsafe { std::slice::from_raw_parts_mut(message.cast::<u8>(), length) };
    buffer.copy_from_slice(&text.as_bytes()[..length]);
    1
}

unsafe extern "C" fn drop_closure(closure: *mut c_void) {
    // A panic in a destructor ends here.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the box that `attach` gave away; the node calls this once.
        drop(unsafe { Box::from_raw(closure.cast::<Closure>()) })
    }));
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tch::{Device, Kind};

    use super::*;

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    /// x², with 2x as its derivative times `factor`.
    fn square(x: &Tensor, factor: f64, alive: &Rc<()>) -> Result<Tensor> {
        let (kept, alive) = (detached(x), Rc::clone(alive));
        attach(&[x], tch::no_grad(|| x * x), move |gradient, _| {
            let _ = &alive;
            Ok(vec![Some(gradient * &kept * factor)])
        })
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn a_closure_gives_the_gradient_and_is_dropped_after_it() {
        let alive = Rc::new(());
        let x = leaf(&[1.0, -2.0, 3.0]);
        let y = square(&(&x + 1.0), 2.0, &alive).unwrap();
        assert_eq!(values(&y), [4.0, 1.0, 16.0]);
        assert!(y.requires_grad() && Rc::strong_count(&alive) == 2);
        y.sum(Kind::Float).f_backward().unwrap();
        assert_eq!(values(&x.grad()), [4.0, -2.0, 8.0]);
        assert_eq!(
            Rc::strong_count(&alive),
            1,
            "freed with the graph, before its tensors go"
        );
        let again = y.sum(Kind::Float).f_backward().unwrap_err().to_string();
        assert!(again.contains("already used"), "{again}");
    }

    #[test]
    fn nothing_is_attached_to_an_untracked_output() {
        let alive = Rc::new(());
        let plain = square(&Tensor::from_slice(&[2f32]), 2.0, &alive).unwrap();
        let x = leaf(&[2.0]);
        let quiet = tch::no_grad(|| square(&x, 2.0, &alive)).unwrap();
        assert!(!plain.requires_grad() && !quiet.requires_grad());
        assert_eq!(Rc::strong_count(&alive), 1);
        drop(square(&x, 2.0, &alive).unwrap());
        assert_eq!(Rc::strong_count(&alive), 1, "an unused node is freed");
    }

    #[test]
    fn errors_and_panics_of_a_closure_are_errors_of_the_backward_pass() {
        let x = leaf(&[1.0]);
        let output = || tch::no_grad(|| &x * 1.0);
        let wrong = attach(&[&x], output(), |_, _| Err(Error::NonFinite("spoilt".to_owned()))).unwrap();
        let error = wrong.f_backward().unwrap_err().to_string();
        assert!(error.contains("spoilt"), "{error}");
        let long = attach(&[&x], output(), |_, _| Err(Error::NonFinite("x".repeat(5000)))).unwrap();
        assert!(long.f_backward().is_err());
    }

    #[test]
    fn a_recomputed_layer_has_the_same_gradients() {
        let weight = leaf(&[0.5, -1.0]);
        let x = leaf(&[1.0, 3.0]);
        let layer = |weight: &Tensor| {
            let weight = weight.shallow_clone();
            move |x: &Tensor| Ok((x * &weight).tanh() * x)
        };
        let y = recomputed(&(&x * 2.0), layer(&weight)).unwrap();
        (y * Tensor::from_slice(&[1f32, 2.0])).sum(Kind::Float).backward();
        let found = (values(&x.grad()), values(&weight.grad()));
        let (mut x, mut weight) = (x, weight);
        x.zero_grad();
        weight.zero_grad();
        let y = layer(&weight)(&(&x * 2.0)).unwrap();
        (y * Tensor::from_slice(&[1f32, 2.0])).sum(Kind::Float).backward();
        assert_eq!(found, (values(&x.grad()), values(&weight.grad())));
    }

    #[test]
    fn only_wanted_gradients_are_asked_for() {
        let (x, constant) = (leaf(&[3.0]), Tensor::from_slice(&[5f32]));
        let product = tch::no_grad(|| &x * &constant);
        let (kept_x, kept) = (detached(&x), detached(&constant));
        let y = attach(&[&x, &constant], product, move |gradient, wanted| {
            assert_eq!(wanted, [true, false]);
            Ok(vec![Some(gradient * &kept), Some(gradient * &kept_x)])
        })
        .unwrap();
        y.backward();
        assert_eq!(values(&x.grad()), [5.0]);
    }

    #[test]
    fn a_step_is_adamw_s_and_gradients_gather_where_they_are_told_to() {
        let options = (Kind::Float, Device::Cpu);
        let mut flat = Tensor::from_slice(&[1f32, -2.0, 0.5]);
        let mut gradients = Tensor::zeros([3], options);
        let mut leaf = flat.narrow(0, 1, 2).detach().set_requires_grad(true);
        set_gradient(&mut leaf, &gradients.narrow(0, 1, 2)).unwrap();
        (&leaf * 3.0).sum(Kind::Float).backward();
        (&leaf * 1.0).sum(Kind::Float).backward();
        assert_eq!(values(&gradients), [0.0, 4.0, 4.0]);
        let mut moments = Moments {
            first: Tensor::zeros([3], options),
            second: Tensor::zeros([3], options),
        };
        let settings = AdamW {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: 0.01,
            epsilon: 1e-8,
        };
        adamw_step(&mut flat, &mut gradients, &mut moments, 1, &settings).unwrap();
        // The first step moves by the learning rate against the gradient's sign, after the decay.
        for (found, wanted) in values(&flat)
            .iter()
            .zip([0.999, -2.0 * 0.999 - 0.1, 0.5 * 0.999 - 0.1])
        {
            assert!((found - wanted).abs() < 1e-6, "{found} {wanted}");
        }
        assert_eq!(values(&leaf), values(&flat.narrow(0, 1, 2)));
    }
}
