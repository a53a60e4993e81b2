//! Flags of the commands that read pages.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::value_parser;

use crate::cli::{decoder, free_text};
use crate::documents::{DEFAULT_DPI, MAX_DPI, MIN_DPI, OpenOptions, PageSelection};
use crate::fs::read_text;
use crate::generation::GenerationOverrides;
use crate::{Error, Result};

/// Generation options. Defaults come from the model folder's `generation_config.json`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Generation")]
pub(super) struct GenerationArgs {
    /// Maximum number of new tokens (about 4 characters of English text each)
    #[arg(long, value_name = "N", env = "MVP_MAX_NEW_TOKENS", default_value_t = 1024, hide_env_values = true,
          value_parser = value_parser!(u32).range(1..))]
    max_new_tokens: u32,

    /// Sampling temperature; 0 is greedy decoding
    #[arg(long, value_name = "T", env = "MVP_TEMPERATURE", hide_env_values = true, value_parser = temperature)]
    temperature: Option<f64>,

    /// Sample from the K most likely tokens
    #[arg(long, value_name = "K", env = "MVP_TOP_K", hide_env_values = true, value_parser = value_parser!(u32).range(1..))]
    top_k: Option<u32>,

    /// Nucleus sampling: smallest set of tokens with cumulative probability P
    #[arg(long, value_name = "P", env = "MVP_TOP_P", hide_env_values = true, value_parser = probability)]
    top_p: Option<f64>,

    /// Repetition penalty; 1 disables it
    ///
    /// Tables repeat legitimately: values above 1 can corrupt them.
    #[arg(long, value_name = "R", env = "MVP_REPETITION_PENALTY", hide_env_values = true, value_parser = positive)]
    repetition_penalty: Option<f64>,

    /// Random seed for sampling
    #[arg(long, value_name = "N", env = "MVP_SEED", hide_env_values = true)]
    seed: Option<u64>,

    /// Stop string, not included in the output; repeatable
    #[arg(long, value_name = "TEXT", env = "MVP_STOP", hide_env_values = true,
          allow_hyphen_values = true, value_parser = free_text)]
    stop: Vec<String>,

    /// Disable repetition-loop detection
    #[arg(long, env = "MVP_NO_REPETITION_DETECTION", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    no_repetition_detection: bool,
}

/// Limits of input files.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct FileArgs {
    /// Maximum file size, MiB
    #[arg(long, value_name = "MIB", env = "MVP_MAX_FILE_SIZE", default_value_t = 20, hide_env_values = true,
          value_parser = value_parser!(u64).range(1..=4096))]
    max_file_size: u64,
}

impl FileArgs {
    /// Maximum file size in bytes.
    pub(super) fn limit(&self) -> u64 {
        self.max_file_size << 20
    }
}

/// Which pages of documents are read, and how.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Documents")]
pub(super) struct DocumentArgs {
    /// Pages to read of each file, such as 1-3,7,-1 (-1 is the last page) [default: all]
    #[arg(long, value_name = "PAGES", env = "MVP_PAGES", hide_env_values = true, allow_hyphen_values = true,
          value_parser = page_selection)]
    pages: Option<PageSelection>,

    /// Resolution at which PDF pages are rendered, dots per inch; less where --max-pixels says so
    #[arg(long, value_name = "N", env = "MVP_DPI", default_value_t = DEFAULT_DPI, hide_env_values = true,
          value_parser = value_parser!(u32).range(MIN_DPI..=MAX_DPI))]
    dpi: u32,

    /// File with the password of encrypted PDFs, on its first line
    #[arg(long, value_name = "FILE", env = "MVP_PASSWORD_FILE", hide_env_values = true)]
    password_file: Option<PathBuf>,
}

/// Maximum bytes of a password file.
const MAX_PASSWORD_FILE: u64 = 4096;

impl DocumentArgs {
    /// The pages to read.
    pub(super) fn pages(&self) -> PageSelection {
        self.pages.clone().unwrap_or_default()
    }

