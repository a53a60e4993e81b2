//! What a model is measured on: documents whose content is known, and how an answer about one is scored.

mod documents;
mod scoring;

pub use self::documents::{Document, DocumentSet};
pub use self::scoring::score;
