//! AWQ weights: loading and dequantization.

use half::f16;
use rayon::prelude::*;
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

use super::layout::{ORDER, PER_WORD, unpack};
use crate::checkpoint::{Checkpoint, MappedBytes};
use crate::kernels::cpu::{BlockScales, GroupedMatrix, Shared, run};
use crate::quant::Awq;
use crate::quant::tiles::{Coding, TILE, TileSource};
use crate::{Error, Result};

/// Values per chunk if libtorch dequantizes.
const CHUNK_VALUES: usize = 4 << 20;
/// Words per step of the transposition: a cache line of each row.
const TILE_WORDS: usize = 16;

/// A weight `[rows, columns]` in AWQ codes.
///
/// AutoAWQ stores codes input-major for its CUDA kernel; here they are transposed to row-major, like every other weight. The
/// size is the same.
pub struct AwqWeight {
    rows: usize,
    columns: usize,
    group: usize,
    /// u8 `[rows, columns / 2]`: two codes per byte, the first in the high nibble.
    packed: Tensor,
    /// `[rows, columns / group]`: f16, or f32 if the stored scales do not fit f16.
    scales: Tensor,
    /// u8 `[rows, columns / group]`.
    zeros: Tensor,
}

impl AwqWeight {
    /// Loads the weight of canonical `name` (`….weight`), which must be `[rows, columns]`, on `device`; `None` if it is not
    /// quantized.
    pub fn load(
        checkpoint: &Checkpoint,
        settings: &Awq,
        name: &str,
        [rows, columns]: [usize; 2],
        device: Device,
    ) -> Result<Option<Self>> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if !checkpoint.contains(&format!("{module}.qweight")) {
            return Ok(None);
        }
        let group = settings.group_size.unwrap_or(columns);
        if !columns.is_multiple_of(group) || !group.is_multiple_of(2) || !rows.is_multiple_of(PER_WORD) {
            return Err(Error::tensor(
                checkpoint.dir(),
                format!("{module}.qweight"),
                format!(
                    "cannot stand for {rows} x {columns} values in groups of {group} (\"group_size\" in config.json)"
                ),
            ));
        }
        let (groups, words) = (columns / group, rows / PER_WORD);
        let part = |suffix: &str, dtype, shape: [usize; 2]| {
            bytes(checkpoint, &format!("{module}.{suffix}"), dtype, shape)
        };
        let qweight = part("qweight", Dtype::I32, [columns, words])?;
        let qzeros = part("qzeros", Dtype::I32, [groups, words])?;
        let shape = [rows as i64, groups as i64];
        let scales = scales(checkpoint, &format!("{module}.scales"), [groups, rows])?;
        if scales.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::tensor(
                checkpoint.dir(),
                format!("{module}.scales"),
                "has non-finite values (NaN/Inf): the folder is damaged",
            ));
        }
        let place = |tensor: Tensor| tensor.f_contiguous()?.f_to_device(device);
        let zeros = unpack(&integers(&qzeros));
        let zeros = Tensor::f_from_data_size(&zeros, &[shape[1], shape[0]], Kind::Uint8)?;
        let packed = turn(&qweight, rows, columns);
        let packed = Tensor::f_from_data_size(&packed, &[shape[0], columns as i64 / 2], Kind::Uint8)?;
        Ok(Some(Self {
            rows,
            columns,
            group,
            packed: place(packed)?,
            scales: place(scales.f_tr()?)?,
            zeros: place(zeros.f_tr()?)?,
        }))
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> (i64, i64) {
        (self.rows as i64, self.columns as i64)
    }

    /// Bytes of its codes, scales and zero points.
    pub fn bytes(&self) -> usize {
        let scales = self.scales.numel() * self.scales.kind().elt_size_in_bytes();
        self.packed.numel() + scales + self.zeros.numel()
    }

    /// A view for the CPU kernels; the weight must be on the CPU.
    pub fn matrix(&self) -> GroupedMatrix<'_> {
        GroupedMatrix {
            packed: slice(&self.packed, Kind::Uint8),
            scales: match self.scales.kind() {
                Kind::Half => BlockScales::Half(slice::<f16>(&self.scales, Kind::Half)),
                _ => BlockScales::Plain(slice(&self.scales, Kind::Float)),
            },
            zeros: slice(&self.zeros, Kind::Uint8),
            group: self.group,
            rows: self.rows,
            columns: self.columns,
        }
    }

    /// Whether the weight fits tiles whose columns are in `splits` parts.
    pub fn fits_tiles(&self, splits: usize) -> bool {
        self.group.is_multiple_of(TILE.1)
            && self.rows.is_multiple_of(TILE.0)
            && self.columns.is_multiple_of(TILE.1 * splits)
    }

    /// The weight for [`arrange`](crate::quant::tiles::arrange); it must fit.
    pub fn tile_source(&self) -> Result<TileSource> {
        let repeats = (self.group / TILE.1) as i64;
        let by_tile = |of_groups: &Tensor| of_groups.f_repeat_interleave_self_int(repeats, 1, None);
        Ok(TileSource {
            packed: self.packed.shallow_clone(),
            scales: by_tile(&self.scales)?,
            coding: Coding::Zeros(by_tile(&self.zeros)?),
        })
    }

    /// Dequantizes into `out`, contiguous `[rows, columns]` on the weight's device: `(code - zero) * scale` in f32, then
    /// `out`'s dtype.
    ///
    /// Reference: [`dequantize_gemm`](https://github.com/casper-hansen/AutoAWQ/blob/88e4c76b20755db275574e6a03c83c84ba3bece5/awq/utils/packing_utils.py#L87-L102).
    pub fn dequantize_into(&self, out: &mut Tensor) -> Result<()> {
        assert!(out.numel() == self.rows * self.columns && out.is_contiguous());
        if out.device() == Device::Cpu && out.kind() == Kind::Float && out.numel() > 0 {
            assert_eq!(slice::<f32>(out, Kind::Float).len(), self.rows * self.columns);
            // SAFETY: f32, contiguous, on the CPU (`slice` checks); borrowed mutably.
            let out = unsafe { std::slice::from_raw_parts_mut(out.data_ptr().cast(), out.numel()) };
            self.restore_floats(out);
            return Ok(());
        }
        self.restore_with_tensors(out)
    }

    fn restore_floats(&self, out: &mut [f32]) {
        let (matrix, rows, columns) = (self.matrix(), self.rows, self.columns);
        let out = Shared::new(out);
        run(tch::get_num_threads().max(1) as usize, |member| {
            let share = member.share(rows, 1);
            // SAFETY: shares are disjoint.
            let out = unsafe { out.write(share.start * columns..share.end * columns) };
            matrix.dequantize(share, out);
        });
    }

    fn restore_with_tensors(&self, out: &Tensor) -> Result<()> {
        let (group, columns) = (self.group as i64, self.columns as i64);
        let step = (CHUNK_VALUES / self.columns.max(1)).max(1);
        let out = out.f_view([self.rows as i64, columns])?;
        for start in (0..self.rows).step_by(step) {
            let (start, rows) = (start as i64, step.min(self.rows - start) as i64);
            let part = |t: &Tensor| t.f_narrow(0, start, rows);
            let bytes = part(&self.packed)?;
            let codes = Tensor::f_stack(
                &[
                    bytes.f_bitwise_right_shift_tensor_scalar(4)?,
                    bytes.f_bitwise_and(15)?,
                ],
                -1,
            )?;
            let values = codes.f_view([rows, -1, group])?.f_to_kind(Kind::Float)?;
            let values = values
                .f_sub(&part(&self.zeros)?.f_unsqueeze(-1)?)?
                .f_mul_(&part(&self.scales)?.f_to_kind(Kind::Float)?.f_unsqueeze(-1)?)?;
            part(&out)?.f_copy_(&values.f_view([rows, columns])?)?;
        }
        Ok(())
    }
}

