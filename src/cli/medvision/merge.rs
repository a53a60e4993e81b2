//! `medvision merge`: merges an adapter into its base model.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use clap::ValueEnum;
use serde::Serialize;
use tch::Device;

use crate::cli::{self, AdapterArgs, CommonArgs, EXIT_CODES_HELP, EXIT_OK, Session};
use crate::console::{Level, Unit};
use crate::data::{CalibrationPage, CalibrationPages, calibration_pages};
use crate::device::process_memory;
use crate::lora::{Adapter, FoundAdapter, find_adapter};
use crate::project::{BASE_MODEL, MERGED_SUFFIX, NF4_SUFFIX, Project};
use crate::quant::Quantization;
use crate::quantize::{
    Measured, MergeError, OutputFolder, PageAccuracy, Watch, measure_with, merge_error, merge_folder,
    nf4::{Nf4Options, quantize_folder},
};
use crate::records::{self, mebibytes, seconds};

const STOPPING: &str = "stopping, finished files are kept: run the same command to continue";

/// Merge an adapter into its base model, for programs without adapter support
///
/// Writes models/NAME-medical-merged, a bf16 folder that transformers loads as it is, and reports its accuracy: the
/// merged weights against W + s·B·A in f32, and the answers to some pages against the base with the adapter
/// attached. This project's programs attach adapters and need no merge. An NF4 base is dequantized first;
/// requantizing (--requantize nf4) rounds the adapter's contribution, so the drift is measured.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES_HELP)]
pub(super) struct MergeArgs {
    #[command(flatten)]
    adapter: AdapterArgs,

    /// Output folder, or its name under models/ [default: models/NAME-medical-merged]
    #[arg(short, long, value_name = "DIR", env = "MVP_OUT", hide_env_values = true)]
    out: Option<PathBuf>,

    /// Also quantize the merged model, into a second folder with the suffix -bnb-nf4
    #[arg(long, value_name = "METHOD", env = "MVP_REQUANTIZE", hide_env_values = true)]
    requantize: Option<Requantize>,

    /// Number of pages to compare answers on; 0 disables the comparison
    #[arg(
        long,
        value_name = "N",
        env = "MVP_CALIBRATION_PAGES",
        default_value_t = 4,
        hide_env_values = true
    )]
    calibration_pages: usize,

    #[command(flatten)]
    common: CommonArgs,
}

/// Quantization methods of `--requantize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Requantize {
    /// bitsandbytes' NormalFloat 4
    Nf4,
}

/// The record `benchmarks/merge_info.json`.
#[derive(Debug, Serialize)]
struct MergeInfo {
    base_model_dir: String,
    base_quantized: bool,
    adapter_path: String,
    rank: usize,
    /// Accuracy of the base with the adapter attached.
    unmerged: Option<PageAccuracy>,
    merged: Merged,
    requantized: Option<Merged>,
    timestamp: String,
}

/// One output folder.
#[derive(Debug, Serialize)]
struct Merged {
    output_dir: String,
    up_to_date: bool,
    time_seconds: f64,
    output_bytes: u64,
    peak_memory_bytes: Option<u64>,
    weight_error: MergeError,
    /// Compared with the base with the adapter attached.
    answers: Option<PageAccuracy>,
}

/// Inputs of a run.
struct Merge<'a> {
    base: &'a Path,
    adapter: &'a Adapter,
    pages: &'a CalibrationPages,
    device: Device,
    watch: Watch<'a>,
}

/// Merges, measures, writes the record and prints a summary.
pub(super) fn run(args: &MergeArgs) -> anyhow::Result<ExitCode> {
    args.common.start_logging(Level::WARN);
    let project = args.common.project()?;
    let base = base(&project, &args.common)?;
    let dir = adapter_folder(args, &project, &base)?;
    let adapter = Adapter::read(&dir)?;
    cli::print_folder_warnings(&base, Some(&dir));
    let out = project.new_model(
        args.out.as_deref(),
        &name(&project.derived_model(&base, MERGED_SUFFIX)),
    );
    if out
        .canonicalize()
        .is_ok_and(|out| base.canonicalize().is_ok_and(|base| base == out))
    {
        bail!("{}: --out must differ from the base model folder", out.display());
    }
    let info = {
        let session = Session::start(args.common.select_device()?, STOPPING)?;
        let pages = calibration_pages(&project, args.calibration_pages)?;
        session.watched(|watch| {
            let merge = Merge {
                base: &base,
                adapter: &adapter,
                pages: &pages,
                device: session.selected.device,
                watch,
            };
            merge.run(&out, args.requantize, &dir)
        })?
    };
    records::write(&project.file(records::paths::MERGE_INFO), &info)?;
    cli::print(&summary(&info))?;
    Ok(ExitCode::from(EXIT_OK))
}

/// The model to merge into: --model, the base model, or its NF4 folder if only that exists.
fn base(project: &Project, common: &CommonArgs) -> anyhow::Result<PathBuf> {
    let nf4 = project.derived_model(Path::new(BASE_MODEL), NF4_SUFFIX);
    if common.model.is_none() && !project.models().join(BASE_MODEL).is_dir() && nf4.is_dir() {
        return Ok(nf4);
    }
    Ok(common.model_folder(project)?.path)
}

