//! Compiles the records into `FINAL_REPORT.json`.

use serde_json::{Value, json};
use utoipa::OpenApi;

use super::sources::{Sources, base_name};
use crate::benchmark::load_note;
use crate::records::{
    AccuracyAverages, ApiDeployment, Benchmark, DataSummary, DatasetFigures, Environment, EvaluatedModel,
    EvaluationFinetuned, Extra, FinalReport, FineTuning, Improvements, LatencyStats, LossPoint,
    MedicalAccuracy, ModelFigures, Performance, PerformanceComparison, QuantizationFigures,
    ReportEnvironment, ReportMetadata, SampleSource, TrainingMetrics, gib, percent, round_to, timestamp,
};
use crate::server::ApiDoc;

/// Compiles the report; figures without a record are `None`.
pub fn compile(sources: &Sources) -> FinalReport {
    FinalReport {
        report_metadata: metadata(sources),
        environment: sources.environment.as_ref().map(environment).unwrap_or_default(),
        model: model(sources),
        quantization: quantization(sources),
        fine_tuning: sources.training.as_ref().map(fine_tuning).unwrap_or_default(),
        performance_comparison: performance_comparison(sources),
        medical_accuracy: medical_accuracy(sources),
        datasets: sources.data.as_ref().map(datasets).unwrap_or_default(),
        api_deployment: api_deployment(sources),
        extra: Extra::new(),
    }
}

/// Keys beyond the original project's, without null values.
fn extra<const N: usize>(entries: [(&str, Value); N]) -> Extra {
    entries
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn metadata(sources: &Sources) -> ReportMetadata {
    ReportMetadata {
        generated_at: timestamp(),
        generator: "generate_report".to_owned(),
        pipeline_version: crate::version::version().to_owned(),
        source_files: sources.files.clone(),
        extra: extra([
            ("missing_files", json!(sources.missing)),
            ("unreadable_files", json!(sources.problems)),
            ("other_files", json!(sources.others)),
            ("notes", json!(notes(sources))),
        ]),
    }
}

/// Notes that a reader needs to interpret the figures.
fn notes(sources: &Sources) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(baseline) = &sources.baseline {
        for (label, benchmark) in sources.benchmarks() {
            let Some(other) = benchmark.filter(|other| !comparable(baseline, other)) else {
                continue;
            };
            notes.push(format!(
                "{label} was measured on {} and the baseline on {}: not comparable",
                other.model_name, baseline.model_name
            ));
        }
    }
    for (label, benchmark) in sources.benchmarks() {
        let Some(run) = benchmark.and_then(|benchmark| benchmark.run.as_ref()) else {
            continue;
        };
        if run.device.as_deref() == Some("cpu") {
            let dtype = run.compute_dtype.as_deref().unwrap_or("an unknown dtype");
            notes.push(format!(
                "{label} ran on a CPU in {dtype}: memory is the process's resident memory, not GPU memory"
            ));
        }
    }
    let measured: Vec<(&str, &Benchmark)> = sources
        .benchmarks()
        .into_iter()
        .filter_map(|(label, benchmark)| Some((label, benchmark?)))
        .collect();
    notes.extend(load_note(&measured));
    if sources.synthetic_reports {
        let note = "\"MTSamples\" are a few built-in synthetic reports: nothing was downloaded";
        notes.push(note.to_owned());
    }
    notes
}

fn comparable(one: &Benchmark, other: &Benchmark) -> bool {
    base_name(&one.model_name) == base_name(&other.model_name)
}

fn environment(record: &Environment) -> ReportEnvironment {
    let record = record.clone();
    ReportEnvironment {
        gpu: record.gpu_name,
        gpu_count: Some(record.gpu_count),
        total_vram_gb: record.total_vram_gb,
        cuda_version: record.cuda_version,
        pytorch_version: record.pytorch_version,
        python_version: record.python_version,
        platform: Some(record.platform),
        key_packages: record.installed_packages,
        extra: ["cpu_name", "cpu_cores", "memory_gb"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), record.extra.get(key)?.clone())))
            .collect(),
    }
}

