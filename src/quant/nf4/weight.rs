//! NF4 and FP4 weights: loading, dequantization, and the GPU product with one row.

use tch::{Device, Kind, Tensor};

use safetensors::Dtype;

use super::codebook::{QuantType, dynamic_map};
use super::state::QuantState;
use crate::checkpoint::{Checkpoint, MappedBytes};
use crate::kernels::cpu::{BlockScales, CodedMatrix, Shared, run};
use crate::kernels::cuda;
use crate::quant::TensorSpec;
use crate::quant::tiles::{Coding, TILE, TileSource};
use crate::{Error, Result};

/// Values per chunk if libtorch dequantizes: the indices and products of a chunk take 50 MB.
const CHUNK_VALUES: usize = 4 << 20;
/// Values per step of a thread.
const GRAIN_VALUES: usize = 1 << 14;
/// Values per scale in tiles.
const TILE_BLOCK: usize = 64;
/// Tolerance between a folder's code table and this crate's: rounding differs between versions of bitsandbytes.
const TABLE_TOLERANCE: f32 = 1e-5;

/// A weight `[rows, columns]` in the format of bitsandbytes.
pub struct Nf4Weight {
    quant_type: QuantType,
    rows: usize,
    columns: usize,
    blocksize: usize,
    /// u8, two codes per byte.
    packed: Tensor,
    scales: Scales,
    /// f32 `[256, 2]`, on the weight's device: values of the two codes of each byte.
    pairs: Tensor,
}

enum Scales {
    /// f32, one per block.
    Plain(Tensor),
    Nested {
        /// u8, one per block.
        codes: Tensor,
        /// f32, one per `blocksize` codes.
        absmax: Tensor,
        /// f32 `[256]`, on the weight's device.
        map: Tensor,
        offset: f32,
        blocksize: usize,
    },
}