fn adapter_folder(args: &MergeArgs, project: &Project, base: &Path) -> anyhow::Result<PathBuf> {
    if let Some(dir) = args.adapter.named(project)? {
        return Ok(dir);
    }
    let given = "name one with --adapter DIR";
    match find_adapter(project, base)? {
        _ if args.adapter.adapter.is_some() => {
            bail!("nothing to merge with --adapter none: {given}")
        }
        FoundAdapter::Recommended(dir) => Ok(dir),
        FoundAdapter::NotRecommended { dir, reason } => {
            bail!("{}: {reason}; to merge it anyway, {given}", dir.display())
        }
        FoundAdapter::Missing => bail!("{}: no adapter found for this model: {given}", base.display()),
    }
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

impl Merge<'_> {
    fn run(&self, out: &Path, requantize: Option<Requantize>, dir: &Path) -> crate::Result<MergeInfo> {
        let merged = self.made(|watch| merge_folder(self.base, self.adapter, out, watch))?;
        let requantized = match requantize {
            None => None,
            Some(Requantize::Nf4) => {
                let target = out.with_file_name(format!("{}{NF4_SUFFIX}", name(out)));
                let quantize =
                    |watch: Watch<'_>| quantize_folder(out, &target, &Nf4Options::default(), watch);
                Some(self.made(quantize)?)
            }
        };
        let unmerged = match self.pages.pages.is_empty() {
            true => None,
            false => Some(
                self.measured("measuring the base with the adapter", |pages, watch| {
                    measure_with(self.base, Some(self.adapter), pages, self.device, None, watch)
                })?,
            ),
        };
        let measured = |folder: Option<Merged>| -> crate::Result<Option<Merged>> {
            let Some(mut folder) = folder else {
                return Ok(None);
            };
            folder.answers = self.answers(&folder, unmerged.as_ref())?;
            Ok(Some(folder))
        };
        let requantized = measured(requantized)?;
        let answers = self.answers(&merged, unmerged.as_ref())?;
        Ok(MergeInfo {
            base_model_dir: self.base.display().to_string(),
            base_quantized: Quantization::from_dir(self.base)? != Quantization::None,
            adapter_path: dir.display().to_string(),
            rank: self.adapter.config.r,
            unmerged: unmerged.map(|measured| measured.accuracy),
            merged: Merged { answers, ..merged },
            requantized,
            timestamp: records::timestamp(),
        })
    }

    /// Runs `make` and measures the weight error of the folder that it writes.
    fn made(&self, make: impl FnOnce(Watch<'_>) -> crate::Result<OutputFolder>) -> crate::Result<Merged> {
        let (start, before) = (Instant::now(), process_memory());
        let outcome = make(self.watch)?;
        let time_seconds = seconds(start.elapsed().as_secs_f64());
        let memory = process_memory().zip(before);
        Ok(Merged {
            weight_error: merge_error(self.base, self.adapter, &outcome.folder, self.watch)?,
            output_dir: outcome.folder.display().to_string(),
            up_to_date: outcome.up_to_date,
            time_seconds,
            output_bytes: outcome.bytes,
            peak_memory_bytes: memory
                .map(|(now, before)| now.peak_resident_bytes.saturating_sub(before.resident_bytes)),
            answers: None,
        })
    }

    fn answers(&self, folder: &Merged, unmerged: Option<&Measured>) -> crate::Result<Option<PageAccuracy>> {
        let Some(unmerged) = unmerged else {
            return Ok(None);
        };
        let dir = Path::new(&folder.output_dir);
        let hidden = Some(&unmerged.hidden[..]);
        let measured = self.measured("measuring the merged model", |pages, watch| {
            measure_with(dir, None, pages, self.device, hidden, watch)
        })?;
        Ok(Some(measured.accuracy))
    }

    /// Runs `measure` on the pages as a stage of its own.
    fn measured(
        &self,
        stage: &str,
        measure: impl FnOnce(&[CalibrationPage], Watch<'_>) -> crate::Result<Measured>,
    ) -> crate::Result<Measured> {
        let pages = &self.pages.pages;
        self.watch.begin(stage, Unit::Of("pages"), pages.len() as u64)?;
        measure(pages, self.watch)
    }
}

fn summary(info: &MergeInfo) -> String {
    let base = match info.base_quantized {
        true => format!("{} (dequantized from 4 bits)", info.base_model_dir),
        false => info.base_model_dir.clone(),
    };
    let mut text = format!(
        "base: {base}\nadapter: {} (rank {})\n",
        info.adapter_path, info.rank
    );
    text += &lines("merged", &info.merged, info.unmerged.as_ref());
    if let Some(requantized) = &info.requantized {
        text += &lines("NF4", requantized, info.unmerged.as_ref());
    }
    text
}

fn lines(what: &str, folder: &Merged, unmerged: Option<&PageAccuracy>) -> String {
    let mut text = format!("{what}: {}", folder.output_dir);
    let _ = match folder.up_to_date {
        true => writeln!(text, " (was up to date)"),
        false => writeln!(
            text,
            "\n  {:.1} MiB, made in {:.1} s",
            mebibytes(folder.output_bytes),
            folder.time_seconds
        ),
    };
    let error = &folder.weight_error;
    let _ = writeln!(
        text,
        "  {} weights compared with the exact sum: RMSE {:.3e} (of RMS {:.3e}), largest error {:.3e} in {}",
        error.weights, error.rmse, error.rms, error.max_abs, error.worst
    );
    if let (Some(answers), Some(unmerged)) = (&folder.answers, unmerged)
        && let Some(outputs) = &answers.outputs
    {
        let _ = writeln!(
            text,
            "  logits compared with the attached adapter, {} pages: RMSE {:.3e}, largest difference {:.3e}, cosine {:.6}\n  \
             top-1 token accuracy: {:.2} % (adapter attached: {:.2} %)",
            answers.pages,
            outputs.output_rmse,
            outputs.output_max_abs,
            outputs.output_cosine,
            answers.token_accuracy_pct,
            unmerged.token_accuracy_pct
        );
    }
    text
}
