//! The inverse DCT with 13 bits of fraction, "islow" (libjpeg-turbo: jidctint.c, simd/x86_64/jidctint-avx2.asm).
//!
//! Sums wrap and results saturate as in the vector code, so that damaged files have the same pixels, too.

use super::markers::QuantTable;
use super::scan::Block;

/// Multiplied by 1 << 13.
const F_0_298: i32 = 2446;
const F_0_390: i32 = 3196;
const F_0_541: i32 = 4433;
const F_0_765: i32 = 6270;
const F_0_899: i32 = 7373;
const F_1_175: i32 = 9633;
const F_1_501: i32 = 12299;
const F_1_847: i32 = 15137;
const F_1_961: i32 = 16069;
const F_2_053: i32 = 16819;
const F_2_562: i32 = 20995;
const F_3_072: i32 = 25172;

/// Eight rows of eight.
type Rows = [[i16; 8]; 8];

/// Dequantizes a block and writes its samples at `out`, whose rows are `stride` apart.
/// `last`: no coefficient follows it in zigzag order.
pub(super) fn dequantize_and_idct(
    block: &Block,
    quant: &QuantTable,
    last: usize,
    out: &mut [u8],
    stride: usize,
) {
    let mut levels = [[0; 8]; 8];
    if last == 0 {
        let dc = block[0].wrapping_mul(quant[0]).wrapping_shl(2);
        levels = [[level(((i32::from(dc) + 16) >> 5) as i16); 8]; 8];
    } else {
        let mut rows: Rows = [[0; 8]; 8];
        for (y, row) in rows.iter_mut().enumerate() {
            for x in 0..8 {
                row[x] = block[y * 8 + x].wrapping_mul(quant[y * 8 + x]);
            }
        }
        let columns = if block[8..].iter().all(|&coefficient| coefficient == 0) {
            [rows[0].map(|value| value.wrapping_shl(2)); 8]
        } else {
            pass::<11>(&rows)
        };
        let rows = pass::<18>(&transposed(columns));
        for (levels, row) in levels.iter_mut().zip(transposed(rows)) {
            for x in 0..8 {
                levels[x] = level(row[x]);
            }
        }
    }
    for (y, levels) in levels.iter().enumerate() {
        out[y * stride..][..8].copy_from_slice(levels);
    }
}

#[inline(always)]
fn level(value: i16) -> u8 {
    (value.clamp(-128, 127) + 128) as u8
}

/// Columns become rows, by three perfect shuffles of the rows.
#[inline(always)]
fn transposed(rows: Rows) -> Rows {
    shuffled(shuffled(shuffled(rows)))
}

#[inline(always)]
fn shuffled([a, b, c, d, e, f, g, h]: Rows) -> Rows {
    let low = |p: [i16; 8], q: [i16; 8]| [p[0], q[0], p[1], q[1], p[2], q[2], p[3], q[3]];
    let high = |p: [i16; 8], q: [i16; 8]| [p[4], q[4], p[5], q[5], p[6], q[6], p[7], q[7]];
    [
        low(a, e),
        high(a, e),
        low(b, f),
        high(b, f),
        low(c, g),
        high(c, g),
        low(d, h),
        high(d, h),
    ]
}

/// Transforms each column, then divides by 1 << `SHIFT`, rounded.
#[inline(always)]
fn pass<const SHIFT: u32>(rows: &Rows) -> Rows {
    let mut out: Rows = [[0; 8]; 8];
    for x in 0..8 {
        let at = |y: usize| i32::from(rows[y][x]);
        let sum = |a: usize, b: usize| i32::from(rows[a][x].wrapping_add(rows[b][x]));
        let difference = i32::from(rows[0][x].wrapping_sub(rows[4][x]));
        let (z2, z3) = (at(2), at(6));
        let even2 = z2 * F_0_541 + z3 * (F_0_541 - F_1_847);
        let even3 = z2 * (F_0_541 + F_0_765) + z3 * F_0_541;
        let (even0, even1) = (sum(0, 4) << 13, difference << 13);
        let (a0, a3) = (even0.wrapping_add(even3), even0.wrapping_sub(even3));
        let (a1, a2) = (even1.wrapping_add(even2), even1.wrapping_sub(even2));

        let (s73, s51) = (sum(7, 3), sum(5, 1));
        let z3 = s73 * (F_1_175 - F_1_961) + s51 * F_1_175;
        let z4 = s73 * F_1_175 + s51 * (F_1_175 - F_0_390);
        let (y1, y3, y5, y7) = (at(1), at(3), at(5), at(7));
        let b0 = (y7 * (F_0_298 - F_0_899) - y1 * F_0_899).wrapping_add(z3);
        let b1 = (y5 * (F_2_053 - F_2_562) - y3 * F_2_562).wrapping_add(z4);
        let b2 = (y3 * (F_3_072 - F_2_562) - y5 * F_2_562).wrapping_add(z3);
        let b3 = (y1 * (F_1_501 - F_0_899) - y7 * F_0_899).wrapping_add(z4);

        let mut put = |y: usize, a: i32, b: i32| {
            let half = 1 << (SHIFT - 1);
            out[y][x] = saturated(a.wrapping_add(b).wrapping_add(half) >> SHIFT);
            out[7 - y][x] = saturated(a.wrapping_sub(b).wrapping_add(half) >> SHIFT);
        };
        put(0, a0, b3);
        put(1, a1, b2);
        put(2, a2, b1);
        put(3, a3, b0);
    }
    out
}

fn saturated(value: i32) -> i16 {
    value.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}