fn model(sources: &Sources) -> ModelFigures {
    let download = sources.download.as_ref();
    let baseline = sources.baseline.as_ref();
    let weights = baseline.and_then(|baseline| baseline.run.as_ref()?.weight_file_bytes);
    ModelFigures {
        name: download
            .map(|download| download.model_id.clone())
            .or_else(|| baseline.map(|baseline| baseline.model_name.clone())),
        source: download.map(|download| match download.extra.get("source") {
            Some(Value::String(source)) => source.clone(),
            _ => format!("https://huggingface.co/{}", download.model_id),
        }),
        size_gb: download
            .and_then(|download| download.model_size_gb)
            .or_else(|| weights.map(gib)),
        download_time_seconds: download.and_then(|download| download.download_time_seconds),
        total_parameters: sources
            .quantization
            .as_ref()
            .and_then(|quantization| quantization.bnb_setup.total_params),
        extra: Extra::new(),
    }
}

fn quantization(sources: &Sources) -> QuantizationFigures {
    let details = sources.nf4_config.as_ref().map(|settings| {
        let config = &settings.config;
        let bits = if config.load_in_4bit { "4 bit, " } else { "" };
        let double = if config.bnb_4bit_use_double_quant {
            ", double quantization"
        } else {
            ""
        };
        let (kind, dtype) = (&config.bnb_4bit_quant_type, &config.bnb_4bit_compute_dtype);
        format!("{bits}{kind}{double}, computed in {dtype}")
    });
    let Some(record) = &sources.quantization else {
        return QuantizationFigures {
            details,
            ..QuantizationFigures::default()
        };
    };
    let awq = &record.awq_attempt;
    // In the record, the error of a method that was not requested starts with "not attempted".
    let reason = awq.error.as_deref().unwrap_or("not attempted");
    let failed = !awq.success && !reason.starts_with("not attempted");
    QuantizationFigures {
        method: record.active_method.clone(),
        details,
        awq_attempted: Some(awq.success || failed),
        awq_failed_reason: awq.error.clone().filter(|_| failed),
        fallback: record
            .active_method
            .clone()
            .filter(|method| failed && *method != awq.method),
        extra: extra([
            ("nf4_time_seconds", json!(record.bnb_setup.time_seconds)),
            ("nf4_failed_reason", json!(record.bnb_setup.error)),
            ("awq_time_seconds", json!(awq.time_seconds)),
        ]),
    }
}

fn fine_tuning(record: &TrainingMetrics) -> FineTuning {
    let initial_loss = record.loss_history.first().map(|point: &LossPoint| point.loss);
    FineTuning {
        method: Some("QLoRA".to_owned()),
        lora_rank: record.lora_rank,
        lora_alpha: record.lora_alpha,
        trainable_params: record.trainable_params,
        trainable_pct: record.trainable_pct,
        training_samples: record.training_samples,
        epochs: record.epochs_completed,
        effective_batch_size: record.effective_batch_size,
        learning_rate: record.learning_rate,
        training_time_minutes: record
            .training_time_seconds
            .map(|seconds| round_to(seconds / 60.0, 1)),
        initial_loss,
        final_loss: record.final_loss,
        loss_reduction_pct: reduction(initial_loss, record.final_loss),
        extra: Extra::new(),
    }
}

/// Reduction from `before` to `after`, percent of `before`.
fn reduction(before: Option<f64>, after: Option<f64>) -> Option<f64> {
    percent(before? - after?, before?)
}

fn performance_comparison(sources: &Sources) -> PerformanceComparison {
    let figures = |record: &Option<Benchmark>| record.as_ref().map(performance).unwrap_or_default();
    PerformanceComparison {
        fp16_baseline: figures(&sources.baseline),
        nf4_quantized: figures(&sources.nf4),
        finetuned_nf4_lora: figures(&sources.finetuned),
        improvements: improvements(sources),
        extra: extra([("awq_quantized", json!(sources.awq.as_ref().map(performance)))]),
    }
}

