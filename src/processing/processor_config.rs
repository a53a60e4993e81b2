//! Image processor settings of a folder, read as transformers reads them.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::fs::{CONFIG_BYTES, read_bounded};
use crate::{Error, Result};

/// File of the image processor's settings, in a model or adapter folder.
pub const PREPROCESSOR_CONFIG: &str = "preprocessor_config.json";
/// Exclusive upper limit of pixel bounds.
pub(super) const PIXEL_BOUND: u64 = 1 << 31;

/// Minimum divisor and maximum constant; beyond them f32 has too little precision.
const SMALLEST: f64 = 1e-6;
const LARGEST: f64 = 1e6;

/// Range of `max_enlargement`.
pub(super) const ENLARGEMENT: RangeInclusive<f64> = 1.0..=100.0;

/// Bicubic in Pillow's numbering.
const BICUBIC: u64 = 3;

/// Settings of transformers' `Qwen2VLImageProcessor`.
#[derive(Debug, Clone)]
pub(super) struct ProcessorConfig {
    pub(super) min_pixels: u64,
    pub(super) max_pixels: u64,
    /// Maximum upscaling per side to reach `min_pixels`. Not a key of transformers, which enlarges without a limit.
    pub(super) max_enlargement: Option<f64>,
    pub(super) patch_size: u32,
    pub(super) temporal_patch_size: u32,
    pub(super) merge_size: u32,
    pub(super) rescale_factor: f64,
    pub(super) image_mean: [f64; 3],
    pub(super) image_std: [f64; 3],
}

impl ProcessorConfig {
    /// `image_processor` of `processor_config.json` (transformers 5), or else `preprocessor_config.json`; `None` if the folder has neither.
    pub(super) fn from_dir(dir: &Path) -> Result<Option<Self>> {
        if let Some(mut file) = Object::read(dir.join("processor_config.json"))?
            && let Some(inner) = file.keys.remove("image_processor")
        {
            let Value::Object(keys) = inner else {
                return Err(file.error("image_processor", "is not an object"));
            };
            let prefix = "image_processor.";
            return Self::from_object(&Object { keys, prefix, ..file }).map(Some);
        }
        let file = Object::read(dir.join(PREPROCESSOR_CONFIG))?;
        file.map(|file| Self::from_object(&file)).transpose()
    }

    /// JSON for the same processor, here and (without `max_enlargement`) in transformers.
    pub(super) fn to_json(&self) -> Value {
        let mut settings = json!({
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
            "rescale_factor": self.rescale_factor,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
        });
        if let Some(most) = self.max_enlargement {
            settings["max_enlargement"] = most.into();
        }
        settings
    }

    fn from_object(file: &Object) -> Result<Self> {
        file.check_behaviour()?;
        let size = file.size()?;
        let pixels = 1..=PIXEL_BOUND - 1;
        let config = Self {
            min_pixels: file.integer("min_pixels", pixels.clone(), size.0)?,
            max_pixels: file.integer("max_pixels", pixels, size.1)?,
            max_enlargement: file.number("max_enlargement", ENLARGEMENT)?,
            patch_size: file.integer("patch_size", 1..=256, Some(14))? as u32,
            temporal_patch_size: file.integer("temporal_patch_size", 1..=16, Some(2))? as u32,
            merge_size: file.integer("merge_size", 1..=16, Some(2))? as u32,
            rescale_factor: file
                .number("rescale_factor", SMALLEST..=LARGEST)?
                .unwrap_or(1.0 / 255.0),
            image_mean: file.colours("image_mean", [0.48145466, 0.4578275, 0.40821073], 0.0)?,
            image_std: file.colours("image_std", [0.26862954, 0.26130258, 0.27577711], SMALLEST)?,
        };
        if config.min_pixels > config.max_pixels {
            return Err(file.error("min_pixels", "is more than max_pixels"));
        }
        Ok(config)
    }
}

