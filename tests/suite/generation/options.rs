//! generation_config.json and a request's own values.

use medical_vision::checkpoint::ModelFolder;
use medical_vision::generation::{FinishReason, GenerationOptions, GenerationOverrides, RepetitionDetection};
use serde_json::{Value, json};

use super::options;

fn read(generation: Option<Value>, config: Option<Value>) -> Result<GenerationOptions, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in [("generation_config.json", generation), ("config.json", config)] {
        if let Some(value) = value {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        }
    }
    GenerationOptions::from_dir(dir.path()).map_err(|error| error.to_string())
}

fn defaults() -> GenerationOptions {
    GenerationOptions {
        max_new_tokens: 512,
        temperature: 0.0,
        top_k: Some(50),
        top_p: None,
        repetition_penalty: 1.0,
        seed: None,
        stop: Vec::new(),
        stop_token_ids: vec![7],
        repetition_detection: Some(RepetitionDetection::default()),
    }
}

#[test]
fn the_embedded_models_file_is_read() {
    let expected = GenerationOptions {
        max_new_tokens: 640,
        stop_token_ids: vec![8180, 8178],
        ..defaults()
    };
    assert_eq!(options(), expected);
}

#[test]
fn every_key_counts() {
    let hub = json!({
        "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643],
        "repetition_penalty": 1.05, "temperature": 1e-6, "top_k": 20, "top_p": 0.001, "max_new_tokens": 99,
        "transformers_version": "4.49.0"
    });
    let expected = GenerationOptions {
        max_new_tokens: 99,
        temperature: 1e-6,
        top_k: Some(20),
        top_p: Some(0.001),
        repetition_penalty: 1.05,
        stop_token_ids: vec![151645, 151643],
        ..defaults()
    };
    assert_eq!(read(Some(hub), None).unwrap(), expected);
}

#[test]
fn what_is_missing_has_its_default() {
    assert_eq!(read(Some(json!({"eos_token_id": 7})), None).unwrap(), defaults());
    assert_eq!(read(None, Some(json!({"eos_token_id": 7}))).unwrap(), defaults());
    assert_eq!(
        read(
            Some(json!({})),
            Some(json!({"text_config": {"eos_token_id": [7]}}))
        )
        .unwrap(),
        defaults()
    );
    let nulls =
        json!({"eos_token_id": 7, "temperature": null, "top_k": null, "top_p": null, "do_sample": null});
    assert_eq!(read(Some(nulls), None).unwrap(), defaults());
    let sampling = read(Some(json!({"eos_token_id": 7, "do_sample": true})), None).unwrap();
    assert_eq!(sampling.temperature, 1.0);
    for off in [0, -1] {
        assert_eq!(
            read(Some(json!({"eos_token_id": 7, "top_k": off})), None)
                .unwrap()
                .top_k,
            None
        );
    }
    let greedy = read(
        Some(json!({"eos_token_id": 7, "do_sample": false, "temperature": 0.7})),
        None,
    )
    .unwrap();
    assert_eq!(greedy.temperature, 0.0);
}

#[test]
fn bad_values_are_named_by_file_and_key() {
    let bad = [
        ("do_sample", json!("yes")),
        ("temperature", json!("hot")),
        ("temperature", json!(-0.1)),
        ("temperature", json!(1e9)),
        ("top_k", json!(2.5)),
        ("top_k", json!(-2)),
        ("top_p", json!(0)),
        ("top_p", json!(1.01)),
        ("top_p", json!([0.5])),
        ("repetition_penalty", json!(0)),
        ("repetition_penalty", json!(-1)),
        ("eos_token_id", json!("</s>")),
        ("eos_token_id", json!([1, "x"])),
        ("eos_token_id", json!(1.5)),
        ("max_new_tokens", json!(0)),
        ("max_new_tokens", json!(-5)),
        ("max_new_tokens", json!(1e18)),
        ("max_new_tokens", json!(10_000_000)),
    ];
    for (key, value) in bad {
        let mut file = json!({"eos_token_id": 7, "do_sample": true});
        file[key] = value;
        let error = read(Some(file.clone()), None).unwrap_err();
        assert!(
            error.contains("generation_config.json: ") && error.contains(&format!("\"{key}\"")),
            "{file}: {error}"
        );
    }
    let error = read(Some(json!({"eos_token_id": -1})), None).unwrap_err();
    assert!(
        error.contains("generation_config.json: \"stop_token_ids\""),
        "{error}"
    );
    let error = read(Some(json!([])), None).unwrap_err();
    assert!(
        error.contains("generation_config.json: must hold a JSON object"),
        "{error}"
    );
    let error = read(None, Some(json!({"text_config": 3}))).unwrap_err();
    assert!(error.contains("config.json: \"text_config\""), "{error}");
    let error = read(None, Some(json!({}))).unwrap_err();
    assert!(
        error.contains("config.json: \"eos_token_id\" is missing"),
        "{error}"
    );
    let error = read(None, None).unwrap_err();
    assert!(error.contains("config.json: no such file"), "{error}");
}

#[test]
fn a_request_changes_only_what_it_names() {
    let folder = options();
    assert_eq!(folder.with(&GenerationOverrides::default()).unwrap(), folder);
    let all = GenerationOverrides {
        max_new_tokens: Some(3),
        temperature: Some(0.5),
        top_k: Some(0),
        top_p: Some(0.25),
        repetition_penalty: Some(1.5),
        seed: Some(u64::MAX),
        stop: Some(vec!["END".to_owned()]),
        stop_token_ids: Some(vec![12]),
        repetition_detection: Some(None),
    };
    let expected = GenerationOptions {
        max_new_tokens: 3,
        temperature: 0.5,
        top_k: None,
        top_p: Some(0.25),
        repetition_penalty: 1.5,
        seed: Some(u64::MAX),
        stop: vec!["END".to_owned()],
        stop_token_ids: vec![8180, 8178, 12],
        repetition_detection: None,
    };
    assert_eq!(folder.with(&all).unwrap(), expected);
}

