//! Pictures in messages: data URIs, and how large the model sees them.

use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};

use super::errors::{RequestError, shortened};
use super::json::{Object, invalid, unsupported};
use crate::processing::PixelBounds;

/// Maximum image tokens of a picture with `detail: "low"`.
pub(super) const LOW_DETAIL_TOKENS: u64 = 512;

/// Base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A picture or a document as it came.
pub(super) struct DataUri<'j> {
    /// The parameter's name.
    pub place: String,
    /// Whether it is a document, of which every page is a picture.
    pub is_document: bool,
    base64: &'j str,
    low_detail: bool,
}

impl<'j> DataUri<'j> {
    /// Reads the part `image_url`.
    pub(super) fn read(part: &Object<'j, '_>) -> Result<Self, RequestError> {
        let path = part.place("image_url");
        let image = Object::of(part.required("image_url")?, &path)?;
        image.only(&[&["url", "detail"]])?;
        let low_detail = match image.text("detail")? {
            None | Some("auto" | "high") => false,
            Some("low") => true,
            Some(other) => {
                let reason = format!("is \"{}\": use \"auto\", \"low\" or \"high\"", shortened(other));
                return Err(invalid(&image.place("detail"), &reason));
            }
        };
        image.required("url")?;
        let place = image.place("url");
        let base64 = base64_of(image.text("url")?.unwrap_or_default(), "picture", "image/png");
        let base64 = base64.map_err(|reason| RequestError {
            code: Some("invalid_image_url"),
            ..invalid(&place, &reason)
        })?;
        Ok(Self {
            place: place.to_string(),
            is_document: false,
            base64,
            low_detail,
        })
    }

    /// Reads the part `file`.
    pub(super) fn read_document(part: &Object<'j, '_>) -> Result<Self, RequestError> {
        let path = part.place("file");
        let file = Object::of(part.required("file")?, &path)?;
        file.only(&[&["file_data", "filename", "file_id"]])?;
        if file.get("file_id").is_some() {
            let reason = "is not supported, since this server stores nothing: send the file in `file_data`";
            return Err(unsupported(&file.place("file_id"), reason));
        }
        // Names are not read: the content decides.
        file.text("filename")?;
        file.required("file_data")?;
        let place = file.place("file_data");
        let base64 = base64_of(
            file.text("file_data")?.unwrap_or_default(),
            "file",
            "application/pdf",
        );
        let base64 = base64.map_err(|reason| RequestError {
            code: Some("invalid_file_data"),
            ..invalid(&place, &reason)
        })?;
        Ok(Self {
            place: place.to_string(),
            is_document: true,
            base64,
            low_detail: false,
        })
    }

    /// Bytes of the file.
    pub(super) fn length(&self) -> u64 {
        let digits = self.base64.trim_end_matches('=').len() as u64;
        digits * 3 / 4
    }

    /// The file's bytes.
    pub(super) fn decode(&self) -> Result<Vec<u8>, RequestError> {
        let bytes = BASE64.decode(self.base64);
        bytes.map_err(|_| {
            let message = format!("`{}` is not valid base64", self.place);
            RequestError::new("invalid_base64", self.place.clone(), message)
        })
    }

    /// Bounds of its size for the model; `None`: the variant's.
    pub(super) fn bounds(
        &self,
        of_variant: Option<PixelBounds>,
        all: Option<PixelBounds>,
    ) -> Option<PixelBounds> {
        let bounds = all.or(of_variant)?;
        let low = LOW_DETAIL_TOKENS * u64::from(bounds.factor) * u64::from(bounds.factor);
        if self.low_detail && low < bounds.max_pixels {
            return Some(PixelBounds {
                min_pixels: bounds.min_pixels.min(low),
                max_pixels: low,
                ..bounds
            });
        }
        all
    }
}

/// The base64 text of a data URI of a `what`. Its media type is not read: the content decides.
fn base64_of<'u>(url: &'u str, what: &str, media_type: &str) -> Result<&'u str, String> {
    let starts = |prefix: &str| {
        url.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let form = format!("data:{media_type};base64,...");
    if url.is_empty() {
        return Err(format!("is empty: send the {what} as a data URI, {form}"));
    }
    if starts("http://") || starts("https://") {
        return Err(format!(
            "is a web address, and this server fetches nothing: send the {what} as a data URI, {form}"
        ));
    }
    if !starts("data:") {
        return Err(format!("is not a data URI: send the {what} as {form}"));
    }
    let without_data = || format!("is a data URI without data: send {form}");
    let (head, data) = url.split_once(',').ok_or_else(without_data)?;
    let marker = head.rsplit(';').next().unwrap_or_default();
    if !marker.trim().eq_ignore_ascii_case("base64") {
        return Err(format!("is a data URI without `;base64`: send {form}"));
    }
    if data.is_empty() {
        return Err(without_data());
    }
    Ok(data)
}

/// The bounds of `mm_processor_kwargs`; `None` if it does not name any.
pub(super) fn pixel_bounds(
    body: &Object<'_, '_>,
    of_variant: Option<PixelBounds>,
) -> Result<Option<PixelBounds>, RequestError> {
    let Some(value) = body.get("mm_processor_kwargs") else {
        return Ok(None);
    };
    let path = body.place("mm_processor_kwargs");
    let kwargs = Object::of(value, &path)?;
    kwargs.only(&[&["min_pixels", "max_pixels"]])?;
    let pixels = |key| {
        Ok(kwargs
            .integer(key, 1..=i128::from(u64::MAX))?
            .map(|pixels| pixels as u64))
    };
    let (min, max) = (pixels("min_pixels")?, pixels("max_pixels")?);
    if min.is_none() && max.is_none() {
        return Ok(None);
    }
    let Some(bounds) = of_variant else {
        return Err(unsupported(&path, "is not supported by this model"));
    };
    match bounds.overridden(min, max) {
        Ok(bounds) => Ok(Some(bounds)),
        Err(crate::Error::Option { option, reason }) => Err(invalid(&kwargs.place(option), &reason)),
        Err(error) => Err(invalid(&path, &error.to_string())),
    }
}
