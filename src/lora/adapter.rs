//! An adapter in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::{config::LoraConfig, file::ADAPTER_CONFIG, module::LinearModule, targets::NOT_LINEAR};
use crate::checkpoint::transformers_name;
use crate::processing::ImageProcessor;
use crate::random::StreamRng;
use crate::{Error, Result};

/// The embedding table's module, by the hub's name.
pub(crate) const EMBEDDING_MODULE: &str = "model.embed_tokens";

/// A and B of one module: it computes `W x + scale · B(A x)`.
///
/// For the embedding the pair belongs to the table `[vocabulary, width]`: a lookup returns a row of `W + scale · B A`.
#[derive(Debug)]
pub struct LoraPair {
    /// `[rank, inputs]`.
    pub a: Tensor,
    /// `[outputs, rank]`.
    pub b: Tensor,
    /// alpha / rank, or alpha / sqrt(rank).
    pub scale: f64,
}

impl LoraPair {
    /// Rank, inputs and outputs.
    pub fn sizes(&self) -> (usize, usize, usize) {
        let (a, b) = (self.a.size(), self.b.size());
        (a[0] as usize, a[1] as usize, b[0] as usize)
    }
}

/// A LoRA adapter.
#[derive(Debug)]
pub struct Adapter {
    /// Its configuration.
    pub config: LoraConfig,
    /// Its pairs by the hub's module names, such as `model.layers.0.self_attn.q_proj`.
    pub pairs: BTreeMap<String, LoraPair>,
    /// Tensors that replace the base's, by the hub's names: PEFT saves the output head (and, if the vocabulary was resized, the
    /// embedding) beside an adapter of it, and uses the saved one.
    pub replaced: BTreeMap<String, Tensor>,
    /// Image processor, if it was trained with other resize limits than its base's.
    pub images: Option<ImageProcessor>,
    /// The file that it was read from, for errors.
    pub(super) file: PathBuf,
    /// Modules in the file that `target_modules` does not match; they are ignored, as in PEFT.
    pub(super) left_out: Vec<String>,
    /// Whether its file has transformers 5's names; otherwise the hub's.
    pub(super) spelled_as_transformers: bool,
}

impl LoraConfig {
    /// The linear layers among `modules` that this configuration matches.
    pub fn targets(&self, modules: &[LinearModule]) -> Result<Vec<LinearModule>> {
        let file = Path::new(ADAPTER_CONFIG);
        let wanted = self.matcher(file)?;
        for name in NOT_LINEAR {
            if wanted(name)? {
                return Err(Error::unsuitable(
                    file,
                    format!(
                        "\"target_modules\" matches {name}, which is not a linear layer; use longer module suffixes"
                    ),
                ));
            }
        }
        let mut targets = Vec::new();
        for module in modules {
            if wanted(&transformers_name(&module.name))? {
                targets.push(module.clone());
            }
        }
        if targets.is_empty() {
            return Err(Error::unsuitable(
                file,
                "\"target_modules\" means no module of the model",
            ));
        }
        Ok(targets)
    }

    /// Number of trainable parameters of this configuration on a model with the linear layers `modules`.
    pub fn parameters(&self, modules: &[LinearModule]) -> Result<u64> {
        let mut sum = 0;
        for module in self.targets(modules)? {
            let (rank, _) =
                self.rank_and_scale(Path::new(ADAPTER_CONFIG), &transformers_name(&module.name))?;
            sum += (rank * (module.inputs + module.outputs)) as u64;
        }
        Ok(sum)
    }
}

