//! What `quantize_base` does: the base model in four bits by each method, which one to use, and the record of it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use tch::Device;

use super::nf4::{Nf4Options, REPORT, WeightErrors, quantize_folder};
use super::{Method, Outcome, Watch};
use crate::device::process_memory;
use crate::engine::{LoadOptions, Reader};
use crate::paths::{AWQ_SUFFIX, NF4_SUFFIX, Project};
use crate::records::{
    self, AwqAttempt, BnbSetup, Extra, GpuMemory, MemoryFigure, QuantizationInfo, mib, seconds,
};
use crate::{Error, Result};

/// A run of `quantize_base`.
pub struct BaseRun<'a> {
    /// Where models and records lie.
    pub project: &'a Project,
    /// The model to quantize.
    pub model: &'a Path,
    /// Where the quantized model is loaded, to see that it loads.
    pub device: Device,
    /// The one method wanted; else all, and the best one becomes active.
    pub method: Option<Method>,
    /// Options of NF4.
    pub nf4: Nf4Options,
}

impl BaseRun<'_> {
    fn wants(&self, method: Method) -> bool {
        self.method.is_none_or(|wanted| wanted == method)
    }

    /// The folder that `method` makes.
    pub fn folder(&self, method: Method) -> PathBuf {
        let suffix = match method {
            Method::Nf4 => NF4_SUFFIX,
            Method::Awq => AWQ_SUFFIX,
        };
        self.project.derived_model(self.model, suffix)
    }

    fn folder_name(&self, method: Method) -> String {
        self.folder(method).display().to_string()
    }
}

/// Quantizes the model by each method that is wanted and writes the record, which it returns.
///
/// A method that fails has its error in the record and costs the other nothing. Options that make no sense and a caller
/// who wants to stop are errors: then no record is written.
pub fn quantize_base(run: &BaseRun<'_>, watch: Watch<'_>) -> Result<QuantizationInfo> {
    let path = run.project.file(records::paths::QUANTIZATION_INFO);
    let earlier = earlier(run, &path);
    let bnb_setup = match earlier.as_ref().map(|info| info.bnb_setup.clone()) {
        Some(setup) if !run.wants(Method::Nf4) => setup,
        _ => nf4(run, watch)?,
    };
    let awq_attempt = match earlier.map(|info| info.awq_attempt) {
        Some(attempt) if !run.wants(Method::Awq) => attempt,
        _ => awq(run)?,
    };
    let active = active(run, &bnb_setup, &awq_attempt);
    let info = QuantizationInfo {
        active_method: active.as_ref().map(|(method, _)| method.name().to_owned()),
        bnb_setup,
        awq_attempt,
        extra: extra(json!({
            "active_reason": active.map(|(_, reason)| reason),
            "base_model_dir": run.model.display().to_string(),
        })),
    };
    records::write(&path, &info)?;
    Ok(info)
}

/// The record of an earlier run on the same model, whose results of a method that is not wanted now stay.
fn earlier(run: &BaseRun<'_>, path: &Path) -> Option<QuantizationInfo> {
    let info: QuantizationInfo = records::read_if_present(path).ok()??;
    let same = |dir: &Option<String>, method| dir.as_deref() == Some(run.folder_name(method).as_str());
    (same(&info.bnb_setup.output_dir, Method::Nf4) && same(&info.awq_attempt.output_dir, Method::Awq))
        .then_some(info)
}

/// The method to use, and why.
fn active(run: &BaseRun<'_>, nf4: &BnbSetup, awq: &AwqAttempt) -> Option<(Method, &'static str)> {
    match (run.method, nf4.success, awq.success) {
        (Some(Method::Nf4), true, _) => Some((Method::Nf4, "asked for with --method")),
        (Some(Method::Awq), _, true) => Some((Method::Awq, "asked for with --method")),
        (_, true, false) => Some((Method::Nf4, "the only one that was made")),
        (_, false, true) => Some((Method::Awq, "the only one that was made")),
        (_, true, true) => Some((Method::Nf4, "the accuracy of both was not measured")),
        (_, false, false) => None,
    }
}

fn awq(run: &BaseRun<'_>) -> Result<AwqAttempt> {
    let reason = match run.method {
        Some(Method::Nf4) => "not attempted: --method nf4",
        _ => "not attempted: this version makes NF4 only",
    };
    Ok(AwqAttempt {
        method: Method::Awq.name().to_owned(),
        success: false,
        time_seconds: None,
        output_dir: Some(run.folder_name(Method::Awq)),
        error: Some(reason.to_owned()),
        extra: Extra::new(),
    })
}

fn nf4(run: &BaseRun<'_>, watch: Watch<'_>) -> Result<BnbSetup> {
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
        return Ok(setup);
    }
    match make_nf4(run, watch, &mut setup) {
        Ok(()) => setup.success = true,
        // The caller's doing, not the method's.
        Err(error @ (Error::Interrupted | Error::Prompt(_))) => return Err(error),
        Err(error) => setup.error = Some(error.to_string()),
    }
    Ok(setup)
}

fn make_nf4(run: &BaseRun<'_>, watch: Watch<'_>, setup: &mut BnbSetup) -> Result<()> {
    let (start, before) = (Instant::now(), process_memory());
    let made = quantize_folder(run.model, &run.folder(Method::Nf4), &run.nf4, watch)?;
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
    load(run, setup)
}

/// Loads the folder as every other binary will.
fn load(run: &BaseRun<'_>, setup: &mut BnbSetup) -> Result<()> {
    let (start, before) = (Instant::now(), process_memory());
    let options = LoadOptions {
        device: run.device,
        ..LoadOptions::default()
    };
    let reader = Reader::load(&run.folder(Method::Nf4), &options)?;
    setup.load_time_seconds = Some(seconds(start.elapsed().as_secs_f64()));
    setup.vram_mb = (run.device == Device::Cpu).then(|| MemoryFigure::Allocator(GpuMemory::default()));
    let resident = process_memory().zip(before);
    let resident = resident.map(|(now, before)| now.resident_bytes.saturating_sub(before.resident_bytes));
    setup
        .extra
        .insert("resident_mb".to_owned(), json!(resident.map(mib)));
    drop(reader);
    Ok(())
}

/// The error of all weights together, from the folder's report.
fn read_total(made: &Outcome) -> Option<super::nf4::WeightError> {
    let text = std::fs::read(made.folder.join(REPORT)).ok()?;
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
