//! Assignment of samples to the training, validation and test splits.

use std::collections::{BTreeMap, HashSet};

use super::duplicates::duplicate_groups;
use super::samples::Candidate;
use super::{PrepareOptions, SplitRule};
use crate::random::shuffle_key;
use crate::records::SampleSource;

/// Text keys of the reports that the embedded model was not trained on.
const UNSEEN: &str = include_str!("unseen.txt");
/// Number of reports that are held out for the test split of a collection without any of these; at most half of it.
const UNSEEN_COUNT: usize = 100;

/// Splits as sample indices, with the groups of duplicates.
pub(super) struct SplitAssignment {
    /// Indices of training, validation and test samples, shuffled.
    pub(super) indices: [Vec<usize>; 3],
    /// Each sample's group of duplicates.
    pub(super) groups: Vec<usize>,
    /// Keys of the held-out texts: in the test split only, and not in the embedded model's training data.
    pub(super) unseen: HashSet<String>,
}

/// Returns the split sizes: 80, 10 and 10 percent.
fn sizes(total: usize) -> [usize; 3] {
    let (train, validated) = (total * 8 / 10, total * 9 / 10);
    [train, validated - train, total - validated]
}

pub(super) fn split(candidates: &[Candidate], options: &PrepareOptions) -> SplitAssignment {
    let seed = options.seed;
    let groups = duplicate_groups(
        candidates
            .iter()
            .map(|candidate| [candidate.text_key.as_str(), candidate.file.as_str()]),
    );
    let (parts, unseen) = match options.split {
        SplitRule::Grouped => {
            let unseen = unseen(candidates);
            (per_group(candidates, &groups, &unseen, seed), unseen)
        }
        SplitRule::Original => (per_sample(candidates, seed), HashSet::new()),
    };
    let indices = parts.map(|mut part| {
        part.sort_by_cached_key(|index| {
            let name = name(&candidates[*index]);
            (shuffle_key(seed, "sample", &name), name)
        });
        part
    });
    SplitAssignment {
        indices,
        groups,
        unseen,
    }
}

/// Returns a sample's name for shuffling. The random order depends on the `Debug` form of the source: do not change it.
fn name(candidate: &Candidate) -> String {
    format!("{:?}:{}", candidate.source, candidate.row)
}

/// Shuffles and cuts: duplicates may be in different splits.
fn per_sample(candidates: &[Candidate], seed: u64) -> [Vec<usize>; 3] {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_cached_key(|index| shuffle_key(seed, "split", &name(&candidates[*index])));
    let [train, validation, _] = sizes(order.len());
    let test = order.split_off(train + validation);
    let validation = order.split_off(train);
    [order, validation, test]
}

/// Assigns groups of duplicates as a whole: held-out texts to the test split first, then each group in random order to the
/// first of test, validation and training that has room.
fn per_group(
    candidates: &[Candidate],
    groups: &[usize],
    unseen: &HashSet<String>,
    seed: u64,
) -> [Vec<usize>; 3] {
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, group) in groups.iter().enumerate() {
        members.entry(*group).or_default().push(index);
    }
    let mut order: Vec<Vec<usize>> = members.into_values().collect();
    order.sort_by_cached_key(|members| {
        let keys = members.iter().map(|index| candidates[*index].text_key.as_str());
        let seen = !keys.clone().any(|key| unseen.contains(key));
        (seen, shuffle_key(seed, "split", keys.min().unwrap_or_default()))
    });
    let [_, validation, test] = sizes(candidates.len());
    let mut parts: [Vec<usize>; 3] = Default::default();
    for members in order {
        let is_unseen = members
            .iter()
            .any(|index| unseen.contains(&candidates[*index].text_key));
        let fits = |part: &Vec<usize>, size: usize| part.len() + members.len() <= size;
        let part = match &parts {
            [_, _, tested] if is_unseen || fits(tested, test) => 2,
            [_, validated, _] if fits(validated, validation) => 1,
            _ => 0,
        };
        parts[part].extend(members);
    }
    parts
}

