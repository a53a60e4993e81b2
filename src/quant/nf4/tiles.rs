//! NF4 and FP4 weights rearranged for the GPU's decode step (`kernels/cuda/tiles.cu`). The bytes change places; only the scales
//! lose precision, to f16.

use tch::{Kind, Tensor};

use super::Nf4Weight;
use crate::kernels::cuda::{TILE_BYTES, TilePart, TiledTensor};
use crate::{Error, Result};

/// Rows and columns of a tile.
const TILE: (usize, usize) = (16, 128);
/// Values per scale.
const BLOCK: usize = 64;

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

/// One of the matrices of [`Tiles`], `[rows, columns]`.
pub struct TiledWeight {
    tiles: Tensor,
    pairs: Tensor,
    unit: f32,
    rows: usize,
    columns: usize,
    first: usize,
    part: TilePart,
}

impl Nf4Weight {
    /// Whether the weight fits tiles whose columns are in `splits` parts.
    pub fn fits_tiles(&self, splits: usize) -> bool {
        self.blocksize == BLOCK
            && self.rows.is_multiple_of(TILE.0)
            && self.columns.is_multiple_of(TILE.1 * splits)
            && self.packed.device().is_cuda()
    }
}

/// Rearranges `weights`, which have the same columns and code table; each must fit ([`Nf4Weight::fits_tiles`]).
pub fn arrange(weights: &[&Nf4Weight], arrangement: Arrangement) -> Result<(Tiles, Vec<TiledWeight>)> {
    let [first, ..] = weights else {
        return Err(Error::Internal("no weights to arrange".into()));
    };
    let columns = first.columns as i64;
    let splits = match arrangement {
        Arrangement::Stacked(splits) => splits as i64,
        Arrangement::Interleaved => 1,
    };
    let join = |parts: Vec<Tensor>| -> Result<Tensor> {
        match arrangement {
            Arrangement::Stacked(_) => Ok(Tensor::f_cat(&parts, 0)?),
            Arrangement::Interleaved => {
                let eights = parts.iter().map(|part| part.f_view([-1, 8, part.size()[1]]));
                let eights: Vec<Tensor> = eights.collect::<std::result::Result<_, _>>()?;
                Ok(Tensor::f_stack(&eights, 1)?.f_view([-1, eights[0].size()[2]])?)
            }
        }
    };
    let of = |part: &dyn Fn(&Nf4Weight) -> Result<Tensor>| -> Result<Vec<Tensor>> {
        weights.iter().map(|weight| part(weight)).collect()
    };
    let packed = join(of(&|w| Ok(w.packed.f_view([w.rows as i64, columns / 2])?))?)?;
    let scales = join(of(&|w| {
        Ok(w.scale_tensor()?.f_view([w.rows as i64, columns / 64])?)
    })?)?;
    let unit = unit_of(&scales)?;
    let scales = scales.f_div_scalar(f64::from(unit))?.f_to_kind(Kind::Half)?;
    let (tile_rows, across) = (packed.size()[0] / 16, columns / 128);
    // Row r of a tile is 8 h + g; a row's 64 bytes are those of both blocks, each of the four lanes of g.
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
        start += weight.rows / TILE.0;
        TiledWeight {
            tiles: tensor.shallow_clone(),
            pairs: weight.pairs.shallow_clone(),
            unit,
            rows: weight.rows,
            columns: weight.columns,
            first,
            part,
        }
    });
    let tiled = tiled.collect();
    Ok((Tiles { tensor, unit }, tiled))
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
        self.rows * self.columns / 2 + self.rows * self.columns / BLOCK * 2
    }

    /// Dequantizes into `out`, contiguous `[rows, columns]` in 16 bits on the weight's GPU.
    pub fn dequantize_into(&self, out: &Tensor) -> Result<()> {
        let tiled = TiledTensor {
            tiles: &self.tiles,
            pairs: &self.pairs,
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
