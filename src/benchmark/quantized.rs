//! Which quantized model is benchmarked, and the path of its record.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::project::{AWQ_SUFFIX, NF4_SUFFIX, Project};
use crate::quant::{Method, Quantization};
use crate::records::{Benchmark, paths};
use crate::{Error, Result};

/// Flags of `benchmark_quantized` alone.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Benchmark options")]
pub struct QuantizedBenchmark {
    /// Quantization method to benchmark
    #[arg(
        long,
        value_name = "METHOD",
        env = "MVP_METHOD",
        default_value = "nf4",
        hide_env_values = true
    )]
    pub method: QuantizedMethod,
}

/// `--method` as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantizedMethod {
    /// bitsandbytes' NF4
    Nf4,
    /// AWQ
    Awq,
}

impl QuantizedBenchmark {
    /// The folder to load: what `quantize_base` made from `base`, or `base` itself where that is quantized.
    pub fn folder(&self, project: &Project, base: &Path) -> Result<PathBuf> {
        if Quantization::from_dir(base)? != Quantization::None {
            return Ok(base.to_owned());
        }
        let (suffix, flag) = match self.method {
            QuantizedMethod::Nf4 => (NF4_SUFFIX, "nf4"),
            QuantizedMethod::Awq => (AWQ_SUFFIX, "awq"),
        };
        let folder = project.derived_model(base, suffix);
        if !folder.is_dir() {
            let reason = format!("no such folder; make it with: quantize_base --method {flag}");
            return Err(Error::checkpoint(&folder, reason));
        }
        Ok(folder)
    }

    /// The record, below the project folder.
    pub fn record(&self) -> &'static str {
        match self.method {
            QuantizedMethod::Nf4 => paths::QUANTIZED_INT4,
            QuantizedMethod::Awq => paths::QUANTIZED_AWQ,
        }
    }

    /// Its name in the table.
    pub fn label(&self) -> &'static str {
        match self.method {
            QuantizedMethod::Nf4 => "NF4",
            QuantizedMethod::Awq => "AWQ",
        }
    }

    /// `record` with the method's name.
    pub fn named(&self, mut record: Benchmark) -> Benchmark {
        let method = match self.method {
            QuantizedMethod::Nf4 => Method::Nf4,
            QuantizedMethod::Awq => Method::Awq,
        };
        record.quantization_method = Some(method.name().to_owned());
        record
    }
}
