//! Runs, inputs and outputs of each phase.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::lora::own_adapter_folder;
use crate::project::{LORA_SUFFIX, Project};
use crate::quant::Method;
use crate::records::{self, QuantizationInfo, paths};

use super::Phase;

/// Runs of a phase's program, its inputs and its outputs.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Additional arguments of each run.
    pub runs: Vec<Vec<OsString>>,
    /// Files and folders that the outputs depend on.
    pub inputs: Vec<PathBuf>,
    /// Files and folders that the runs write.
    pub outputs: Vec<PathBuf>,
}

/// Returns the plan of a phase that is not a download; `base` is the base model's folder.
pub(super) fn plan(phase: Phase, project: &Project, base: &Path) -> Plan {
    let file = |name: &str| project.file(name);
    let (nf4, awq) = (
        project.derived_model(base, Method::Nf4.suffix()),
        project.derived_model(base, Method::Awq.suffix()),
    );
    let test_images = file("datasets/test_images");
    let splits = [paths::TRAIN, paths::VAL, paths::TEST].map(file);
    let adapter = project.derived_model(base, LORA_SUFFIX);
    let (runs, inputs, outputs) = match phase {
        Phase::BenchmarkBaseline => (
            once(),
            vec![base.to_owned()],
            vec![file(paths::BASELINE_FP16), test_images],
        ),
        Phase::QuantizeBase => (
            once(),
            vec![base.to_owned()],
            vec![file(paths::QUANTIZATION_INFO), nf4, awq],
        ),
        Phase::BenchmarkQuantized => (
            benchmarks_of(project),
            vec![nf4, awq, test_images, file(paths::BASELINE_FP16)],
            vec![file(paths::QUANTIZED_INT4), file(paths::QUANTIZED_AWQ)],
        ),
        Phase::PrepareTrainingData => (
            once(),
            // A manifest has the hashes of its dataset's files.
            crate::data::DATASETS
                .iter()
                .map(|dataset| file("datasets/raw").join(dataset.name).join("manifest.json"))
                .collect(),
            splits.into_iter().chain([file(paths::DATA_SUMMARY)]).collect(),
        ),
        Phase::FinetuneLora => (
            once(),
            [vec![nf4], splits.to_vec()].concat(),
            vec![file(paths::TRAINING_METRICS), adapter],
        ),
        Phase::EvaluateFinetuned => {
            let own = own_adapter_folder(project, base);
            (
                // Without an adapter there is nothing to evaluate.
                if own.is_some() { once() } else { Vec::new() },
                [nf4, file(paths::TEST)].into_iter().chain(own).collect(),
                vec![
                    file(paths::EVALUATION_FINETUNED),
                    file(paths::FINETUNED_STANDARD_BENCH),
                ],
            )
        }
        Phase::ValidateEnvironment
        | Phase::GenerateReport
        | Phase::DownloadModel
        | Phase::DownloadDatasets => (once(), Vec::new(), Vec::new()),
    };
    Plan {
        runs,
        inputs,
        outputs,
    }
}

fn once() -> Vec<Vec<OsString>> {
    vec![Vec::new()]
}

/// One run per method that succeeded; NF4 if there is no record.
fn benchmarks_of(project: &Project) -> Vec<Vec<OsString>> {
    let record = records::read_if_present::<QuantizationInfo>(&project.file(paths::QUANTIZATION_INFO));
    let made = match record {
        Ok(Some(record)) => [record.bnb_setup.success, record.awq_attempt.success],
        _ => [true, false],
    };
    ["nf4", "awq"]
        .into_iter()
        .zip(made)
        .filter(|(_, made)| *made)
        .map(|(method, _)| vec!["--method".into(), method.into()])
        .collect()
}
