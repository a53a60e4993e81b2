//! Changes files at random and decodes them in the worker, for as long as `FUZZ_SECONDS` says: not part of the suite.
//!
//!     FUZZ_SECONDS=1200 cargo test --release --test main documents::fuzz -- --ignored --nocapture

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use medical_vision::documents::OpenOptions;
use medical_vision::processing::DecodeLimits;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::{open, with_worker};

fn seeds(folder: &str, extensions: &[&str]) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let of_kind = |path: &PathBuf| {
        path.extension()
            .is_some_and(|found| extensions.iter().any(|extension| found == *extension))
    };
    paths
        .into_iter()
        .filter(of_kind)
        .map(|path| std::fs::read(path).expect("a file"))
        .collect()
}

/// Changes some bytes, numbers, ranges or the length.
fn change(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    for _ in 0..1 + random.next_u32() % 8 {
        if bytes.len() < 8 {
            return;
        }
        let at = random.next_u32() as usize % (bytes.len() - 4);
        match random.next_u32() % 8 {
            0 => bytes[at] ^= 1 << (random.next_u32() % 8),
            1 => bytes[at] = random.next_u32() as u8,
            2 => bytes[at..at + 2].copy_from_slice(&[0xff, 0xff]),
            3 => bytes[at..at + 4].copy_from_slice(&random.next_u32().to_le_bytes()),
            4 => bytes[at] = b'0' + (random.next_u32() % 10) as u8,
            5 => bytes.truncate(at + 4),
            6 => {
                let length = (random.next_u32() as usize % 64).min(bytes.len() - at);
                let range = bytes[at..at + length].to_vec();
                let to = random.next_u32() as usize % bytes.len();
                bytes.splice(to..to, range);
            }
            _ => {
                let length = (random.next_u32() as usize % 64).min(bytes.len() - at);
                bytes.drain(at..at + length);
            }
        }
    }
}

fn fuzz(folder: &str, extensions: &[&str]) {
    let seconds = std::env::var("FUZZ_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(60);
    let seeds = seeds(folder, extensions);
    assert!(!seeds.is_empty());
    let options = OpenOptions {
        limits: DecodeLimits {
            max_pixels: 4_000_000,
        },
        dpi: 72,
        ..with_worker()
    };
    let mut random = ChaCha8Rng::seed_from_u64(std::process::id().into());
    let (mut files, mut outcomes) = (0, BTreeMap::<String, u32>::new());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        let mut bytes = seeds[random.next_u32() as usize % seeds.len()].clone();
        change(&mut bytes, &mut random);
        files += 1;
        let outcome = match open(bytes, &options) {
            Err(error) => format!("open: {error}"),
            Ok(document) => match document.page(1 + random.next_u32() % document.pages(), None) {
                Ok(_) => "read".to_owned(),
                Err(error) => format!("page: {error}"),
            },
        };
        // Figures aside.
        let outcome = outcome.replace(|character: char| character.is_ascii_digit(), "");
        *outcomes.entry(outcome).or_default() += 1;
    }
    println!("{files} files of {extensions:?}: {outcomes:#?}");
    let mut intact = seeds.into_iter().filter_map(|seed| open(seed, &options).ok());
    assert!(
        intact.any(|document| document.page(1, None).is_ok()),
        "the worker still works"
    );
}

#[test]
#[ignore = "runs for FUZZ_SECONDS"]
fn pdf() {
    fuzz("documents", &["pdf"]);
}

#[test]
#[ignore = "runs for FUZZ_SECONDS"]
fn dicom() {
    fuzz("dicom", &["dcm"]);
}

#[test]
#[ignore = "runs for FUZZ_SECONDS"]
fn tiff() {
    fuzz("images", &["tiff", "tif"]);
}
