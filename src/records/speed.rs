//! The record of `medvision bench`: load time, memory and speed of a model. Keys that the comparisons' records in
//! `benchmarks/runs/` have, too, are named as there.

use serde::{Deserialize, Serialize};

use super::Extra;

/// Memory and speed of one model on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// "speed".
    pub what: String,
    /// Time of the run.
    pub timestamp: String,
    /// Commit of the build.
    pub commit: String,
    /// Version of the build.
    pub version: String,
    /// The command line.
    pub command: String,
    /// Where it ran.
    pub machine: SpeedMachine,
    /// Load average before the run.
    pub load_average: Option<f64>,
    /// What ran.
    pub model: SpeedModel,
    /// How it was measured.
    pub settings: SpeedSettings,
    /// Bandwidth of a large copy on the device, read and written, GB/s.
    pub copy_gb_per_second: f64,
    /// Load time, seconds; of random weights with their making.
    pub load_seconds: f64,
    /// Memory after loading, MiB: the GPU's in tensors, or resident memory of the process on a CPU.
    pub memory_after_loading_mib: Option<f64>,
    /// The same at its peak.
    pub memory_peak_mib: Option<f64>,
    /// One sequence without an adapter.
    pub base: SequenceSpeed,
    /// One sequence with the adapter.
    pub adapter: Option<SequenceSpeed>,
    /// Tokens per second of all sequences together, without an adapter; `None` for one sequence.
    pub sequences_tokens_per_second: Option<Spread>,
    /// Longest wait for a token of a sequence while another prompt is read, seconds; `None` for one sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_seconds: Option<Spread>,
    /// Time by stage; only with `--profile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Vec<StageSpeed>>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The machine of a [`Speed`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeedMachine {
    /// Operating system.
    pub system: String,
    /// The processor.
    pub processor: String,
    /// Physical cores available to the process.
    pub cores: Option<usize>,
    /// CPU threads that compute.
    pub threads: usize,
    /// Memory, GiB.
    pub memory_gib: Option<f64>,
    /// The GPU that computes.
    pub gpu: Option<String>,
    /// Its memory, MiB.
    pub gpu_memory_mib: Option<f64>,
    /// Version of NVIDIA's driver.
    pub gpu_driver: Option<String>,
    /// Version of libtorch.
    pub libtorch: Option<String>,
}

/// The model of a [`Speed`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeedModel {
    /// The folder, or the shapes.
    pub name: String,
    /// Whether the weights are random.
    pub random_weights: bool,
    /// Format of the weights: "NF4 (bitsandbytes)", or the stored dtypes.
    pub weights: String,
    /// Dtype of the computation.
    pub compute_dtype: String,
    /// "cpu" or "cuda:N".
    pub device: String,
}

/// The settings of a [`Speed`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeedSettings {
    /// Size of the page, WIDTHxHEIGHT; `None` without one.
    pub image: Option<String>,
    /// Tokens of the page.
    pub image_tokens: usize,
    /// All tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
    /// Sequences decoded together.
    pub sequences: usize,
    /// Rank of the adapter.
    pub adapter_rank: Option<usize>,
    /// Repetitions; each figure has their median.
    pub repeat: usize,
}

/// Speed of one sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequenceSpeed {
    /// From patches and token ids to the first token, seconds.
    pub first_token_seconds: Spread,
    /// Tokens per second after the first.
    pub decode_tokens_per_second: Spread,
    /// The whole answer, seconds.
    pub answer_seconds: Spread,
    /// Weights that each token after the first reads, bytes.
    pub weight_bytes_per_token: u64,
    /// Share of the speed at which the copy's bandwidth would read these weights, percent.
    pub bandwidth_share_pct: f64,
}

/// Figures of several repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Median; of an even number, the mean of the middle two.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// `None` without figures.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self {
            min,
            median: f64::midpoint(low, high),
            max,
        })
    }
}

/// One stage of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageSpeed {
    /// Its name.
    pub stage: String,
    /// Median time, seconds.
    pub seconds: f64,
    /// Weights that it reads, bytes.
    pub weight_bytes: u64,
    /// The same in relation to the time, GB/s.
    pub gb_per_second: f64,
    /// The same in relation to the copy's bandwidth, percent.
    pub bandwidth_share_pct: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let spread = |figures: &[f64]| Spread::of(figures).map(|s| (s.min, s.median, s.max));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((1.0, 2.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some((1.0, 2.5, 4.0)));
        assert_eq!(spread(&[5.0]), Some((5.0, 5.0, 5.0)));
        assert_eq!(spread(&[]), None);
    }
}
