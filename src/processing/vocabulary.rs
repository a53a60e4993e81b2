//! Token id → bytes.

use std::path::Path;

use tokenizers::{AddedToken, Tokenizer};

use crate::{Error, Result};

/// Maximum token id, far above every published vocabulary.
const MAX_ID: u32 = 1 << 24;

/// Bytes of each token id.
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Token `id` is `bytes[starts[id]..starts[id + 1]]`.
    starts: Vec<usize>,
}

impl Vocabulary {
    /// Length in bytes of the longest token, at least 1.
    pub(super) fn longest(&self) -> usize {
        let lengths = self.starts.windows(2).map(|pair| pair[1] - pair[0]);
        lengths.max().unwrap_or(0).max(1)
    }

    /// Bytes of a byte-level tokenizer's tokens; special tokens have none.
    pub(super) fn new(tokenizer: &Tokenizer, added: &[(u32, AddedToken)], path: &Path) -> Result<Self> {
        let mut tokens: Vec<(u32, String)> = tokenizer
            .get_vocab(false)
            .into_iter()
            .map(|(t, id)| (id, t))
            .collect();
        tokens.retain(|(id, _)| added.binary_search_by_key(id, |(a, _)| *a).is_err());
        let readable = added.iter().filter(|(_, token)| !token.special);
        tokens.extend(readable.map(|(id, token)| (*id, token.content.clone())));
        tokens.sort_unstable();
        if let Some((id, _)) = tokens.last().filter(|(id, _)| *id > MAX_ID) {
            return Err(Error::invalid_file(
                path,
                format!("token id {id} is above {MAX_ID}"),
            ));
        }
        let table = byte_of_char();
        let mut vocabulary = Self {
            bytes: Vec::new(),
            starts: vec![0],
        };
        for (id, token) in tokens {
            vocabulary.starts.resize(id as usize + 1, vocabulary.bytes.len());
            let start = vocabulary.bytes.len();
            for char in token.chars() {
                match table.get(char as usize) {
                    Some(Some(byte)) => vocabulary.bytes.push(*byte),
                    _ => {
                        // Not in the byte alphabet: the token is its own text.
                        vocabulary.bytes.truncate(start);
                        vocabulary.bytes.extend_from_slice(token.as_bytes());
                        break;
                    }
                }
            }
            vocabulary.starts.push(vocabulary.bytes.len());
        }
        Ok(vocabulary)
    }

    /// Bytes of one token; none for special and unknown ids.
    pub(super) fn bytes(&self, id: i64) -> &[u8] {
        let bounds = usize::try_from(id)
            .ok()
            .and_then(|id| self.starts.get(id..=id.checked_add(1)?));
        bounds.map_or(&[], |bounds| &self.bytes[bounds[0]..bounds[1]])
    }
}

/// Inverse of GPT-2's byte-to-unicode table: Latin-1's printable characters map to themselves, the other bytes follow in order
/// from U+0100.
fn byte_of_char() -> [Option<u8>; 0x144] {
    let mut table = [None; 0x144];
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            table[byte as usize] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
    }
    table
}
