//! `medvision bench`: load time, memory and speed of a model on this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{FalseyValueParser, RangedU64ValueParser};

use crate::benchmark::speed::{
    Form, Shape, SpeedOptions, SpeedRun, Steps, Weights, speed_benchmark, speed_table,
};
use crate::cli::{self, CommonArgs, EXIT_CODES_HELP, EXIT_OK};
use crate::console::{self, Level, Unit};
use crate::{Error, Result, doctor, fs::parent_folder, records};

/// Measure load time, memory and speed of a model on this machine
///
/// The model is a folder (--model), or has random weights of published shapes (--shape), which are made in memory. Page
/// and prompt have no meaning, only the asked-for size, and every answer has all its tokens; image decoding and text
/// processing are not measured. "Share of the bandwidth limit" compares decoding with the time in which a large copy, measured
/// in the same run, would move the weights that a token reads; weights that fit in a CPU's cache can exceed 100 %.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES_HELP)]
pub(super) struct BenchArgs {
    /// Shapes of a model with random weights, instead of a folder
    #[arg(
        long,
        value_name = "SIZE",
        env = "MVP_SHAPE",
        hide_env_values = true,
        conflicts_with = "model"
    )]
    shape: Option<Shape>,

    /// Format of the random weights [default: nf4]
    #[arg(
        long,
        value_name = "FORMAT",
        env = "MVP_FORM",
        hide_env_values = true,
        requires = "shape",
        conflicts_with = "model"
    )]
    form: Option<Form>,

    /// Sequences to decode together
    #[arg(
        long,
        value_name = "N",
        env = "MVP_SEQUENCES",
        default_value_t = SpeedOptions::default().sequences,
        hide_env_values = true,
        value_parser = range(1, 256)
    )]
    sequences: usize,

    /// Tokens of the prompt, including the page's [default: 65 more than the page has]
    #[arg(
        long,
        value_name = "N",
        env = "MVP_PROMPT_TOKENS",
        hide_env_values = true,
        value_parser = range(1, 1 << 20)
    )]
    prompt_tokens: Option<usize>,

    /// Tokens of the answer
    #[arg(
        long,
        value_name = "N",
        env = "MVP_ANSWER_TOKENS",
        default_value_t = SpeedOptions::default().answer_tokens,
        hide_env_values = true,
        value_parser = range(2, 1 << 20)
    )]
    answer_tokens: usize,

    /// Width and height of the page in pixels, or "none" for text alone
    #[arg(
        long,
        value_name = "WxH",
        env = "MVP_IMAGE_SIZE",
        default_value = "900x1100",
        hide_env_values = true,
        value_parser = image_size
    )]
    image: ImageSize,

    /// Also measure a random LoRA adapter of this rank on all linear layers
    #[arg(
        long,
        value_name = "R",
        env = "MVP_ADAPTER_RANK",
        hide_env_values = true,
        value_parser = range(1, 4096)
    )]
    adapter_rank: Option<usize>,

    /// Repetitions; the table has medians
    #[arg(
        long,
        value_name = "N",
        env = "MVP_REPEAT",
        default_value_t = SpeedOptions::default().repeat,
        hide_env_values = true,
        value_parser = range(1, 1000)
    )]
    repeat: usize,

    /// Also measure each stage: vision tower, prefill, first token, decode step
    #[arg(
        long,
        env = "MVP_PROFILE",
        value_parser = FalseyValueParser::new(),
        hide_env_values = true
    )]
    profile: bool,

    /// Also write all figures, with machine and command line, to this file
    #[arg(long, value_name = "FILE", env = "MVP_JSON_FILE", hide_env_values = true)]
    json: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

/// `--image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ImageSize(Option<(u32, u32)>);

/// Largest side of a page.
const MAX_SIDE: u32 = 20_000;

fn image_size(text: &str) -> Result<ImageSize, String> {
    if text == "none" {
        return Ok(ImageSize(None));
    }
    let side = |text: &str| {
        let pixels = text.parse().ok();
        pixels.filter(|pixels| (1..=MAX_SIDE).contains(pixels))
    };
    text.split_once('x')
        .and_then(|(width, height)| Some((side(width)?, side(height)?)))
        .map(|size| ImageSize(Some(size)))
        .ok_or_else(|| format!("expected WIDTHxHEIGHT, each from 1 to {MAX_SIDE} pixels, or none"))
}

fn range(from: u64, to: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(from..=to)
}

/// Measures, prints the table and writes the record.
pub(super) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    args.common.start_logging(Level::WARN);
    if let Some(path) = &args.json {
        check_output(path)?;
    }
    let weights = match args.shape {
        Some(shape) => Weights::Random(shape, args.form.unwrap_or(Form::Nf4)),
        None => Weights::Folder(args.common.model_folder(&args.common.project()?)?.path),
    };
    let options = SpeedOptions {
        sequences: args.sequences,
        prompt_tokens: args.prompt_tokens,
        answer_tokens: args.answer_tokens,
        image: args.image.0,
        adapter_rank: args.adapter_rank,
        repeat: args.repeat,
        profile: args.profile,
    };
    let selected = args.common.select_device()?;
    let progress = console::progress();
    let record = speed_benchmark(&SpeedRun {
        weights: &weights,
        selected: &selected,
        precision: args.common.precision,
        options: &options,
        command: command_line(),
        system: doctor::os(),
        libtorch: doctor::libtorch_version(),
        steps: Steps {
            begin: &|name, steps| match steps {
                0 => progress.begin(name, Unit::Nothing, 0),
                _ => progress.begin(name, Unit::Of("answers"), steps as u64),
            },
            done: &|| progress.inc(1),
        },
    });
    progress.finish_and_clear();
    let record = record?;
    cli::print(&speed_table(&record))?;
    if let Some(path) = &args.json {
        records::write(path, &record)?;
        console::say(Level::INFO, &format!("written: {}", path.display()));
    }
    Ok(ExitCode::from(EXIT_OK))
}

/// Checks, before any work, that the record can be written.
fn check_output(path: &std::path::Path) -> Result<()> {
    match parent_folder(path) {
        folder if !folder.is_dir() => Err(Error::not_found(
            folder,
            "no such folder; --json must name a file in an existing folder",
        )),
        _ if path.is_dir() => Err(Error::unsuitable(path, "is a folder; --json must name a file")),
        _ => Ok(()),
    }
}

/// The command line, without the program's folder.
fn command_line() -> String {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    format!("medvision {}", arguments.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_read() {
        assert_eq!(image_size("900x1100"), Ok(ImageSize(Some((900, 1100)))));
        assert_eq!(image_size("none"), Ok(ImageSize(None)));
        for wrong in [
            "0x5",
            "5x0",
            "900",
            "900x",
            "x",
            "900x1100x2",
            "-1x5",
            "20001x5",
            "NONE",
            "",
        ] {
            let message = image_size(wrong).unwrap_err();
            assert!(message.contains("WIDTHxHEIGHT"), "{wrong}");
        }
    }
}
