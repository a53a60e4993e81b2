//! Compares a folder's tensors with those that the model loads: name, shape and dtype, without reading values.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::Config;
use super::expected_tensors::{ExpectedTensor, TABLES};
use crate::Result;
use crate::checkpoint::{StoredTensor, weight_kind};
use crate::quant::nf4::{QuantState, QuantType};
use crate::quant::{Quantization, Storage, TensorSpec};

/// A tensor that is missing or does not fit the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Misfit {
    /// Its name in the file; the hub's name if it is missing.
    pub tensor: String,
    /// Its file; `None` if it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What the model expects.
    pub expected: String,
    /// What the folder has.
    pub found: String,
}

/// Result of [`check_tensors`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TensorCheck {
    /// Tensors in the folder.
    pub tensors: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Number of tensors per dtype, by safetensors' names.
    pub dtypes: BTreeMap<String, usize>,
    /// Number of linear layers stored in 4 bits.
    pub quantized: usize,
    /// Tensors that are missing or do not fit.
    pub misfits: Vec<Misfit>,
    /// Tensors that the model does not read, by their names in the files.
    pub unused: Vec<String>,
}

/// Reads the bytes of a small tensor; `None` if they are not to be read.
pub type ReadTensor<'a> = dyn FnMut(&StoredTensor) -> Result<Option<Vec<u8>>> + 'a;

/// Compares the `stored` tensors with those that a model of `config` loads.
///
/// If `read` returns `None` for a quantization state, it is inferred from the number of scales.
///
/// # Errors
/// Errors of `read`; tensors that do not fit are in the result.
pub fn check_tensors(
    config: &Config,
    quantization: &Quantization,
    stored: &[StoredTensor],
    read: &mut ReadTensor<'_>,
) -> Result<TensorCheck> {
    let mut check = Check {
        quantization,
        by_name: HashMap::new(),
        used: vec![false; stored.len()],
        outcome: TensorCheck::default(),
    };
    check.index(stored);
    for mut expected in config.expected_tensors() {
        // A tied table may be stored under either name.
        let [table, head] = TABLES;
        if config.tie_word_embeddings && expected.name == table && !check.has(table) && check.has(head) {
            expected.name = head.to_owned();
        }
        check.tensor(&expected, read)?;
    }
    check.unused(config, stored);
    Ok(check.outcome)
}

struct Check<'a> {
    quantization: &'a Quantization,
    by_name: HashMap<&'a str, (usize, &'a StoredTensor)>,
    used: Vec<bool>,
    outcome: TensorCheck,
}