#[test]
fn a_temperature_switches_sampling_on_with_the_folders_limits() {
    let folder = read(
        Some(json!({"eos_token_id": 7, "do_sample": false, "top_k": 5, "top_p": 0.5})),
        None,
    )
    .unwrap();
    let warm = GenerationOverrides {
        temperature: Some(0.8),
        ..Default::default()
    };
    let warm = folder.with(&warm).unwrap();
    assert_eq!(
        (warm.temperature, warm.top_k, warm.top_p),
        (0.8, Some(5), Some(0.5))
    );
}

#[test]
fn values_outside_their_range_are_named() {
    type Change = fn(&mut GenerationOverrides);
    let detection = |max, min, count| {
        Some(Some(RepetitionDetection {
            max_pattern_size: max,
            min_pattern_size: min,
            min_count: count,
            min_span: 0,
        }))
    };
    type Case = (&'static str, Box<dyn Fn(&mut GenerationOverrides)>);
    let cases: Vec<Case> = vec![
        ("max_new_tokens", Box::new(|o| o.max_new_tokens = Some(0))),
        (
            "max_new_tokens",
            Box::new(|o| o.max_new_tokens = Some(usize::MAX)),
        ),
        ("temperature", Box::new(|o| o.temperature = Some(-0.001))),
        ("temperature", Box::new(|o| o.temperature = Some(f64::NAN))),
        ("temperature", Box::new(|o| o.temperature = Some(f64::INFINITY))),
        ("top_p", Box::new(|o| o.top_p = Some(0.0))),
        ("top_p", Box::new(|o| o.top_p = Some(1.0001))),
        ("top_p", Box::new(|o| o.top_p = Some(f64::NAN))),
        (
            "repetition_penalty",
            Box::new(|o| o.repetition_penalty = Some(0.0)),
        ),
        (
            "repetition_penalty",
            Box::new(|o| o.repetition_penalty = Some(f64::NAN)),
        ),
        (
            "repetition_penalty",
            Box::new(|o| o.repetition_penalty = Some(101.0)),
        ),
        ("stop", Box::new(|o| o.stop = Some(vec![String::new()]))),
        ("stop", Box::new(|o| o.stop = Some(vec!["é".repeat(257)]))),
        ("stop", Box::new(|o| o.stop = Some(vec!["x".to_owned(); 17]))),
        ("stop_token_ids", Box::new(|o| o.stop_token_ids = Some(vec![-1]))),
        (
            "stop_token_ids",
            Box::new(|o| o.stop_token_ids = Some(vec![1; 100])),
        ),
        (
            "repetition_detection",
            Box::new(move |o| o.repetition_detection = detection(4097, 1, 2)),
        ),
        (
            "repetition_detection",
            Box::new(move |o| o.repetition_detection = detection(3, 4, 2)),
        ),
        (
            "repetition_detection",
            Box::new(move |o| o.repetition_detection = detection(3, 1, 1)),
        ),
    ];
    for (name, change) in cases {
        let mut overrides = GenerationOverrides::default();
        change(&mut overrides);
        let error = options().with(&overrides).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name}: must be ")), "{error}");
    }
    let edges: [Change; 8] = [
        |o| o.max_new_tokens = Some(1),
        |o| o.temperature = Some(0.0),
        |o| o.temperature = Some(100.0),
        |o| o.top_p = Some(1.0),
        |o| o.top_k = Some(usize::MAX),
        |o| o.stop = Some(vec!["é".repeat(256); 16]),
        |o| o.repetition_penalty = Some(0.01),
        |o| o.seed = Some(0),
    ];
    for change in edges {
        let mut overrides = GenerationOverrides::default();
        change(&mut overrides);
        options().with(&overrides).unwrap();
    }
}

#[test]
fn repetition_detection_is_written_as_vllm_writes_it() {
    let vllm: RepetitionDetection =
        serde_json::from_value(json!({"max_pattern_size": 20, "min_pattern_size": 2, "min_count": 3}))
            .unwrap();
    assert_eq!(
        (
            vllm.max_pattern_size,
            vllm.min_pattern_size,
            vllm.min_count,
            vllm.min_span
        ),
        (20, 2, 3, 0)
    );
    let off: RepetitionDetection = serde_json::from_value(json!({"max_pattern_size": 0})).unwrap();
    let overrides = GenerationOverrides {
        repetition_detection: Some(Some(off)),
        ..Default::default()
    };
    assert_eq!(options().with(&overrides).unwrap().repetition_detection, None);
    assert!(serde_json::from_value::<RepetitionDetection>(json!({"max_patern_size": 20})).is_err());
    assert_eq!(
        serde_json::to_value(FinishReason::Repetition).unwrap(),
        json!("repetition")
    );
}

#[test]
fn unsupported_keys_are_warnings_unless_neutral() {
    let dir = tempfile::tempdir().unwrap();
    let value = json!({"num_beams": 4, "min_p": 0.0, "typical_p": 1.0, "min_new_tokens": null});
    std::fs::write(dir.path().join("generation_config.json"), value.to_string()).unwrap();
    let warnings = GenerationOptions::warnings(&ModelFolder::new(dir.path())).unwrap();
    let [warning] = warnings.as_slice() else {
        panic!("{warnings:?}");
    };
    assert!(warning.contains("generation_config.json") && warning.contains("\"num_beams\""));
}
