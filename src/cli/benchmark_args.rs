//! Flags of the benchmarks.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::value_parser;

use crate::benchmark::BenchmarkOptions;

/// Flags of the benchmarks.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Benchmark options")]
pub struct BenchmarkArgs {
    /// Documents to use instead of the five built-in ones
    ///
    /// {"documents": [{"id", "filename", "title", "content": ["line", ...], "prompt", "expected_terms": ["..."], ...}]}
    #[arg(long, value_name = "FILE.json", env = "MVP_DOCUMENTS", hide_env_values = true)]
    documents: Option<PathBuf>,

    /// Maximum number of new tokens per answer
    #[arg(long, value_name = "N", env = "MVP_MAX_NEW_TOKENS", hide_env_values = true,
          default_value_t = BenchmarkOptions::default().max_new_tokens as u32,
          value_parser = value_parser!(u32).range(1..))]
    max_new_tokens: u32,

    /// Skip the warm-up page before measuring
    #[arg(long, env = "MVP_NO_WARM_UP", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    no_warm_up: bool,
}

impl BenchmarkArgs {
    /// The benchmark's options.
    pub fn options(&self) -> BenchmarkOptions {
        BenchmarkOptions {
            documents: self.documents.clone(),
            max_new_tokens: self.max_new_tokens as usize,
            warm_up: !self.no_warm_up,
        }
    }
}
