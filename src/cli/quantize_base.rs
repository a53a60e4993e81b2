//! `quantize_base`: quantizes the base model to four bits.

use std::process::ExitCode;

use clap::builder::FalseyValueParser;
use clap::{Parser, value_parser};

use super::{
    BenchmarkArgs, CommonArgs, EXIT_CODES_HELP, EXIT_FAILURE, EXIT_OK, Session, print, print_folder_warnings,
    start,
};
use crate::quant::{Method, nf4::QuantType};
use crate::quantize::{BaseRun, awq::AwqOptions, nf4::Nf4Options, quantize_base, summary};
use crate::version::version;

const STOPPING: &str = "stopping after the current weight, finished work is kept";

/// Quantize the base model to 4 bits
///
/// Writes models/qwen25-vl-7b-bnb-nf4 and models/qwen25-vl-7b-awq-int4, which transformers loads as they are, and
/// benchmarks/quantization_info.json. Both are measured on calibration pages, and the more accurate one
/// becomes the active method. Interrupted runs resume; an existing folder made from
/// the same model with the same options is kept.
#[derive(Parser)]
#[command(name = "quantize_base", version = version(), after_help = EXIT_CODES_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    quantize: QuantizeArgs,
    #[command(flatten)]
    documents: BenchmarkArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// What is quantized, and how.
#[derive(Debug, clap::Args)]
struct QuantizeArgs {
    /// Quantization method [default: run both and use the more accurate one]
    #[arg(long, value_name = "METHOD", env = "MVP_QUANT_METHOD", hide_env_values = true)]
    method: Option<Method>,

    /// Linear layers to keep unquantized, by full name, prefix or suffix: visual, model.layers.0, down_proj
    #[arg(
        long,
        value_name = "MODULE,...",
        env = "MVP_SKIP_MODULES",
        value_delimiter = ',',
        hide_env_values = true
    )]
    skip_modules: Vec<String>,

    /// NF4: block size (weights per scale)
    #[arg(
        long,
        value_name = "N",
        env = "MVP_BLOCKSIZE",
        default_value_t = Nf4Options::default().blocksize,
        hide_env_values = true
    )]
    blocksize: usize,

    /// NF4: disable double quantization (of the scales)
    #[arg(long, env = "MVP_NO_DOUBLE_QUANT", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    no_double_quant: bool,

    /// NF4: source MiB per output shard; an interrupted run repeats at most this much work
    #[arg(
        long,
        value_name = "MIB",
        env = "MVP_FILE_MIB",
        default_value_t = Nf4Options::default().file_mib,
        hide_env_values = true
    )]
    file_mib: usize,

    /// 4-bit data type of the bitsandbytes method
    #[arg(
        long,
        value_name = "TYPE",
        env = "MVP_QUANT_TYPE",
        value_enum,
        default_value_t = Nf4Options::default().quant_type,
        hide_env_values = true
    )]
    quant_type: QuantType,

    /// Number of calibration pages [default: 8; 0 with --method nf4]
    #[arg(long, value_name = "N", env = "MVP_CALIBRATION_PAGES", hide_env_values = true)]
    calibration_pages: Option<usize>,

    /// Number of calibration pages to compare the original and both methods on
    #[arg(
        long,
        value_name = "N",
        env = "MVP_MEASURED_PAGES",
        default_value_t = 4,
        value_parser = value_parser!(u64).range(1..),
        hide_env_values = true
    )]
    measured_pages: u64,

    /// AWQ: number of calibration tokens used in the scale search, evenly sampled
    #[arg(
        long,
        value_name = "N",
        env = "MVP_CALIBRATION_ROWS",
        default_value_t = AwqOptions::default().rows as u64,
        value_parser = value_parser!(u64).range(1..=1 << 20),
        hide_env_values = true
    )]
    calibration_rows: u64,
}

impl QuantizeArgs {
    /// Number of pages to calibrate and to compare on.
    fn calibration_pages(&self) -> usize {
        let default = if self.method == Some(Method::Nf4) { 0 } else { 8 };
        self.calibration_pages.unwrap_or(default)
    }

    fn nf4(&self) -> Nf4Options {
        Nf4Options {
            quant_type: self.quant_type,
            blocksize: self.blocksize,
            double_quant: !self.no_double_quant,
            skip_modules: self.skip_modules.clone(),
            file_mib: self.file_mib,
        }
    }

    fn awq(&self) -> AwqOptions {
        AwqOptions {
            rows: self.calibration_rows as usize,
            ..AwqOptions::default()
        }
    }
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    start(|arguments: &Arguments| &arguments.common, run)
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let project = arguments.common.project()?;
    let model = arguments.common.model_folder(&project)?.path;
    print_folder_warnings(&model, None);
    let info = {
        let session = Session::start(arguments.common.select_device()?, STOPPING)?;
        let flags = &arguments.quantize;
        let run = BaseRun {
            project: &project,
            model: &model,
            selected: &session.selected,
            method: flags.method,
            nf4: flags.nf4(),
            awq: flags.awq(),
            pages: flags.calibration_pages(),
            measured_pages: usize::try_from(flags.measured_pages).unwrap_or(usize::MAX),
            documents: &arguments.documents.options(),
        };
        session.watched(|watch| quantize_base(&run, watch))?
    };
    print(&summary(&info))?;
    Ok(ExitCode::from(if info.active_method.is_some() {
        EXIT_OK
    } else {
        EXIT_FAILURE
    }))
}
