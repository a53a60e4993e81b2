//! The JSON records that the pipeline's programs write for each other and for the user: one file per record.
//!
//! Names, keys and units are a contract with the original project, whose records can be read:
//! - A key of the contract is a field. A figure that may be unknown is an `Option`, written as `null`. A missing key is read as
//!   `null` if the field is an `Option`; otherwise it is an error that names the key.
//! - Keys without a field are kept in `extra` and written back.
//! - Keys outside of the contract are omitted if they have no value.
//! - [`write()`] adds `record_version`. A record without one is the original's; one above [`VERSION`] is refused.
//!
//! Figures are rounded when they are computed: [`GpuMemory`] to 2 decimals, [`LatencyStats`] and [`seconds`] to 4.

mod benchmark;
mod data_sample;
mod data_summary;
mod download_info;
mod download_summary;
mod environment;
mod evaluation_finetuned;
mod figures;
mod file;
mod final_report;
mod nf4_config;
mod quantization_info;
mod speed;
mod training_metrics;

use serde_json::{Map, Value};

pub use self::benchmark::{
    Benchmark, InferenceResult, MachineLoad, MemoryStages, ResidentMemory, RunDetails,
};
pub use self::data_sample::{DataSample, SampleSource};
pub use self::data_summary::DataSummary;
pub use self::download_info::DownloadInfo;
pub use self::download_summary::{DatasetDownload, DownloadSummary};
pub use self::environment::Environment;
pub use self::evaluation_finetuned::{
    Accuracy, AccuracyDelta, EvaluatedModel, EvaluationFinetuned, EvaluationResult, EvaluationSummary,
};
pub use self::figures::{
    GpuMemory, LatencyStats, MemoryFigure, gib, gibibytes, mebibytes, mib, percent, round_to, seconds,
};
pub use self::file::{VERSION, read, read_if_present, write, write_list};
pub use self::final_report::{
    AccuracyAverages, ApiDeployment, DatasetFigures, FinalReport, FineTuning, Improvements, MedicalAccuracy,
    ModelFigures, Performance, PerformanceComparison, QuantizationFigures, ReportEnvironment, ReportMetadata,
};
pub use self::nf4_config::{Nf4Config, Nf4QuantizationConfig};
pub use self::quantization_info::{AwqAttempt, BnbSetup, QuantizationInfo};
pub use self::speed::{SequenceSpeed, Speed, SpeedMachine, SpeedModel, SpeedSettings, Spread, StageSpeed};
pub use self::training_metrics::{LossPoint, TrainerMetrics, TrainingMetrics};

/// Keys without a field, kept as they were read.
pub type Extra = Map<String, Value>;

/// The path of each record below the project folder ([`Project::file`](crate::project::Project::file)).
pub mod paths {
    /// [`Environment`](super::Environment).
    pub const ENVIRONMENT: &str = "benchmarks/environment.json";
    /// [`DownloadInfo`](super::DownloadInfo).
    pub const DOWNLOAD_INFO: &str = "benchmarks/download_info.json";
    /// [`Benchmark`](super::Benchmark) of the base model.
    pub const BASELINE_FP16: &str = "benchmarks/baseline_fp16.json";
    /// [`QuantizationInfo`](super::QuantizationInfo).
    pub const QUANTIZATION_INFO: &str = "benchmarks/quantization_info.json";
    /// [`Benchmark`](super::Benchmark) of the NF4 model.
    pub const QUANTIZED_INT4: &str = "benchmarks/quantized_int4.json";
    /// [`Benchmark`](super::Benchmark) of the AWQ model; not in the contract.
    pub const QUANTIZED_AWQ: &str = "benchmarks/quantized_awq.json";
    /// [`DownloadSummary`](super::DownloadSummary).
    pub const DOWNLOAD_SUMMARY: &str = "datasets/download_summary.json";
    /// [`DataSample`](super::DataSample)s for training.
    pub const TRAIN: &str = "datasets/formatted/train.json";
    /// [`DataSample`](super::DataSample)s for validation.
    pub const VAL: &str = "datasets/formatted/val.json";
    /// [`DataSample`](super::DataSample)s for the test.
    pub const TEST: &str = "datasets/formatted/test.json";
    /// [`DataSummary`](super::DataSummary).
    pub const DATA_SUMMARY: &str = "datasets/formatted/data_summary.json";
    /// [`TrainingMetrics`](super::TrainingMetrics).
    pub const TRAINING_METRICS: &str = "benchmarks/training_metrics.json";
    /// [`EvaluationFinetuned`](super::EvaluationFinetuned).
    pub const EVALUATION_FINETUNED: &str = "benchmarks/evaluation_finetuned.json";
    /// [`Benchmark`](super::Benchmark) of the fine-tuned model.
    pub const FINETUNED_STANDARD_BENCH: &str = "benchmarks/finetuned_standard_bench.json";
    /// Result of `medvision merge`.
    pub const MERGE_INFO: &str = "benchmarks/merge_info.json";
    /// [`FinalReport`](super::FinalReport).
    pub const FINAL_REPORT: &str = "benchmarks/FINAL_REPORT.json";
    /// All records in `benchmarks/`, which `GET /benchmark` serves.
    pub const IN_BENCHMARKS: [&str; 11] = [
        ENVIRONMENT,
        DOWNLOAD_INFO,
        BASELINE_FP16,
        QUANTIZATION_INFO,
        QUANTIZED_INT4,
        QUANTIZED_AWQ,
        TRAINING_METRICS,
        EVALUATION_FINETUNED,
        FINETUNED_STANDARD_BENCH,
        MERGE_INFO,
        FINAL_REPORT,
    ];
    /// [`Nf4QuantizationConfig`](super::Nf4QuantizationConfig), in the quantized model's folder.
    pub const NF4_QUANTIZATION_CONFIG: &str = "quantization_config.json";
}

/// Now, as a record's timestamp: RFC 3339 UTC with microseconds, as Python's `isoformat` writes it.
pub fn timestamp() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, false)
}
