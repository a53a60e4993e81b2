//! Checks whether a model folder can be loaded, from its small files and the headers of its weights.

use std::fmt;
use std::path::Path;

use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::Result;
use crate::checkpoint::{FileFault, FolderFiles, StoredTensor, read_config, read_headers};
use crate::quant::Quantization;
use crate::qwen2_5_vl::{Config, TensorCheck, check_tensors};

/// Maximum number of lines per kind in a summary.
const MAX_LINES: usize = 20;
/// Maximum size of a weight's quantization state, which has about 150 bytes.
const MAX_STATE_BYTES: usize = 1 << 16;
/// Files that may hold the chat template.
const TEMPLATES: [&str; 3] = [
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
];

/// Result of checking a folder.
#[derive(Debug)]
pub struct FolderCheck {
    /// Files that are missing or damaged.
    pub faults: Vec<FileFault>,
    /// Files with weights.
    pub weight_files: usize,
    /// Tensors compared with those that the model loads.
    pub tensors: TensorCheck,
    /// Format of the weights.
    pub quantization: Quantization,
}

impl FolderCheck {
    /// Checks the folder `files`. `all_states`: reads the quantization state of every 4-bit weight, else one per file.
    ///
    /// # Errors
    /// If files cannot be reached, or `config.json` cannot be used; everything else is in the result.
    pub fn of(files: &dyn FolderFiles, all_states: bool) -> Result<Self> {
        let file = read_config(files)?;
        let config = Config::from_json(&file)?;
        let quantization = Quantization::from_json(&file)?;
        let headers = read_headers(files)?;
        let mut faults = headers.faults;
        faults.extend(missing(files)?);
        let mut last = String::new();
        let mut read = |tensor: &StoredTensor| {
            let name = file_name(&tensor.file);
            if tensor.place.len() > MAX_STATE_BYTES || (!all_states && name == last) {
                return Ok(None);
            }
            last.clone_from(&name);
            let place = tensor.place.start as u64..tensor.place.end as u64;
            files.read(&name, place).map(Some)
        };
        let mut tensors = check_tensors(&config, &quantization, &headers.stored, &mut read)?;
        if headers.stored.is_empty() && !faults.is_empty() {
            // Nothing could be read, so missing tensors add no information.
            tensors.misfits.clear();
        }
        Ok(Self {
            faults,
            weight_files: headers.files.len(),
            tensors,
            quantization,
        })
    }

    /// The result as JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "fits": self.fits(),
            "files": self.faults,
            "weight_files": self.weight_files,
            "quantization": self.quantization.precision(),
            "tensors": self.tensors,
        })
    }

    /// Whether nothing is wrong.
    pub fn fits(&self) -> bool {
        self.faults.is_empty() && self.tensors.misfits.is_empty()
    }
}

/// Required files other than weights that are missing.
fn missing(files: &dyn FolderFiles) -> Result<Vec<FileFault>> {
    let mut faults = Vec::new();
    let mut absent = |name: &str, reason: String| {
        faults.push(FileFault {
            file: name.to_owned(),
            reason,
        });
    };
    if files.size("tokenizer.json")?.is_none() {
        absent(
            "tokenizer.json",
            "no such file; the model's text cannot be read without it".to_owned(),
        );
    }
    let mut template = false;
    for name in TEMPLATES {
        template |= files.size(name)?.is_some();
    }
    if !template {
        absent(
            TEMPLATES[0],
            format!("no such file, and neither {} nor {}", TEMPLATES[1], TEMPLATES[2]),
        );
    }
    Ok(faults)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

impl fmt::Display for FolderCheck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = &self.tensors;
        let problems = self.faults.len() + tensors.misfits.len();
        match problems {
            0 => write!(formatter, "this program can load it")?,
            1 => write!(formatter, "this program cannot load it, 1 problem")?,
            many => write!(formatter, "this program cannot load it, {many} problems")?,
        }
        let mut dtypes: Vec<(&String, &usize)> = tensors.dtypes.iter().collect();
        dtypes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let dtypes: Vec<String> = dtypes
            .iter()
            .map(|(dtype, count)| format!("{count} {dtype}"))
            .collect();
        writeln!(
            formatter,
            " ({} tensors in {} files, {}: {})",
            tensors.tensors,
            self.weight_files,
            HumanBytes(tensors.bytes),
            dtypes.join(", ")
        )?;
        if let Some(precision) = self.quantization.precision() {
            writeln!(
                formatter,
                "{} linear layers are stored as {precision}",
                tensors.quantized
            )?;
        }
        for fault in &self.faults {
            writeln!(formatter, "  {}: {}", fault.file, fault.reason)?;
        }
        for misfit in tensors.misfits.iter().take(MAX_LINES) {
            let file = misfit
                .file
                .as_ref()
                .map(|file| format!(" ({file})"))
                .unwrap_or_default();
            writeln!(
                formatter,
                "  {}{file}: expected {}, found {}",
                misfit.tensor, misfit.expected, misfit.found
            )?;
        }
        if tensors.misfits.len() > MAX_LINES {
            writeln!(formatter, "  and {} more", tensors.misfits.len() - MAX_LINES)?;
        }
        let unused = tensors.unused.len();
        if unused > 0 {
            let more = if unused > 3 { ", ..." } else { "" };
            let names: Vec<&str> = tensors.unused.iter().take(3).map(String::as_str).collect();
            writeln!(
                formatter,
                "not used, {unused} of the tensors: {}{more}",
                names.join(", ")
            )?;
        }
        Ok(())
    }
}
