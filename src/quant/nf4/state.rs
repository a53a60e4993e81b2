//! `weight.quant_state.bitsandbytes__nf4`: the quantization of a packed weight, as JSON bytes.

use serde::Deserialize;

use super::codebook::QuantType;
use super::quantize::NESTED_BLOCKSIZE;

/// Block sizes that bitsandbytes accepts.
pub const BLOCKSIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// The quantization of a packed weight.
///
/// Reference: [`QuantState`](https://github.com/bitsandbytes-foundation/bitsandbytes/blob/37d2a9387f7146ccb85517ff45c665d345bfda79/bitsandbytes/functional.py#L420-L610).
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct QuantState {
    /// 4-bit data type.
    pub quant_type: QuantType,
    /// Block size: values per scale.
    pub blocksize: usize,
    /// Original dtype: "bfloat16", "float16" or "float32".
    pub dtype: String,
    /// `[out, in]`.
    pub shape: Vec<usize>,
    /// Block size of the scales, with double quantization.
    pub nested_blocksize: Option<usize>,
    /// Original dtype of the scales: "float32".
    pub nested_dtype: Option<String>,
    /// Mean of the scales.
    pub nested_offset: Option<f64>,
}

impl QuantState {
    /// The state of a weight that this crate quantizes; `offset` with double quantization.
    pub fn new(
        quant_type: QuantType,
        blocksize: usize,
        dtype: &str,
        shape: &[usize],
        offset: Option<f32>,
    ) -> Self {
        Self {
            quant_type,
            blocksize,
            dtype: dtype.to_owned(),
            shape: shape.to_vec(),
            nested_blocksize: offset.map(|_| NESTED_BLOCKSIZE),
            nested_dtype: offset.map(|_| "float32".to_owned()),
            nested_offset: offset.map(f64::from),
        }
    }

    /// Returns JSON as Python's `json.dumps` writes it.
    pub fn to_json(&self) -> String {
        let shape: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        let mut json = format!(
            r#"{{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}]"#,
            self.quant_type.name(),
            self.blocksize,
            self.dtype,
            shape.join(", ")
        );
        if let (Some(blocksize), Some(dtype), Some(offset)) =
            (self.nested_blocksize, &self.nested_dtype, self.nested_offset)
        {
            json += &format!(
                r#", "nested_blocksize": {blocksize}, "nested_dtype": "{dtype}", "nested_offset": {}"#,
                python_float(offset)
            );
        }
        json + "}"
    }

    /// Parses untrusted JSON; the error says what is wrong.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let state: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("is no quantization state: {error}"))?;
        if !BLOCKSIZES.contains(&state.blocksize) {
            return Err(format!(
                "has \"blocksize\" {}; bitsandbytes knows {BLOCKSIZES:?}",
                state.blocksize
            ));
        }
        if !matches!(state.dtype.as_str(), "float32" | "float16" | "bfloat16") {
            return Err(format!(
                "has \"dtype\" {:?}; float32, float16 and bfloat16 are supported",
                state.dtype
            ));
        }
        match (state.nested_blocksize, state.nested_offset) {
            (None, None) => {}
            (Some(NESTED_BLOCKSIZE), Some(offset)) if offset.is_finite() => {}
            (blocksize, offset) => {
                return Err(format!(
                    "has \"nested_blocksize\" {blocksize:?} and \"nested_offset\" {offset:?}; \
                     double quantization has {NESTED_BLOCKSIZE} and a number"
                ));
            }
        }
        Ok(state)
    }
}

/// Python's `repr` of a float: shortest digits, an exponent with a sign and at least two digits.
fn python_float(value: f64) -> String {
    let text = format!("{value:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn floats_are_written_as_in_python() {
        for (value, text) in [
            (0.42376708984375, "0.42376708984375"),
            (1.0, "1.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (9.5367431640625e-7, "9.5367431640625e-07"),
            (1.5e-38, "1.5e-38"),
            (1.25e-123, "1.25e-123"),
            (123456789012345.0, "123456789012345.0"),
            (1e16, "1e+16"),
            (3.4028234663852886e38, "3.4028234663852886e+38"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn a_state_is_read_back() {
        for offset in [None, Some(0.0123f32)] {
            let state = QuantState::new(QuantType::Fp4, 128, "float16", &[3, 5], offset);
            assert_eq!(QuantState::from_json(state.to_json().as_bytes()).unwrap(), state);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = QuantState::from_json(&bytes);
        }

        #[test]
        fn any_offset_survives(offset in prop::num::f32::NORMAL | prop::num::f32::ZERO | prop::num::f32::SUBNORMAL) {
            let state = QuantState::new(QuantType::Nf4, 64, "bfloat16", &[1, 1], Some(offset));
            let read = QuantState::from_json(state.to_json().as_bytes()).unwrap();
            prop_assert_eq!(read.nested_offset, Some(f64::from(offset)));
        }
    }
}
