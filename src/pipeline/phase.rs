//! The phases and their programs.

use clap::ValueEnum;

/// One phase, in the order they are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Phase {
    /// Environment check.
    ValidateEnvironment,
    /// Download the base model.
    DownloadModel,
    /// Benchmark the base model on the test documents.
    BenchmarkBaseline,
    /// Quantize the base model to 4 bits.
    QuantizeBase,
    /// Benchmark the quantized models on the test documents.
    BenchmarkQuantized,
    /// Download the fine-tuning datasets.
    DownloadDatasets,
    /// Build pages, questions and answers in three splits.
    PrepareTrainingData,
    /// Train the adapter.
    FinetuneLora,
    /// Evaluate the adapter.
    EvaluateFinetuned,
    /// Compile all records into a report.
    #[value(alias = "report")]
    GenerateReport,
}

impl Phase {
    /// Every phase in order.
    pub const ALL: [Self; 10] = [
        Self::ValidateEnvironment,
        Self::DownloadModel,
        Self::BenchmarkBaseline,
        Self::QuantizeBase,
        Self::BenchmarkQuantized,
        Self::DownloadDatasets,
        Self::PrepareTrainingData,
        Self::FinetuneLora,
        Self::EvaluateFinetuned,
        Self::GenerateReport,
    ];

    /// Name of the phase and of its program.
    pub fn name(self) -> &'static str {
        match self {
            Self::ValidateEnvironment => "validate_environment",
            Self::DownloadModel => "download_model",
            Self::BenchmarkBaseline => "benchmark_baseline",
            Self::QuantizeBase => "quantize_base",
            Self::BenchmarkQuantized => "benchmark_quantized",
            Self::DownloadDatasets => "download_datasets",
            Self::PrepareTrainingData => "prepare_training_data",
            Self::FinetuneLora => "finetune_lora",
            Self::EvaluateFinetuned => "evaluate_finetuned",
            Self::GenerateReport => "generate_report",
        }
    }

    /// Whether the phase is never skipped: it is quick, and its inputs cannot be hashed.
    pub(super) fn always_runs(self) -> bool {
        matches!(self, Self::ValidateEnvironment | Self::GenerateReport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_values_of_the_flags_in_order() {
        assert!(Phase::ALL.is_sorted());
        for phase in Phase::ALL {
            assert_eq!(Phase::from_str(phase.name(), false), Ok(phase));
        }
        assert_eq!(Phase::value_variants(), Phase::ALL);
        assert_eq!(Phase::from_str("report", false), Ok(Phase::GenerateReport));
    }
}
