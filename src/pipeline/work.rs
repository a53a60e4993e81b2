//! What each phase runs, reads and makes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::lora::own_folder;
use crate::project::{AWQ_SUFFIX, LORA_SUFFIX, NF4_SUFFIX, Project};
use crate::records::{self, QuantizationInfo, paths};

use super::Phase;

/// One phase's programs, inputs and outputs.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Arguments beside the common ones, once for each time the program is run.
    pub runs: Vec<Vec<OsString>>,
    /// What the outputs depend on.
    pub inputs: Vec<PathBuf>,
    /// What is there afterwards.
    pub outputs: Vec<PathBuf>,
}

/// The work of a phase that downloads nothing; `base` is the base model's folder.
pub(super) fn work(phase: Phase, project: &Project, base: &Path) -> Work {
    let file = |name: &str| project.file(name);
    let (nf4, awq) = (
        project.derived_model(base, NF4_SUFFIX),
        project.derived_model(base, AWQ_SUFFIX),
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
            // Each names the files of its data set with their hashes.
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
            let own = own_folder(project, base);
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
    Work {
        runs,
        inputs,
        outputs,
    }
}

fn once() -> Vec<Vec<OsString>> {
    vec![Vec::new()]
}

/// One run a method that worked; NF4 where no record tells.
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
