//! Four-bit weights rearranged for the GPU's decode step (`kernels/cuda/tiles.cu`). The bytes change places; only scales that are
//! not f16 lose precision, to f16.

use tch::{Kind, Tensor};

use crate::kernels::cuda::{TILE_BYTES, TilePart, TiledTensor};
use crate::{Error, Result};

/// Rows and columns of a tile.
pub(super) const TILE: (usize, usize) = (16, 128);
/// What AWQ's zero points are stored with: f16 holds the sums exactly, and a code is in the lowest bits of such a number.
const ZERO_OFFSET: i64 = 1024;

/// How the rows of several matrices share tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// One matrix after the other, the columns in this many parts.
    Stacked(usize),
    /// Eight rows of the first matrix, then eight of the second, in each tile.
    Interleaved,
}

/// Matrices in tiles.
pub struct Tiles {
    /// u8 `[splits, tile rows, tiles, TILE_BYTES]`.
    pub tensor: Tensor,
    /// Factor of the stored scales: a power of two.
    pub unit: f32,
}

/// A weight `[rows, columns]` as [`arrange`] takes it.
pub struct TileSource {
    /// u8 `[rows, columns / 2]`: two codes each, the first in the high half.
    pub(super) packed: Tensor,
    /// f32 or f16, `[rows, columns / 64]` with a table, `[rows, columns / 128]` with zero points.
    pub(super) scales: Tensor,
    pub(super) coding: Coding,
}

/// What codes stand for.
pub(super) enum Coding {
    /// f32 `[256, 2]`: values of the two codes of each byte.
    Table(Tensor),
    /// u8, as the scales.
    Zeros(Tensor),
}

/// One of the matrices of [`Tiles`], `[rows, columns]`.
pub struct TiledWeight {
    tiles: Tensor,
    /// As [`Coding::Table`]; `None` with zero points.
    pairs: Option<Tensor>,
    unit: f32,
    rows: usize,
    columns: usize,
    first: usize,
    part: TilePart,
}

/// Rearranges `weights`, which have the same columns and coding; their rows and columns must be whole tiles.
pub fn arrange(weights: &[TileSource], arrangement: Arrangement) -> Result<(Tiles, Vec<TiledWeight>)> {
    let [first, ..] = weights else {
        return Err(Error::Internal("no weights to arrange".into()));
    };
    let columns = 2 * first.packed.size()[1];
    let splits = match arrangement {
        Arrangement::Stacked(splits) => splits as i64,
        Arrangement::Interleaved => 1,
    };
    let join = |part: &dyn Fn(&TileSource) -> Result<Tensor>| -> Result<Tensor> {
        let parts = weights.iter().map(part).collect::<Result<Vec<_>>>()?;
        match arrangement {
            Arrangement::Stacked(_) => Ok(Tensor::f_cat(&parts, 0)?),
            Arrangement::Interleaved => {
                let eights = parts.iter().map(|part| part.f_view([-1, 8, part.size()[1]]));
                let eights: Vec<Tensor> = eights.collect::<std::result::Result<_, _>>()?;
                Ok(Tensor::f_stack(&eights, 1)?.f_view([-1, eights[0].size()[2]])?)
            }
        }
    };
    let packed = join(&|weight| match weight.coding {
        Coding::Table(_) => Ok(weight.packed.shallow_clone()),
        Coding::Zeros(_) => apart(&weight.packed),
    })?;
    let scales = join(&|weight| Ok(weight.scales.shallow_clone()))?;
    let (scales, unit) = match scales.kind() {
        Kind::Half => (scales, 1.0),
        _ => {
            let unit = unit_of(&scales)?;
            (scales.f_div_scalar(f64::from(unit))?.f_to_kind(Kind::Half)?, unit)
        }
    };
    let scales = match first.coding {
        Coding::Table(_) => scales,
        Coding::Zeros(_) => {
            let zeros = join(&|weight| match &weight.coding {
                Coding::Zeros(zeros) => Ok(zeros.f_to_kind(Kind::Half)?.f_add_scalar(ZERO_OFFSET)?),
                Coding::Table(_) => Err(Error::Internal("weights of two codings".into())),
            })?;
            Tensor::f_stack(&[scales, zeros], -1)?
        }
    };
    let (tile_rows, across) = (packed.size()[0] / 16, columns / 128);
    // Row r of a tile is 8 h + g; a row's 64 bytes are those of both halves of the columns, each of the four lanes of g.
    let codes = packed
        .f_view(&[tile_rows, 2, 8, across, 2, 4, 8][..])?
        .f_permute(&[0i64, 3, 1, 2, 5, 4, 6][..])?
        .f_reshape([tile_rows, across, 1024])?;
    let scales = scales
        .f_view([tile_rows, 2, 8, across, 2])?
        .f_permute([0, 3, 2, 1, 4])?
        .f_reshape([tile_rows, across, 32])?
        .f_view_dtype(Kind::Uint8)?;
    let tensor = Tensor::f_cat(&[codes, scales], -1)?
        .f_view([tile_rows, splits, across / splits, TILE_BYTES])?
        .f_transpose(0, 1)?
        .f_contiguous()?;
    let mut start = 0;
    let tiled = weights.iter().enumerate().map(|(i, weight)| {
        let (first, part) = match (arrangement, i) {
            (Arrangement::Stacked(_), _) => (start, TilePart::Whole),
            (Arrangement::Interleaved, 0) => (0, TilePart::Low),
            (Arrangement::Interleaved, _) => (0, TilePart::High),
        };
        let rows = weight.packed.size()[0] as usize;
        start += rows / TILE.0;
        TiledWeight {
            tiles: tensor.shallow_clone(),
            pairs: match &weight.coding {
                Coding::Table(pairs) => Some(pairs.shallow_clone()),
                Coding::Zeros(_) => None,
            },
            unit,
            rows,
            columns: columns as usize,
            first,
            part,
        }
    });
    let tiled = tiled.collect();
    Ok((Tiles { tensor, unit }, tiled))
}

