//! Small JSON files of a model folder, and writing JSON files of any kind.

use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::fs::{CONFIG_BYTES, read_bounded, write_atomically};
use crate::{Error, Result};

/// Writes `content` atomically, indented by 2.
pub(crate) fn write_pretty(path: &Path, content: &impl Serialize) -> Result<()> {
    write_atomically(path, |file| {
        serde_json::to_writer_pretty(&mut *file, content)?;
        file.write_all(b"\n")
    })
}

/// The JSON object in `path`, at most [`CONFIG_BYTES`] of it; `None` if there is no such file.
pub(crate) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let text = match read_bounded(path, CONFIG_BYTES) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, error)),
    };
    parse_object(path, &text).map(Some)
}

/// The JSON object `text`, which was read from `path`.
pub(crate) fn parse_object(path: &Path, text: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::invalid_file(path, "must hold a JSON object")),
        Err(error) => Err(Error::invalid_file(path, format!("not valid JSON: {error}"))),
    }
}

/// `map[key]` unless it is absent or null.
pub(crate) fn present<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}
