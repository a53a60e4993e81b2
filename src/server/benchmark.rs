//! Reads the benchmark records of the project.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::types::{Benchmarks, SkippedFile};
use crate::records::{paths::IN_BENCHMARKS, timestamp};

/// Maximum size of a record, bytes.
const MAX_RECORD_BYTES: u64 = 16 * 1024 * 1024;
/// Maximum size of all records in one response, bytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024 * 1024;

/// Reads every record in `folder`, by file stem. Records that cannot be served are listed in `files_skipped`; other files are ignored.
pub(super) fn read_benchmarks(folder: &Path) -> Benchmarks {
    let mut answer = Benchmarks {
        benchmarks: BTreeMap::new(),
        files_loaded: Vec::new(),
        files_skipped: Vec::new(),
        timestamp: timestamp(),
    };
    let mut left = MAX_ANSWER_BYTES;
    for stem in stems(folder) {
        match read_record(&folder.join(format!("{stem}.json")), &mut left) {
            Ok(record) => {
                answer.files_loaded.push(stem.clone());
                answer.benchmarks.insert(stem, record);
            }
            Err(reason) => answer.files_skipped.push(SkippedFile {
                file: stem,
                reason: reason.into(),
            }),
        }
    }
    answer
}

/// Names of the existing records, without `.json`, sorted.
fn stems(folder: &Path) -> Vec<String> {
    let names = IN_BENCHMARKS
        .iter()
        .filter_map(|path| Path::new(path).file_stem());
    let mut stems: Vec<String> = names
        .filter_map(|stem| Some(stem.to_str()?.to_owned()))
        .filter(|stem| folder.join(format!("{stem}.json")).symlink_metadata().is_ok())
        .collect();
    stems.sort_unstable();
    stems
}

/// Reads one record; errors are fixed texts.
fn read_record(path: &Path, left: &mut u64) -> Result<serde_json::Value, &'static str> {
    // A symbolic link could lead out of the folder, and a pipe would never end.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => "a symbolic link",
            _ => "cannot be opened",
        })?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        return Err("not a regular file");
    }
    let most = MAX_RECORD_BYTES.min(*left);
    let mut bytes = Vec::new();
    let read = file.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|_| "cannot be read")?;
    let length = bytes.len() as u64;
    if length > MAX_RECORD_BYTES {
        return Err("larger than 16 MiB");
    }
    *left = left
        .checked_sub(length)
        .ok_or("the records before it fill 64 MiB")?;
    serde_json::from_slice(&bytes).map_err(|_| "not valid JSON")
}
