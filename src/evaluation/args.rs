//! Flags of `evaluate_finetuned`.

use std::path::{Path, PathBuf};

use clap::value_parser;

use super::held_out::HeldOutSplit;
use crate::documents::{Document, DocumentSet};
use crate::lora::{named, own_folder};
use crate::project::{LORA_SUFFIX, NF4_SUFFIX, Project};
use crate::quant::Quantization;
use crate::{Error, Result};

/// What is evaluated, and on what.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Evaluation options")]
pub struct EvaluationArgs {
    /// Adapter folder, or its name under models/ [default: models/NAME-medical-lora]; "none" evaluates the base only
    #[arg(long, value_name = "DIR|none", env = "MVP_ADAPTER", hide_env_values = true)]
    pub adapter: Option<PathBuf>,

    /// Documents to use instead of the five evaluation cases and the five test documents
    ///
    /// {"documents": [{"id", "filename", "title", "content": ["line", ...], "prompt", "expected_terms": ["..."], ...}]}
    #[arg(long, value_name = "FILE.json", env = "MVP_DOCUMENTS", hide_env_values = true)]
    pub documents: Option<PathBuf>,

    /// Held-out split to evaluate in addition to the cases
    ///
    /// Taken from datasets/formatted if prepare_training_data was run; otherwise pages are generated.
    #[arg(
        long,
        value_name = "SPLIT",
        env = "MVP_EVALUATION_SPLIT",
        default_value = "test",
        hide_env_values = true
    )]
    pub split: HeldOutSplit,

    /// Maximum number of held-out questions, balanced over tasks and page styles; 0 for all
    #[arg(
        long,
        value_name = "N",
        env = "MVP_LIMIT",
        default_value_t = 48,
        hide_env_values = true
    )]
    pub limit: usize,

    /// Maximum number of new tokens per answer [default: 512, 640 for held-out pages]
    #[arg(long, value_name = "N", env = "MVP_MAX_NEW_TOKENS", hide_env_values = true,
          value_parser = value_parser!(u32).range(1..))]
    pub max_new_tokens: Option<u32>,
}

impl EvaluationArgs {
    /// The cases.
    pub fn cases(&self) -> Result<DocumentSet> {
        match &self.documents {
            Some(path) => DocumentSet::load(path),
            None => Ok(DocumentSet::evaluation()),
        }
    }

    /// The quantized base: what `quantize_base` made from `base`, or `base` itself where that is quantized.
    pub fn quantized(&self, project: &Project, base: &Path) -> Result<PathBuf> {
        if Quantization::from_dir(base)? != Quantization::None {
            return Ok(base.to_owned());
        }
        let folder = project.derived_model(base, NF4_SUFFIX);
        if !folder.is_dir() {
            let reason = "no such folder; create it with: quantize_base --method nf4";
            return Err(Error::checkpoint(&folder, reason));
        }
        Ok(folder)
    }

    /// The adapter's folder: the flag's, else the model's own; `None` for "none".
    pub fn adapter(&self, project: &Project, base: &Path) -> Result<Option<PathBuf>> {
        if self.adapter.is_some() {
            return named(project, self.adapter.as_deref());
        }
        own_folder(project, base).map(Some).ok_or_else(|| {
            let reason =
                "no adapter found; train one with finetune_lora, or pass --adapter DIR or --adapter none";
            Error::checkpoint(project.derived_model(base, LORA_SUFFIX), reason)
        })
    }

    /// The documents of [`Self::cases`] with their pages written to `datasets/eval_images`.
    pub fn written_cases(&self, project: &Project) -> Result<Vec<Document>> {
        let cases = self.cases()?;
        cases.write_pages(
            &project.file("datasets/eval_images"),
            crate::rendering::EVALUATION_PAGE,
        )?;
        Ok(cases.documents)
    }
}
