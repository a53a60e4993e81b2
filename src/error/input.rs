//! User-correctable errors of a request. Their texts are fixed: they never contain a decoder's message or bytes of the input.

/// Why an image was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Zero bytes.
    #[error("the image is empty (0 bytes)")]
    Empty,
    /// The first bytes are not those of a supported format.
    #[error("not a supported image: expected PNG, JPEG, WebP, TIFF, BMP or GIF")]
    UnsupportedFormat,
    /// The header or the pixel data cannot be decoded.
    #[error("the image is damaged or incomplete and cannot be decoded")]
    Undecodable,
    /// An intact file of an unsupported kind, by its name, as in "JPEG with arithmetic coding".
    #[error("{0} is not supported; save the page as PNG and try again")]
    UnsupportedVariant(&'static str),
    /// More pixels than the limit, by the header.
    #[error("the image has {width}x{height} pixels; the limit is {limit} pixels")]
    TooManyPixels {
        /// Width from the header, pixels.
        width: u32,
        /// Height from the header, pixels.
        height: u32,
        /// The limit, pixels.
        limit: u64,
    },
    /// One side is more than 200 times the other, which the model's processor rejects.
    #[error("the image's sides differ by more than a factor of 200 ({width}x{height})")]
    AspectRatio {
        /// Width, pixels.
        width: u32,
        /// Height, pixels.
        height: u32,
    },
}

/// Why a prompt was rejected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PromptError {
    /// The prompt is longer than the limit.
    #[error(
        "the prompt has {characters} characters; the limit is {limit}, and that prompt, images and answer fit the model's context, counted in tokens"
    )]
    TooLong {
        /// Unicode characters given.
        characters: usize,
        /// The limit.
        limit: usize,
    },
    /// Prompt, image and answer together do not fit the model's context.
    #[error(
        "the request needs {}{needed} tokens ({prompt_tokens} of prompt and images, {new_tokens} for the answer); the model's context holds {context}: ask for a shorter answer or give a smaller image",
        if *is_exact { "" } else { "at least " }
    )]
    ContextOverflow {
        /// Whether the prompt was counted; otherwise it has more tokens than this.
        is_exact: bool,
        /// prompt_tokens + new_tokens.
        needed: usize,
        /// Tokens of the prompt, image pads among them.
        prompt_tokens: usize,
        /// `max_new_tokens` of the answer.
        new_tokens: usize,
        /// `max_position_embeddings` of the model.
        context: usize,
    },
    /// Keys and values of prompt, image and answer together do not fit the memory for them.
    #[error(
        "the request needs {needed} tokens ({prompt_tokens} of prompt and images, {new_tokens} for the answer); this machine has memory for the keys and values of {memory}: ask for a shorter answer or give a smaller image"
    )]
    MemoryOverflow {
        /// prompt_tokens + new_tokens.
        needed: usize,
        /// Tokens of the prompt, image pads among them.
        prompt_tokens: usize,
        /// `max_new_tokens` of the answer.
        new_tokens: usize,
        /// Tokens that there is memory for.
        memory: usize,
    },
    /// The numbers of images and of image placeholders in the messages differ.
    #[error("the messages have {placeholders} image placeholders, but {images} images were given")]
    ImageCount {
        /// Placeholders in the messages.
        placeholders: usize,
        /// Images given.
        images: usize,
    },
}
