//! The header of a safetensors file: the offsets of its tensors, checked against the file's length.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use tch::Kind;

use super::{StoredTensor, canonical_name};
use crate::{Error, Result};

/// Size of the length field before the header.
pub(crate) const LENGTH_BYTES: usize = 8;
/// Maximum size of a header; the 72B model's are under 1 MB.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Maximum number of tensors in a file.
const MAX_TENSORS: usize = 100_000;

/// A checked header.
#[derive(Debug)]
pub(crate) struct Header {
    metadata: Metadata,
    data_start: usize,
}

impl Header {
    /// Size of the header of the file `path`, which starts with `beginning` and has `length` bytes.
    pub(crate) fn size(path: &Path, beginning: &[u8], length: u64) -> Result<usize> {
        let Some(size) = beginning.first_chunk::<LENGTH_BYTES>() else {
            return Err(Error::invalid_file(
                path,
                format!("{length} bytes are not a safetensors file"),
            ));
        };
        let size = u64::from_le_bytes(*size);
        if size > MAX_HEADER_BYTES || size > length.saturating_sub(LENGTH_BYTES as u64) {
            return Err(Error::invalid_file(
                path,
                format!(
                    "a header of {size} bytes in a file of {length} bytes: the file is truncated or not a safetensors file"
                ),
            ));
        }
        Ok(size as usize)
    }

    /// Parses the header `text` (JSON) of the file `path`, which has `length` bytes.
    pub(crate) fn parse(path: &Path, text: &[u8], length: u64) -> Result<Self> {
        let damaged = |error: serde_json::Error| {
            Error::invalid_file(
                path,
                format!("the safetensors header is damaged or the file truncated: {error}"),
            )
        };
        serde_json::from_slice::<DistinctKeys>(text).map_err(damaged)?;
        let metadata: Metadata = serde_json::from_slice(text).map_err(damaged)?;
        if metadata.offset_keys().len() > MAX_TENSORS {
            return Err(Error::invalid_file(path, "holds too many tensors"));
        }
        let data_start = LENGTH_BYTES + text.len();
        let held = length.saturating_sub(data_start as u64);
        if metadata.data_len() as u64 != held {
            return Err(Error::invalid_file(
                path,
                format!(
                    "the header promises {} bytes of tensors, the file holds {held}: download it again",
                    metadata.data_len()
                ),
            ));
        }
        Ok(Self { metadata, data_start })
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// The byte range of a tensor in the file.
    pub(super) fn place(&self, info: &TensorInfo) -> Range<usize> {
        let (begin, end) = info.data_offsets;
        self.data_start + begin..self.data_start + end
    }

    /// Names and descriptions of all tensors.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, &TensorInfo)> {
        self.metadata.tensors().into_iter()
    }

    /// Bytes of all tensors.
    pub(super) fn data_bytes(&self) -> u64 {
        self.metadata.data_len() as u64
    }

    /// All tensors of the file `path`, in no particular order.
    pub(crate) fn stored(&self, path: &Path) -> impl Iterator<Item = StoredTensor> {
        self.tensors().map(|(name, info)| StoredTensor {
            canonical: canonical_name(&name),
            dtype: info.dtype,
            shape: info.shape.clone(),
            file: path.to_owned(),
            place: self.place(info),
            name,
        })
    }
}

/// libtorch's name of a stored dtype; `None` for dtypes that weights are not read in.
pub(crate) fn weight_kind(dtype: safetensors::Dtype) -> Option<Kind> {
    match dtype {
        safetensors::Dtype::F32 => Some(Kind::Float),
        safetensors::Dtype::F16 => Some(Kind::Half),
        safetensors::Dtype::BF16 => Some(Kind::BFloat16),
        _ => None,
    }
}

/// The dtype in which a tensor of `kind` is stored; `None` for kinds that are never written.
pub(super) fn stored_dtype(kind: Kind) -> Option<safetensors::Dtype> {
    match kind {
        Kind::Float => Some(safetensors::Dtype::F32),
        Kind::Half => Some(safetensors::Dtype::F16),
        Kind::BFloat16 => Some(safetensors::Dtype::BF16),
        Kind::Int => Some(safetensors::Dtype::I32),
        Kind::Int64 => Some(safetensors::Dtype::I64),
        _ => None,
    }
}

/// JSON without duplicate keys, of which parsers keep different ones.
pub(super) struct DistinctKeys;

impl<'de> Deserialize<'de> for DistinctKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for DistinctKeys {
    type Value = Self;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("duplicate key {key:?}")));
            }
            seen.insert(key);
            map.next_value::<Self>()?;
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str, data: u64) -> Result<Header, String> {
        let length = LENGTH_BYTES as u64 + text.len() as u64 + data;
        Header::parse(Path::new("file"), text.as_bytes(), length).map_err(|error| error.to_string())
    }

    #[test]
    fn a_duplicate_key_is_refused() {
        let one = r#""a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}"#;
        assert!(parse(&format!("{{{one}}}"), 4).is_ok());
        let other = r#""a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}"#;
        let escaped = r#""\u0061": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}"#;
        for twice in [
            format!("{{{one}, {one}}}"),
            format!("{{{one}, {other}}}"),
            format!("{{{one}, {escaped}}}"),
            format!(r#"{{"__metadata__": {{}}, {one}, "__metadata__": {{}}}}"#),
            format!(r#"{{"__metadata__": {{"b": "1", "b": "2"}}, {one}}}"#),
            r#"{"a": {"dtype": "U8", "dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}"#.to_owned(),
        ] {
            let reason = parse(&twice, 4).unwrap_err();
            assert!(reason.contains("duplicate key"), "{reason}");
        }
    }

    #[test]
    fn the_file_has_the_length_that_the_header_says() {
        let text = r#"{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}"#;
        for data in [0, 3, 5] {
            let reason = parse(text, data).unwrap_err();
            assert!(reason.contains("promises 4 bytes"), "{reason}");
        }
        let size = |beginning: &[u8], length| Header::size(Path::new("file"), beginning, length);
        assert_eq!(size(&60u64.to_le_bytes(), 68).unwrap(), 60);
        assert!(size(&61u64.to_le_bytes(), 68).is_err() && size(&[0; 7], 7).is_err());
        assert!(size(&u64::MAX.to_le_bytes(), u64::MAX).is_err());
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(text in any::<Vec<u8>>(), length in any::<u64>()) {
            let _ = Header::parse(Path::new("file"), &text, length);
            let _ = Header::size(Path::new("file"), &text, length);
        }

        #[test]
        fn any_offsets_are_read_or_refused(dims in prop::collection::vec(any::<u64>(), 0..4), begin in any::<u64>(), end in any::<u64>()) {
            let text = format!(r#"{{"a": {{"dtype": "F32", "shape": {dims:?}, "data_offsets": [{begin}, {end}]}}}}"#);
            if let Ok(header) = parse(&text, end) {
                let info = header.info("a").unwrap();
                prop_assert_eq!(header.place(info).len() as u64, 4 * dims.iter().product::<u64>());
            }
        }
    }
}
