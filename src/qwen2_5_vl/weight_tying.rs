//! Weight tying: whether the output head is the embedding table.
//!
//! The stored tensors take precedence over `tie_word_embeddings`, as in transformers 5.17 (`tie_weights`).

use tch::Kind;

use super::Config;
use crate::Result;
use crate::checkpoint::{Checkpoint, EMBEDDING, HEAD};

/// Rows per comparison step.
const ROWS: usize = 4096;

/// How embedding table and output head are stored.
///
/// Reference: [`tie_weights`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/modeling_utils.py#L2526-L2615).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tying {
    /// Two tensors.
    Apart,
    /// One tensor, stored under this name.
    One(&'static str),
}

impl Tying {
    /// Decides by the weights in `checkpoint`; with a warning if the config contradicts them.
    pub(crate) fn of(checkpoint: &Checkpoint, config: &Config) -> Result<(Self, Option<String>)> {
        if !config.tie_word_embeddings {
            return Ok((Self::Apart, None));
        }
        let packed = checkpoint.contains("lm_head.qweight");
        if !packed && !checkpoint.contains(HEAD) {
            return Ok((Self::One(EMBEDDING), None));
        }
        if !packed && !checkpoint.contains(EMBEDDING) {
            return Ok((Self::One(HEAD), None));
        }
        let shape = [config.text.vocab_size, config.text.hidden_size];
        if !packed && same_values(checkpoint, shape)? {
            return Ok((Self::One(EMBEDDING), None));
        }
        let warning = format!(
            "{}: config.json ties \"{HEAD}\" to \"{EMBEDDING}\" (\"tie_word_embeddings\"), but both are stored with \
             different values: each is used as stored, as transformers does",
            checkpoint.dir().display()
        );
        Ok((Self::Apart, Some(warning)))
    }
}

fn same_values(checkpoint: &Checkpoint, shape: [usize; 2]) -> Result<bool> {
    let (_, embedding_dtype, _, embedding) = checkpoint.bytes(EMBEDDING)?;
    let (_, head_dtype, _, head) = checkpoint.bytes(HEAD)?;
    if embedding_dtype == head_dtype {
        return Ok(embedding[..] == head[..]);
    }
    if checkpoint.kind(EMBEDDING).is_err() || checkpoint.kind(HEAD).is_err() {
        return Ok(false); // not a dense table
    }
    let (embedding, head) = (
        checkpoint.mapped(EMBEDDING, &shape)?,
        checkpoint.mapped(HEAD, &shape)?,
    );
    for start in (0..shape[0]).step_by(ROWS) {
        let rows = |tensor: &tch::Tensor| {
            let rows = tensor.f_narrow(0, start as i64, ROWS.min(shape[0] - start) as i64)?;
            rows.f_to_kind(Kind::Float)
        };
        if !rows(&embedding.tensor)?.f_equal(&rows(&head.tensor)?)? {
            return Ok(false);
        }
    }
    Ok(true)
}