impl Adapter {
    /// A new adapter for a model with the linear layers `modules`: A initialized as in PEFT, B zero; f32 on the CPU.
    ///
    /// A is uniform within ±1/sqrt(inputs), PyTorch's `kaiming_uniform_(a=sqrt(5))`. Each module has its own
    /// random stream, so that it does not depend on the other modules.
    ///
    /// Reference: [`reset_lora_parameters`](https://github.com/huggingface/peft/blob/a5526d27a9d47d1e8264d5e1b1f96c0fdc79464e/src/peft/tuners/lora/layer.py#L328-L378).
    pub fn initial(config: LoraConfig, modules: &[LinearModule], seed: u64) -> Result<Self> {
        let file = PathBuf::from(ADAPTER_CONFIG);
        let mut pairs = BTreeMap::new();
        for module in config.targets(modules)? {
            let (rank, scale) = config.rank_and_scale(&file, &transformers_name(&module.name))?;
            let stream = modules.iter().position(|other| *other == module).unwrap_or(0);
            let mut random = StreamRng::new(seed, stream as u64);
            let bound = 1.0 / (module.inputs as f32).sqrt();
            let a: Vec<f32> = (0..rank * module.inputs)
                .map(|_| random.symmetric() * bound)
                .collect();
            let pair = LoraPair {
                a: Tensor::f_from_slice(&a)?.f_view([rank as i64, module.inputs as i64])?,
                b: Tensor::f_zeros([module.outputs as i64, rank as i64], (Kind::Float, Device::Cpu))?,
                scale,
            };
            pairs.insert(module.name, pair);
        }
        Ok(Self {
            config,
            pairs,
            replaced: BTreeMap::new(),
            images: None,
            file,
            left_out: Vec::new(),
            spelled_as_transformers: true,
        })
    }

    /// Where it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Number of values in all pairs.
    pub fn parameters(&self) -> u64 {
        self.pairs
            .values()
            .map(|pair| (pair.a.numel() + pair.b.numel()) as u64)
            .sum()
    }

    /// Bytes of all pairs.
    pub fn bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        self.pairs
            .values()
            .map(|pair| bytes(&pair.a) + bytes(&pair.b))
            .sum()
    }

    /// Warnings for a model with the adaptable `modules`: tensors that `target_modules` does not match, and matches without
    /// tensors. PEFT warns of the same.
    pub fn warnings(&self, modules: &[LinearModule]) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let file = self.file.display();
        if !self.left_out.is_empty() {
            warnings.push(format!(
                "{file}: {} left out, as PEFT does: \"target_modules\" in {ADAPTER_CONFIG} does not name {}",
                counted(&self.left_out, "module is", "modules are"),
                some(&self.left_out)
            ));
        }
        let meant = self.config.matcher(&self.file.with_file_name(ADAPTER_CONFIG))?;
        let mut missing = Vec::new();
        for module in modules.iter().map(|module| &module.name) {
            let name = match self.spelled_as_transformers {
                true => transformers_name(module),
                false => module.clone(),
            };
            if !self.pairs.contains_key(module) && meant(&name)? {
                missing.push(module.clone());
            }
        }
        if !missing.is_empty() {
            warnings.push(format!(
                "{file}: nothing is there for {} that \"target_modules\" in {ADAPTER_CONFIG} names: {}; the base computes \
                 there as it is",
                counted(&missing, "module", "modules"),
                some(&missing)
            ));
        }
        Ok(warnings)
    }

    /// # Errors
    /// The first module that a model with the adaptable `modules` lacks or has in another shape.
    pub fn check(&self, modules: &[LinearModule]) -> Result<()> {
        let modules: BTreeMap<&str, (usize, usize)> = modules
            .iter()
            .map(|module| (module.name.as_str(), (module.outputs, module.inputs)))
            .collect();
        for (name, pair) in &self.pairs {
            let (rank, inputs, outputs) = pair.sizes();
            let found = match modules.get(name.as_str()) {
                Some(&(out, input)) if (out, input) == (outputs, inputs) => continue,
                Some((out, input)) => format!("there it has shape [{out}, {input}]"),
                None => "the model has no such linear layer".to_owned(),
            };
            return Err(Error::unsuitable(
                &self.file,
                format!(
                    "the adapter was made for another model: its \"{name}\" is for a weight of shape \
                     [{outputs}, {inputs}] (rank {rank}), but {found}"
                ),
            ));
        }
        Ok(())
    }
}

/// "1 module" or "7 modules".
fn counted(names: &[String], one: &str, several: &str) -> String {
    match names.len() {
        1 => format!("1 {one}"),
        count => format!("{count} {several}"),
    }
}

/// The first few names of a list.
fn some(names: &[String]) -> String {
    let first: Vec<String> = names.iter().take(4).map(|name| format!("\"{name}\"")).collect();
    match names.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
