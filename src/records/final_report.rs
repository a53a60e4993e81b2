//! `benchmarks/FINAL_REPORT.json`: the figures of all other records.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AccuracyDelta, Extra};

/// The report. Each figure is from a record, computed from records, or `null`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FinalReport {
    /// Origin of the report.
    pub report_metadata: ReportMetadata,
    /// The machine.
    pub environment: ReportEnvironment,
    /// The base model.
    pub model: ModelFigures,
    /// How it was quantized.
    pub quantization: QuantizationFigures,
    /// How it was fine-tuned.
    pub fine_tuning: FineTuning,
    /// Memory and time.
    pub performance_comparison: PerformanceComparison,
    /// Its accuracy.
    pub medical_accuracy: MedicalAccuracy,
    /// Its training data.
    pub datasets: DatasetFigures,
    /// How it is served.
    pub api_deployment: ApiDeployment,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Origin of the report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReportMetadata {
    /// Time.
    pub generated_at: String,
    /// Program.
    pub generator: String,
    /// Version of the pipeline.
    pub pipeline_version: String,
    /// Records that were read.
    pub source_files: Vec<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReportEnvironment {
    /// GPU's name.
    pub gpu: Option<String>,
    /// GPUs.
    pub gpu_count: Option<u64>,
    /// Its memory, GiB.
    pub total_vram_gb: Option<f64>,
    /// CUDA's version.
    pub cuda_version: Option<String>,
    /// libtorch's version.
    pub pytorch_version: Option<String>,
    /// The original's Python version.
    pub python_version: Option<String>,
    /// Operating system.
    pub platform: Option<String>,
    /// Versions of important libraries.
    pub key_packages: BTreeMap<String, Option<String>>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The base model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelFigures {
    /// Its name.
    pub name: Option<String>,
    /// Its source.
    pub source: Option<String>,
    /// Its size on disk, GiB.
    pub size_gb: Option<f64>,
    /// Duration of the download, seconds.
    pub download_time_seconds: Option<f64>,
    /// Number of its weights.
    pub total_parameters: Option<u64>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How the model was quantized.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QuantizationFigures {
    /// The method in use.
    pub method: Option<String>,
    /// Its settings as text.
    pub details: Option<String>,
    /// Whether AWQ was attempted.
    pub awq_attempted: Option<bool>,
    /// Its error, verbatim; null if it succeeded.
    pub awq_failed_reason: Option<String>,
    /// The method used instead; null if it succeeded.
    pub fallback: Option<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How the model was fine-tuned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FineTuning {
    /// "QLoRA".
    pub method: Option<String>,
    /// LoRA's r.
    pub lora_rank: Option<u64>,
    /// LoRA's alpha.
    pub lora_alpha: Option<f64>,
    /// Number of trained weights.
    pub trainable_params: Option<u64>,
    /// Their share, percent.
    pub trainable_pct: Option<f64>,
    /// Samples trained on.
    pub training_samples: Option<u64>,
    /// Epochs.
    pub epochs: Option<f64>,
    /// Samples per optimizer step.
    pub effective_batch_size: Option<u64>,
    /// Peak learning rate.
    pub learning_rate: Option<f64>,
    /// Duration, minutes, 1 decimal.
    pub training_time_minutes: Option<f64>,
    /// Loss at the first logged step.
    pub initial_loss: Option<f64>,
    /// Loss at the end.
    pub final_loss: Option<f64>,
    /// Reduction, percent.
    pub loss_reduction_pct: Option<f64>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Memory and time of the three models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PerformanceComparison {
    /// The base model.
    pub fp16_baseline: Performance,
    /// Quantized to NF4.
    pub nf4_quantized: Performance,
    /// Quantized and fine-tuned.
    pub finetuned_nf4_lora: Performance,
    /// Differences.
    pub improvements: Improvements,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Memory and time of one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Performance {
    /// GPU memory after loading, MiB.
    pub vram_post_load_mb: Option<f64>,
    /// Time to load the model, seconds.
    pub load_time_seconds: Option<f64>,
    /// Mean latency of a page, seconds.
    pub avg_latency_seconds: Option<f64>,
    /// Shortest, seconds.
    pub min_latency_seconds: Option<f64>,
    /// Longest, seconds.
    pub max_latency_seconds: Option<f64>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Reductions of memory and time, percent; negative for an increase.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Improvements {
    /// Memory, NF4 against the base.
    pub vram_reduction_nf4_vs_fp16_pct: Option<f64>,
    /// Latency, NF4 against the base.
    pub latency_reduction_nf4_vs_fp16_pct: Option<f64>,
    /// Memory, fine-tuned against the base.
    pub vram_reduction_ft_vs_fp16_pct: Option<f64>,
    /// Latency, fine-tuned against the base.
    pub latency_reduction_ft_vs_fp16_pct: Option<f64>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Accuracy of the models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MedicalAccuracy {
    /// Number of evaluation cases.
    pub test_cases: Option<u64>,
    /// Their ids.
    pub test_types: Vec<String>,
    /// Quantized.
    pub base_nf4: AccuracyAverages,
    /// Quantized and fine-tuned.
    pub finetuned: AccuracyAverages,
    /// The difference.
    pub accuracy_delta: AccuracyDelta,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Mean accuracies, percent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AccuracyAverages {
    /// Terms.
    pub avg_term_accuracy_pct: Option<f64>,
    /// Values.
    pub avg_value_accuracy_pct: Option<f64>,
    /// Both.
    pub avg_combined_accuracy_pct: Option<f64>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Training data of the model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DatasetFigures {
    /// Samples from PathVQA.
    pub pathvqa_formatted: Option<u64>,
    /// Samples from MTSamples.
    pub mtsamples_formatted: Option<u64>,
    /// Number of samples.
    pub total_formatted: Option<u64>,
    /// Samples for training.
    pub train_split: Option<u64>,
    /// Samples for validation.
    pub val_split: Option<u64>,
    /// Samples for the test.
    pub test_split: Option<u64>,
    /// "80/10/10".
    pub split_ratio: Option<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How the model is served.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ApiDeployment {
    /// The HTTP framework.
    pub framework: Option<String>,
    /// "METHOD /path".
    pub endpoints: Vec<String>,
    /// Path of the interactive API documentation.
    pub demo_ui: Option<String>,
    /// Packaging.
    pub containerization: Option<String>,
    /// Tests that passed, if a record says so.
    pub tests_passed: Option<u64>,
    /// Tests that ran, if a record says so.
    pub tests_total: Option<u64>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}
