//! Prompts and answers without a tokenizer: patches and token ids that only have the right number.

use std::ops::ControlFlow;
use std::time::Instant;

use tch::Tensor;

use crate::Result;
use crate::device::synchronize;
use crate::engine::PREFILL_SLICE;
use crate::generation::{ChoiceExtras, GenerationOptions, TokenChooser};
use crate::processing::Grid;
use crate::qwen2_5_vl::{AdapterIndex, Config, KvCache, LogitsToKeep, Model};
use crate::random::SeededRng;

/// Text tokens before the image, as in a chat.
const BEFORE_IMAGE: usize = 4;

/// Most tokens of a sequence while another prompt is read: as many as the vision tower and the language model have layers, and more.
const EXTRA_TOKENS: usize = 256;

/// A prompt as the model gets it.
pub(super) struct Prompt {
    input_ids: Vec<i64>,
    /// `[patches, patch_values]` f32 on the CPU, as the image processor returns them.
    pixel_values: Option<Tensor>,
    grids: Vec<Grid>,
}

impl Prompt {
    /// A prompt of `tokens` tokens with an image of `grid`, which has fewer.
    pub(super) fn new(config: &Config, grid: Option<Grid>, tokens: usize) -> Result<Self> {
        let mut random = SeededRng::from_seed(42);
        let image_tokens = grid.map_or(0, |grid| grid.tokens(config.vision.spatial_merge_size));
        let text = tokens - image_tokens;
        let mut input_ids: Vec<i64> = (0..text)
            .map(|_| {
                // Any token but the image's.
                let id = random.below(config.text.vocab_size - 1) as i64;
                id + i64::from(id >= config.image_token_id)
            })
            .collect();
        let at = BEFORE_IMAGE.min(text);
        input_ids.splice(at..at, std::iter::repeat_n(config.image_token_id, image_tokens));
        let pixel_values = grid.map(|grid| {
            let values = grid.patches() * config.vision.patch_values();
            let pixels: Vec<f32> = (0..values).map(|_| random.range(-1.0, 1.0) as f32).collect();
            Tensor::f_from_slice(&pixels)?.f_view([grid.patches() as i64, -1])
        });
        Ok(Self {
            input_ids,
            pixel_values: pixel_values.transpose()?,
            grids: grid.into_iter().collect(),
        })
    }
}

/// Times of one answer, seconds.
pub(super) struct AnswerTimes {
    /// To the first token.
    pub first_token: f64,
    /// To the last.
    pub total: f64,
}

/// Times of the stages of one answer, seconds.
pub(super) struct StageTimes {
    pub vision: f64,
    pub prefill: f64,
    pub first_token: f64,
    /// All tokens after the first.
    pub decode: f64,
}

/// One sequence: its cache, and the logits of its next token.
struct Sequence {
    cache: KvCache,
    /// `[1, vocab]`.
    logits: Tensor,
    chooser: TokenChooser,
}

/// Options without a sampler's work beyond the largest logit.
fn greedy() -> GenerationOptions {
    GenerationOptions {
        max_new_tokens: 0,
        temperature: 0.0,
        top_k: None,
        top_p: None,
        repetition_penalty: 1.0,
        seed: None,
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        repetition_detection: None,
    }
}

/// A model that answers, with one of its adapters or without.
pub(super) struct Answers<'a> {
    pub model: &'a Model,
    pub prompt: &'a Prompt,
    /// Tokens of an answer.
    pub tokens: usize,
    pub adapter: AdapterIndex,
}

