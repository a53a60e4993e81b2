//! What the engine thread drives: the model, one turn of work at a time.

use std::convert::Infallible;
use std::ops::ControlFlow;

use super::{OnStep, ReadRequest, Reading, Variant};
use crate::Result;

/// A loaded model, driven by the engine thread. [`Reader`](super::Reader) in production; tests use stubs.
///
/// A request is prepared, begins, and gets tokens: [`Self::step`] chooses one for each sequence of the batch, [`Self::push`] adds it to one
/// answer. A panic in [`Self::step`] fails all sequences of the batch, one elsewhere only its own.
pub trait Backend {
    /// A request after preprocessing.
    type Prompt;
    /// An answer that is being generated.
    type Sequence<'m>
    where
        Self: 'm;

    /// What a request can choose between with [`ReadRequest::variant`]: at least one, the default first.
    fn variants(&self) -> &[Variant];

    /// Most sequences of a batch, unless the user says otherwise.
    fn max_batch(&self) -> usize {
        1
    }

    /// Checks and preprocesses a request.
    ///
    /// # Errors
    /// A request that can never be answered.
    fn prepare(&self, request: &ReadRequest) -> Result<Self::Prompt>;

    /// Whether there is memory for the keys and values of `prompt` and its answer beside the sequences that run now.
    fn has_room(&self, _prompt: &Self::Prompt) -> bool {
        true
    }

    /// Reads the prompt and generates the first token; `Break` if the answer ends with it. `on_step` is called between layers, without
    /// text, and for the token; it cancels with `Break`.
    fn begin<'m>(
        &'m self,
        prompt: Self::Prompt,
        on_step: &mut OnStep<'_>,
    ) -> Result<ControlFlow<Reading, Self::Sequence<'m>>>;

    /// Chooses the next token of every sequence; one result each.
    fn step(&self, sequences: &mut [&mut Self::Sequence<'_>]) -> Vec<Result<()>>;

    /// Adds the token chosen last to the answer, of which `on_step` is told; the whole answer if it ends.
    fn push(&self, sequence: &mut Self::Sequence<'_>, on_step: &mut OnStep<'_>) -> Result<Option<Reading>>;

    /// Waits until the device has done what it was asked for, so that the clock tells how long it took.
    fn wait(&self) {}
}

/// Answers each request as a whole. [`OneByOne`] makes a [`Backend`] of it, such as a stub for tests.
pub trait Answerer {
    /// As [`Backend::variants`].
    fn variants(&self) -> &[Variant];

    /// Answers a request; `on_step` is called for every token, and cancels with `Break`.
    fn read(&self, request: &ReadRequest, on_step: &mut OnStep<'_>) -> Result<Reading>;
}

/// A backend that answers one request after the other.
#[derive(Debug)]
pub struct OneByOne<A>(pub A);

impl<A: Answerer> Backend for OneByOne<A> {
    type Prompt = ReadRequest;
    type Sequence<'m>
        = Infallible
    where
        A: 'm;

    fn variants(&self) -> &[Variant] {
        self.0.variants()
    }

    fn prepare(&self, request: &ReadRequest) -> Result<ReadRequest> {
        Ok(request.clone())
    }

    fn begin(
        &self,
        prompt: ReadRequest,
        on_step: &mut OnStep<'_>,
    ) -> Result<ControlFlow<Reading, Infallible>> {
        self.0.read(&prompt, on_step).map(ControlFlow::Break)
    }

    fn step(&self, _: &mut [&mut Infallible]) -> Vec<Result<()>> {
        Vec::new()
    }

    fn push(&self, sequence: &mut Infallible, _: &mut OnStep<'_>) -> Result<Option<Reading>> {
        match *sequence {}
    }
}
