//! KV cache of one sequence. The CPU decode step writes it in `Step::attend` (`decode_cpu.rs`), all else in [`KvCache::append`].

use tch::{Device, Kind, Tensor};

use super::{TextConfig, decode_cpu::DecodeScratch, linear::tensor_bytes, lora::AdapterIndex};
use crate::{Error, Result};

/// Keys and values of one sequence, allocated once for all its tokens.
pub struct KvCache {
    /// Per layer: keys and values, each `[1, kv_heads, capacity, head_dim]`.
    pub(super) layers: Vec<(Tensor, Tensor)>,
    /// Values from one layer's keys, or values, to the next layer's.
    pub(super) layer_stride: i64,
    /// Tokens held.
    pub(super) length: i64,
    pub(super) capacity: i64,
    /// Position of the next token on all three axes.
    pub(super) next_position: i64,
    /// The adapter of the sequence.
    pub(super) adapter: AdapterIndex,
    /// Scratch buffers of the CPU decode step.
    pub(super) scratch: DecodeScratch,
}

impl KvCache {
    pub(super) fn new(
        config: &TextConfig,
        capacity: usize,
        adapter: AdapterIndex,
        options: (Kind, Device),
    ) -> Result<Self> {
        let (heads, dim) = (config.num_key_value_heads as i64, config.head_dim as i64);
        let (count, capacity) = (config.num_hidden_layers as i64, capacity as i64);
        let all = Tensor::f_empty([count, 2, 1, heads, capacity, dim], options)?;
        let layers = (0..count)
            .map(|layer| {
                let layer = all.f_select(0, layer)?;
                Ok((layer.f_select(0, 0)?, layer.f_select(0, 1)?))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            layers,
            layer_stride: 2 * heads * capacity * dim,
            length: 0,
            capacity,
            next_position: 0,
            adapter,
            scratch: DecodeScratch::default(),
        })
    }

    /// Writes the keys and values of new tokens, `[1, kv_heads, rows, head_dim]`, after those of `layer`; returns all keys and
    /// values of the layer. [`Self::length`] stays as it is until all layers are written.
    pub(super) fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        let (past, rows) = (self.length, k.size()[2]);
        keys.f_narrow(2, past, rows)?.f_copy_(k)?;
        values.f_narrow(2, past, rows)?.f_copy_(v)?;
        Ok((
            keys.f_narrow(2, 0, past + rows)?,
            values.f_narrow(2, 0, past + rows)?,
        ))
    }

    /// Copies of the first `tokens` keys and values.
    ///
    /// # Errors
    /// [`Error::Internal`] if it does not hold as many.
    pub fn prefix(&self, tokens: usize) -> Result<KvPrefix> {
        let count = tokens as i64;
        if count > self.length {
            return Err(Error::Internal(format!(
                "{tokens} tokens of a cache of {}",
                self.length
            )));
        }
        let copy = |tensor: &Tensor| -> Result<Tensor> {
            let part = tensor.f_narrow(2, 0, count)?;
            let mut whole = Tensor::f_empty(part.size(), (part.kind(), part.device()))?;
            whole.f_copy_(&part)?;
            Ok(whole)
        };
        let layers = self.layers.iter();
        Ok(KvPrefix {
            layers: layers
                .map(|(keys, values)| Ok((copy(keys)?, copy(values)?)))
                .collect::<Result<_>>()?,
            tokens,
        })
    }

    /// Begins this empty cache, of the same model and adapter, with `prefix`.
    ///
    /// # Errors
    /// [`Error::Internal`] if it is not empty, or too small.
    pub fn restore(&mut self, prefix: &KvPrefix) -> Result<()> {
        if self.length != 0
            || self.capacity < prefix.tokens as i64
            || self.layers.len() != prefix.layers.len()
        {
            return Err(Error::Internal("a prefix of another key-value cache".into()));
        }
        for ((keys, values), (kept_keys, kept_values)) in self.layers.iter().zip(&prefix.layers) {
            let count = prefix.tokens as i64;
            keys.f_narrow(2, 0, count)?.f_copy_(kept_keys)?;
            values.f_narrow(2, 0, count)?.f_copy_(kept_values)?;
        }
        self.length = prefix.tokens as i64;
        Ok(())
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether it holds no tokens.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Maximum number of tokens.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }
}

/// Keys and values of the first tokens of a sequence.
pub struct KvPrefix {
    /// As of [`KvCache`], with `tokens` in place of its capacity.
    layers: Vec<(Tensor, Tensor)>,
    tokens: usize,
}

// SAFETY: written once; libtorch's reference counts are atomic.
unsafe impl Sync for KvPrefix {}

impl KvPrefix {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Its memory.
    pub fn bytes(&self) -> u64 {
        let of = |(keys, values): &(Tensor, Tensor)| tensor_bytes(keys) + tensor_bytes(values);
        self.layers.iter().map(of).sum::<usize>() as u64
    }
}
