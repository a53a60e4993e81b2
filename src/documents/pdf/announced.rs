//! Sizes of pictures by their headers, without decoding them.

use hayro::hayro_syntax::Filter;
use hayro::hayro_syntax::object::Stream;

use crate::error::ImageError;
use crate::processing::DecodeLimits;

/// Checks the size that a picture's dictionary gives, those of its masks, and that of a JPEG 2000 code stream, which decides.
pub(super) fn check(picture: &Stream<'_>, limits: &DecodeLimits) -> Result<(), ImageError> {
    check_one(picture, limits)?;
    for mask in ["SMask", "Mask"] {
        if let Some(mask) = picture.dict().get::<Stream<'_>>(mask) {
            check_one(&mask, limits)?;
        }
    }
    Ok(())
}

fn check_one(picture: &Stream<'_>, limits: &DecodeLimits) -> Result<(), ImageError> {
    let side = |long: &str, short: &str| {
        let side = picture.dict().get::<u32>(long);
        side.or_else(|| picture.dict().get::<u32>(short)).unwrap_or(0)
    };
    let (width, height) = (side("Width", "W"), side("Height", "H"));
    check_size(width, height, limits)?;
    if picture.filters().contains(&Filter::JpxDecode)
        && let Some((width, height)) = jpeg2000_size(&picture.raw_data())
    {
        check_size(width, height, limits)?;
    }
    Ok(())
}

/// A picture without a size is not drawn, and harmless.
fn check_size(width: u32, height: u32, limits: &DecodeLimits) -> Result<(), ImageError> {
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(ImageError::TooManyPixels {
            width,
            height,
            limit: limits.max_pixels,
        });
    }
    Ok(())
}

/// Width and height of the first code stream: its SIZ segment follows the SOC marker.
fn jpeg2000_size(bytes: &[u8]) -> Option<(u32, u32)> {
    const SOC_SIZ: [u8; 4] = [0xff, 0x4f, 0xff, 0x51];
    let at = bytes.windows(4).position(|bytes| bytes == SOC_SIZ)?;
    let number = |index: usize| {
        let start = at + 8 + 4 * index;
        Some(u32::from_be_bytes(*bytes.get(start..)?.first_chunk()?))
    };
    let (right, bottom, left, top) = (number(0)?, number(1)?, number(2)?, number(3)?);
    Some((right.saturating_sub(left), bottom.saturating_sub(top)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_code_stream_is_that_of_its_grid() {
        let mut bytes = b"before".to_vec();
        bytes.extend([0xff, 0x4f, 0xff, 0x51, 0, 41, 0, 0]);
        for number in [70_000_u32, 60_000, 10_000, 5_000] {
            bytes.extend(number.to_be_bytes());
        }
        assert_eq!(jpeg2000_size(&bytes), Some((60_000, 55_000)));
        assert_eq!(jpeg2000_size(&bytes[..20]), None);
        assert_eq!(jpeg2000_size(b""), None);
    }
}
