//! The processor's files: both forms load, and what is not done is refused by its name.

use medical_vision::processing::ImageProcessor;
use serde_json::{Value, json};

fn load(file: &str, text: &str) -> Result<ImageProcessor, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(file), text).unwrap();
    ImageProcessor::from_dir(dir.path()).map_err(|error| error.to_string())
}

fn hub() -> Value {
    json!({
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"
    })
}

/// As transformers 5 saves it.
fn saved() -> Value {
    json!({
        "image_processor": {
            "data_format": "channels_first", "do_convert_rgb": true, "do_normalize": true, "do_rescale": true,
            "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            "image_processor_type": "Qwen2VLImageProcessor", "merge_size": 3, "patch_size": 10, "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"longest_edge": 360000, "shortest_edge": 900},
            "temporal_patch_size": 1
        },
        "processor_class": "Qwen2_5_VLProcessor"
    })
}

#[test]
fn both_forms_load() {
    let hub = load("preprocessor_config.json", &hub().to_string()).unwrap();
    assert_eq!(
        (hub.patch_size(), hub.temporal_patch_size(), hub.merge_size()),
        (14, 2, 2)
    );
    let new = load("processor_config.json", &saved().to_string()).unwrap();
    assert_eq!(
        (new.patch_size(), new.temporal_patch_size(), new.merge_size()),
        (10, 1, 3)
    );
    let grid = new.grid(600, 1200).unwrap();
    assert_eq!((grid.h, grid.w, grid.tokens(3)), (42, 84, 392));
    // Without a word, the defaults of transformers' class.
    let bare = load("preprocessor_config.json", "{}").unwrap();
    assert_eq!(bare.grid(3000, 3000).unwrap().patches(), 70 * 70);
}

#[test]
fn patches_follow_the_settings() {
    let processor = load("processor_config.json", &saved().to_string()).unwrap();
    let page = super::Random(5).page(60, 30);
    let patches = processor.process(&page).unwrap().pixel_values;
    assert_eq!(patches.size(), [18, 300]);
    // Patch 9 is the first of the second block of 3 x 3; value 100 + 25 is green at row 2, column 5.
    let green = page.pixels[(2 * 60 + 30 + 5) * 3 + 1];
    assert_eq!(
        patches.double_value(&[9, 125]),
        f64::from((f32::from(green) - 127.5) / 127.5)
    );
}

#[test]
fn the_new_file_goes_before_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("preprocessor_config.json"), hub().to_string()).unwrap();
    std::fs::write(dir.path().join("processor_config.json"), saved().to_string()).unwrap();
    assert_eq!(ImageProcessor::from_dir(dir.path()).unwrap().patch_size(), 10);
    std::fs::write(
        dir.path().join("processor_config.json"),
        r#"{"processor_class": "Q"}"#,
    )
    .unwrap();
    assert_eq!(ImageProcessor::from_dir(dir.path()).unwrap().patch_size(), 14);
}

#[test]
fn a_value_out_of_range_is_refused_by_its_key() {
    let integers = [
        "min_pixels",
        "max_pixels",
        "patch_size",
        "temporal_patch_size",
        "merge_size",
    ];
    let bad = [
        json!(0),
        json!(-1),
        json!(1u64 << 31),
        json!(u64::MAX),
        json!(14.5),
        json!("14"),
        json!([14]),
        json!(true),
    ];
    let constants = ["rescale_factor", "max_enlargement", "image_mean", "image_std"];
    let bad_constants = [
        json!(-1),
        json!(1e300),
        json!("x"),
        json!([0.5, 0.5]),
        json!([1, 2, "3"]),
        json!([-1, 1, 1]),
    ];
    let cases = integers
        .iter()
        .flat_map(|key| bad.iter().map(move |value| (*key, value)));
    let cases = cases.chain(
        constants
            .iter()
            .flat_map(|key| bad_constants.iter().map(move |value| (*key, value))),
    );
    let others = [
        ("do_resize", json!(false)),
        ("do_rescale", json!(false)),
        ("do_normalize", json!("yes")),
        ("do_convert_rgb", json!(false)),
        ("do_center_crop", json!(true)),
        ("do_pad", json!(true)),
        ("resample", json!(2)),
        ("image_processor_type", json!("CLIPImageProcessor")),
        ("size", json!(224)),
        ("image_std", json!([0.0, 1.0, 1.0])),
        ("rescale_factor", json!(0)),
        ("max_enlargement", json!(0.9)),
    ];
    for (key, value) in cases.chain(others.iter().map(|(key, value)| (*key, value))) {
        let mut settings = hub();
        settings[key] = value.clone();
        let error = load("preprocessor_config.json", &settings.to_string()).unwrap_err();
        assert!(
            error.contains("preprocessor_config.json") && error.contains(key),
            "{key} {value}: {error}"
        );
        let nested = json!({"image_processor": settings}).to_string();
        let error = load("processor_config.json", &nested).unwrap_err();
        assert!(
            error.contains(&format!("image_processor.{key}")),
            "{key} {value}: {error}"
        );
    }
}