/// Four bytes of codes with those of even columns in the first two, those of odd columns in the others, from the lowest bits on:
/// both codes of a pair are at the same bits of both halves.
fn apart(packed: &Tensor) -> Result<Tensor> {
    let bytes = packed.f_view([packed.size()[0], -1, 2, 2])?;
    let (first, second) = (bytes.f_select(-1, 0)?, bytes.f_select(-1, 1)?);
    let even = first
        .f_bitwise_right_shift_tensor_scalar(4)?
        .f_bitwise_or_tensor(&second.f_bitwise_and(0xF0)?)?;
    let odd = first
        .f_bitwise_and(0x0F)?
        .f_bitwise_or_tensor(&second.f_bitwise_left_shift_tensor_scalar(4)?)?;
    Ok(Tensor::f_cat(&[even, odd], -1)?.f_view_as(packed)?)
}

/// The power of two that brings the largest scale into [2^14, 2^15): f16 then keeps 11 bits of all scales down to 2^-28 of it.
fn unit_of(scales: &Tensor) -> Result<f32> {
    let largest = scales.f_abs()?.f_max()?.f_double_value(&[])?;
    if largest.is_finite() && largest > 0.0 {
        Ok(2f32.powi((largest.log2().floor() as i32 - 14).clamp(-100, 100)))
    } else {
        Ok(1.0)
    }
}

impl TiledWeight {
    /// `[rows, columns]`.
    pub fn shape(&self) -> (i64, i64) {
        (self.rows as i64, self.columns as i64)
    }

    /// Bytes of its codes and scales.
    pub fn bytes(&self) -> usize {
        self.rows * self.columns / (TILE.0 * TILE.1) * TILE_BYTES as usize
    }

