//! Tensor names: the hub's and transformers 5's spellings.

/// The hub's spelling of a tensor name: `visual.*`, `model.*`, `lm_head.weight`.
///
/// transformers 5 saves `model.visual.*`, `model.language_model.*` and `lm_head.weight` for the same tensors.
pub fn canonical_name(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("model.visual.") {
        format!("visual.{rest}")
    } else if let Some(rest) = name.strip_prefix("model.language_model.") {
        format!("model.{rest}")
    } else {
        name.to_owned()
    }
}