    /// How documents are opened.
    ///
    /// # Errors
    /// For a password file that cannot be read.
    pub(super) fn open_options(&self) -> Result<OpenOptions> {
        let password = self.password_file.as_deref().map(|path| {
            let text = read_text(path, MAX_PASSWORD_FILE).map_err(|error| Error::io(path, error))?;
            Ok::<_, Error>(text.lines().next().unwrap_or_default().to_owned())
        });
        Ok(OpenOptions {
            dpi: self.dpi,
            password: password.transpose()?,
            decoder: decoder(),
            ..OpenOptions::default()
        })
    }
}

fn page_selection(text: &str) -> Result<PageSelection, String> {
    text.parse()
}

/// Range of page sizes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Page size")]
pub(super) struct PixelArgs {
    /// Minimum page size in pixels (width x height); smaller pages are upscaled
    #[arg(long, value_name = "N", env = "MVP_MIN_PIXELS", hide_env_values = true, value_parser = value_parser!(u64).range(1..))]
    pub min_pixels: Option<u64>,

    /// Maximum page size in pixels (width x height); larger pages are downscaled
    ///
    /// Downscaling can make small text illegible; large pages need more memory and time.
    #[arg(long, value_name = "N", env = "MVP_MAX_PIXELS", hide_env_values = true, value_parser = value_parser!(u64).range(1..))]
    pub max_pixels: Option<u64>,
}

impl GenerationArgs {
    /// The flags as options of a request.
    pub(super) fn overrides(&self) -> GenerationOverrides {
        GenerationOverrides {
            max_new_tokens: Some(self.max_new_tokens as usize),
            temperature: self.temperature,
            top_k: self.top_k.map(|k| k as usize),
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop: (!self.stop.is_empty()).then(|| self.stop.clone()),
            stop_token_ids: None,
            repetition_detection: self.no_repetition_detection.then_some(None),
        }
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text, |value| value >= 0.0, "expected a number, 0 or greater")
}

fn probability(text: &str) -> Result<f64, String> {
    number(
        text,
        |value| value > 0.0 && value <= 1.0,
        "expected a number above 0, up to 1",
    )
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0, "expected a number above 0")
}

fn number(text: &str, fits: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    let value: Option<f64> = text.parse().ok();
    value
        .filter(|value| value.is_finite() && fits(*value))
        .ok_or_else(|| expected.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        generation: GenerationArgs,
    }

    fn overrides(flags: &[&str]) -> Result<GenerationOverrides, clap::Error> {
        let arguments = ["program"].iter().chain(flags);
        Ok(Program::try_parse_from(arguments)?.generation.overrides())
    }

    #[test]
    fn absent_flags_keep_the_values_of_the_folder() {
        let expected = GenerationOverrides {
            max_new_tokens: Some(1024),
            ..GenerationOverrides::default()
        };
        assert_eq!(overrides(&[]).unwrap(), expected);
    }

    #[test]
    fn flags_become_options() {
        let flags = [
            "--temperature=0.5",
            "--top-k=20",
            "--top-p=0.9",
            "--seed=7",
            "--stop=A",
            "--stop=B",
            "--no-repetition-detection",
        ];
        let options = overrides(&flags).unwrap();
        assert_eq!(
            (options.temperature, options.top_k, options.top_p),
            (Some(0.5), Some(20), Some(0.9))
        );
        assert_eq!(options.stop, Some(vec!["A".to_owned(), "B".to_owned()]));
        assert_eq!(
            (options.seed, options.repetition_detection),
            (Some(7), Some(None))
        );
    }

    #[test]
    fn values_out_of_range_are_rejected() {
        for flag in [
            "--temperature=-1",
            "--temperature=nan",
            "--top-k=0",
            "--top-p=0",
            "--top-p=1.5",
            "--repetition-penalty=0",
            "--max-new-tokens=0",
            "--seed=x",
        ] {
            assert!(overrides(&[flag]).is_err(), "{flag}");
        }
    }
}