/// Memory and latency of one model.
fn performance(record: &Benchmark) -> Performance {
    let latency = latency(record);
    let run = record.run.clone().unwrap_or_default();
    let resident = run.resident_memory.unwrap_or_default();
    Performance {
        vram_post_load_mb: record
            .vram
            .post_load_mb
            .as_ref()
            .map(|memory| memory.allocated_mb),
        load_time_seconds: record.load_time_seconds,
        avg_latency_seconds: latency.as_ref().map(|latency| latency.avg_seconds),
        min_latency_seconds: latency.as_ref().map(|latency| latency.min_seconds),
        max_latency_seconds: latency.as_ref().map(|latency| latency.max_seconds),
        extra: extra([
            ("model_name", json!(record.model_name)),
            (
                "p50_latency_seconds",
                json!(latency.as_ref().map(|latency| latency.p50_seconds)),
            ),
            (
                "vram_peak_mb",
                json!(record.vram.peak_mb.as_ref().map(|memory| memory.max_allocated_mb)),
            ),
            (
                "memory_kind",
                json!(
                    record
                        .vram
                        .post_load_mb
                        .as_ref()
                        .and_then(|memory| memory.memory_kind())
                ),
            ),
            ("resident_post_load_mb", json!(record.resident_post_load_mb())),
            ("resident_peak_mb", json!(resident.peak_mb)),
            ("weight_file_bytes", json!(run.weight_file_bytes)),
            (
                "avg_time_to_first_token_seconds",
                json!(run.time_to_first_token_stats.map(|stats| stats.avg_seconds)),
            ),
            ("avg_tokens_per_second", json!(run.avg_tokens_per_second)),
            ("load", json!(run.load)),
            ("device", json!(run.device)),
            ("device_name", json!(run.device_name)),
            ("compute_dtype", json!(run.compute_dtype)),
        ]),
    }
}

/// The record's latency statistics, or those of its results if it has none.
pub(super) fn latency(record: &Benchmark) -> Option<LatencyStats> {
    record.latency_stats.clone().or_else(|| {
        let latencies: Vec<f64> = record
            .inference_results
            .iter()
            .map(|result| result.latency_seconds)
            .collect();
        LatencyStats::from_seconds(&latencies)
    })
}

fn improvements(sources: &Sources) -> Improvements {
    let against = |record: &Option<Benchmark>, figure: fn(&Performance) -> Option<f64>| {
        let (before, after) = (sources.baseline.as_ref()?, record.as_ref()?);
        if !comparable(before, after) {
            return None;
        }
        reduction(figure(&performance(before)), figure(&performance(after)))
    };
    let vram = |performance: &Performance| performance.vram_post_load_mb;
    let kind = |record: &Option<Benchmark>| {
        let memory = record.as_ref()?.vram.post_load_mb.as_ref()?;
        Some(memory.memory_kind().map(str::to_owned))
    };
    // Resident and GPU memory are not comparable.
    let vram_against = |record: &Option<Benchmark>| {
        against(record, vram).filter(|_| kind(&sources.baseline) == kind(record))
    };
    let latency = |performance: &Performance| performance.avg_latency_seconds;
    let resident = |performance: &Performance| performance.extra.get("resident_post_load_mb")?.as_f64();
    let weights = |performance: &Performance| performance.extra.get("weight_file_bytes")?.as_f64();
    Improvements {
        vram_reduction_nf4_vs_fp16_pct: vram_against(&sources.nf4),
        latency_reduction_nf4_vs_fp16_pct: against(&sources.nf4, latency),
        vram_reduction_ft_vs_fp16_pct: vram_against(&sources.finetuned),
        latency_reduction_ft_vs_fp16_pct: against(&sources.finetuned, latency),
        extra: extra([
            (
                "vram_reduction_awq_vs_fp16_pct",
                json!(vram_against(&sources.awq)),
            ),
            (
                "latency_reduction_awq_vs_fp16_pct",
                json!(against(&sources.awq, latency)),
            ),
            (
                "resident_reduction_nf4_vs_fp16_pct",
                json!(against(&sources.nf4, resident)),
            ),
            (
                "resident_reduction_awq_vs_fp16_pct",
                json!(against(&sources.awq, resident)),
            ),
            (
                "weight_file_reduction_nf4_vs_fp16_pct",
                json!(against(&sources.nf4, weights)),
            ),
            (
                "weight_file_reduction_awq_vs_fp16_pct",
                json!(against(&sources.awq, weights)),
            ),
        ]),
    }
}

