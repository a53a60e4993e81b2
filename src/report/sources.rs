//! The records that a report is made from.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::data::is_synthetic;
use crate::project::{AWQ_SUFFIX, LORA_SUFFIX, NF4_SUFFIX, Project};
use crate::records::{
    self, Benchmark, DataSummary, DownloadInfo, DownloadSummary, Environment, EvaluationFinetuned,
    Nf4QuantizationConfig, QuantizationInfo, TrainingMetrics, paths,
};

/// A record that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Path of the record, relative to the project folder.
    pub file: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// All records of a project; `None` is a missing or unreadable one.
#[derive(Debug, Default)]
pub struct Sources {
    /// Environment check.
    pub environment: Option<Environment>,
    /// Download of the base model.
    pub download: Option<DownloadInfo>,
    /// Benchmark of the base model.
    pub baseline: Option<Benchmark>,
    /// Quantization, both methods.
    pub quantization: Option<QuantizationInfo>,
    /// Settings of the NF4 folder.
    pub nf4_config: Option<Nf4QuantizationConfig>,
    /// Benchmark of the NF4 model.
    pub nf4: Option<Benchmark>,
    /// Benchmark of the AWQ model.
    pub awq: Option<Benchmark>,
    /// Download of the data sets.
    pub downloads: Option<DownloadSummary>,
    /// Prepared training data.
    pub data: Option<DataSummary>,
    /// Fine-tuning.
    pub training: Option<TrainingMetrics>,
    /// Evaluation of base and fine-tuned model.
    pub evaluation: Option<EvaluationFinetuned>,
    /// Benchmark of the fine-tuned model.
    pub finetuned: Option<Benchmark>,
    /// Records that were read, relative to the project folder.
    pub files: Vec<String>,
    /// Missing records.
    pub missing: Vec<String>,
    /// Records that could not be read.
    pub problems: Vec<Problem>,
    /// Other JSON files in the records' folder; not used.
    pub others: Vec<String>,
    /// Whether the project has a Dockerfile.
    pub dockerfile: bool,
    /// Whether the reports in the data are the built-in synthetic ones.
    pub synthetic_reports: bool,
}

impl Sources {
    /// Reads all records.
    pub fn read(project: &Project) -> Self {
        let mut sources = Self {
            dockerfile: project.file("Dockerfile").is_file(),
            synthetic_reports: is_synthetic(&project.file("datasets/raw/mtsamples")),
            ..Self::default()
        };
        sources.environment = sources.record(project, paths::ENVIRONMENT);
        sources.download = sources.record(project, paths::DOWNLOAD_INFO);
        sources.baseline = sources.record(project, paths::BASELINE_FP16);
        sources.quantization = sources.record(project, paths::QUANTIZATION_INFO);
        sources.nf4_config = sources.nf4_folder().and_then(|folder| {
            let file = format!("models/{folder}/{}", paths::NF4_QUANTIZATION_CONFIG);
            sources.record(project, &file)
        });
        sources.nf4 = sources.record(project, paths::QUANTIZED_INT4);
        sources.awq = sources.record(project, paths::QUANTIZED_AWQ);
        sources.downloads = sources.record(project, paths::DOWNLOAD_SUMMARY);
        sources.data = sources.record(project, paths::DATA_SUMMARY);
        sources.training = sources.record(project, paths::TRAINING_METRICS);
        sources.evaluation = sources.record(project, paths::EVALUATION_FINETUNED);
        sources.finetuned = sources.record(project, paths::FINETUNED_STANDARD_BENCH);
        sources.others = sources.others(project);
        sources
    }

    fn record<T: DeserializeOwned>(&mut self, project: &Project, file: &str) -> Option<T> {
        match records::read_if_present(&project.file(file)) {
            Ok(Some(record)) => {
                self.files.push(file.to_owned());
                Some(record)
            }
            Ok(None) => {
                self.missing.push(file.to_owned());
                None
            }
            Err(error) => {
                let reason = error.to_string();
                let place = format!("{}: ", project.file(file).display());
                self.problems.push(Problem {
                    file: file.to_owned(),
                    reason: reason.strip_prefix(&place).unwrap_or(&reason).to_owned(),
                });
                None
            }
        }
    }

    /// Name of the NF4 folder under models/. Only the name counts: records may be from another machine.
    fn nf4_folder(&self) -> Option<String> {
        let setup = &self.quantization.as_ref()?.bnb_setup;
        let name = Path::new(setup.output_dir.as_deref()?).file_name()?;
        Some(name.to_string_lossy().into_owned())
    }

    /// JSON files in benchmarks/ that are not records, sorted.
    fn others(&self, project: &Project) -> Vec<String> {
        let known = |file: &String| {
            file == paths::FINAL_REPORT
                || self.files.contains(file)
                || self.problems.iter().any(|problem| problem.file == *file)
        };
        let entries = fs::read_dir(project.benchmarks()).into_iter().flatten().flatten();
        let mut others: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(".json") && !name.starts_with('.'))
            .map(|name| format!("benchmarks/{name}"))
            .filter(|file| !known(file))
            .collect();
        others.sort();
        others
    }

    /// The benchmarks with their labels, in pipeline order.
    pub(super) fn benchmarks(&self) -> [(&'static str, Option<&Benchmark>); 4] {
        [
            ("FP16 baseline", self.baseline.as_ref()),
            ("NF4", self.nf4.as_ref()),
            ("AWQ", self.awq.as_ref()),
            ("NF4 + LoRA", self.finetuned.as_ref()),
        ]
    }
}

/// Name of the base model that a record's model derives from: without folders and the pipeline's suffixes.
pub(super) fn base_name(model_name: &str) -> &str {
    let name = model_name.rsplit('/').next().unwrap_or(model_name);
    [NF4_SUFFIX, AWQ_SUFFIX, LORA_SUFFIX, "-base"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_models_have_the_name_of_their_base() {
        for name in [
            "qwen25-vl-7b-base",
            "qwen25-vl-7b-bnb-nf4",
            "models/qwen25-vl-7b-awq-int4",
            "qwen25-vl-7b-medical-lora",
            "qwen25-vl-7b",
        ] {
            assert_eq!(base_name(name), "qwen25-vl-7b", "{name}");
        }
        assert_eq!(base_name("Qwen/Qwen2.5-VL-7B-Instruct"), "Qwen2.5-VL-7B-Instruct");
    }
}
