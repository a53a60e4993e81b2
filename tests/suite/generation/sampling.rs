//! The choice of the next token.

use std::path::{Path, PathBuf};

use medical_vision::Error;
use medical_vision::generation::{GenerationOptions, Sampler};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

use super::options;

const REMOVED: f32 = f32::NEG_INFINITY;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn sampling(temperature: f64, top_k: Option<usize>, top_p: Option<f64>) -> GenerationOptions {
    GenerationOptions {
        temperature,
        top_k,
        top_p,
        seed: Some(1),
        ..options()
    }
}

#[test]
fn processed_logits_are_those_of_transformers() {
    let cases: Value = serde_json::from_slice(&std::fs::read(fixture("sampling.json")).unwrap()).unwrap();
    let bytes = std::fs::read(fixture("sampling.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: String| -> Vec<f32> {
        let data = tensors.tensor(&name).unwrap().data();
        data.chunks_exact(4)
            .map(|x| f32::from_le_bytes(x.try_into().unwrap()))
            .collect()
    };
    let mut compared = 0;
    for case in cases["cases"].as_array().unwrap() {
        if !case["min_p"].is_null() {
            continue;
        }
        let name = case["name"].as_str().unwrap();
        let history: Vec<i64> = tensors
            .tensor(&format!("{name}.input_ids"))
            .unwrap()
            .data()
            .chunks_exact(8)
            .map(|x| i64::from_le_bytes(x.try_into().unwrap()))
            .collect();
        let options = GenerationOptions {
            repetition_penalty: case["repetition_penalty"].as_f64().unwrap(),
            ..sampling(
                case["temperature"].as_f64().unwrap(),
                case["top_k"].as_u64().map(|k| k as usize).filter(|&k| k > 0),
                case["top_p"].as_f64(),
            )
        };
        let mut logits = floats(format!("{name}.logits"));
        Sampler::new(&options, &history).process(&mut logits).unwrap();
        let expected = floats(format!("{name}.processed"));
        assert_eq!(logits.len(), expected.len());
        for (index, (x, expected)) in logits.iter().zip(expected).enumerate() {
            let near = *x == expected || (x - expected).abs() <= 1e-5 * expected.abs().max(1.0);
            assert!(near, "{name}[{index}]: {x} instead of {expected}");
        }
        let kept = logits.iter().filter(|x| x.is_finite()).count();
        assert_eq!(kept as u64, case["kept"].as_u64().unwrap(), "{name}");
        compared += 1;
    }
    assert!(compared >= 14, "{compared}");
}

#[test]
fn greedy_takes_the_largest_and_of_equals_the_first() {
    let mut sampler = Sampler::new(&options(), &[]);
    for length in [1, 2, 15, 16, 17, 33, 8192, 8193] {
        for at in [0, length / 2, length - 1] {
            let mut logits = vec![-3.0; length];
            logits[at..].fill(-1.5);
            assert_eq!(sampler.next(&mut logits).unwrap(), at as i64, "{length}");
        }
    }
    assert_eq!(sampler.next(&mut [REMOVED, -0.0, 0.0, REMOVED]).unwrap(), 1);
}

#[test]
fn greedy_pays_the_penalty_on_prompt_and_answer() {
    let penalty = GenerationOptions {
        repetition_penalty: 2.0,
        ..options()
    };
    // Seen ids far outside the vocabulary change nothing.
    let mut sampler = Sampler::new(&penalty, &[0, 0, i64::MAX, -4]);
    let chosen: Vec<i64> = (0..4)
        .map(|_| sampler.next(&mut [8.0, 6.0, 5.0, -1.0]).unwrap())
        .collect();
    // 8 is halved once, however often it was seen; then 6 and 5 fall to 3 and 2.5.
    assert_eq!(chosen, [1, 2, 0, 0]);
    let mut sampler = Sampler::new(&penalty, &[0]);
    assert_eq!(sampler.next(&mut [-1.0, -1.5]).unwrap(), 1);
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(&sampling(temperature, Some(3), Some(0.9)), &[]);
        for length in [1, 7, 16, 40] {
            for at in 0..length {
                for broken in [f32::NAN, f32::INFINITY] {
                    let mut logits = vec![0.5; length];
                    logits[at] = broken;
                    assert!(
                        matches!(sampler.next(&mut logits), Err(Error::NonFinite(_))),
                        "{broken} at {at} of {length}"
                    );
                }
            }
            assert!(matches!(
                sampler.next(&mut vec![REMOVED; length]),
                Err(Error::NonFinite(_))
            ));
        }
        assert!(matches!(sampler.next(&mut []), Err(Error::NonFinite(_))));
        // Single removed tokens are no fault.
        assert_eq!(sampler.next(&mut [REMOVED, 1.0, REMOVED]).unwrap(), 1);
    }
    // Logits so large that the temperature carries them out of range.
    let mut cold = Sampler::new(&sampling(1e-5, None, None), &[]);
    assert!(matches!(cold.next(&mut [3e38, 3e38]), Err(Error::NonFinite(_))));
}

