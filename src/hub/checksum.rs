//! The hub's two checksums: SHA-256 for files in large-file storage (LFS), git's blob id (SHA-1) for small files.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::fs::{hex, open_regular};
use crate::{Error, Result};

/// Checksum of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checksum {
    /// SHA-256 of the content.
    Sha256([u8; 32]),
    /// SHA-1 of `"blob SIZE\0"` and the content: git's object id.
    GitBlob([u8; 20]),
}

impl Checksum {
    /// Returns a hasher of this kind for a file of `size` bytes.
    pub fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Self::sha256_hasher(),
            Self::GitBlob(_) => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    /// Returns a SHA-256 hasher.
    pub fn sha256_hasher() -> Hasher {
        Hasher::Sha256(Sha256::new())
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: &[u8] = match self {
            Self::Sha256(bytes) => bytes,
            Self::GitBlob(bytes) => bytes,
        };
        formatter.write_str(&hex(bytes))
    }
}

impl FromStr for Checksum {
    type Err = String;

    /// Parses 64 hexadecimal digits as SHA-256, 40 as a git blob id.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.len() {
            64 => unhex(text).map(Self::Sha256),
            40 => unhex(text).map(Self::GitBlob),
            _ => None,
        }
        .ok_or_else(|| "expected 64 (SHA-256) or 40 (git blob) hexadecimal digits".to_owned())
    }
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|value| value as u8))
        .collect();
    let (pairs, rest) = digits.as_ref()?.as_chunks::<2>();
    let mut bytes = [0; N];
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = high << 4 | low;
    }
    Some(bytes)
}

/// Incremental hasher.
#[derive(Debug, Clone)]
pub enum Hasher {
    /// For [`Checksum::Sha256`].
    Sha256(Sha256),
    /// For [`Checksum::GitBlob`].
    GitBlob(Sha1),
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    /// Returns the checksum of all bytes.
    pub fn finish(self) -> Checksum {
        match self {
            Self::Sha256(hasher) => Checksum::Sha256(hasher.finalize().into()),
            Self::GitBlob(hasher) => Checksum::GitBlob(hasher.finalize().into()),
        }
    }

    /// Returns the checksum of the file at `path`.
    pub fn hash_file(path: &Path, mut hasher: Hasher) -> Result<Checksum> {
        open_regular(path)
            .and_then(|file| read_chunks(file, |chunk| hasher.update(chunk)))
            .map_err(|error| Error::io(path, error))?;
        Ok(hasher.finish())
    }
}

/// Calls `on_chunk` with the content of `reader`, chunk by chunk. Returns the number of bytes.
pub(super) fn read_chunks(mut reader: impl Read, mut on_chunk: impl FnMut(&[u8])) -> std::io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(read) => {
                on_chunk(&buffer[..read]);
                total += read as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_sha256sum_and_git() {
        let mut hasher = Checksum::sha256_hasher();
        hasher.update(b"hello\n");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(hasher.finish().to_string(), sha256);
        // `echo hello | git hash-object --stdin`
        let blob: Checksum = "ce013625030ba8dba906f756967f9e9ca394464a".parse().unwrap();
        let mut hasher = blob.hasher(6);
        hasher.update(b"hel");
        hasher.update(b"lo\n");
        assert_eq!(hasher.finish(), blob);
    }

    #[test]
    fn only_40_or_64_hexadecimal_digits_are_parsed() {
        for text in [
            "",
            "abc",
            &"g".repeat(64),
            &"é".repeat(32),
            &"0".repeat(63),
            &"+0".repeat(20),
        ] {
            assert!(text.parse::<Checksum>().is_err(), "{text}");
        }
    }
}
