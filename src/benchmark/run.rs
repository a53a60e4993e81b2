//! Runs one benchmark.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tch::Device;

use super::{BenchmarkOptions, Pages};
use crate::device::{
    Precision, ProcessorTimes, Selected, device_name, kind_name, load_average, process_memory, synchronize,
};
use crate::engine::{LoadOptions, ReadRequest, Reader, Reading};
use crate::evaluation::score;
use crate::generation::FinishReason;
use crate::processing::RgbPage;
use crate::project::Project;
use crate::quant::Quantization;
use crate::records::{
    Benchmark, Extra, GpuMemory, InferenceResult, LatencyStats, MachineLoad, MemoryStages, ResidentMemory,
    RunDetails, mib, round_to, seconds, timestamp,
};
use crate::test_documents::TestDocument;
use crate::torch::reset_allocator_peak;
use crate::{Error, Result, device};

/// New tokens of the warm-up page: every kernel has run by then.
const WARM_UP_TOKENS: usize = 16;

/// What to measure, and how.
pub struct BenchmarkRun<'a> {
    /// Project folder, which holds the page images.
    pub project: &'a Project,
    /// Model folder.
    pub model: PathBuf,
    /// Folder of the adapter to attach.
    pub adapter: Option<PathBuf>,
    /// Device.
    pub selected: &'a Selected,
    /// Compute dtype.
    pub precision: Precision,
    /// Documents and limits.
    pub options: &'a BenchmarkOptions,
    /// Whether existing page images are kept.
    pub pages: Pages,
    /// Called with the number of documents read so far, starting with 0, and in total.
    pub progress: &'a dyn Fn(usize, usize),
    /// Cancels after the next token; no record is made.
    pub stop: &'a AtomicBool,
}

/// Loads the model, reads every document and measures both.
///
/// For dense weights the record's `precision` is always "FP16", as in the original project; `run.compute_dtype` is the actual
/// dtype.
pub fn benchmark(run: &BenchmarkRun<'_>) -> Result<Benchmark> {
    let documents = run.options.load_documents()?;
    let pages = run.pages.load(&documents, run.project)?;
    let device = run.selected.device;
    reset_allocator_peak(device);
    let pre_load = stage(device);
    let start = Instant::now();
    let options = LoadOptions {
        device,
        precision: run.precision,
        adapter: run.adapter.clone(),
        ..LoadOptions::default()
    };
    let reader = Reader::load(&run.model, &options)?;
    synchronize(device);
    let load_time = start.elapsed().as_secs_f64();
    let post_load = stage(device);

    let warm_up = match (documents.first(), pages.first()) {
        (Some(document), Some(page)) if run.options.warm_up => {
            Some(read(&reader, document, page, WARM_UP_TOKENS, run.stop)?)
        }
        _ => None,
    };
    (run.progress)(0, documents.len());
    let before = Load::now();
    let mut results = Vec::new();
    for (document, page) in documents.iter().zip(&pages) {
        let limit = run.options.max_new_tokens;
        let reading = read(&reader, document, page, limit, run.stop)?;
        results.push(result(document, reading));
        (run.progress)(results.len(), documents.len());
    }
    synchronize(device);
    let load = before.until_now();
    let peak = stage(device);

    let info = reader.info();
    let stored = Quantization::from_dir(&run.model)?.precision();
    let latencies: Vec<f64> = results.iter().map(|result| result.latency_seconds).collect();
    Ok(Benchmark {
        model_name: info.model_name.clone(),
        precision: stored.unwrap_or("FP16").to_owned(),
        quantization_method: None,
        adapter_path: run.adapter.as_ref().map(|adapter| adapter.display().to_string()),
        model_dir: Some(run.model.display().to_string()),
        load_time_seconds: Some(seconds(load_time)),
        latency_stats: LatencyStats::from_seconds(&latencies),
        run: Some(RunDetails {
            warm_up_seconds: warm_up.map(|reading| seconds(reading.latency_seconds)),
            resident_memory: Some(ResidentMemory {
                pre_load_mb: pre_load.resident_mb,
                post_load_mb: post_load.resident_mb,
                peak_mb: peak.peak_resident_mb,
            }),
            load: Some(load),
            ..details(run, &results)
        }),
        vram: MemoryStages {
            pre_load_mb: pre_load.gpu,
            post_load_mb: post_load.gpu,
            peak_mb: peak.gpu,
            extra: Extra::new(),
        },
        inference_results: results,
        extra: Extra::new(),
    })
}

