//! Whether a folder's tensors are those that the model is built from: by name, shape and dtype, without their values.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::Config;
use super::wanted::{TABLES, WantedTensor};
use crate::Result;
use crate::checkpoint::{StoredTensor, weight_kind};
use crate::quant::nf4::{QuantState, QuantType};
use crate::quant::{Part, Quantization, Storage};

/// A tensor that is not what the model is built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Misfit {
    /// Its name in the file; the hub's where it is missing.
    pub tensor: String,
    /// The file it is in; none where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What the config asks for.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// What a folder's tensors are to the model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TensorCheck {
    /// Tensors in the folder.
    pub tensors: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// How many have each dtype, by safetensors' names.
    pub dtypes: BTreeMap<String, usize>,
    /// Linear layers in four bits.
    pub quantized: usize,
    /// What does not fit.
    pub misfits: Vec<Misfit>,
    /// Tensors that nothing reads, as they are called in the files.
    pub unused: Vec<String>,
}

/// Reads the bytes of a small tensor; `None` where they are not to be read.
pub type ReadTensor<'a> = dyn FnMut(&StoredTensor) -> Result<Option<Vec<u8>>> + 'a;

/// Compares the tensors that are `stored` with those that a model of `config` is built from.
///
/// Where `read` gives nothing of a weight's quantization state, its number of scales tells. An error is one of `read`.
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
    check.take_stock(stored);
    for mut wanted in config.wanted_tensors() {
        // Tied tables are one, under either name.
        let [table, head] = TABLES;
        if config.tie_word_embeddings && wanted.name == table && !check.has(table) && check.has(head) {
            wanted.name = head.to_owned();
        }
        check.tensor(&wanted, read)?;
    }
    check.rest(config, stored);
    Ok(check.outcome)
}

struct Check<'a> {
    quantization: &'a Quantization,
    by_name: HashMap<&'a str, (usize, &'a StoredTensor)>,
    used: Vec<bool>,
    outcome: TensorCheck,
}

impl<'a> Check<'a> {
    fn take_stock(&mut self, stored: &'a [StoredTensor]) {
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

    /// The tensor of canonical `name`, which is now in use; where it is missing that is noted.
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

    fn tensor(&mut self, wanted: &WantedTensor, read: &mut ReadTensor<'_>) -> Result<()> {
        if wanted.linear
            && let &[rows, columns] = wanted.shape.as_slice()
        {
            let by_name = &self.by_name;
            let storage = self
                .quantization
                .storage(&wanted.name, |name| by_name.get(name).map(|(_, tensor)| *tensor));
            match storage {
                Storage::Dense => {}
                Storage::BitsAndBytes(kind, state) => {
                    return self.bits_and_bytes(&wanted.name, (kind, state), [rows, columns], read);
                }
                Storage::Awq(settings) => {
                    match settings.parts([rows, columns]) {
                        Ok(parts) => {
                            let module = wanted.name.trim_end_matches(".weight").to_owned();
                            self.parts(&module, &parts);
                        }
                        Err(cannot) => {
                            let name = format!("{}.qweight", wanted.name.trim_end_matches(".weight"));
                            if let Some(tensor) = self.take(&name, &String::new) {
                                self.misfit(tensor, format!("what cannot be: {cannot}"));
                            }
                        }
                    }
                    return Ok(());
                }
            }
        }
        let expected = || format!("BF16, F16 or F32 {:?}", wanted.shape);
        if let Some(tensor) = self.take(&wanted.name, &expected)
            && (weight_kind(tensor.dtype).is_none() || tensor.shape != wanted.shape)
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
            Some(state) => self.parts(name, &state.parts()),
            None => {
                let expected = || format!("one scale for every 32 to 4096 of {shape:?} values");
                if let Some(tensor) = self.take(&absmax, &expected) {
                    self.misfit(tensor, expected());
                }
            }
        }
        Ok(())
    }

    /// The parts of one weight in four bits.
    fn parts(&mut self, name: &str, parts: &[Part]) {
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

    /// Tensors that nothing reads. One of a layer that the config does not have means that the config is of another model.
    fn rest(&mut self, config: &Config, stored: &[StoredTensor]) {
        for (tensor, used) in stored.iter().zip(std::mem::take(&mut self.used)) {
            // Of two with one name either may be in use, and that they are two is said.
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
