//! Weights in the tiles of the decode step (`tiles.cu`), dequantized for products of many rows.

use tch::{Kind, Tensor};

use super::launch::{Argument, Kernels};
use super::{address, aligned};
use crate::Result;

/// Bytes of a tile: 16 rows x 128 columns of codes, and their scales.
pub const TILE_BYTES: i64 = 1088;
/// Tiles per block, one a warp.
const WARPS: u64 = 8;

/// A matrix `[rows, columns]` in tiles on a GPU.
#[derive(Clone, Copy)]
pub struct TiledTensor<'a> {
    /// u8 `[splits, tile rows, tiles, TILE_BYTES]`.
    pub tiles: &'a Tensor,
    /// f32 `[256, 2]`: values of the two codes of each byte; `None` if codes are numbers less a zero point.
    pub pairs: Option<&'a Tensor>,
    /// Factor of the stored scales.
    pub unit: f32,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// The first of the tensor's rows of tiles.
    pub first: usize,
    /// Which rows of the tiles are this matrix's.
    pub part: TilePart,
}

/// Rows of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TilePart {
    /// All 16.
    Whole,
    /// The first eight.
    Low,
    /// The last eight.
    High,
}

/// Layout of the struct in `tiles.cu`.
#[repr(C)]
struct Tiles {
    tiles: u64,
    pairs: u64,
    unit: f32,
    rows: i32,
    columns: i32,
    tile_rows: i32,
    first: i32,
    splits: i32,
    part: i32,
}

impl TiledTensor<'_> {
    /// Writes the values, `code * scale` or `(code - zero) * scale` in f32 and then in `out`'s dtype, into `out`: contiguous, `[rows, columns]`, bf16 or
    /// f16. `false` if no kernel supports it.
    pub fn dequantize(&self, out: &Tensor) -> Result<bool> {
        let fits = out.numel() == self.rows * self.columns
            && out.is_contiguous()
            && aligned(out)
            && matches!(out.kind(), Kind::BFloat16 | Kind::Half);
        let Some((kernels, half)) = Kernels::half(out).filter(|_| fits) else {
            return Ok(false);
        };
        let (size, int) = (self.tiles.size(), |n: usize| i32::try_from(n).ok());
        let (Some(rows), Some(columns), Some(first)) = (int(self.rows), int(self.columns), int(self.first))
        else {
            return Ok(false);
        };
        let (lines, part) = match self.part {
            TilePart::Whole => (16, 0),
            TilePart::Low => (8, 1),
            TilePart::High => (8, 2),
        };
        let tiles = Tiles {
            tiles: address(self.tiles),
            pairs: self.pairs.map_or(0, address),
            unit: self.unit,
            rows,
            columns,
            tile_rows: size[1] as i32,
            first,
            splits: size[0] as i32,
            part,
        };
        let count = (self.rows / lines * (self.columns / 128)) as u64;
        let Ok(blocks) = u32::try_from(count.div_ceil(WARPS)) else {
            return Ok(false);
        };
        let out = address(out);
        let arguments = [Argument::new(&tiles), Argument::new(&out)];
        kernels
            .gpu
            .launch(half.restore_tiles, (blocks, 32 * WARPS as u32, 0), &arguments)?;
        Ok(true)
    }
}