impl Nf4Weight {
    /// Loads the weight of canonical `name`, which must be `[rows, columns]`, on `device`; `None` if it is not quantized.
    pub fn load(
        checkpoint: &Checkpoint,
        name: &str,
        [rows, columns]: [usize; 2],
        device: Device,
    ) -> Result<Option<Self>> {
        let types = [QuantType::Nf4, QuantType::Fp4];
        let is_there = |one: &QuantType| checkpoint.contains(&one.state_name(name));
        let Some(quant_type) = types.into_iter().find(is_there) else {
            return Ok(None);
        };
        let mut stored = StoredTensors {
            checkpoint,
            name,
            expected: Vec::new(),
        };
        let state = stored.state(&quant_type.state_name(name), quant_type, [rows, columns])?;
        stored.expected = state.tensors();
        stored.check_table("quant_map", quant_type.table())?;
        let scales = match (state.nested_blocksize, state.nested_offset) {
            (Some(blocksize), Some(offset)) => {
                stored.check_table("nested_quant_map", dynamic_map())?;
                Scales::Nested {
                    codes: stored.tensor("absmax", Kind::Uint8, device)?,
                    absmax: stored.tensor("nested_absmax", Kind::Float, device)?,
                    map: Tensor::f_from_slice(dynamic_map())?.f_to_device(device)?,
                    offset: offset as f32,
                    blocksize,
                }
            }
            _ => Scales::Plain(stored.tensor("absmax", Kind::Float, device)?),
        };
        let pairs = Tensor::f_from_slice(quant_type.code_table().pairs().as_flattened())?;
        Ok(Some(Self {
            quant_type,
            rows,
            columns,
            blocksize: state.blocksize,
            packed: stored.tensor("", Kind::Uint8, device)?,
            scales,
            pairs: pairs.f_view([256, 2])?.f_to_device(device)?,
        }))
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> (i64, i64) {
        (self.rows as i64, self.columns as i64)
    }

    /// The code table.
    pub fn quant_type(&self) -> QuantType {
        self.quant_type
    }

    /// Bytes of its codes and scales.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(scales) => 4 * scales.numel(),
            Scales::Nested { codes, absmax, .. } => codes.numel() + 4 * absmax.numel(),
        };
        self.packed.numel() + scales
    }

    /// A view for the CPU kernels; the weight must be on the CPU.
    pub fn matrix(&self) -> CodedMatrix<'_> {
        CodedMatrix {
            packed: slice(&self.packed, Kind::Uint8),
            table: self.quant_type.code_table(),
            scales: match &self.scales {
                Scales::Plain(scales) => BlockScales::Plain(slice(scales, Kind::Float)),
                Scales::Nested {
                    codes,
                    absmax,
                    offset,
                    blocksize,
                    ..
                } => BlockScales::Nested {
                    codes: slice(codes, Kind::Uint8),
                    absmax: slice(absmax, Kind::Float),
                    map: dynamic_map(),
                    offset: *offset,
                    blocksize: *blocksize,
                },
            },
            blocksize: self.blocksize,
            rows: self.rows,
            columns: self.columns,
        }
    }

    /// Dequantizes into `out`, contiguous `[rows, columns]` on the weight's device: `code * scale` in f32, then `out`'s dtype.
    ///
    /// Reference: [`dequantize_4bit`](https://github.com/bitsandbytes-foundation/bitsandbytes/blob/37d2a9387f7146ccb85517ff45c665d345bfda79/bitsandbytes/backends/default/ops.py#L263-L285).
    pub fn dequantize_into(&self, out: &mut Tensor) -> Result<()> {
        assert!(out.numel() == self.rows * self.columns && out.is_contiguous());
        if out.device() == Device::Cpu && out.kind() == Kind::Float {
            self.restore_floats(slice_mut(out));
            return Ok(());
        }
        if let Some(coded) = self.on_gpu()
            && coded.dequantize(out)?
        {
            return Ok(());
        }
        self.restore_with_tensors(out)
    }

    /// `W x + bias` for one row `x` on a GPU, without dequantizing the weight first; `None` if no kernel supports it.
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
        match self.on_gpu() {
            Some(coded) if x.numel() == self.columns => coded.product(x, bias),
            _ => Ok(None),
        }
    }

    /// Whether the weight fits tiles whose columns are in `splits` parts.
    pub fn fits_tiles(&self, splits: usize) -> bool {
        self.blocksize == TILE_BLOCK
            && self.rows.is_multiple_of(TILE.0)
            && self.columns.is_multiple_of(TILE.1 * splits)
    }

    /// The weight for [`arrange`](crate::quant::tiles::arrange); it must fit.
    pub fn tile_source(&self) -> Result<TileSource> {
        let (rows, columns) = self.shape();
        Ok(TileSource {
            packed: self.packed.f_view([rows, columns / 2])?,
            scales: self.scale_tensor()?.f_view([rows, columns / TILE_BLOCK as i64])?,
            coding: Coding::Table(self.pairs.shallow_clone()),
        })
    }

    fn on_gpu(&self) -> Option<cuda::CodedTensor<'_>> {
        matches!(self.packed.device(), Device::Cuda(_)).then(|| cuda::CodedTensor {
            packed: &self.packed,
            pairs: &self.pairs,
            scales: match &self.scales {
                Scales::Plain(scales) => cuda::Scales::Plain(scales),
                Scales::Nested {
                    codes,
                    absmax,
                    map,
                    offset,
                    blocksize,
                } => cuda::Scales::Nested {
                    codes,
                    absmax,
                    map,
                    offset: *offset,
                    blocksize: *blocksize,
                },
            },
            blocksize: self.blocksize,
            rows: self.rows,
            columns: self.columns,
        })
    }

    fn restore_floats(&self, out: &mut [f32]) {
        let (matrix, n) = (self.matrix(), out.len());
        let out = Shared::new(out);
        run(tch::get_num_threads().max(1) as usize, |member| {
            let share = member.share(n, GRAIN_VALUES);
            // SAFETY: shares are disjoint.
            let out = unsafe { out.write(share.clone()) };
            matrix.dequantize(share, out);
        });
    }

    /// [`Self::dequantize_into`] with libtorch's operations: the reference of the kernels.
    pub fn restore_with_tensors(&self, out: &mut Tensor) -> Result<()> {
        let (n, blocksize) = (self.rows * self.columns, self.blocksize);
        let scales = self.scale_tensor()?;
        let out = out.f_view([-1])?;
        for start in (0..n).step_by(CHUNK_VALUES) {
            let length = CHUNK_VALUES.min(n - start);
            let (whole, rest) = (length / blocksize, length % blocksize);
            let narrow = |t: &Tensor, start: usize, length: usize| t.f_narrow(0, start as i64, length as i64);
            let bytes = narrow(&self.packed, start / 2, length.div_ceil(2))?.f_to_kind(Kind::Int)?;
            let values = self.pairs.f_index_select(0, &bytes)?.f_view([-1])?;
            let block = start / blocksize;
            let _ = narrow(&values, 0, whole * blocksize)?
                .f_view([whole as i64, blocksize as i64])?
                .f_mul_(&narrow(&scales, block, whole)?.f_unsqueeze(1)?)?;
            if rest > 0 {
                let _ =
                    narrow(&values, whole * blocksize, rest)?.f_mul_(&narrow(&scales, block + whole, 1)?)?;
            }
            narrow(&out, start, length)?.f_copy_(&narrow(&values, 0, length)?)?;
        }
        Ok(())
    }

    /// f32, one per block.
    fn scale_tensor(&self) -> Result<Tensor> {
        match &self.scales {
            Scales::Plain(scales) => Ok(scales.shallow_clone()),
            Scales::Nested {
                codes,
                absmax,
                map,
                offset,
                blocksize,
            } => {
                let blocks = codes.size()[0];
                let runs = absmax.f_repeat_interleave_self_int(*blocksize as i64, 0, None)?;
                let scales = map.f_index_select(0, &codes.f_to_kind(Kind::Int)?)?;
                let scales = scales.f_mul(&runs.f_narrow(0, 0, blocks)?)?;
                Ok(scales.f_add_scalar(f64::from(*offset))?)
            }
        }
    }
}

