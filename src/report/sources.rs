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
    /// The record, below the project folder.
    pub file: String,
    /// What is wrong with it and what to do.
    pub reason: String,
}

/// Every record of a project; `None` is one that is not there or cannot be read.
#[derive(Debug, Default)]
pub struct Sources {
    /// The machine.
    pub environment: Option<Environment>,
    /// The base model's origin.
    pub download: Option<DownloadInfo>,
    /// The base model on the test documents.
    pub baseline: Option<Benchmark>,
    /// Both quantizations.
    pub quantization: Option<QuantizationInfo>,
    /// The NF4 folder's settings.
    pub nf4_config: Option<Nf4QuantizationConfig>,
    /// The NF4 model on the test documents.
    pub nf4: Option<Benchmark>,
    /// The AWQ model on the test documents.
    pub awq: Option<Benchmark>,
    /// The data sets' origin.
    pub downloads: Option<DownloadSummary>,
    /// The training data.
    pub data: Option<DataSummary>,
    /// Fine-tuning.
    pub training: Option<TrainingMetrics>,
    /// Base and fine-tuned model on the evaluation cases.
    pub evaluation: Option<EvaluationFinetuned>,
    /// The fine-tuned model on the test documents.
    pub finetuned: Option<Benchmark>,
    /// Records that were read, below the project folder.
    pub files: Vec<String>,
    /// Records that are not there.
    pub missing: Vec<String>,
    /// Records that could not be read.
    pub problems: Vec<Problem>,
    /// Other JSON files among the records, which no figure comes from.
    pub others: Vec<String>,
    /// The project has a Dockerfile.
    pub dockerfile: bool,
    /// The reports among the data are the synthetic ones that come with the program.
    pub synthetic_reports: bool,
}

impl Sources {
    /// Reads what is there.
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

    /// Name of the NF4 folder under models/. Records of another machine hold its paths: the name is what counts.
    fn nf4_folder(&self) -> Option<String> {
        let setup = &self.quantization.as_ref()?.bnb_setup;
        let name = Path::new(setup.output_dir.as_deref()?).file_name()?;
        Some(name.to_string_lossy().into_owned())
    }

    /// JSON files in benchmarks/ that are none of the records; in alphabetical order.
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

    /// The benchmarks with the names they go by in the report, in the order of the pipeline.
    pub(super) fn benchmarks(&self) -> [(&'static str, Option<&Benchmark>); 4] {
        [
            ("FP16 baseline", self.baseline.as_ref()),
            ("NF4", self.nf4.as_ref()),
            ("AWQ", self.awq.as_ref()),
            ("NF4 + LoRA", self.finetuned.as_ref()),
        ]
    }
}

/// The base model that a record's model comes from: its name without folders and without what the pipeline adds.
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
    fn a_derived_model_has_its_bases_name() {
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
