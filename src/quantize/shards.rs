//! The weight files of a folder that is written: which tensors go into which, and their index.

use std::collections::BTreeMap;

use serde_json::json;

use super::json_text;

/// Index of a model in several files.
pub(super) const INDEX: &str = crate::checkpoint::INDEX;

/// One file and its tensors.
pub(super) struct Shard<T> {
    /// Name of the file.
    pub(super) name: String,
    pub(super) tensors: Vec<T>,
}

impl<T> Shard<T> {
    /// Distributes `tensors`, in order, over files of at most `limit` bytes; a larger tensor has a file of its own.
    pub(super) fn plan(
        tensors: impl IntoIterator<Item = T>,
        limit: u64,
        bytes: impl Fn(&T) -> u64,
    ) -> Vec<Self> {
        let (mut shards, mut remaining) = (Vec::<Vec<T>>::new(), 0);
        for tensor in tensors {
            let size = bytes(&tensor);
            match shards.last_mut() {
                Some(shard) if size <= remaining => shard.push(tensor),
                _ => {
                    shards.push(vec![tensor]);
                    remaining = limit;
                }
            }
            remaining = remaining.saturating_sub(size);
        }
        let count = shards.len();
        let shards = shards.into_iter().enumerate();
        shards
            .map(|(i, tensors)| Self {
                name: shard_name(i, count),
                tensors,
            })
            .collect()
    }
}

/// Name of file `index` of `count`.
pub(super) fn shard_name(index: usize, count: usize) -> String {
    match count {
        1 => crate::checkpoint::SINGLE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    }
}

/// The text of [`INDEX`]: the file of each tensor, and the bytes of all tensors.
pub(super) fn index(files: &BTreeMap<String, String>, total_bytes: u64) -> String {
    json_text(&json!({"metadata": {"total_size": total_bytes}, "weight_map": files}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_filled_in_order_up_to_their_limit() {
        let plan = |sizes: &[u64]| {
            let shards = Shard::plan(sizes.to_vec(), 10, |size| *size);
            let shards = shards.into_iter();
            shards
                .map(|shard| (shard.name, shard.tensors))
                .collect::<Vec<_>>()
        };
        assert_eq!(plan(&[4, 6]), [("model.safetensors".to_owned(), vec![4, 6])]);
        let name = |i: u32| format!("model-0000{i}-of-00003.safetensors");
        assert_eq!(
            plan(&[4, 7, 3, 20]),
            [(name(1), vec![4]), (name(2), vec![7, 3]), (name(3), vec![20])]
        );
        assert!(plan(&[]).is_empty());
    }
}
