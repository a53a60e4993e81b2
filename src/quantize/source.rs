//! The model folder that is quantized.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, ModelFolder, StoredTensor};
use crate::fs::{CONFIG_BYTES, MANIFEST, Staging, read_bounded, read_text, revision};
use crate::project::model_folder_name;
use crate::quant::{
    Quantization,
    nf4::{Scratch, Values},
};
use crate::qwen2_5_vl::Config;
use crate::{Error, Result};

/// Extensions of a model's other files: tokenizer, processor, chat template, license.
const KINDS: [&str; 5] = ["json", "txt", "jinja", "model", "tiktoken"];
/// Files that a quantized folder does not copy.
const OWN: [&str; 5] = [
    "config.json",
    "model.safetensors.index.json",
    "quantization_config.json",
    "quantization_report.json",
    MANIFEST,
];
/// Maximum size of a copied file.
const MAX_SIDE_FILE: u64 = 256 << 20;

/// A model folder to be quantized.
pub struct Source {
    dir: PathBuf,
    checkpoint: Checkpoint,
    config: Config,
    config_text: String,
    side_files: Vec<PathBuf>,
}

impl Source {
    /// Opens `dir`, which must be unquantized.
    pub fn open(dir: &Path) -> Result<Self> {
        let folder = ModelFolder::new(dir);
        let config = Config::from_json(folder.config()?)?;
        if Quantization::from_json(folder.config()?)? != Quantization::None {
            return Err(Error::unsuitable(
                dir.join("config.json"),
                "the model is quantized already (\"quantization_config\"): choose the original",
            ));
        }
        Self::with_config(dir, config)
    }

    /// Opens `dir`, whose weights may be quantized.
    pub fn open_any(dir: &Path) -> Result<Self> {
        Self::with_config(dir, Config::from_dir(dir)?)
    }

    fn with_config(dir: &Path, config: Config) -> Result<Self> {
        let path = dir.join("config.json");
        let config_text = read_text(&path, CONFIG_BYTES).map_err(|error| Error::io(&path, error))?;
        Ok(Self {
            checkpoint: Checkpoint::open(dir)?,
            side_files: side_files(dir).map_err(|error| Error::io(dir, error))?,
            dir: dir.to_owned(),
            config,
            config_text,
        })
    }

    /// Its `config.json`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name.
    pub fn name(&self) -> String {
        model_folder_name(&self.dir)
    }

    /// Its weights.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// sha256 over all of its files, which are read completely.
    pub fn revision(&self) -> Result<String> {
        let mut files = self.checkpoint.files();
        files.extend(self.side_files.iter().cloned());
        files.push(self.dir.join("config.json"));
        revision(&files)
    }

    /// Copies the files beside the weights.
    pub fn copy_side_files(&self, staging: &mut Staging) -> Result<()> {
        for path in &self.side_files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let contents = read_bounded(path, MAX_SIDE_FILE).map_err(|error| Error::io(path, error))?;
            staging.write(&name, &contents)?;
        }
        Ok(())
    }

    /// Its `config.json`.
    pub fn config_text(&self) -> &str {
        &self.config_text
    }

    /// The source's `config.json` with `quantization_config` added and otherwise unchanged.
    pub fn config_with(&self, quantization: &Map<String, Value>) -> Result<String> {
        let end = self.config_text.rfind('}').unwrap_or(0);
        let before = self.config_text[..end].trim_end();
        let value = serde_json::to_string_pretty(quantization).map_err(io::Error::from);
        let value = value.map_err(|error| Error::io(self.dir.join("config.json"), error))?;
        let value = value.replace('\n', "\n  ");
        Ok(format!("{before},\n  \"quantization_config\": {value}\n}}\n"))
    }
}

fn side_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let kind = path
            .extension()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let wanted =
            (KINDS.contains(&kind.as_str()) || name.starts_with("LICENSE") || name.starts_with("NOTICE"))
                && !OWN.contains(&name.as_str())
                && !name.starts_with('.');
        // Follows links, which the hub's cache has.
        if wanted && fs::metadata(&path)?.is_file() && fs::metadata(&path)?.len() <= MAX_SIDE_FILE {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Float weights in a file, read in chunks. The file is not mapped, so that resident memory stays small.
pub(super) struct FileValues {
    file: Arc<File>,
    path: PathBuf,
    start: u64,
    dtype: Dtype,
    length: usize,
}

impl FileValues {
    /// The values of `tensor` in `file`; `None` if its dtype is not F32, F16 or BF16.
    pub(super) fn new(file: &Arc<File>, tensor: &StoredTensor) -> Option<Self> {
        matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16).then(|| Self {
            file: Arc::clone(file),
            path: tensor.file.clone(),
            start: tensor.place.start as u64,
            dtype: tensor.dtype,
            length: tensor.shape.iter().product(),
        })
    }
}

impl Values for FileValues {
    fn len(&self) -> usize {
        self.length
    }

    fn read(&self, range: Range<usize>, scratch: &mut Scratch) -> Result<()> {
        let width = self.dtype.bitsize() / 8;
        scratch.bytes.resize(range.len() * width, 0);
        self.file
            .read_exact_at(&mut scratch.bytes, self.start + (range.start * width) as u64)
            .map_err(|error| Error::io(&self.path, error))?;
        let out = &mut scratch.values;
        out.clear();
        match self.dtype {
            Dtype::F32 => {
                let (values, _) = scratch.bytes.as_chunks::<4>();
                out.extend(values.iter().map(|&bytes| f32::from_le_bytes(bytes)));
            }
            Dtype::BF16 => {
                let (values, _) = scratch.bytes.as_chunks::<2>();
                let widen = |&bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
                out.extend(values.iter().map(widen));
            }
            _ => {
                let halves: Vec<half::f16> = bytemuck::pod_collect_to_vec(&scratch.bytes);
                out.resize(range.len(), 0.0);
                halves.convert_to_f32_slice(out);
            }
        }
        Ok(())
    }
}