    /// Dequantizes into `out`, contiguous `[rows, columns]` in 16 bits on the weight's GPU.
    pub fn dequantize_into(&self, out: &Tensor) -> Result<()> {
        let tiled = TiledTensor {
            tiles: &self.tiles,
            pairs: self.pairs.as_ref(),
            unit: self.unit,
            rows: self.rows,
            columns: self.columns,
            first: self.first,
            part: self.part,
        };
        match tiled.dequantize(out)? {
            true => Ok(()),
            false => Err(Error::Internal(format!(
                "tiles of {:?} cannot be dequantized as {:?}",
                self.shape(),
                out.kind()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::kernels::cuda::TILE_BYTES;

    const COLUMNS: usize = 512;

    /// Codes, f16 scales and zero points of `rows` rows, none like another's.
    fn weight(seed: i64, rows: usize, table: Option<&Tensor>) -> TileSource {
        tch::manual_seed(seed);
        let (rows, columns) = (rows as i64, COLUMNS as i64);
        let bytes = |high, size: [i64; 2]| Tensor::randint(high, size, (Kind::Uint8, Device::Cpu));
        let blocks = columns / if table.is_some() { 64 } else { 128 };
        TileSource {
            packed: bytes(256, [rows, columns / 2]),
            scales: (Tensor::rand([rows, blocks], (Kind::Float, Device::Cpu)) + 0.5).to_kind(Kind::Half),
            coding: match table {
                Some(pairs) => Coding::Table(pairs.shallow_clone()),
                None => Coding::Zeros(bytes(16, [rows, blocks])),
            },
        }
    }

    /// What the weight stands for, row by row.
    fn values(weight: &TileSource) -> Vec<f32> {
        let (high, low) = (
            weight.packed.bitwise_right_shift_tensor_scalar(4),
            weight.packed.bitwise_and(15),
        );
        let codes = Tensor::stack(&[high, low], -1)
            .view([-1, COLUMNS as i64])
            .to_kind(Kind::Int64);
        let width = COLUMNS as i64 / weight.scales.size()[1];
        let wide = |t: &Tensor| t.to_kind(Kind::Float).repeat_interleave_self_int(width, 1, None);
        let numbers = match &weight.coding {
            Coding::Table(pairs) => pairs
                .select(1, 1)
                .index_select(0, &codes.flatten(0, -1))
                .view_as(&codes),
            Coding::Zeros(zeros) => codes.to_kind(Kind::Float) - wide(zeros),
        };
        Vec::try_from((numbers * wide(&weight.scales)).flatten(0, -1)).unwrap()
    }

    /// The value of a tile's row and column, as `tiles.cu` describes tiles.
    fn value(tile: &[u8], row: usize, column: usize, table: Option<&[f32]>) -> f32 {
        let (g, half, block, t, at) = (row % 8, row / 8, column / 64, column % 64 / 16, column % 16);
        let lane = &tile[512 * half + 16 * (4 * g + t)..][..16];
        let number = |i: usize| {
            let at = 1024 + 8 * g + 4 * half + 2 * i;
            half::f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32()
        };
        match table {
            Some(table) => {
                let byte = lane[8 * block + at / 2];
                table[usize::from(if at % 2 == 0 { byte >> 4 } else { byte & 15 })] * number(block)
            }
            None => {
                let word = &lane[8 * block + at / 8 * 4..][..4];
                let word = u32::from_le_bytes(word.try_into().unwrap());
                let code = word >> (4 * (at % 8 / 2) + 16 * (at % 2)) & 15;
                (code as f32 - (number(1) - 1024.0)) * number(0)
            }
        }
    }

    #[test]
    fn tiles_hold_every_value_where_the_kernels_read_it() {
        let code_table: Vec<f32> = (0..16).map(|code| (code as f32 - 7.0) / 8.0).collect();
        let pairs: Vec<f32> = (0..256)
            .flat_map(|byte| [code_table[byte >> 4], code_table[byte & 15]])
            .collect();
        let pairs = Tensor::from_slice(&pairs).view([256, 2]);
        for table in [None, Some(&pairs)] {
            let numbers = table.map(|_| code_table.as_slice());
            for (arrangement, rows) in [
                (Arrangement::Stacked(1), &[32, 16, 48][..]),
                (Arrangement::Stacked(2), &[32]),
                (Arrangement::Interleaved, &[32, 32]),
            ] {
                let weights: Vec<TileSource> = (1i64..)
                    .zip(rows)
                    .map(|(seed, &rows)| weight(seed, rows, table))
                    .collect();
                let (tiles, parts) = arrange(&weights, arrangement).unwrap();
                assert_eq!(tiles.unit, 1.0);
                let size: Vec<usize> = tiles.tensor.size().iter().map(|&n| n as usize).collect();
                let (tile_rows, across) = (size[1], size[2]);
                let bytes: Vec<u8> = Vec::try_from(tiles.tensor.flatten(0, -1)).unwrap();
                for (weight, part) in weights.iter().zip(&parts) {
                    let expected = values(weight);
                    for row in 0..part.rows {
                        let (tile_row, line) = match part.part {
                            TilePart::Whole => (part.first + row / 16, row % 16),
                            TilePart::Low => (row / 8, row % 8),
                            TilePart::High => (row / 8, 8 + row % 8),
                        };
                        for column in 0..COLUMNS {
                            let (split, tile) = (column / 128 / across, column / 128 % across);
                            let start =
                                ((split * tile_rows + tile_row) * across + tile) * TILE_BYTES as usize;
                            let found = value(&bytes[start..], line, column % 128, numbers);
                            assert_eq!(
                                found,
                                expected[row * COLUMNS + column],
                                "{arrangement:?} {row} {column}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn scales_beyond_f16_are_kept_by_a_unit() {
        let mut one = weight(1, 16, None);
        one.scales = one.scales.to_kind(Kind::Float) * 2f64.powi(40);
        let (tiles, _) = arrange(&[one], Arrangement::Stacked(1)).unwrap();
        assert!(tiles.unit >= 2f32.powi(20), "{}", tiles.unit);
    }
}