fn read(
    reader: &Reader,
    document: &TestDocument,
    page: &RgbPage,
    max_new_tokens: usize,
    stop: &AtomicBool,
) -> Result<Reading> {
    let mut request = ReadRequest::page(&document.prompt, page.clone());
    request.overrides.max_new_tokens = Some(max_new_tokens);
    // Greedy, so that runs are reproducible.
    request.overrides.temperature = Some(0.0);
    let reading = reader.read(&request, &mut |_| {
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    if reading.finish_reason == FinishReason::Cancelled {
        return Err(Error::Interrupted);
    }
    Ok(reading)
}

fn result(document: &TestDocument, reading: Reading) -> InferenceResult {
    let (terms, values) = (&document.expected_terms, &document.expected_values);
    let expects = !terms.is_empty() || !values.is_empty();
    InferenceResult {
        image: document.filename.clone(),
        prompt: document.prompt.clone(),
        latency_seconds: seconds(reading.latency_seconds),
        time_to_first_token_seconds: Some(seconds(reading.time_to_first_token_seconds)),
        tokens_per_second: reading.tokens_per_second().map(|speed| round_to(speed, 2)),
        prompt_tokens: Some(reading.prompt_tokens as u64),
        completion_tokens: Some(reading.completion_tokens as u64),
        finish_reason: serde_json::to_value(reading.finish_reason)
            .ok()
            .and_then(|reason| Some(reason.as_str()?.to_owned())),
        accuracy: expects.then(|| score(&reading.text, terms, values)),
        response: reading.text,
        extra: Extra::new(),
    }
}

fn details(run: &BenchmarkRun<'_>, results: &[InferenceResult]) -> RunDetails {
    let first_tokens: Vec<f64> = results
        .iter()
        .filter_map(|result| result.time_to_first_token_seconds)
        .collect();
    let mean = |figures: Vec<f64>| {
        let sum: f64 = figures.iter().sum();
        (!figures.is_empty()).then(|| round_to(sum / figures.len() as f64, 2))
    };
    let on_gpu = run.selected.gpu.as_ref();
    RunDetails {
        timestamp: Some(timestamp()),
        device: Some(device_name(run.selected.device)),
        device_name: Some(on_gpu.map_or_else(device::cpu_name, |gpu| gpu.name.clone())),
        compute_dtype: Some(kind_name(run.precision.kind(run.selected.device)).to_owned()),
        cpu_threads: u64::try_from(tch::get_num_threads()).ok(),
        weight_file_bytes: weight_file_bytes(&run.model),
        time_to_first_token_stats: LatencyStats::from_seconds(&first_tokens),
        avg_tokens_per_second: mean(
            results
                .iter()
                .filter_map(|result| result.tokens_per_second)
                .collect(),
        ),
        max_new_tokens: Some(run.options.max_new_tokens as u64),
        avg_combined_accuracy_pct: mean(
            results
                .iter()
                .filter_map(|result| Some(result.accuracy.as_ref()?.combined_accuracy))
                .collect(),
        ),
        tool_version: Some(crate::version::version().to_owned()),
        ..RunDetails::default()
    }
}

/// Size of the weight files in a model folder, bytes.
fn weight_file_bytes(model: &Path) -> Option<u64> {
    let files = fs::read_dir(model).ok()?.flatten().filter(|entry| {
        let name = entry.file_name();
        name.as_encoded_bytes().ends_with(b".safetensors")
    });
    // Follows links: the hub cache consists of them.
    Some(
        files
            .filter_map(|file| fs::metadata(file.path()).ok())
            .map(|file| file.len())
            .sum(),
    )
}

/// Machine load at one moment.
struct Load {
    times: Option<ProcessorTimes>,
    average: Option<f64>,
}

impl Load {
    fn now() -> Self {
        Self {
            times: ProcessorTimes::now(),
            average: load_average(),
        }
    }

    fn until_now(&self) -> MachineLoad {
        let now = Self::now();
        let shares = now
            .times
            .zip(self.times)
            .and_then(|(now, before)| now.since(&before));
        MachineLoad {
            load_average_before: self.average,
            load_average_after: now.average,
            own_cpu_share: shares.map(|shares| round_to(shares.own, 2)),
            other_cpu_share: shares.map(|shares| round_to(shares.others, 2)),
        }
    }
}

/// Memory at one moment.
struct Stage {
    gpu: Option<GpuMemory>,
    resident_mb: Option<f64>,
    peak_resident_mb: Option<f64>,
}

fn stage(device: Device) -> Stage {
    let process = process_memory();
    Stage {
        gpu: GpuMemory::of(device),
        resident_mb: process.map(|memory| mib(memory.resident_bytes)),
        peak_resident_mb: process.map(|memory| mib(memory.peak_resident_bytes)),
    }
}
