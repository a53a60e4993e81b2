//! Modules that can have an adapter.

/// A linear layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearModule {
    /// The hub's name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Rows of its weight.
    pub outputs: usize,
    /// Columns of its weight.
    pub inputs: usize,
}

impl LinearModule {
    /// Whether it has a bias: all layers of the vision tower, and q, k and v of the language model.
    pub fn has_bias(&self) -> bool {
        let biased = [".q_proj", ".k_proj", ".v_proj"];
        self.name.starts_with("visual.") || biased.iter().any(|suffix| self.name.ends_with(suffix))
    }
}
