//! `quantize_base`: quantizes the base model by each method, measures and compares them, and writes the record.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{
    MAX_REPORT_BYTES, OutputFolder, Watch,
    awq::{self, AwqOptions, AwqReport},
    nf4::{Nf4Options, REPORT, quantize_folder},
    saved::SavedMeasurements,
    select::{Candidate, choose, measure_candidates},
};
use crate::benchmark::BenchmarkOptions;
use crate::console::Unit;
use crate::data::{CalibrationPages, calibration_pages};
use crate::device::{Selected, process_memory};
use crate::engine::{LoadOptions, Reader};
use crate::fs::read_bounded;
use crate::project::Project;
use crate::quant::{Method, nf4::WeightErrors};
use crate::records::{
    self, AwqAttempt, BnbSetup, Extra, GpuMemory, MemoryFigure, QuantizationInfo, mib, seconds,
};
use crate::{Error, Result};
use serde_json::json;

/// A run of `quantize_base`.
pub struct BaseRun<'a> {
    /// Project of the models and records.
    pub project: &'a Project,
    /// The model to quantize.
    pub model: &'a Path,
    /// Device on which the quantized model is test-loaded and measured.
    pub selected: &'a Selected,
    /// The only method to run; `None` for all, of which the more accurate one becomes active.
    pub method: Option<Method>,
    /// Options of NF4.
    pub nf4: Nf4Options,
    /// Options of AWQ.
    pub awq: AwqOptions,
    /// Number of calibration pages; with 0 nothing is measured.
    pub pages: usize,
    /// Number of those on which all models are measured.
    pub measured_pages: usize,
    /// Documents to measure before and after quantization.
    pub documents: &'a BenchmarkOptions,
}

impl BaseRun<'_> {
    pub(super) fn wants(&self, method: Method) -> bool {
        self.method.is_none_or(|wanted| wanted == method)
    }

    /// The output folder of `method`.
    pub fn folder(&self, method: Method) -> PathBuf {
        self.project.derived_model(self.model, method.suffix())
    }

    fn folder_name(&self, method: Method) -> String {
        self.folder(method).display().to_string()
    }
}

/// Quantizes the model by the requested methods, and writes and returns the record.
///
/// A method that fails has its error in the record and does not affect the other one.
///
/// # Errors
/// Invalid options and cancellation; no record is written then.
pub fn quantize_base(run: &BaseRun<'_>, watch: Watch<'_>) -> Result<QuantizationInfo> {
    let path = run.project.file(records::paths::QUANTIZATION_INFO);
    let earlier = earlier(run, &path);
    let pages = calibration_pages(run.project, run.pages);
    let (mut bnb_setup, mut nf4) = match earlier.as_ref().map(|info| info.bnb_setup.clone()) {
        Some(setup) if !run.wants(Method::Nf4) => {
            let candidate = Candidate::of_record(Method::Nf4, setup.success, &setup.extra);
            (setup, candidate)
        }
        _ => run_nf4(run, watch)?,
    };
    let (mut awq_attempt, mut awq) = match earlier.as_ref().map(|info| info.awq_attempt.clone()) {
        Some(attempt) if !run.wants(Method::Awq) => {
            let candidate = Candidate::of_record(Method::Awq, attempt.success, &attempt.extra);
            (attempt, candidate)
        }
        _ => run_awq(run, pages.as_ref(), watch)?,
    };
    let calibration = measure_candidates(run, &pages, earlier.as_ref(), watch, [&mut nf4, &mut awq])?;
    // A folder that is kept cost what it cost when it was made.
    if nf4.success && !nf4.rewritten {
        let made = earlier.as_ref().map(|info| &info.bnb_setup);
        bnb_setup.time_seconds = made.and_then(|made| made.time_seconds);
        let peak = made.and_then(|made| made.extra.get("peak_memory_mb"));
        bnb_setup.extra.insert("peak_memory_mb".to_owned(), json!(peak));
    }
    if awq.success && !awq.rewritten {
        awq_attempt.time_seconds = earlier.as_ref().and_then(|info| info.awq_attempt.time_seconds);
    }
    nf4.write_figures(&mut bnb_setup.extra);
    awq.write_figures(&mut awq_attempt.extra);
    let active = choose(run.method, &nf4, &awq);
    let info = QuantizationInfo {
        active_method: active.as_ref().map(|(method, _)| method.name().to_owned()),
        bnb_setup,
        awq_attempt,
        extra: extra(json!({
            "active_reason": active.map(|(_, reason)| reason),
            "base_model_dir": run.model.display().to_string(),
            "calibration": calibration,
        })),
    };
    records::write(&path, &info)?;
    SavedMeasurements::remove(run.project);
    Ok(info)
}

/// The record of an earlier run on the same model, which keeps the result of a method that is not requested now.
fn earlier(run: &BaseRun<'_>, path: &Path) -> Option<QuantizationInfo> {
    let info: QuantizationInfo = records::read_if_present(path).ok()??;
    let same = |dir: &Option<String>, method| dir.as_deref() == Some(run.folder_name(method).as_str());
    (same(&info.bnb_setup.output_dir, Method::Nf4) && same(&info.awq_attempt.output_dir, Method::Awq))
        .then_some(info)
}

