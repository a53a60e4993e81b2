//! Bytes in, tensors out: image bytes → RGB → patches; messages → chat template → token ids; ids → text.

mod chat;
mod decoders;
mod image;
mod orientation;
mod patches;
mod processor_config;
mod resample;
mod resize;
mod template;
mod tokenizer;
mod vocabulary;

pub use self::chat::{ChatTemplate, Content, Message, Role, Span};
pub use self::image::{
    DecodeLimits, DecodedPage, PICTURE_KINDS, PageWarning, RgbPage, decode, decode_page, decode_page_at,
    decoder_memory, picture_kind, picture_pages,
};
pub(crate) use self::image::{decode_jpeg_samples, scaled_rgb};
pub use self::patches::{ImagePatches, ImageProcessor, LevelPatches, PixelBounds};
pub use self::processor_config::PREPROCESSOR_CONFIG;
pub use self::resize::{Grid, smart_resize};
pub use self::tokenizer::{TextProcessor, TokenStream};
