//! Bytes of weights that a pass reads: what memory bandwidth allows at most.

use super::{Model, linear::tensor_bytes, lora::AdapterIndex};

/// Bytes of weights that each part of a pass reads once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightBytes {
    /// The vision tower.
    pub vision: u64,
    /// The decoder layers. Rows of the embedding table are not counted: a token reads one.
    pub layers: u64,
    /// Final norm and output head.
    pub head: u64,
}

impl WeightBytes {
    /// What one decode step reads.
    pub fn step(&self) -> u64 {
        self.layers + self.head
    }
}

impl Model {
    /// Bytes of weights, as they are in memory, that passes with `adapter` read.
    pub fn weight_bytes(&self, adapter: AdapterIndex) -> WeightBytes {
        let language = &self.language;
        let layers = language.layers.iter().map(|layer| {
            let linears = [&layer.q, &layer.k, &layer.v, &layer.o];
            let attention: usize = linears.into_iter().map(|linear| linear.bytes(adapter)).sum();
            let norms = tensor_bytes(&layer.input_norm.weight) + tensor_bytes(&layer.post_norm.weight);
            attention + layer.mlp.weight_bytes(adapter) + norms
        });
        WeightBytes {
            vision: self.vision.weight_bytes(adapter) as u64,
            layers: layers.sum::<usize>() as u64,
            head: (language.head.bytes(adapter) + tensor_bytes(&language.norm.weight)) as u64,
        }
    }
}