/// Returns the keys of the held-out reports: those that the embedded model was not trained on, if the collection contains
/// any, else its first ones.
fn unseen(candidates: &[Candidate]) -> HashSet<String> {
    let reports = candidates
        .iter()
        .filter(|candidate| candidate.source == SampleSource::MtSamples);
    let mut known = HashSet::new();
    let different: Vec<&str> = reports
        .map(|candidate| candidate.text_key.as_str())
        .filter(|key| known.insert(*key))
        .collect();
    let held_out: HashSet<&str> = UNSEEN.split_whitespace().collect();
    let count = UNSEEN_COUNT.min(different.len() / 2);
    let listed: HashSet<String> = different
        .iter()
        .filter(|key| held_out.contains(**key))
        .map(|key| (*key).to_owned())
        .collect();
    if listed.is_empty() {
        different.into_iter().take(count).map(str::to_owned).collect()
    } else {
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::prepare::images::ImageSource;
    use proptest::prelude::*;

    /// Returns one report per text; equal numbers are equal texts.
    fn reports(texts: &[u16]) -> Vec<Candidate> {
        let report = |(row, text): (usize, &u16)| Candidate {
            source: SampleSource::MtSamples,
            row: row as u64,
            prompt: String::new(),
            response: String::new(),
            image: ImageSource::Text {
                text: text.to_string(),
            },
            text_key: format!("text {text}"),
            file: format!("{text}.png"),
        };
        texts.iter().enumerate().map(report).collect()
    }

    fn options(split: SplitRule, seed: u64) -> PrepareOptions {
        PrepareOptions {
            split,
            seed,
            ..PrepareOptions::default()
        }
    }

    #[test]
    fn split_sizes_are_80_10_10() {
        // The original's own figures: 4,896 samples.
        assert_eq!(sizes(4896), [3916, 490, 490]);
        assert_eq!(sizes(10), [8, 1, 1]);
        assert_eq!(sizes(1), [0, 0, 1]);
        assert_eq!(sizes(0), [0, 0, 0]);
    }

    #[test]
    fn the_first_hundred_distinct_texts_are_held_out_with_their_duplicates() {
        let texts: Vec<u16> = (0..1500).map(|row| row % 1000).collect();
        let split = split(&reports(&texts), &options(SplitRule::Grouped, 42));
        assert_eq!(split.unseen.len(), 100);
        let test: HashSet<usize> = split.indices[2].iter().copied().collect();
        for row in (0..100).chain(1000..1100) {
            assert!(test.contains(&row), "row {row}");
        }
        assert_eq!(split.indices.each_ref().map(Vec::len), [1150, 150, 200]);
    }

    #[test]
    fn the_held_out_list_has_a_hundred_keys() {
        let keys: HashSet<&str> = UNSEEN.split_whitespace().collect();
        assert_eq!(keys.len(), 100);
        assert!(
            keys.iter()
                .all(|key| key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
    }

    #[test]
    fn the_order_depends_on_the_seed() {
        let texts: Vec<u16> = (0..400).collect();
        let train = |seed| split(&reports(&texts), &options(SplitRule::Grouped, seed)).indices[0].clone();
        assert_eq!(train(1), train(1));
        assert_ne!(train(1), train(2));
        assert!(train(1).windows(2).any(|pair| pair[0] > pair[1]), "shuffled");
    }

    proptest! {
        #[test]
        fn every_sample_is_in_one_split_and_no_text_in_two(texts in proptest::collection::vec(0u16..60, 0..200), seed: u64) {
            let candidates = reports(&texts);
            let split = split(&candidates, &options(SplitRule::Grouped, seed));
            let mut all: Vec<usize> = split.indices.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..texts.len()).collect::<Vec<_>>());
            let of = |part: usize| split.indices[part].iter().map(|index| texts[*index]).collect::<HashSet<u16>>();
            prop_assert!(of(0).is_disjoint(&of(1)) && of(0).is_disjoint(&of(2)) && of(1).is_disjoint(&of(2)));
        }

        #[test]
        fn the_original_rule_gives_exact_sizes(texts in proptest::collection::vec(0u16..60, 0..200), seed: u64) {
            let split = split(&reports(&texts), &options(SplitRule::Original, seed));
            prop_assert_eq!(split.indices.each_ref().map(Vec::len), sizes(texts.len()));
            prop_assert!(split.unseen.is_empty());
            let mut all = split.indices.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..texts.len()).collect::<Vec<_>>());
        }
    }
}
