//! Validation: loss and accuracy on samples that are not trained on.

use std::ops::ControlFlow;

use tch::Kind;

use super::{
    batches::Batching,
    collate::Batch,
    loader::{Batches, PageLoader},
    progress::Validation,
    samples::{Sample, Samples},
};
use crate::engine::{ReadRequest, Reader};
use crate::evaluation::character_errors;
use crate::fs::{PICTURE_BYTES, read_bounded};
use crate::generation::GenerationOverrides;
use crate::processing::{DecodeLimits, ImageProcessor, decode};
use crate::torch::upload;
use crate::{Error, Result};

/// Tokens by which a greedy answer may be longer than the reference.
const EXTRA_TOKENS: usize = 32;

/// Sums over validation samples, from which the metrics are computed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    loss: f64,
    correct_tokens: f64,
    tokens: f64,
    character_edits: f64,
    characters: f64,
}

impl From<Sums> for [f64; 5] {
    fn from(sums: Sums) -> Self {
        [
            sums.loss,
            sums.correct_tokens,
            sums.tokens,
            sums.character_edits,
            sums.characters,
        ]
    }
}

impl From<[f64; 5]> for Sums {
    fn from([loss, correct_tokens, tokens, character_edits, characters]: [f64; 5]) -> Self {
        Self {
            loss,
            correct_tokens,
            tokens,
            character_edits,
            characters,
        }
    }
}

/// Computes this process's share of the sums over `samples`; greedy answers are generated for the first `documents` samples.
pub(super) fn validate(
    reader: &Reader,
    images: &ImageProcessor,
    samples: &Samples,
    batching: &Batching,
    documents: usize,
    (rank, processes): (usize, usize),
) -> Result<Sums> {
    reader.model().set_dropout_seed(0);
    let mut sums = Sums::default();
    let own: Vec<_> = batching
        .in_order(&samples.page_groups())
        .into_iter()
        .skip(rank)
        .step_by(processes)
        .collect();
    let count = own.len();
    PageLoader::new(images, reader.model().device())?.prefetch(samples, own.into_iter(), |batches| {
        (0..count).try_for_each(|_| tch::no_grad(|| sums.add_batch(reader, samples, batches)))
    })?;
    let answered = samples.samples.iter().take(documents);
    for sample in answered.skip(rank).step_by(processes) {
        sums.add_answer(reader, sample)?;
    }
    Ok(sums)
}

impl Sums {
    /// The metrics after `step` steps.
    pub(super) fn metrics(self, step: u64) -> Result<Validation> {
        let tokens = self.tokens.max(1.0);
        let loss = self.loss / tokens;
        if !loss.is_finite() {
            return Err(Error::NonFinite(
                "validation loss is not finite (NaN/Inf)".to_owned(),
            ));
        }
        let character_accuracy = || (self.characters - self.character_edits) / self.characters * 100.0;
        Ok(Validation {
            step,
            loss,
            token_accuracy_pct: self.correct_tokens / tokens * 100.0,
            document_accuracy_pct: (self.characters > 0.0).then(character_accuracy),
        })
    }

    /// Loss and token accuracy of the next batch.
    fn add_batch(&mut self, reader: &Reader, samples: &Samples, batches: &mut Batches<'_>) -> Result<()> {
        let model = reader.model();
        let (numbers, pixels) = batches.next()?;
        let batch = Batch::collate(model.config(), samples, &numbers, pixels)?;
        let hidden = model.packed_hidden(&batch.packed, Some(&batch.pixels), &batch.rows, false)?;
        self.loss += model
            .packed_loss(&hidden, &batch.labels, 1.0)?
            .f_double_value(&[])?;
        let labels = upload(&batch.labels, hidden.device())?;
        let predicted = model.logits(&hidden)?.f_argmax(-1, false)?;
        let correct = predicted.f_eq_tensor(&labels)?.f_sum(Kind::Double)?;
        self.correct_tokens += correct.f_double_value(&[])?;
        self.tokens += batch.labels.len() as f64;
        Ok(())
    }

    /// Character errors of a greedy answer.
    fn add_answer(&mut self, reader: &Reader, sample: &Sample) -> Result<()> {
        let bytes =
            read_bounded(&sample.image, PICTURE_BYTES).map_err(|error| Error::io(&sample.image, error))?;
        let page = decode(&bytes, &DecodeLimits::default())?;
        let mut request = ReadRequest::page(sample.prompt.clone(), page);
        let context = reader.model().config().text.max_position_embeddings;
        request.overrides = GenerationOverrides {
            max_new_tokens: Some((sample.labels() + EXTRA_TOKENS).min(context - sample.answer)),
            temperature: Some(0.0),
            ..GenerationOverrides::default()
        };
        let answer = reader.read(&request, &mut |_| ControlFlow::Continue(()))?;
        let errors = character_errors(&sample.response, &answer.text);
        self.character_edits += errors.edits.min(errors.length) as f64;
        self.characters += errors.length as f64;
        Ok(())
    }
}
