//! How good the adapter is on samples that it does not learn from.

use std::ops::ControlFlow;

use tch::{Kind, Tensor};

use super::{
    batches::Batching,
    feed::{Batches, Feed},
    log::Validation,
    samples::{Sample, Samples},
};
use crate::engine::{ReadRequest, Reader};
use crate::evaluation::character_errors;
use crate::fs::{PICTURE_BYTES, read_bounded};
use crate::generation::GenerationOverrides;
use crate::processing::{DecodeLimits, decode};
use crate::qwen2_5_vl::{Packed, Sequence};
use crate::torch::upload;
use crate::{Error, Result};

/// Tokens that a greedy answer may have beyond the right one's.
const SLACK: usize = 32;

/// Sums over validation samples, from which figures come.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    loss: f64,
    right: f64,
    tokens: f64,
    wrong_letters: f64,
    letters: f64,
}

impl From<Tally> for [f64; 5] {
    fn from(tally: Tally) -> Self {
        [
            tally.loss,
            tally.right,
            tally.tokens,
            tally.wrong_letters,
            tally.letters,
        ]
    }
}

impl From<[f64; 5]> for Tally {
    fn from([loss, right, tokens, wrong_letters, letters]: [f64; 5]) -> Self {
        Self {
            loss,
            right,
            tokens,
            wrong_letters,
            letters,
        }
    }
}

impl Tally {
    /// The figures after `step` steps.
    pub(super) fn figures(self, step: u64) -> Result<Validation> {
        let tokens = self.tokens.max(1.0);
        let loss = self.loss / tokens;
        if !loss.is_finite() {
            return Err(Error::Numeric("the validation loss is no number".to_owned()));
        }
        let letters_right = || (self.letters - self.wrong_letters) / self.letters * 100.0;
        Ok(Validation {
            step,
            loss,
            token_accuracy_pct: self.right / tokens * 100.0,
            document_accuracy_pct: (self.letters > 0.0).then(letters_right),
        })
    }
}

/// Measures a process's part of `samples`; the first `documents` of them are also answered.
pub(super) fn measure(
    reader: &mut Reader,
    samples: &Samples,
    batching: &Batching,
    documents: usize,
    (rank, processes): (usize, usize),
) -> Result<Tally> {
    reader.model().set_dropout_seed(0);
    let mut tally = Tally::default();
    let own: Vec<_> = batching
        .all(&samples.by_page())
        .into_iter()
        .skip(rank)
        .step_by(processes)
        .collect();
    let count = own.len();
    Feed::new(reader.images().clone(), reader.model().device())?.serve(
        samples,
        own.into_iter(),
        |batches| (0..count).try_for_each(|_| tch::no_grad(|| tally.add_batch(reader, samples, batches))),
    )?;
    for sample in samples
        .samples
        .iter()
        .take(documents)
        .skip(rank)
        .step_by(processes)
    {
        tally.add_answer(reader, sample)?;
    }
    Ok(tally)
}

impl Tally {
    fn add_batch(&mut self, reader: &Reader, samples: &Samples, batches: &mut Batches<'_>) -> Result<()> {
        let model = reader.model();
        let batch = Batch::next(reader, samples, batches)?;
        let hidden = model.packed_hidden(&batch.packed, Some(&batch.pixels), &batch.rows, false)?;
        self.loss += model
            .packed_loss(&hidden, &batch.labels, 1.0)?
            .f_double_value(&[])?;
        let labels = upload(&batch.labels, hidden.device())?;
        let likeliest = model.logits(&hidden)?.f_argmax(-1, false)?;
        let right = likeliest.f_eq_tensor(&labels)?.f_sum(Kind::Double)?;
        self.right += right.f_double_value(&[])?;
        self.tokens += batch.labels.len() as f64;
        Ok(())
    }

    /// The letters of a greedy answer.
    fn add_answer(&mut self, reader: &mut Reader, sample: &Sample) -> Result<()> {
        let bytes =
            read_bounded(&sample.image, PICTURE_BYTES).map_err(|error| Error::io(&sample.image, error))?;
        let page = decode(&bytes, &DecodeLimits::default())?;
        let mut request = ReadRequest::page(sample.prompt.clone(), page);
        let context = reader.model().config().text.max_position_embeddings;
        request.overrides = GenerationOverrides {
            max_new_tokens: Some((sample.labels() + SLACK).min(context - sample.answer)),
            temperature: Some(0.0),
            ..GenerationOverrides::default()
        };
        let answer = reader.read(&request, &mut |_| ControlFlow::Continue(()))?;
        let errors = character_errors(&sample.response, &answer.text);
        self.wrong_letters += errors.edits.min(errors.length) as f64;
        self.letters += errors.length as f64;
        Ok(())
    }
}

/// Samples that are computed at once.
pub(super) struct Batch {
    pub(super) packed: Packed,
    /// Patches of all pages.
    pub(super) pixels: Tensor,
    /// Rows whose next token is learnt.
    pub(super) rows: Vec<i64>,
    /// That token.
    pub(super) labels: Vec<i64>,
}

impl Batch {
    /// Takes the next batch of `samples`.
    pub(super) fn next(reader: &Reader, samples: &Samples, batches: &mut Batches<'_>) -> Result<Self> {
        let (batch, pixels) = batches.next()?;
        let (mut grids, mut pages) = (Vec::new(), Vec::new());
        for group in samples.groups(&batch) {
            pages.extend(std::iter::repeat_n(grids.len(), group.len()));
            grids.push(samples.samples[group[0]].grid);
        }
        let samples: Vec<&Sample> = batch.iter().map(|&i| &samples.samples[i]).collect();
        let sequences: Vec<Sequence<'_>> = samples
            .iter()
            .zip(&pages)
            .map(|(sample, page)| Sequence {
                ids: &sample.ids,
                pages: std::slice::from_ref(page),
            })
            .collect();
        let packed = Packed::new(reader.model().config(), &grids, &sequences)?;
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for (i, sample) in samples.iter().enumerate() {
            rows.extend((sample.answer - 1..sample.ids.len() - 1).map(|token| packed.row(i, token)));
            labels.extend(&sample.ids[sample.answer..]);
        }
        Ok(Self {
            packed,
            pixels,
            rows,
            labels,
        })
    }
}

/// Whether the loss of one validation is better than another's.
pub(super) fn better(new: &Validation, old: Option<&Validation>) -> bool {
    old.is_none_or(|old| new.loss < old.loss)
}
