//! smart_resize against transformers' results and its own promises.

use medical_vision::error::ImageError;
use medical_vision::processing::smart_resize;
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Table {
    factor: u32,
    cases: Vec<Case>,
}

/// Height, width, least and most pixels, and the size they give.
type Case = (u32, u32, u64, u64, Option<(u32, u32)>);

#[test]
fn sizes_equal_those_of_transformers() {
    let table: Table =
        serde_json::from_slice(&std::fs::read(super::fixture("resize.json")).unwrap()).unwrap();
    assert!(table.cases.len() > 100);
    for (height, width, min, max, golden) in table.cases {
        let size = smart_resize(height, width, table.factor, min, max);
        let expected = golden.ok_or(ImageError::AspectRatio { width, height });
        assert_eq!(size, expected, "{height}x{width} within {min}..{max}");
    }
}

#[test]
fn halves_are_rounded_to_even() {
    assert_eq!(smart_resize(42, 70, 28, 1, 1 << 30), Ok((56, 56)));
    assert_eq!(smart_resize(98, 126, 28, 1, 1 << 30), Ok((112, 112)));
}

#[test]
fn nothing_becomes_of_no_pixels() {
    for (height, width, factor) in [(0, 5, 28), (5, 0, 28), (5, 5, 0)] {
        assert!(smart_resize(height, width, factor, 3136, 1_254_400).is_err());
    }
}

proptest! {
    #[test]
    fn sizes_are_multiples_within_the_bounds(height in 1u32..=4096, width in 1u32..=4096) {
        let (min, max) = (3136, 1_254_400);
        match smart_resize(height, width, 28, min, max) {
            Ok((h, w)) => {
                prop_assert!(h % 28 == 0 && w % 28 == 0);
                prop_assert!((min..=max).contains(&(u64::from(h) * u64::from(w))));
            }
            Err(error) => {
                prop_assert_eq!(error, ImageError::AspectRatio { width, height });
                prop_assert!(height.max(width) > 200 * height.min(width));
            }
        }
    }
}
