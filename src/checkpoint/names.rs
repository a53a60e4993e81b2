//! Tensor names: the hub's and transformers 5's spellings.

/// The embedding table, in the hub's spelling.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output head, in the hub's spelling.
pub(crate) const HEAD: &str = "lm_head.weight";

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

/// transformers 5's spelling of a tensor's or module's hub name.
pub fn transformers_name(canonical: &str) -> String {
    if canonical.starts_with("visual.") {
        format!("model.{canonical}")
    } else if let Some(rest) = canonical.strip_prefix("model.") {
        format!("model.language_model.{rest}")
    } else {
        canonical.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_name_the_same() {
        for (hub, transformers) in [
            ("visual.blocks.0.attn.qkv", "model.visual.blocks.0.attn.qkv"),
            (
                "model.layers.3.mlp.up_proj",
                "model.language_model.layers.3.mlp.up_proj",
            ),
            ("lm_head", "lm_head"),
        ] {
            assert_eq!(transformers_name(hub), transformers);
            assert_eq!(canonical_name(transformers), hub);
            assert_eq!(canonical_name(hub), hub);
        }
    }
}
