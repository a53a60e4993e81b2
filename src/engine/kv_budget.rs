//! Memory for the keys and values of all answers that run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Device, Kind};

use crate::device::{gpu_memory, host_memory};
use crate::qwen2_5_vl::TextConfig;

/// Tokens that always fit: one large page is never refused for a guess of what is free.
const LEAST_TOKENS: u64 = 8192;

/// Bytes of keys and values of one token of a model that computes in `kind`.
pub fn kv_bytes_per_token(config: &TextConfig, kind: Kind) -> u64 {
    let values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
    values as u64 * kind.elt_size_in_bytes() as u64
}

/// Bytes for keys and values, where `free_bytes` are free beside the loaded model: the other half is for the prompts' activations.
pub fn kv_budget_bytes(free_bytes: Option<u64>, bytes_per_token: u64) -> u64 {
    (free_bytes.unwrap_or(0) / 2).max(LEAST_TOKENS * bytes_per_token)
}

/// Free memory of `device`, bytes; `None` if unknown.
pub(super) fn free_bytes(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => {
            let memory = gpu_memory(index).ok()?;
            Some(memory.total_bytes.saturating_sub(memory.used_bytes))
        }
        _ => host_memory().map(|memory| memory.available_bytes),
    }
}

/// What all answers together may use, and what they do use.
pub(super) struct KvBudget {
    bytes: u64,
    bytes_per_token: u64,
    used: AtomicU64,
}

/// The share of one answer; given back when dropped.
pub(super) struct KvShare {
    budget: Arc<KvBudget>,
    bytes: u64,
}

impl KvBudget {
    pub(super) fn new(bytes: u64, bytes_per_token: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            bytes_per_token: bytes_per_token.max(1),
            used: AtomicU64::new(0),
        })
    }

    /// Tokens that fit when nothing else runs.
    pub(super) fn tokens(&self) -> usize {
        usize::try_from(self.bytes / self.bytes_per_token).unwrap_or(usize::MAX)
    }

    /// Whether `tokens` fit beside what runs.
    pub(super) fn has_room(&self, tokens: usize) -> bool {
        self.used.load(Ordering::Relaxed) + self.of(tokens) <= self.bytes
    }

    /// Takes room for `tokens`, which [`Self::has_room`] was asked for where there is something to wait for.
    pub(super) fn take(self: &Arc<Self>, tokens: usize) -> KvShare {
        let bytes = self.of(tokens);
        self.used.fetch_add(bytes, Ordering::Relaxed);
        KvShare {
            budget: Arc::clone(self),
            bytes,
        }
    }

    /// Bytes of keys and values of `tokens`.
    pub(super) fn of(&self, tokens: usize) -> u64 {
        tokens as u64 * self.bytes_per_token
    }
}

impl Drop for KvShare {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_is_free_is_for_keys_and_values() {
        assert_eq!(kv_budget_bytes(Some(10 << 30), 1024), 5 << 30);
        assert_eq!(kv_budget_bytes(Some(1000), 1024), 8192 * 1024);
        assert_eq!(kv_budget_bytes(None, 10), 81_920);
    }

    #[test]
    fn shares_are_given_back() {
        let budget = KvBudget::new(100, 10);
        assert_eq!(budget.tokens(), 10);
        let share = budget.take(6);
        assert!(budget.has_room(4) && !budget.has_room(5));
        drop(share);
        assert!(budget.has_room(10) && !budget.has_room(11));
    }
}
