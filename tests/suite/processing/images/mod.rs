//! Image bytes → RGB → patches: against transformers' own results, and on files made to do harm.

mod alpha;
mod goldens;
mod hostile;
mod jpeg;
pub mod memory;
mod orientation;
mod scaled;
mod settings;
mod size;
mod tiff;

use std::path::{Path, PathBuf};

use medical_vision::error::ImageError;
use medical_vision::processing::{DecodeLimits, ImageProcessor, RgbPage, decode};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn image_fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixture("images").join(name)).unwrap()
}

fn read(bytes: &[u8]) -> Result<RgbPage, ImageError> {
    decode(bytes, &DecodeLimits::default())
}

fn nano() -> ImageProcessor {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    ImageProcessor::from_dir(&dir).unwrap()
}

/// Seeded, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn page(&mut self, width: u32, height: u32) -> RgbPage {
        let pixels = (0..width as usize * height as usize * 3)
            .map(|_| self.next() as u8)
            .collect();
        RgbPage::new(width, height, pixels)
    }
}
