//! Keys and values of pages that were read before, for further questions about them.

use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::request::Picture;
use crate::processing::Grid;
use crate::qwen2_5_vl::{AdapterIndex, KvPrefix};

/// What a prompt begins with: everything up to its last picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PrefixKey {
    digest: [u8; 32],
    /// Number of tokens.
    pub(super) tokens: usize,
}

impl PrefixKey {
    /// Of the prompt `input_ids` with `images` on `grids`; `None` without pictures.
    pub(super) fn new<'p>(
        input_ids: &[i64],
        image_token: i64,
        adapter: AdapterIndex,
        images: impl Iterator<Item = (&'p Picture, Grid)>,
    ) -> Option<Self> {
        let tokens = input_ids.iter().rposition(|&id| id == image_token)? + 1;
        let mut hasher = Sha256::new();
        hasher.update(adapter.map_or(0, |index| index as u64 + 1).to_le_bytes());
        hasher.update((tokens as u64).to_le_bytes());
        for id in &input_ids[..tokens] {
            hasher.update(id.to_le_bytes());
        }
        for (picture, grid) in images {
            let page = &picture.page;
            let (height, width) = page.original_size();
            for size in [page.height, page.width, height, width] {
                hasher.update(size.to_le_bytes());
            }
            for size in [grid.t, grid.h, grid.w, page.pixels.len()] {
                hasher.update((size as u64).to_le_bytes());
            }
            hasher.update(&page.pixels);
        }
        Some(Self {
            digest: hasher.finalize().into(),
            tokens,
        })
    }
}

/// The prefixes that were used last, within a number of bytes.
pub(super) struct PrefixCache {
    limit: u64,
    /// The one that was used last is last.
    kept: Mutex<Vec<(PrefixKey, Arc<KvPrefix>)>>,
}

impl PrefixCache {
    /// Keeps at most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            kept: Mutex::default(),
        }
    }

    pub(super) fn find(&self, key: &PrefixKey) -> Option<Arc<KvPrefix>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let index = kept.iter().position(|(other, _)| other == key)?;
        let found = kept.remove(index);
        let prefix = Arc::clone(&found.1);
        kept.push(found);
        Some(prefix)
    }

    /// Whether a prefix of `bytes` can be kept at all.
    pub(super) fn takes(&self, bytes: u64) -> bool {
        bytes <= self.limit
    }

    /// Keeps `prefix`, and forgets those that were used longest ago where it needs their room.
    pub(super) fn keep(&self, key: PrefixKey, prefix: KvPrefix) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(other, _)| *other != key);
        kept.push((key, Arc::new(prefix)));
        let mut bytes: u64 = kept.iter().map(|(_, prefix)| prefix.bytes()).sum();
        while bytes > self.limit && !kept.is_empty() {
            bytes -= kept.remove(0).1.bytes();
        }
    }
}
