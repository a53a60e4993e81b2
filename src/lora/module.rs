//! The modules that an adapter changes.

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
    /// Every layer of the vision tower has a bias, of the language model the queries, keys and values.
    pub fn has_bias(&self) -> bool {
        let biased = [".q_proj", ".k_proj", ".v_proj"];
        self.name.starts_with("visual.") || biased.iter().any(|suffix| self.name.ends_with(suffix))
    }
}
