//! The frame: size, components and their sampling (libjpeg-turbo: jdinput.c, jdsample.c).

use crate::error::ImageError;

/// Samples per side of a block.
pub(super) const BLOCK: usize = 8;

/// One component of the frame.
#[derive(Debug, Clone)]
pub(super) struct Component {
    /// Identifier in scans.
    pub(super) id: u8,
    /// Horizontal sampling factor: columns of blocks in an MCU.
    pub(super) h: usize,
    /// Vertical sampling factor: rows of blocks in an MCU.
    pub(super) v: usize,
    /// Number of its quantization table.
    pub(super) quant: u8,
    /// Samples per row, without padding.
    pub(super) width: usize,
    /// Rows of samples, without padding.
    pub(super) height: usize,
    /// Blocks per row in a scan of this component only.
    pub(super) blocks_wide: usize,
    /// Rows of blocks in a scan of this component only.
    pub(super) blocks_high: usize,
    /// Blocks per row in an interleaved scan.
    pub(super) padded_blocks: usize,
}

/// The frame header and derived sizes.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// Whether the scans are progressive.
    pub(super) progressive: bool,
    /// Pixels per row.
    pub(super) width: usize,
    /// Rows.
    pub(super) height: usize,
    /// 1, 3 or 4 components.
    pub(super) components: Vec<Component>,
    /// The largest horizontal sampling factor.
    pub(super) max_h: usize,
    /// The largest vertical sampling factor.
    pub(super) max_v: usize,
    /// MCUs per row of an interleaved scan.
    pub(super) mcus_wide: usize,
    /// Rows of MCUs of an interleaved scan. A scan of one component has as many parts of `v` rows of blocks.
    pub(super) mcu_rows: usize,
}

impl Frame {
    /// Reads a frame header. `data` is the whole file, in which a DNL marker may define the height.
    pub(super) fn read(progressive: bool, header: &[u8], data: &[u8]) -> Result<Self, ImageError> {
        let ([precision, y1, y0, x1, x0, count], rest) =
            header.split_first_chunk::<6>().ok_or(ImageError::Undecodable)?;
        let height = usize::from(u16::from_be_bytes([*y1, *y0]));
        let width = usize::from(u16::from_be_bytes([*x1, *x0]));
        let (specs, []) = rest.as_chunks::<3>() else {
            return Err(ImageError::Undecodable);
        };
        if width == 0
            || specs.is_empty()
            || specs.len() != usize::from(*count)
            || !matches!(precision, 8 | 12)
        {
            return Err(ImageError::Undecodable);
        }
        let name = match (precision, specs.len(), height) {
            (12, ..) => "JPEG of 12 bits a sample",
            (_, 2, _) => "JPEG of 2 components",
            (_, 5.., _) => "JPEG of more than 4 components",
            (.., 0) if data.windows(4).any(|bytes| bytes == [0xff, 0xdc, 0, 4]) => {
                "JPEG whose height follows its first scan"
            }
            (.., 0) => return Err(ImageError::Undecodable),
            _ => return Self::new(progressive, width, height, specs),
        };
        Err(ImageError::UnsupportedVariant(name.into()))
    }

    fn new(progressive: bool, width: usize, height: usize, specs: &[[u8; 3]]) -> Result<Self, ImageError> {
        let factors = |[_, factors, _]: &[u8; 3]| (usize::from(factors >> 4), usize::from(factors & 15));
        let (mut max_h, mut max_v) = (1, 1);
        for (h, v) in specs.iter().map(factors) {
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) {
                return Err(ImageError::Undecodable);
            }
            (max_h, max_v) = (max_h.max(h), max_v.max(v));
        }
        if specs
            .iter()
            .map(factors)
            .any(|(h, v)| max_h % h != 0 || max_v % v != 0)
        {
            return Err(ImageError::UnsupportedVariant(
                "JPEG with sampling factors that do not divide".into(),
            ));
        }
        let mcus_wide = width.div_ceil(max_h * BLOCK);
        let components = specs.iter().map(|spec| {
            let (h, v) = factors(spec);
            Component {
                id: spec[0],
                h,
                v,
                quant: spec[2],
                width: (width * h).div_ceil(max_h),
                height: (height * v).div_ceil(max_v),
                blocks_wide: (width * h).div_ceil(max_h * BLOCK),
                blocks_high: (height * v).div_ceil(max_v * BLOCK),
                padded_blocks: mcus_wide * h,
            }
        });
        Ok(Self {
            progressive,
            width,
            height,
            components: components.collect(),
            max_h,
            max_v,
            mcus_wide,
            mcu_rows: height.div_ceil(max_v * BLOCK),
        })
    }

    /// Blocks of all components in one row of MCUs.
    pub(super) fn blocks_of_mcu_row(&self) -> usize {
        self.components
            .iter()
            .map(|component| component.padded_blocks * component.v)
            .sum()
    }
}