fn draws(options: &GenerationOptions, logits: &[f32], count: usize) -> Vec<i64> {
    let mut sampler = Sampler::new(options, &[]);
    (0..count)
        .map(|_| sampler.next(&mut logits.to_vec()).unwrap())
        .collect()
}

#[test]
fn a_seed_gives_the_same_draws_everywhere() {
    let logits: Vec<f32> = (0..32).map(|i| (i % 5) as f32 * 0.5).collect();
    let options = sampling(1.0, None, None);
    let first = draws(&options, &logits, 16);
    assert_eq!(first, draws(&options, &logits, 16));
    // Recorded once: another generator, or another way to use it, is a break of promise.
    assert_eq!(first, RECORDED);
    let other = GenerationOptions {
        seed: Some(2),
        ..options.clone()
    };
    assert_ne!(first, draws(&other, &logits, 16));
    let unseeded = GenerationOptions {
        seed: None,
        ..options
    };
    assert_ne!(draws(&unseeded, &logits, 64), draws(&unseeded, &logits, 64));
}

const RECORDED: [i64; 16] = [29, 22, 14, 6, 8, 29, 13, 23, 17, 13, 7, 3, 29, 14, 7, 4];

#[test]
fn draws_follow_the_probabilities() {
    let probabilities = [0.1_f64, 0.4, 0.2, 0.05, 0.25];
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
    let count = 20_000;
    let drawn = draws(&sampling(1.0, None, None), &logits, count);
    for (token, p) in probabilities.iter().enumerate() {
        let seen = drawn.iter().filter(|&&d| d == token as i64).count() as f64 / count as f64;
        assert!((seen - p).abs() < 0.015, "{token}: {seen} instead of {p}");
    }
}

#[test]
fn only_what_is_left_is_drawn() {
    let logits: Vec<f32> = (0..100).map(|i| ((i * 37) % 100) as f32 * 0.02).collect();
    let allowed = |options: &GenerationOptions| {
        let mut processed = logits.clone();
        Sampler::new(options, &[]).process(&mut processed).unwrap();
        processed.iter().map(|x| x.is_finite()).collect::<Vec<bool>>()
    };
    for options in [
        sampling(0.7, Some(4), None),
        sampling(1.0, None, Some(0.05)),
        sampling(2.0, Some(30), Some(0.3)),
    ] {
        let allowed = allowed(&options);
        let drawn = draws(&options, &logits, 3000);
        assert!(drawn.iter().all(|&token| allowed[token as usize]));
        let distinct: std::collections::BTreeSet<i64> = drawn.into_iter().collect();
        assert_eq!(
            distinct.len(),
            allowed.iter().filter(|&&a| a).count(),
            "some token was never drawn"
        );
    }
    assert_eq!(draws(&sampling(5.0, Some(1), None), &logits, 50), [27; 50]);
    assert_eq!(draws(&sampling(5.0, None, Some(1e-17)), &logits, 50), [27; 50]);
    assert_eq!(draws(&sampling(1e-9, None, None), &logits, 50), [27; 50]);
}

/// transformers' rule, written down as it is: sort, add up, cut.
fn naive_top_p(logits: &[f32], p: f64) -> Vec<bool> {
    let max = logits.iter().copied().fold(REMOVED, f32::max);
    let weights: Vec<f64> = logits.iter().map(|x| f64::from((x - max).exp())).collect();
    let total: f64 = weights.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let mut kept = vec![true; logits.len()];
    let mut sum = 0.0;
    for &index in &order[..order.len() - 1] {
        sum += weights[index] / total;
        kept[index] = sum > 1.0 - p;
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn top_p_without_a_full_sort_keeps_the_same(
        // Values in coarse steps, so that equals occur; p never hits a sum exactly.
        steps in prop::collection::vec(-40..40_i32, 1..80), p in 0.001..0.999_f64
    ) {
        let mut logits: Vec<f32> = steps.iter().map(|&step| step as f32 * 0.25).collect();
        let expected = naive_top_p(&logits, p);
        Sampler::new(&sampling(1.0, None, Some(p)), &[]).process(&mut logits).unwrap();
        let kept: Vec<bool> = logits.iter().map(|x| x.is_finite()).collect();
        prop_assert_eq!(kept, expected);
    }
}