fn run_awq(
    run: &BaseRun<'_>,
    pages: Result<&CalibrationPages, &Error>,
    watch: Watch<'_>,
) -> Result<(AwqAttempt, Candidate)> {
    let mut candidate = Candidate::new(Method::Awq);
    let mut attempt = AwqAttempt {
        method: Method::Awq.name().to_owned(),
        success: false,
        time_seconds: None,
        output_dir: Some(run.folder_name(Method::Awq)),
        error: None,
        extra: Extra::new(),
    };
    if !run.wants(Method::Awq) {
        attempt.error = Some("not attempted: --method nf4".to_owned());
        return Ok((attempt, candidate));
    }
    attempt.error = match pages {
        Ok(pages) => failure(|| make_awq(run, pages, watch, &mut attempt, &mut candidate))?,
        Err(error) => Some(error.to_string()),
    };
    attempt.success = attempt.error.is_none();
    candidate.success = attempt.success;
    Ok((attempt, candidate))
}

fn make_awq(
    run: &BaseRun<'_>,
    pages: &CalibrationPages,
    watch: Watch<'_>,
    attempt: &mut AwqAttempt,
    candidate: &mut Candidate,
) -> Result<()> {
    let start = Instant::now();
    let folder = run.folder(Method::Awq);
    let made = awq::quantize_folder(
        run.model,
        &folder,
        &run.awq,
        &pages.pages,
        run.selected.device,
        watch,
    )?;
    (candidate.rewritten, candidate.output_bytes) = (!made.up_to_date, Some(made.bytes));
    attempt.time_seconds = Some(seconds(start.elapsed().as_secs_f64()));
    attempt.extra = extra(json!({
        "up_to_date": made.up_to_date,
        "options": run.awq,
        "output_bytes": made.bytes,
        "relative_output_error": AwqReport::read(&folder).map(|report| report.total),
    }));
    let loaded = load(run, Method::Awq, watch)?;
    attempt
        .extra
        .insert("load_time_seconds".to_owned(), json!(loaded.seconds));
    Ok(())
}

/// Runs `work` and returns its error or panic as text; `Err` for invalid options and cancellation.
fn failure(work: impl FnOnce() -> Result<()>) -> Result<Option<String>> {
    let result = catch_unwind(AssertUnwindSafe(work));
    match result {
        Ok(Ok(())) => Ok(None),
        Ok(Err(error @ (Error::Interrupted | Error::Option { .. }))) => Err(error),
        Ok(Err(error)) => Ok(Some(error.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Ok(Some(text.unwrap_or_else(|| "the program panicked".to_owned())))
        }
    }
}

fn run_nf4(run: &BaseRun<'_>, watch: Watch<'_>) -> Result<(BnbSetup, Candidate)> {
    let mut candidate = Candidate::new(Method::Nf4);
    let mut setup = BnbSetup {
        method: Method::Nf4.name().to_owned(),
        success: false,
        time_seconds: None,
        load_time_seconds: None,
        output_dir: Some(run.folder_name(Method::Nf4)),
        vram_mb: None,
        total_params: None,
        error: None,
        extra: Extra::new(),
    };
    if !run.wants(Method::Nf4) {
        setup.error = Some("not attempted: --method awq".to_owned());
        return Ok((setup, candidate));
    }
    setup.error = failure(|| make_nf4(run, watch, &mut setup, &mut candidate))?;
    setup.success = setup.error.is_none();
    candidate.success = setup.success;
    Ok((setup, candidate))
}

fn make_nf4(
    run: &BaseRun<'_>,
    watch: Watch<'_>,
    setup: &mut BnbSetup,
    candidate: &mut Candidate,
) -> Result<()> {
    let (start, before) = (Instant::now(), process_memory());
    let made = quantize_folder(run.model, &run.folder(Method::Nf4), &run.nf4, watch)?;
    (candidate.rewritten, candidate.output_bytes) = (!made.up_to_date, Some(made.bytes));
    setup.time_seconds = Some(seconds(start.elapsed().as_secs_f64()));
    setup.total_params = Some(made.parameters);
    let peak = process_memory().zip(before);
    let peak = peak.map(|(now, before)| now.peak_resident_bytes.saturating_sub(before.resident_bytes));
    setup.extra = extra(json!({
        "up_to_date": made.up_to_date,
        "options": run.nf4,
        "output_bytes": made.bytes,
        "peak_memory_mb": peak.map(mib),
        "weight_error": read_total(&made),
    }));
    let loaded = load(run, Method::Nf4, watch)?;
    setup.load_time_seconds = Some(loaded.seconds);
    setup.vram_mb = loaded.gpu.map(MemoryFigure::Allocator);
    Ok(())
}

/// Time and memory to load a folder.
struct Loaded {
    seconds: f64,
    /// On a CPU the resident memory, which includes remains of quantizing; `benchmark_quantized` measures the model alone.
    gpu: Option<GpuMemory>,
}

/// Loads the folder of `method` as the other programs will.
fn load(run: &BaseRun<'_>, method: Method, watch: Watch<'_>) -> Result<Loaded> {
    watch.begin(&format!("loading {}", method.name()), Unit::Nothing, 0)?;
    let start = Instant::now();
    let options = LoadOptions {
        device: run.selected.device,
        ..LoadOptions::default()
    };
    let _reader = Reader::load(&run.folder(method), &options)?;
    Ok(Loaded {
        seconds: seconds(start.elapsed().as_secs_f64()),
        gpu: GpuMemory::of(run.selected.device),
    })
}

/// The error over all weights, from the folder's report.
fn read_total(made: &OutputFolder) -> Option<crate::quant::nf4::WeightError> {
    let text = read_bounded(&made.folder.join(REPORT), MAX_REPORT_BYTES).ok()?;
    serde_json::from_slice::<WeightErrors>(&text)
        .ok()
        .map(|report| report.total)
}

fn extra(value: serde_json::Value) -> Extra {
    match value {
        serde_json::Value::Object(map) => map,
        _ => Extra::new(),
    }
}
