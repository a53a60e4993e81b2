//! NF4 on this machine's CPU, on a 3584 x 18944 matrix: JSON lines, one a measurement.
//!
//! `cargo bench --bench nf4` multiplies the matrix with a vector, with each kind of instructions, and measures how fast
//! the machine reads memory in the same run: alternately, the best of several rounds each.
//! `cargo bench --bench nf4 -- quantize FILE ROUNDS` quantizes the bf16 values in FILE; `compare_bitsandbytes.py` calls it.

use std::hint::black_box;
use std::time::Instant;

use half::bf16;
use medical_vision::kernels::cpu::{BlockScales, CodeTable, CodedMatrix, Level, RowProduct, Shared, run};
use medical_vision::quant::nf4::{QuantType, Weights, dynamic_map, quantize, quantize_scales};
use serde_json::json;
use sha2::{Digest, Sha256};

const ROWS: usize = 3584;
const COLUMNS: usize = 18944;
/// Different matrices, so that no cache holds what the next round reads.
const MATRICES: usize = 8;
const ROUNDS: usize = 12;

fn main() {
    let threads = medical_vision::device::default_threads();
    medical_vision::device::set_threads(threads);
    let arguments: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["quantize", file, rounds] => {
            quantize_file(file, rounds.parse().expect("rounds is a number"), threads)
        }
        _ => multiply(threads),
    }
}

fn quantize_file(file: &str, rounds: usize, threads: usize) {
    let bytes = std::fs::read(file).expect("the file of values");
    let values: Vec<bf16> = bytemuck::pod_collect_to_vec(&bytes);
    for _ in 0..rounds {
        let start = Instant::now();
        let made = quantize(&Weights::Bf16(&values), QuantType::Nf4, 64).expect("values in memory");
        let nested = quantize_scales(&made.absmax).expect("scales");
        let seconds = start.elapsed().as_secs_f64();
        let mut hash = Sha256::new();
        hash.update(&made.packed);
        hash.update(&nested.codes);
        hash.update(bytemuck::cast_slice(&nested.absmax));
        let sha256: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let line = json!({"seconds": seconds, "threads": threads, "sha256": sha256});
        println!("{line}");
    }
}

/// A matrix's codes and scales.
struct Parts {
    packed: Vec<u8>,
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

fn multiply(threads: usize) {
    let byte = |i: usize| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8;
    let blocks = ROWS * COLUMNS / 64;
    let parts: Vec<Parts> = (0..MATRICES)
        .map(|matrix| Parts {
            packed: (0..ROWS * COLUMNS / 2).map(|i| byte(i + matrix)).collect(),
            codes: (0..blocks).map(|i| byte(i + matrix)).collect(),
            absmax: vec![0.01; blocks.div_ceil(256)],
        })
        .collect();
    let table = CodeTable::new(QuantType::Nf4.table());
    let matrices: Vec<CodedMatrix<'_>> = parts
        .iter()
        .map(|parts| CodedMatrix {
            packed: &parts.packed,
            table: &table,
            scales: BlockScales::Nested {
                codes: &parts.codes,
                absmax: &parts.absmax,
                map: dynamic_map(),
                offset: 0.02,
                blocksize: 256,
            },
            blocksize: 64,
            rows: ROWS,
            columns: COLUMNS,
        })
        .collect();
    let bytes = (ROWS * COLUMNS / 2 + blocks + blocks / 64) as f64 * MATRICES as f64;
    let x: Vec<f32> = (0..COLUMNS).map(|i| f32::from(byte(i)) / 128.0 - 1.0).collect();
    let level = Level::best();
    let (mut read, mut product) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        read = read.min(seconds(|| read_all(&parts, threads)));
        product = product.min(seconds(|| multiply_all(&matrices, &x, threads)));
    }
    let packed = (ROWS * COLUMNS / 2 * MATRICES) as f64;
    let (bandwidth, reached) = (packed / read / 1e9, bytes / product / 1e9);
    let line = json!({
        "what": "nf4 matrix-vector", "matrix": [ROWS, COLUMNS], "instructions": level.name(), "threads": threads,
        "read_bandwidth_gb_per_second": bandwidth, "product_gb_per_second": reached,
        "share_of_read_bandwidth": reached / bandwidth,
        "milliseconds": product * 1e3 / MATRICES as f64,
    });
    println!("{line}");
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Adds up every byte, eight at a time: as fast as memory comes.
fn read_all(parts: &[Parts], threads: usize) {
    run(threads, |member| {
        let mut sums = [0u64; 32];
        for parts in parts {
            let words: &[u64] = bytemuck::try_cast_slice(&parts.packed).expect("allocations are aligned");
            for chunk in words[member.share(words.len(), 512)].chunks_exact(32) {
                for (sum, word) in sums.iter_mut().zip(chunk) {
                    *sum ^= word;
                }
            }
        }
        black_box(sums);
    });
}

fn multiply_all(matrices: &[CodedMatrix<'_>], x: &[f32], threads: usize) {
    let mut out = vec![0.0; ROWS];
    let shared = Shared::new(&mut out);
    run(threads, |member| {
        for matrix in matrices {
            let rows = member.share(ROWS, 16);
            // SAFETY: shares do not meet.
            let out = unsafe { shared.write(rows.clone()) };
            matrix.product(x, rows, out);
        }
    });
    black_box(out);
}
