//! `medvision trace` against transformers' goldens of the embedded model.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tch::{Kind, Tensor};

use super::program::{code, run, stderr, stdout, text};

/// Mean and standard deviation of the colour channels, from the model's preprocessor_config.json.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
const PATCH: usize = 14;
const MERGE: usize = 2;

/// A case of the goldens: its tensors, its prompt, its pictures as files.
pub struct Golden {
    pub tensors: HashMap<String, Tensor>,
    pub prompt: String,
    pub pictures: Vec<PathBuf>,
    _folder: tempfile::TempDir,
}

impl Golden {
    pub fn of_nano(case: &str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/fixtures/goldens/nano-{case}.safetensors"));
        let bytes = std::fs::read(&file).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let prompt = header.metadata().as_ref().unwrap()["prompt"].clone();
        let tensors: HashMap<String, Tensor> = Tensor::read_safetensors(&file).unwrap().into_iter().collect();
        let folder = tempfile::tempdir().unwrap();
        let pictures = pictures(&tensors)
            .into_iter()
            .enumerate()
            .map(|(number, picture)| {
                let path = folder.path().join(format!("{number}.png"));
                picture.save(&path).unwrap();
                path
            })
            .collect();
        Self {
            tensors,
            prompt,
            pictures,
            _folder: folder,
        }
    }
}

/// The pictures that a golden's patches were cut from: their sides are multiples of 28, so that nothing was resized and
/// every pixel comes back from its normalised value.
fn pictures(tensors: &HashMap<String, Tensor>) -> Vec<image::RgbImage> {
    let Some(patches) = tensors.get("pixel_values") else {
        return Vec::new();
    };
    let values = Vec::<f32>::try_from(patches.flatten(0, -1)).unwrap();
    let grids = Vec::<i64>::try_from(tensors["image_grid_thw"].flatten(0, -1)).unwrap();
    let mut patches = values.chunks(3 * 2 * PATCH * PATCH);
    let mut pictures = Vec::new();
    for grid in grids.chunks(3) {
        let (rows, columns) = (grid[1] as usize, grid[2] as usize);
        let mut picture = image::RgbImage::new((columns * PATCH) as u32, (rows * PATCH) as u32);
        for number in 0..rows * columns {
            let patch = patches.next().unwrap();
            // Four patches of one merged token stand together, tokens row by row.
            let (token, within) = (number / (MERGE * MERGE), number % (MERGE * MERGE));
            let row = token / (columns / MERGE) * MERGE + within / MERGE;
            let column = token % (columns / MERGE) * MERGE + within % MERGE;
            for y in 0..PATCH {
                for x in 0..PATCH {
                    let colour = [0, 1, 2].map(|channel| {
                        let value = patch[channel * 2 * PATCH * PATCH + y * PATCH + x];
                        ((value * DEVIATION[channel] + MEAN[channel]) * 255.0).round() as u8
                    });
                    let (x, y) = (column * PATCH + x, row * PATCH + y);
                    picture.put_pixel(x as u32, y as u32, image::Rgb(colour));
                }
            }
        }
        pictures.push(picture);
    }
    pictures
}

#[track_caller]
fn assert_close(name: &str, ours: &Tensor, golden: &Tensor, tolerance: f64) {
    assert_eq!(ours.size(), golden.size(), "{name}");
    assert_eq!(ours.kind(), golden.kind(), "{name}");
    let difference = (ours - golden).abs().max().double_value(&[]);
    assert!(difference <= tolerance, "{name} differs by {difference}");
}

#[test]
fn every_stage_of_the_shipped_command_equals_transformers() {
    for case in ["ragged", "several", "text"] {
        let golden = Golden::of_nano(case);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("trace.safetensors");
        let mut arguments = vec![
            "trace",
            "--device",
            "cpu",
            "--prompt",
            &golden.prompt,
            "--out",
            text(&out),
        ];
        for picture in &golden.pictures {
            arguments.extend(["--image", text(picture)]);
        }
        let output = run(&arguments);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
        let trace: HashMap<String, Tensor> = Tensor::read_safetensors(&out).unwrap().into_iter().collect();
        let mut names: Vec<&str> = trace.keys().map(String::as_str).collect();
        names.sort_unstable();
        let mut expected = vec!["input_ids", "logits", "position_ids"];
        if !golden.pictures.is_empty() {
            expected.extend(["image_features", "image_grid_thw", "pixel_values"]);
            expected.sort_unstable();
        }
        assert_eq!(names, expected, "{case}");
        for name in names {
            let tolerance = match name {
                "pixel_values" => 1e-6,
                "image_features" | "logits" => 2e-4,
                _ => 0.0,
            };
            let (ours, golden) = match name {
                "logits" => {
                    let rows = trace[name].size()[0];
                    assert_eq!(rows, golden.tensors["input_ids"].size()[0]);
                    (
                        trace[name].narrow(0, rows - 8, 8),
                        &golden.tensors["logits_last8"],
                    )
                }
                _ => (trace[name].shallow_clone(), &golden.tensors[name]),
            };
            assert!(matches!(ours.kind(), Kind::Int64 | Kind::Float));
            assert_close(&format!("{case}: {name}"), &ours, golden, tolerance);
        }
        // The file's own size and the tensors' are told.
        assert!(stderr(&output).contains("logits ["), "{}", stderr(&output));
    }
}

#[test]
fn without_a_picture_and_a_prompt_there_is_nothing_to_trace() {
    let output = run(&["trace", "--out", "out.safetensors"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("--image"), "{}", stderr(&output));
    let output = run(&["trace", "--image", "page.png"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("--out"), "{}", stderr(&output));
}