/// The stored tensors of one weight.
struct StoredTensors<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    /// Expected shapes and dtypes, from the weight's state.
    expected: Vec<TensorSpec>,
}

impl StoredTensors<'_> {
    fn state(&self, key: &str, quant_type: QuantType, shape: [usize; 2]) -> Result<QuantState> {
        let (path, dtype, _, bytes) = self.checkpoint.bytes(key)?;
        let fault = |reason: String| Error::tensor(path, key, reason);
        if dtype != Dtype::U8 {
            return Err(fault(format!("is {dtype}, not the U8 of JSON bytes")));
        }
        let state = QuantState::from_json(&bytes).map_err(fault)?;
        if state.quant_type != quant_type {
            let name = state.quant_type.name();
            return Err(fault(format!(
                "holds quant_type {name:?}, which contradicts its name"
            )));
        }
        if state.shape != shape {
            return Err(fault(format!(
                "has shape {:?}, but config.json requires {shape:?}",
                state.shape
            )));
        }
        Ok(state)
    }

    /// Bytes of the tensor `suffix`.
    fn bytes(&self, suffix: &str) -> Result<MappedBytes> {
        let dot = if suffix.is_empty() { "" } else { "." };
        let name = format!("{}{dot}{suffix}", self.name);
        let (path, dtype, shape, bytes) = self.checkpoint.bytes(&name)?;
        match self.expected.iter().find(|spec| spec.suffix == suffix) {
            Some(spec) if spec.fits(dtype, &shape) => Ok(bytes),
            spec => {
                let expected = spec.map(ToString::to_string).unwrap_or_default();
                let reason = format!("is {dtype} {shape:?}; its quant_state requires {expected}");
                Err(Error::tensor(path, name, reason))
            }
        }
    }

    /// Loads the tensor `suffix`, whose dtype must be `kind`'s.
    fn tensor(&self, suffix: &str, kind: Kind, device: Device) -> Result<Tensor> {
        let bytes = self.bytes(suffix)?;
        let values = bytes.len() / kind.elt_size_in_bytes();
        Ok(Tensor::f_from_data_size(&bytes, &[values as i64], kind)?.f_to_device(device)?)
    }

    /// Checks that the folder's code table is this crate's.
    fn check_table(&self, suffix: &str, table: &[f32]) -> Result<()> {
        let bytes = self.bytes(suffix)?;
        let values = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes));
        let near = |(found, known): (f32, &f32)| (found - known).abs() <= TABLE_TOLERANCE;
        if values.zip(table).all(near) {
            return Ok(());
        }
        Err(Error::tensor(
            self.checkpoint.dir(),
            format!("{}.{suffix}", self.name),
            "is not the table of bitsandbytes' format: such weights are not supported",
        ))
    }
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

/// Mutable values of an f32 CPU tensor without other views in use.
fn slice_mut(tensor: &mut Tensor) -> &mut [f32] {
    let length = slice::<f32>(tensor, Kind::Float).len();
    if length == 0 {
        return &mut [];
    }
    // SAFETY: checked by `slice`; borrowed mutably.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), length) }
}