/// Bytes of the tensor of canonical `name`, which must have `shape` and `dtype`.
fn bytes(checkpoint: &Checkpoint, name: &str, dtype: Dtype, shape: [usize; 2]) -> Result<MappedBytes> {
    let (path, found, found_shape, bytes) = checkpoint.bytes(name)?;
    if found != dtype || found_shape != shape {
        let reason = format!("is {found} {found_shape:?}; config.json requires {dtype} {shape:?}");
        return Err(Error::tensor(path, name, reason));
    }
    Ok(bytes)
}

/// The scales of canonical `name`, `[groups, rows]`: f16 or bf16 as stored; converted to f16 if all of them fit.
fn scales(checkpoint: &Checkpoint, name: &str, shape: [usize; 2]) -> Result<Tensor> {
    let (path, dtype, found, stored) = checkpoint.bytes(name)?;
    let kind = match dtype {
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        _ => {
            let reason = format!("is {dtype}; F16 and BF16 scales are supported");
            return Err(Error::tensor(path, name, reason));
        }
    };
    if found != shape {
        let reason = format!("is {dtype} {found:?}; config.json requires {shape:?}");
        return Err(Error::tensor(path, name, reason));
    }
    let scales = Tensor::f_from_data_size(&stored, &shape.map(|n| n as i64), kind)?;
    if kind == Kind::Half {
        return Ok(scales);
    }
    let (half, float) = (scales.f_to_kind(Kind::Half)?, scales.f_to_kind(Kind::Float)?);
    match half.f_to_kind(Kind::Float)?.f_equal(&float)? {
        true => Ok(half),
        false => Ok(float),
    }
}

fn integers(bytes: &[u8]) -> Vec<i32> {
    let words = bytes.as_chunks::<4>().0.iter();
    words.map(|&word| i32::from_le_bytes(word)).collect()
}

/// Words `[columns, rows / 8]` → two codes per byte, `[rows, columns / 2]`.
fn turn(words: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    let (words, per_row) = (words.as_chunks::<4>().0, rows / PER_WORD);
    let row_bytes = columns / 2;
    let mut out = vec![0u8; rows * row_bytes];
    let tiles = out.par_chunks_mut((TILE_WORDS * PER_WORD * row_bytes).max(1));
    tiles.enumerate().for_each(|(tile, out)| {
        let width = out.len() / row_bytes / PER_WORD;
        for pair in 0..row_bytes {
            for word in 0..width {
                let at = 2 * pair * per_row + tile * TILE_WORDS + word;
                let [first, second] = [words[at], words[at + per_row]].map(u32::from_le_bytes);
                for (nibble, row) in ORDER.iter().enumerate() {
                    let code = |word: u32| (word >> (4 * nibble)) as u8 & 15;
                    out[(word * PER_WORD + row) * row_bytes + pair] = code(first) << 4 | code(second);
                }
            }
        }
    });
    out
}

/// Values of a CPU tensor of `kind`, which must be T's.
fn slice<T>(tensor: &Tensor, kind: Kind) -> &[T] {
    assert!(tensor.kind() == kind && tensor.device() == Device::Cpu && tensor.is_contiguous());
    if tensor.numel() == 0 {
        return &[];
    }
    // SAFETY: contiguous, of T's dtype (callers pair them), on the CPU; it lives as long as the slice, and weights are not
    // written to.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}
