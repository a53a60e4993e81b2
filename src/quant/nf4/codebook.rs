//! The codebooks of bitsandbytes: NormalFloat 4, float 4, and the 8-bit dynamic code of the scales.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::kernels::cpu::CodeTable;

/// Bits of each entry of [`QuantType::Nf4`]'s table: quantiles of the normal distribution, from the QLoRA paper
/// (<https://arxiv.org/abs/2305.14314>, appendix E), as bitsandbytes stores them in `weight.quant_map`.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Sign, two exponent bits, one mantissa bit, scaled to a maximum of 1; in the order of the bit patterns.
const FP4: [f32; 16] = {
    let magnitudes = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut table = [0.0; 16];
    let mut i = 1;
    while i < 8 {
        table[i] = magnitudes[i] / 12.0;
        table[i + 8] = -table[i];
        i += 1;
    }
    table
};

/// 4-bit data type of a packed weight.
///
/// Reference: [`get_4bit_type`](https://github.com/bitsandbytes-foundation/bitsandbytes/blob/37d2a9387f7146ccb85517ff45c665d345bfda79/bitsandbytes/functional.py#L772-L859).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum QuantType {
    /// NormalFloat: 16 quantiles of the normal distribution.
    Nf4,
    /// Float: 1 sign, 2 exponent and 1 mantissa bit.
    Fp4,
}

impl QuantType {
    /// Name of the `quant_state` tensor of the weight of canonical `name`.
    pub(crate) fn state_name(self, name: &str) -> String {
        format!("{name}.quant_state.bitsandbytes__{}", self.name())
    }

    /// "nf4" or "fp4".
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// Values of the sixteen codes, in units of the block's absmax.
    pub fn table(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// The same for the CPU kernels.
    pub fn code_table(self) -> &'static CodeTable {
        static TABLES: LazyLock<[CodeTable; 2]> =
            LazyLock::new(|| [CodeTable::new(&NF4), CodeTable::new(&FP4)]);
        &TABLES[self as usize]
    }

    /// Rounding: the midpoints between neighbouring values, ascending, and the code of each interval.
    ///
    /// The interval of a value is the number of midpoints below it; a tie goes to the lower interval.
    pub(super) fn rounding(self) -> &'static Rounding {
        static ROUNDINGS: LazyLock<[Rounding; 2]> =
            LazyLock::new(|| [Rounding::new(&NF4), Rounding::new(&FP4)]);
        &ROUNDINGS[self as usize]
    }
}

/// See [`QuantType::rounding`].
pub(super) struct Rounding {
    pub(super) bounds: [f32; 15],
    pub(super) codes: [u8; 16],
}

impl Rounding {
    fn new(table: &[f32; 16]) -> Self {
        let mut codes: [u8; 16] = std::array::from_fn(|i| i as u8);
        // A stable sort keeps code 0 before code 8, float 4's two zeros, as in bitsandbytes.
        codes.sort_by(|&a, &b| table[a as usize].total_cmp(&table[b as usize]));
        let value = |i: usize| table[codes[i] as usize];
        Self {
            bounds: std::array::from_fn(|i| (value(i) + value(i + 1)) / 2.0),
            codes,
        }
    }
}

/// The signed 8-bit dynamic code, ascending (8-Bit Approximations for Parallelism, <https://arxiv.org/abs/1511.04561>):
/// seven decades, each divided more finely than the one below it, and 0 and 1.
///
/// Reference: [`create_dynamic_map`](https://github.com/bitsandbytes-foundation/bitsandbytes/blob/37d2a9387f7146ccb85517ff45c665d345bfda79/bitsandbytes/functional.py#L296-L348).
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
        let (mut map, mut n) = ([0.0; 256], 0);
        let mut push = |value: f32| {
            map[n] = value;
            n += 1;
        };
        push(0.0);
        push(1.0);
        for decade in 0..7 {
            let (parts, scale) = (1usize << decade, 10f64.powi(decade - 6) as f32);
            for part in 0..parts {
                let mean = (tenth_to_one(part, parts) + tenth_to_one(part + 1, parts)) / 2.0;
                push(scale * mean);
                push(-scale * mean);
            }
        }
        map.sort_by(f32::total_cmp);
        map
    });
    &MAP
}

/// Point `i` of `parts + 1` evenly spaced ones from 0.1 to 1, rounded as libtorch's linspace: from the nearer end, with FMA.
fn tenth_to_one(i: usize, parts: usize) -> f32 {
    let step = (1.0f32 - 0.1) / parts as f32;
    if i < parts.div_ceil(2) {
        step.mul_add(i as f32, 0.1)
    } else {
        (-step).mul_add((parts - i) as f32, 1.0)
    }
}

/// Nearest entry of [`dynamic_map`] for 65,536 even steps from -1 to 1. bitsandbytes looks codes up in such a table instead of
/// comparing, so that values are rounded to its grid first.
pub(super) fn dynamic_lookup() -> &'static [u8] {
    static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let map = dynamic_map();
        let mut code = 0usize;
        (0..=u16::MAX)
            .map(|i| {
                let value = -1.0 + (2.0 * f32::from(i)) / f32::from(u16::MAX);
                while code < 255 && 0.5 * (map[code] + map[code + 1]) < value {
                    code += 1;
                }
                code as u8
            })
            .collect()
    });
    &TABLE
}

/// Code of `value`, which is in [-1, 1] up to rounding.
pub(super) fn dynamic_code(value: f32) -> u8 {
    let step = (value.clamp(-1.0, 1.0) + 1.0) * 0.5 * f32::from(u16::MAX) + 0.5;
    dynamic_lookup()[usize::from(step as u16)]
}