impl<'a> Check<'a> {
    fn index(&mut self, stored: &'a [StoredTensor]) {
        self.outcome.tensors = stored.len();
        for (i, tensor) in stored.iter().enumerate() {
            self.outcome.bytes += tensor.place.len() as u64;
            *self.outcome.dtypes.entry(tensor.dtype.to_string()).or_default() += 1;
            if let Some((_, other)) = self.by_name.insert(&tensor.canonical, (i, tensor)) {
                let expected = format!("one tensor of this name, which {} has, too", file(other));
                self.misfit(tensor, expected);
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    fn find(&self, name: &str) -> Option<&'a StoredTensor> {
        self.by_name.get(name).map(|(_, tensor)| *tensor)
    }

    /// Returns the tensor of canonical `name` and marks it as used, or records that it is missing.
    fn take(&mut self, name: &str, expected: &dyn Fn() -> String) -> Option<&'a StoredTensor> {
        match self.by_name.get(name) {
            Some((i, tensor)) => {
                self.used[*i] = true;
                Some(tensor)
            }
            None => {
                self.outcome.misfits.push(Misfit {
                    tensor: name.to_owned(),
                    file: None,
                    expected: expected(),
                    found: "nothing".to_owned(),
                });
                None
            }
        }
    }

    fn misfit(&mut self, tensor: &StoredTensor, expected: String) {
        self.outcome.misfits.push(Misfit {
            tensor: tensor.name.clone(),
            file: Some(file(tensor)),
            expected,
            found: format!("{} {:?}", tensor.dtype, tensor.shape),
        });
    }

    fn tensor(&mut self, spec: &ExpectedTensor, read: &mut ReadTensor<'_>) -> Result<()> {
        if spec.linear
            && let &[rows, columns] = spec.shape.as_slice()
        {
            let by_name = &self.by_name;
            let storage = self
                .quantization
                .storage(&spec.name, |name| by_name.get(name).map(|(_, tensor)| *tensor));
            match storage {
                Storage::Dense => {}
                Storage::BitsAndBytes(kind, state) => {
                    return self.bits_and_bytes(&spec.name, (kind, state), [rows, columns], read);
                }
                Storage::Awq(settings) => {
                    match settings.tensors([rows, columns]) {
                        Ok(parts) => {
                            let module = spec.name.trim_end_matches(".weight").to_owned();
                            self.parts(&module, &parts);
                        }
                        Err(cannot) => {
                            let name = format!("{}.qweight", spec.name.trim_end_matches(".weight"));
                            if let Some(tensor) = self.take(&name, &String::new) {
                                self.misfit(tensor, format!("what cannot be: {cannot}"));
                            }
                        }
                    }
                    return Ok(());
                }
            }
        }
        let expected = || format!("BF16, F16 or F32 {:?}", spec.shape);
        if let Some(tensor) = self.take(&spec.name, &expected)
            && (weight_kind(tensor.dtype).is_none() || tensor.shape != spec.shape)
        {
            self.misfit(tensor, expected());
        }
        Ok(())
    }

    fn bits_and_bytes(
        &mut self,
        name: &str,
        (kind, stored): (QuantType, &'a StoredTensor),
        shape: [usize; 2],
        read: &mut ReadTensor<'_>,
    ) -> Result<()> {
        self.take(&stored.canonical, &String::new);
        let absmax = format!("{name}.absmax");
        let state = match read(stored)? {
            Some(bytes) => match QuantState::from_json(&bytes) {
                Ok(state) if state.shape != shape || state.quant_type != kind => {
                    let found = format!("a state of {} {:?}", state.quant_type.name(), state.shape);
                    self.outcome.misfits.push(Misfit {
                        tensor: stored.name.clone(),
                        file: Some(file(stored)),
                        expected: format!("a state of {} {shape:?}", kind.name()),
                        found,
                    });
                    return Ok(());
                }
                Ok(state) => Some(state),
                Err(reason) => {
                    self.misfit(stored, format!("a quantization state; this {reason}"));
                    return Ok(());
                }
            },
            None => self
                .find(&absmax)
                .and_then(|tensor| QuantState::inferred(kind, shape, tensor)),
        };
        match state {
            Some(state) => self.parts(name, &state.tensors()),
            None => {
                let expected = || format!("one scale for every 32 to 4096 of {shape:?} values");
                if let Some(tensor) = self.take(&absmax, &expected) {
                    self.misfit(tensor, expected());
                }
            }
        }
        Ok(())
    }

    /// Checks the parts of one 4-bit weight.
    fn parts(&mut self, name: &str, parts: &[TensorSpec]) {
        self.outcome.quantized += 1;
        for part in parts {
            let dot = if part.suffix.is_empty() { "" } else { "." };
            let name = format!("{name}{dot}{}", part.suffix);
            if let Some(tensor) = self.take(&name, &|| part.to_string())
                && !part.fits(tensor.dtype, &tensor.shape)
            {
                self.misfit(tensor, part.to_string());
            }
        }
    }

    /// Records unused tensors. One of a layer beyond the config's means that the config belongs to another model.
    fn unused(&mut self, config: &Config, stored: &[StoredTensor]) {
        for (tensor, used) in stored.iter().zip(std::mem::take(&mut self.used)) {
            // Duplicates were reported before.
            if used
                || self
                    .find(&tensor.canonical)
                    .is_some_and(|other| other.name != tensor.name)
            {
                continue;
            }
            if let Some((layers, key)) = config.layer_beyond(&tensor.canonical) {
                self.misfit(
                    tensor,
                    format!("no layer beyond the {layers} of \"{key}\" in config.json"),
                );
            } else if config.tie_word_embeddings && tensor.canonical == TABLES[1] {
                let shape = [config.text.vocab_size, config.text.hidden_size];
                if tensor.shape != shape || weight_kind(tensor.dtype).is_none() {
                    self.misfit(tensor, format!("BF16, F16 or F32 {shape:?}"));
                }
            } else {
                self.outcome.unused.push(tensor.name.clone());
            }
        }
        self.outcome.unused.sort();
    }
}

/// The name of the file that a tensor is in.
fn file(tensor: &StoredTensor) -> String {
    tensor
        .file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
