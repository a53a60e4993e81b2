//! Reading and writing a record's file.

use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::fs::{json::write_pretty, read_bounded};
use crate::{Error, Result};

/// Version of the records that [`write()`] writes.
pub const VERSION: u64 = 1;
const VERSION_KEY: &str = "record_version";
/// Maximum size of a record; a training split of a hundred thousand samples fits.
const MAX_BYTES: u64 = 1 << 30;

/// Reads a record. An error names the file and the key or line.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    read_if_present(path)?.ok_or_else(|| Error::io(path, ErrorKind::NotFound.into()))
}

/// Reads a record; `None` if there is no such file.
pub fn read_if_present<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = text(path)? else {
        return Ok(None);
    };
    let mut value: Value = serde_json::from_str(&text).map_err(|error| {
        Error::invalid_file(path, format!("not valid JSON: {error}; delete it and run again"))
    })?;
    if let Value::Object(map) = &mut value
        && let Some(version) = map.remove(VERSION_KEY)
    {
        check_version(path, &version)?;
    }
    serde_path_to_error::deserialize(value)
        .map(Some)
        .map_err(|error| {
            let (key, reason) = (error.path().to_string(), error.inner());
            let reason = match key.as_str() {
                "." => reason.to_string(),
                key => format!("\"{key}\": {reason}"),
            };
            Error::invalid_file(path, reason)
        })
}

fn check_version(path: &Path, version: &Value) -> Result<()> {
    match version.as_u64() {
        Some(1..=VERSION) => Ok(()),
        Some(newer) if newer > VERSION => Err(Error::invalid_file(
            path,
            format!(
                "\"{VERSION_KEY}\" is {newer}, this program knows {VERSION}: a newer program wrote it; use that one, \
                 or move the file away"
            ),
        )),
        _ => Err(Error::invalid_file(
            path,
            format!("\"{VERSION_KEY}\" must be a whole number, 1 or more"),
        )),
    }
}

fn text(path: &Path) -> Result<Option<String>> {
    let bytes = match read_bounded(path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, error)),
    };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|error| Error::invalid_file(path, format!("not UTF-8: {}", error.utf8_error())))
}

/// A record as it is written.
#[derive(Serialize)]
struct Versioned<'a, T> {
    #[serde(flatten)]
    record: &'a T,
    record_version: u64,
}

/// Writes a record atomically, indented by 2; creates the folder if it is missing.
pub fn write<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    let record_version = VERSION;
    write_json(
        path,
        &Versioned {
            record,
            record_version,
        },
    )
}

/// As [`write()`] for a list, which has no `record_version`.
pub fn write_list<T: Serialize>(path: &Path, records: &[T]) -> Result<()> {
    write_json(path, &records)
}

fn write_json(path: &Path, content: &impl Serialize) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    }
    write_pretty(path, content)
}
