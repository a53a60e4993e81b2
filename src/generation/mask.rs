//! Token masks: which tokens may come next, such as those that a grammar allows.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::{Error, Result};

/// Restricts the tokens of one generation.
pub trait TokenMask: Send {
    /// Sets the bits of the tokens that may come next: token `t` is bit `t % 32` of word `t / 32`. All bits are 0 before.
    fn allowed(&mut self, bitmask: &mut [u32]);

    /// Takes the chosen token, one of those that were allowed. Not called for an end token.
    fn accept(&mut self, token: i64);
}

/// Makes the mask of each generation of a request.
pub type MaskSource = Arc<dyn Fn() -> Box<dyn TokenMask> + Send + Sync>;

/// A mask on a thread of its own, so that it is computed beside the forward pass.
pub struct MaskWorker {
    /// The chosen token, and the bitmask to fill next.
    tokens: Sender<(i64, Vec<u32>)>,
    masks: Receiver<Vec<u32>>,
    /// The bitmask in use.
    bitmask: Vec<u32>,
}

impl MaskWorker {
    /// Starts the thread, which computes the mask of the first of `vocab_size` tokens. It ends when this is dropped.
    ///
    /// # Errors
    /// If the operating system cannot create a thread.
    pub fn start(source: &MaskSource, vocab_size: usize) -> io::Result<Self> {
        let (tokens, chosen) = channel::<(i64, Vec<u32>)>();
        let (filled, masks) = channel();
        let source = Arc::clone(source);
        std::thread::Builder::new()
            .name("token mask".into())
            .spawn(move || {
                let mut mask = source();
                let mut bitmask = vec![0; vocab_size.div_ceil(32)];
                loop {
                    bitmask.fill(0);
                    mask.allowed(&mut bitmask);
                    if filled.send(bitmask).is_err() {
                        return;
                    }
                    let Ok((token, next)) = chosen.recv() else { return };
                    mask.accept(token);
                    bitmask = next;
                }
            })?;
        Ok(Self {
            tokens,
            masks,
            bitmask: Vec::new(),
        })
    }

    /// Waits for the mask, then sets the logits of the other tokens to negative infinity.
    ///
    /// # Errors
    /// [`Error::Internal`] if the mask allows no token, or has panicked.
    pub fn apply(&mut self, logits: &mut [f32]) -> Result<()> {
        self.bitmask = self.masks.recv().map_err(|_| panicked())?;
        if self.bitmask.iter().all(|&word| word == 0) {
            return Err(Error::Internal("the token mask allows no token".into()));
        }
        for (logits, word) in logits.chunks_mut(32).zip(&self.bitmask) {
            if *word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    /// Takes the chosen token; the next mask is computed meanwhile.
    ///
    /// # Errors
    /// [`Error::Internal`] if the mask has panicked.
    pub fn accept(&mut self, token: i64) -> Result<()> {
        let bitmask = std::mem::take(&mut self.bitmask);
        self.tokens.send((token, bitmask)).map_err(|_| panicked())
    }
}

fn panicked() -> Error {
    Error::Internal("the token mask panicked".into())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    /// Allows token 0 once it was told to go on.
    struct Held {
        begun: Sender<()>,
        go_on: Receiver<()>,
    }

    impl TokenMask for Held {
        fn allowed(&mut self, bitmask: &mut [u32]) {
            self.begun.send(()).expect("the test waits");
            self.go_on
                .recv_timeout(PATIENCE)
                .expect("a caller that does not wait for the mask");
            bitmask[0] = 1;
        }

        fn accept(&mut self, _: i64) {}
    }

    /// Each mask is held until its caller has gone on: a worker that computes it within `start` or `accept` fails here.
    #[test]
    fn a_mask_is_computed_while_its_caller_goes_on() {
        let ((begins, begun), (go, go_on)) = (channel(), channel());
        let held = Mutex::new(Some(Held { begun: begins, go_on }));
        let source: MaskSource = Arc::new(move || {
            let held = held.lock().expect("no panic").take();
            Box::new(held.expect("one generation"))
        });
        let mut worker = MaskWorker::start(&source, 40).expect("a thread");
        for token in 0..3 {
            begun.recv_timeout(PATIENCE).expect("the mask is being computed");
            // Here is the forward pass.
            go.send(()).expect("the mask waits");
            let mut logits = [0.0; 40];
            worker.apply(&mut logits).expect("a mask");
            assert_eq!(logits.iter().filter(|logit| logit.is_finite()).count(), 1);
            worker.accept(token).expect("taken");
        }
    }
}
