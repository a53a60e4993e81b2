//! `benchmarks/baseline_fp16.json`, `quantized_int4.json`, `quantized_awq.json`, `finetuned_standard_bench.json`: one
//! model reading the five test documents.

use serde::{Deserialize, Serialize};

use super::{Accuracy, Extra, GpuMemory, LatencyStats};

/// One model's reading of the test documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Benchmark {
    /// The model that ran.
    pub model_name: String,
    /// The contract's label of the weights: "FP16" for a base model, "NF4 (bitsandbytes)", "AWQ INT4". The
    /// dtype of the computation is [`RunDetails::compute_dtype`].
    pub precision: String,
    /// How the weights were quantized; not in the baseline's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization_method: Option<String>,
    /// The adapter; only in the fine-tuned model's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_path: Option<String>,
    /// The model's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_dir: Option<String>,
    /// Time to load the model, seconds.
    pub load_time_seconds: Option<f64>,
    /// GPU memory.
    pub vram: MemoryStages,
    /// One per document.
    pub inference_results: Vec<InferenceResult>,
    /// Over the documents.
    pub latency_stats: Option<LatencyStats>,
    /// Details of the run; not in the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunDetails>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Benchmark {
    /// Resident memory of the process when the model was loaded, MiB.
    pub fn resident_post_load_mb(&self) -> Option<f64> {
        let run = self
            .run
            .as_ref()
            .and_then(|run| run.resident_memory?.post_load_mb);
        run.or_else(|| Some(self.vram.post_load_mb.as_ref()?.in_process()?.allocated_mb))
    }
}

/// GPU memory before loading, after loading and at its peak; resident memory on a CPU, see [`GpuMemory`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryStages {
    /// Before the model was loaded.
    pub pre_load_mb: Option<GpuMemory>,
    /// After it was loaded.
    pub post_load_mb: Option<GpuMemory>,
    /// After all documents were read.
    pub peak_mb: Option<GpuMemory>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One document's reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InferenceResult {
    /// File name of the page.
    pub image: String,
    /// Prompt.
    pub prompt: String,
    /// Generated text.
    pub response: String,
    /// From decoded page to the last token, seconds.
    pub latency_seconds: f64,
    /// From decoded page to the first token, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_first_token_seconds: Option<f64>,
    /// Tokens per second after the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Tokens of prompt and page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    /// "stop", "length" or "repetition".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The answer's score, if the document has expected terms or values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Details of the run and figures outside of the contract.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunDetails {
    /// When the run ended.
    pub timestamp: Option<String>,
    /// "cpu" or "cuda:N".
    pub device: Option<String>,
    /// The GPU's or the processor's name.
    pub device_name: Option<String>,
    /// Dtype of the computation: "FP32", "BF16", "FP16".
    pub compute_dtype: Option<String>,
    /// CPU threads.
    pub cpu_threads: Option<u64>,
    /// Bytes of the model's weight files.
    pub weight_file_bytes: Option<u64>,
    /// Memory of the process.
    pub resident_memory: Option<ResidentMemory>,
    /// Load of the machine while the documents were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<MachineLoad>,
    /// Duration of the warm-up reading, seconds.
    pub warm_up_seconds: Option<f64>,
    /// Time to the first token, seconds.
    pub time_to_first_token_stats: Option<LatencyStats>,
    /// Mean over the documents.
    pub avg_tokens_per_second: Option<f64>,
    /// Maximum number of new tokens.
    pub max_new_tokens: Option<u64>,
    /// Mean score over the documents with expected terms or values, percent.
    pub avg_combined_accuracy_pct: Option<f64>,
    /// Version and commit of the program.
    pub tool_version: Option<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Load of the machine during a measurement, 2 decimals. Shares are of all CPU time, from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineLoad {
    /// Load average of the minute before.
    pub load_average_before: Option<f64>,
    /// The same, at the end.
    pub load_average_after: Option<f64>,
    /// Share of the measured process.
    pub own_cpu_share: Option<f64>,
    /// Share of other processes.
    pub other_cpu_share: Option<f64>,
}

/// Resident memory of the process at the stages of [`MemoryStages`], MiB, 2 decimals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ResidentMemory {
    /// Before the model was loaded.
    pub pre_load_mb: Option<f64>,
    /// After it was loaded.
    pub post_load_mb: Option<f64>,
    /// Peak.
    pub peak_mb: Option<f64>,
}