fn medical_accuracy(sources: &Sources) -> MedicalAccuracy {
    let on_test_documents: Extra = [
        ("fp16_baseline", &sources.baseline),
        ("nf4_quantized", &sources.nf4),
        ("awq_quantized", &sources.awq),
        ("finetuned_nf4_lora", &sources.finetuned),
    ]
    .into_iter()
    .filter_map(|(key, record)| Some((key.to_owned(), json!(benchmark_accuracy(record.as_ref()?)?))))
    .collect();
    let added = if on_test_documents.is_empty() {
        Extra::new()
    } else {
        extra([("test_documents", json!(on_test_documents))])
    };
    let Some(record) = &sources.evaluation else {
        return MedicalAccuracy {
            extra: added,
            ..MedicalAccuracy::default()
        };
    };
    MedicalAccuracy {
        test_cases: Some(test_cases(record)),
        test_types: record
            .base_model
            .eval_results
            .iter()
            .map(|result| result.test_id.clone())
            .collect(),
        base_nf4: averages(&record.base_model),
        finetuned: record.finetuned_model.as_ref().map(averages).unwrap_or_default(),
        accuracy_delta: record.accuracy_delta.clone().unwrap_or_default(),
        extra: added,
    }
}

fn test_cases(record: &EvaluationFinetuned) -> u64 {
    record
        .eval_test_cases
        .unwrap_or(record.base_model.eval_results.len() as u64)
}

fn averages(model: &EvaluatedModel) -> AccuracyAverages {
    let summary = model.summary.clone().unwrap_or_default();
    AccuracyAverages {
        avg_term_accuracy_pct: summary.avg_term_accuracy_pct,
        avg_value_accuracy_pct: summary.avg_value_accuracy_pct,
        avg_combined_accuracy_pct: summary.avg_combined_accuracy_pct,
        extra: Extra::new(),
    }
}

/// Mean accuracies over a benchmark's documents; `None` without scores, as in records of the original project.
pub(super) fn benchmark_accuracy(record: &Benchmark) -> Option<AccuracyAverages> {
    let scores: Vec<_> = record
        .inference_results
        .iter()
        .filter_map(|result| result.accuracy.as_ref())
        .collect();
    if scores.is_empty() {
        return None;
    }
    let mean = |figures: Vec<f64>| Some(round_to(figures.iter().sum::<f64>() / figures.len() as f64, 2));
    Some(AccuracyAverages {
        avg_term_accuracy_pct: mean(scores.iter().map(|score| score.term_accuracy).collect()),
        avg_value_accuracy_pct: mean(scores.iter().map(|score| score.value_accuracy).collect()),
        avg_combined_accuracy_pct: mean(scores.iter().map(|score| score.combined_accuracy).collect()),
        extra: Extra::new(),
    })
}

fn datasets(record: &DataSummary) -> DatasetFigures {
    // A source that the record does not name has no samples.
    let count = |source: SampleSource| {
        let name = serde_json::to_value(source).ok()?;
        Some(record.source_counts.get(name.as_str()?).copied().unwrap_or(0))
    };
    DatasetFigures {
        pathvqa_formatted: count(SampleSource::PathVqa),
        mtsamples_formatted: count(SampleSource::MtSamples),
        total_formatted: Some(record.total_samples),
        train_split: Some(record.train_count),
        val_split: Some(record.val_count),
        test_split: Some(record.test_count),
        split_ratio: Some(record.split_ratio.clone()),
        extra: extra([("pubmedvision_formatted", json!(count(SampleSource::PubMedVision)))]),
    }
}

fn api_deployment(sources: &Sources) -> ApiDeployment {
    let mut endpoints: Vec<String> = ApiDoc::openapi()
        .paths
        .paths
        .into_iter()
        .map(|(path, item)| {
            let method = if item.post.is_some() { "POST" } else { "GET" };
            format!("{method} {path}")
        })
        .collect();
    endpoints.sort();
    ApiDeployment {
        framework: Some("actix-web".to_owned()),
        endpoints,
        demo_ui: None,
        containerization: sources.dockerfile.then(|| "Docker".to_owned()),
        tests_passed: None,
        tests_total: None,
        extra: Extra::new(),
    }
}