#[test]
fn size_may_stand_for_the_bounds() {
    let with_size = |size: Value| {
        let mut settings = hub();
        settings["size"] = size;
        settings["min_pixels"] = Value::Null;
        settings["max_pixels"] = Value::Null;
        load("preprocessor_config.json", &settings.to_string())
    };
    let processor = with_size(json!({"shortest_edge": 3136, "longest_edge": 28 * 28 * 4})).unwrap();
    assert_eq!(processor.grid(500, 500).unwrap().tokens(2), 4);
    for (size, key) in [
        (json!({"shortest_edge": 3136}), "max_pixels"),
        (
            json!({"shortest_edge": 0, "longest_edge": 5}),
            "size.shortest_edge",
        ),
        (json!({"shortest_edge": 6, "longest_edge": 5}), "min_pixels"),
    ] {
        assert!(with_size(size).unwrap_err().contains(key), "{key}");
    }
}

#[test]
fn a_broken_or_missing_file_is_named() {
    for text in ["", "{", "[]", "null", "\u{0}", "{\"min_pixels\": 1"] {
        let error = load("preprocessor_config.json", text).unwrap_err();
        assert!(error.contains("preprocessor_config.json"), "{error}");
    }
    let error = load("other.json", "{}").unwrap_err();
    assert!(error.contains("preprocessor_config.json: not found"), "{error}");
    let error = load("processor_config.json", r#"{"image_processor": 3}"#).unwrap_err();
    assert!(error.contains("image_processor"), "{error}");
}

#[test]
fn given_bounds_go_before_the_folders() {
    let processor = load("preprocessor_config.json", &hub().to_string()).unwrap();
    let small = processor
        .clone()
        .with_pixel_bounds(None, Some(28 * 28 * 4))
        .unwrap();
    assert_eq!(small.grid(500, 500).unwrap().tokens(2), 4);
    for (min, max) in [
        (Some(0), None),
        (None, Some(0)),
        (Some(1 << 31), None),
        (None, Some(u64::MAX)),
        (Some(9), Some(8)),
    ] {
        let error = processor
            .clone()
            .with_pixel_bounds(min, max)
            .unwrap_err()
            .to_string();
        assert!(error.contains("_pixels"), "{error}");
    }
}

#[test]
fn small_pages_are_enlarged_up_to_a_bound() {
    let model = load("preprocessor_config.json", &hub().to_string()).unwrap();
    let free = model.with_pixel_bounds(Some(700_000), None).unwrap();
    let bound = free.clone().with_max_enlargement(Some(1.5)).unwrap();
    let sides = |images: &ImageProcessor, height, width| {
        let grid = images.grid(height, width).unwrap();
        (grid.h * 14, grid.w * 14)
    };
    // A label: 16 times its area without a bound.
    assert_eq!(sides(&free, 112, 420), (448, 1624));
    assert_eq!(sides(&bound, 112, 420), (168, 644));
    // A page that the bound does not touch, and one that is large enough.
    assert_eq!(sides(&bound, 700, 700), sides(&free, 700, 700));
    assert_eq!(sides(&bound, 1092, 812), (1092, 812));
    // It stays in the settings.
    let written = load("preprocessor_config.json", &bound.settings().to_string()).unwrap();
    assert_eq!(sides(&written, 112, 420), (168, 644));
    for most in [0.9, f64::NAN, f64::INFINITY] {
        let error = free
            .clone()
            .with_max_enlargement(Some(most))
            .unwrap_err()
            .to_string();
        assert!(error.contains("max_enlargement"), "{error}");
    }
}
