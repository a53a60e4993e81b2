//! Images to patches, and messages to token ids.

pub mod images;
mod text;