impl Answers<'_> {
    fn image_features(&self) -> Result<Option<Tensor>> {
        let Some(pixels) = &self.prompt.pixel_values else {
            return Ok(None);
        };
        let grids = &self.prompt.grids;
        let features = self
            .model
            .image_features_cancellable(pixels, grids, self.adapter, &mut || ControlFlow::Continue(()))?;
        Ok(Some(features))
    }

    /// An empty cache with room for prompt and answer, and for [`Self::stall`].
    fn cache(&self) -> Result<KvCache> {
        self.model.cache_with(
            self.prompt.input_ids.len() + self.tokens + EXTRA_TOKENS,
            self.adapter,
        )
    }

    fn prefill(&self, features: Option<&Tensor>, cache: &mut KvCache) -> Result<Tensor> {
        let prompt = self.prompt;
        let keep = LogitsToKeep::Last;
        let prefill = self
            .model
            .prefill(&prompt.input_ids, features, &prompt.grids, cache, keep)?;
        Ok(prefill.hidden)
    }

    /// Reads the prompt.
    fn start(&self) -> Result<Sequence> {
        let mut cache = self.cache()?;
        let features = self.image_features()?;
        let hidden = self.prefill(features.as_ref(), &mut cache)?;
        self.sequence(cache, &hidden)
    }

    fn sequence(&self, cache: KvCache, hidden: &Tensor) -> Result<Sequence> {
        let (ids, vocab_size) = (&self.prompt.input_ids, self.model.config().text.vocab_size);
        Ok(Sequence {
            logits: self.model.logits_with(hidden, self.adapter)?,
            cache,
            chooser: TokenChooser::new(
                &greedy(),
                ids,
                vocab_size,
                self.model.device(),
                ChoiceExtras::default(),
            )?,
        })
    }

    /// Chooses the first token of every sequence, and decodes all others together, as the engine does.
    fn decode(&self, sequences: &mut [Sequence], tokens: usize) -> Result<()> {
        let rows: Vec<&Tensor> = sequences.iter().map(|sequence| &sequence.logits).collect();
        let mut logits = Tensor::f_cat(&rows, 0)?;
        for left in (0..tokens).rev() {
            let mut choosers: Vec<_> = sequences
                .iter_mut()
                .map(|sequence| &mut sequence.chooser)
                .collect();
            let chosen = TokenChooser::next_together(&mut choosers, &logits)?;
            if left == 0 {
                return chosen.into_iter().try_for_each(|token| token.map(drop));
            }
            let caches = sequences.iter_mut().map(|sequence| &mut sequence.cache);
            let mut step = chosen
                .into_iter()
                .zip(caches)
                .map(|(token, cache)| Ok((token?, cache)));
            logits = self
                .model
                .decode_together(&mut step.by_ref().collect::<Result<Vec<_>>>()?)?;
        }
        Ok(())
    }

    /// Runs every kernel once: a prompt and some tokens, or all if these are fewer.
    pub(super) fn warm_up(&self, tokens: usize) -> Result<()> {
        let mut sequences = [self.start()?];
        self.decode(&mut sequences, tokens.min(self.tokens))?;
        synchronize(self.model.device());
        Ok(())
    }

    /// One answer.
    pub(super) fn one(&self) -> Result<AnswerTimes> {
        let device = self.model.device();
        synchronize(device);
        let start = Instant::now();
        let mut sequence = self.start()?;
        let token = sequence.chooser.next(&sequence.logits)?;
        let first_token = start.elapsed().as_secs_f64();
        sequence.logits = self.model.decode(token, &mut sequence.cache)?;
        self.decode(&mut [sequence], self.tokens - 1)?;
        synchronize(device);
        Ok(AnswerTimes {
            first_token,
            total: start.elapsed().as_secs_f64(),
        })
    }

    /// Seconds in which the answers of `count` sequences are decoded together, after their prompts were read.
    pub(super) fn together(&self, count: usize) -> Result<f64> {
        let device = self.model.device();
        let mut sequences = (0..count).map(|_| self.start()).collect::<Result<Vec<_>>>()?;
        synchronize(device);
        let start = Instant::now();
        self.decode(&mut sequences, self.tokens)?;
        synchronize(device);
        Ok(start.elapsed().as_secs_f64())
    }

    /// Longest wait of a sequence for a token while another prompt is read, seconds: the prefill is interrupted as the engine does.
    pub(super) fn stall(&self) -> Result<f64> {
        let device = self.model.device();
        let mut running = [self.start()?];
        self.decode(&mut running, 2)?;
        synchronize(device);
        let (mut last, mut longest) = (Instant::now(), 0f64);
        let mut failed = None;
        let mut step = || {
            synchronize(device);
            if last.elapsed() >= PREFILL_SLICE {
                failed = self.decode(&mut running, 2).err();
                longest = longest.max(last.elapsed().as_secs_f64());
                last = Instant::now();
            }
            match failed {
                None => ControlFlow::Continue(()),
                Some(_) => ControlFlow::Break(()),
            }
        };
        let mut cache = self.cache()?;
        let prompt = self.prompt;
        let features = match &prompt.pixel_values {
            Some(pixels) => {
                Some(
                    self.model
                        .image_features_cancellable(pixels, &prompt.grids, self.adapter, &mut step)?,
                )
            }
            None => None,
        };
        let read = (
            prompt.input_ids.as_slice(),
            features.as_ref(),
            prompt.grids.as_slice(),
        );
        self.model
            .prefill_cancellable(read, &mut cache, LogitsToKeep::Last, &mut step)?;
        synchronize(device);
        Ok(longest.max(last.elapsed().as_secs_f64()))
    }

    /// One answer, whose stages are waited for.
    pub(super) fn by_stage(&self) -> Result<StageTimes> {
        let device = self.model.device();
        let mut cache = self.cache()?;
        synchronize(device);
        let mut last = Instant::now();
        let mut lap = || {
            synchronize(device);
            let seconds = last.elapsed().as_secs_f64();
            last = Instant::now();
            seconds
        };
        let features = self.image_features()?;
        let vision = lap();
        let hidden = self.prefill(features.as_ref(), &mut cache)?;
        let prefill = lap();
        let mut sequence = self.sequence(cache, &hidden)?;
        let token = sequence.chooser.next(&sequence.logits)?;
        let first_token = lap();
        sequence.logits = self.model.decode(token, &mut sequence.cache)?;
        self.decode(&mut [sequence], self.tokens - 1)?;
        Ok(StageTimes {
            vision,
            prefill,
            first_token,
            decode: lap(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::benchmark::speed::{Form, Shape};

    #[test]
    fn a_prompt_has_its_tokens() {
        let config = Config::from_json(&Shape::Tiny.config(Form::Bf16).unwrap()).unwrap();
        let grid = Grid { t: 1, h: 4, w: 6 };
        let prompt = Prompt::new(&config, Some(grid), 20).unwrap();
        let image = |ids: &[i64]| ids.iter().filter(|&&id| id == config.image_token_id).count();
        assert_eq!((prompt.input_ids.len(), image(&prompt.input_ids)), (20, 6));
        assert_eq!(image(&prompt.input_ids[4..10]), 6);
        assert_eq!(prompt.pixel_values.unwrap().size(), [24, 1176]);
        let text = Prompt::new(&config, None, 7).unwrap();
        assert_eq!((text.input_ids.len(), image(&text.input_ids)), (7, 0));
    }
}