/// The keys of one file.
struct Object {
    path: PathBuf,
    keys: Map<String, Value>,
    /// Prefix of keys in error messages.
    prefix: &'static str,
}

impl Object {
    /// Reads `path`; `None` if there is no such file.
    fn read(path: PathBuf) -> Result<Option<Self>> {
        let text = match read_bounded(&path, CONFIG_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path, error)),
        };
        let keys = serde_json::from_slice(&text)
            .map_err(|error| Error::invalid_file(&path, format!("is not a JSON object: {error}")))?;
        let prefix = "";
        Ok(Some(Self { path, keys, prefix }))
    }

    fn error(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        Error::invalid_file(&self.path, format!("{}{key}: {reason}", self.prefix))
    }

    /// Value of a key; `None` if absent or null, as in transformers.
    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// Refuses what would make transformers work otherwise than this processor does.
    fn check_behaviour(&self) -> Result<()> {
        let steps = [
            ("do_resize", true),
            ("do_rescale", true),
            ("do_normalize", true),
            ("do_convert_rgb", true),
            ("do_center_crop", false),
            ("do_pad", false),
        ];
        for (key, implemented) in steps {
            if self
                .get(key)
                .is_some_and(|value| *value != Value::Bool(implemented))
            {
                return Err(self.error(key, format!("only {implemented} is supported")));
            }
        }
        if self
            .get("resample")
            .is_some_and(|value| value.as_u64() != Some(BICUBIC))
        {
            return Err(self.error("resample", "only 3 (bicubic) is supported"));
        }
        let kind = self.get("image_processor_type");
        let known = [
            "Qwen2VLImageProcessor",
            "Qwen2VLImageProcessorFast",
            "Qwen2_5_VLImageProcessor",
        ];
        if kind.is_some_and(|value| !value.as_str().is_some_and(|name| known.contains(&name))) {
            return Err(self.error("image_processor_type", "only Qwen2VLImageProcessor is supported"));
        }
        Ok(())
    }

    /// `shortest_edge` and `longest_edge` of `size`: numbers of pixels, whatever the names say.
    fn size(&self) -> Result<(Option<u64>, Option<u64>)> {
        let size = match self.get("size") {
            None => return Ok((Some(56 * 56), Some(28 * 28 * 1280))),
            Some(Value::Object(size)) => size,
            Some(_) => return Err(self.error("size", "is not an object with shortest_edge and longest_edge")),
        };
        let edge = |name: &str| {
            let value = size.get(name).filter(|value| !value.is_null());
            value
                .map(|value| self.checked(&format!("size.{name}"), value, 1..=PIXEL_BOUND - 1))
                .transpose()
        };
        Ok((edge("shortest_edge")?, edge("longest_edge")?))
    }

    fn integer(&self, key: &str, range: RangeInclusive<u64>, default: Option<u64>) -> Result<u64> {
        match (self.get(key), default) {
            (Some(value), _) => self.checked(key, value, range),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.error(
                key,
                "is missing, and so is the edge of size that could stand for it",
            )),
        }
    }

    fn checked(&self, key: &str, value: &Value, range: RangeInclusive<u64>) -> Result<u64> {
        value
            .as_u64()
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let (low, high) = range.into_inner();
                self.error(key, format!("must be an integer from {low} to {high}"))
            })
    }

    fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| {
            let (low, high) = range.into_inner();
            self.error(key, format!("must be a number from {low} to {high}"))
        })
    }

    /// One number per channel.
    fn colours(&self, key: &str, default: [f64; 3], smallest: f64) -> Result<[f64; 3]> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let number = |value: &Value| {
            value
                .as_f64()
                .filter(|number| (smallest..=LARGEST).contains(number))
        };
        let numbers: Option<Vec<f64>> = value
            .as_array()
            .and_then(|list| list.iter().map(number).collect());
        numbers.and_then(|list| list.try_into().ok()).ok_or_else(|| {
            let reason = format!("must be a list of three numbers from {smallest} to {LARGEST}");
            self.error(key, reason)
        })
    }
}
