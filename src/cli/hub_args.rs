//! Flags of the programs that download.

use std::ffi::OsString;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::value_parser;

use crate::error::HubError;
use crate::hub::HubSettings;

/// Flags of the programs that download.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Download options")]
pub struct HubArgs {
    /// Do not use the network: verify local files and fail if any are missing (also HF_HUB_OFFLINE=1)
    #[arg(long, env = "MVP_OFFLINE", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    offline: bool,

    /// Number of concurrent downloads
    #[arg(long, value_name = "N", env = "MVP_JOBS", default_value_t = HubSettings::JOBS, hide_env_values = true,
          value_parser = value_parser!(u16).range(1..=32))]
    jobs: u16,

    /// Retries after an attempt that made no progress
    #[arg(long, value_name = "N", env = "MVP_RETRIES", default_value_t = HubSettings::RETRIES, hide_env_values = true,
          value_parser = value_parser!(u32).range(0..=100))]
    retries: u32,

    /// Abort a connection after this long without data
    #[arg(long, value_name = "SECONDS", env = "MVP_STALL_SECONDS", default_value_t = HubSettings::STALL_SECONDS,
          hide_env_values = true, value_parser = positive_seconds)]
    stall_seconds: f64,

    /// Initial retry delay in seconds, doubled on every retry
    #[arg(long, value_name = "SECONDS", env = "MVP_RETRY_SECONDS", default_value_t = HubSettings::RETRY_SECONDS,
          hide_env_values = true, value_parser = positive_seconds)]
    retry_seconds: f64,
}

fn positive_seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number of seconds from 0.001 to 86400".to_owned()),
    }
}

impl HubArgs {
    /// Whether `--offline` or `HF_HUB_OFFLINE` is set.
    pub fn offline(&self) -> bool {
        self.offline || HubSettings::offline_from_env()
    }

    /// The hub of the environment with the retry policy of the flags.
    pub fn settings(&self) -> Result<HubSettings, HubError> {
        Ok(HubSettings {
            jobs: usize::from(self.jobs),
            retries: self.retries,
            stall: Duration::from_secs_f64(self.stall_seconds),
            first_delay: Duration::from_secs_f64(self.retry_seconds),
            ..HubSettings::from_env()?
        })
    }

    /// These flags for another program, without `--offline`.
    pub fn flags(&self) -> Vec<OsString> {
        [
            ("--jobs", self.jobs.to_string()),
            ("--retries", self.retries.to_string()),
            ("--stall-seconds", self.stall_seconds.to_string()),
            ("--retry-seconds", self.retry_seconds.to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.into(), value.into()])
        .collect()
    }
}
