//! The report as a page: blocks for Markdown and HTML.

use super::blocks::Block;
use super::plots::Plot;
use super::sources::Sources;
use crate::records::{AccuracyAverages, Benchmark, FinalReport, Performance, mib};

const UNKNOWN: &str = "n/a";

/// The blocks of the page; figures without a record are "n/a".
pub(super) fn page(report: &FinalReport, sources: &Sources, plots: &[Plot]) -> Vec<Block> {
    let mut page = vec![heading(1, "Benchmark report"), introduction(report)];
    let notes = strings(report.report_metadata.extra.get("notes"));
    if !notes.is_empty() {
        page.push(Block::List(notes));
    }
    performance(&mut page, report, sources);
    page.extend(figures(plots, &["memory", "latency"]));
    latencies(&mut page, sources);
    accuracy(&mut page, report);
    page.extend(figures(plots, &["accuracy"]));
    model(&mut page, report);
    fine_tuning(&mut page, report);
    page.extend(figures(plots, &["loss"]));
    data(&mut page, report, sources);
    environment(&mut page, report);
    origins(&mut page, report, sources);
    page
}

fn heading(level: u8, text: &str) -> Block {
    Block::Heading(level, text.to_owned())
}

fn introduction(report: &FinalReport) -> Block {
    let metadata = &report.report_metadata;
    Block::Paragraph(format!(
        "{}, measured on {}. Generated {} by {} {} from {} records. Every figure is taken or computed from a record; \
         {UNKNOWN} means that there is no record.",
        report.model.name.as_deref().unwrap_or("No model"),
        report
            .environment
            .gpu
            .as_deref()
            .or_else(|| report.environment.extra.get("cpu_name")?.as_str())
            .unwrap_or("an unknown machine"),
        metadata.generated_at,
        metadata.generator,
        metadata.pipeline_version,
        metadata.source_files.len(),
    ))
}

/// Formats a figure with thousands separators and `decimals` places.
fn number(value: Option<f64>, decimals: usize) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else {
        return UNKNOWN.to_owned();
    };
    let text = format!("{value:.decimals$}");
    let (sign, text) = text
        .strip_prefix('-')
        .map_or(("", text.as_str()), |text| ("-", text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    // Never "-0.0".
    let sign = if value == 0.0 { "" } else { sign };
    if fraction.is_empty() {
        format!("{sign}{grouped}")
    } else {
        format!("{sign}{grouped}.{fraction}")
    }
}

fn count(value: Option<u64>) -> String {
    number(value.map(|value| value as f64), 0)
}

fn text(value: Option<&str>) -> String {
    value.unwrap_or(UNKNOWN).to_owned()
}

fn percent(value: Option<f64>, decimals: usize) -> String {
    match value {
        Some(_) => format!("{} %", number(value, decimals)),
        None => UNKNOWN.to_owned(),
    }
}

fn strings(value: Option<&serde_json::Value>) -> Vec<String> {
    let list = value.and_then(|value| value.as_array());
    list.into_iter()
        .flatten()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

fn extra_figure(performance: &Performance, key: &str) -> Option<f64> {
    performance.extra.get(key)?.as_f64()
}

/// Whether the memory figures are GPU memory; otherwise they are the process's resident memory.
fn is_gpu_memory(performance: &Performance) -> bool {
    performance.extra.get("memory_kind").is_none()
}

/// The models of the performance section: the original project's three, and AWQ if there is a record.
fn models(report: &FinalReport) -> Vec<(&'static str, Performance)> {
    let comparison = &report.performance_comparison;
    let mut models = vec![
        ("FP16 baseline", comparison.fp16_baseline.clone()),
        ("NF4", comparison.nf4_quantized.clone()),
        ("NF4 + LoRA", comparison.finetuned_nf4_lora.clone()),
    ];
    let awq = comparison.extra.get("awq_quantized");
    if let Some(awq) = awq.and_then(|awq| serde_json::from_value(awq.clone()).ok()) {
        models.insert(2, ("AWQ", awq));
    }
    models
}

fn performance(page: &mut Vec<Block>, report: &FinalReport, sources: &Sources) {
    let models = models(report);
    page.push(heading(2, "Memory and latency"));
    let row = |name: &str, cell: &dyn Fn(&Performance) -> String| {
        let cells = models.iter().map(|(_, performance)| cell(performance));
        std::iter::once(name.to_owned()).chain(cells).collect::<Vec<_>>()
    };
    let figure = |key: &'static str, decimals| move |p: &Performance| number(extra_figure(p, key), decimals);
    let word = |key: &'static str| move |p: &Performance| text(p.extra.get(key).and_then(|v| v.as_str()));
    let rows = vec![
        row("GPU memory after loading, MiB", &|p| {
            number(p.vram_post_load_mb.filter(|_| is_gpu_memory(p)), 1)
        }),
        row("GPU memory, peak, MiB", &|p| {
            number(extra_figure(p, "vram_peak_mb").filter(|_| is_gpu_memory(p)), 1)
        }),
        row(
            "Resident memory after loading, MiB",
            &figure("resident_post_load_mb", 1),
        ),
        row("Weight files, MiB", &|p| {
            number(
                extra_figure(p, "weight_file_bytes").map(|bytes| mib(bytes as u64)),
                1,
            )
        }),
        row("Load time, s", &|p| number(p.load_time_seconds, 2)),
        row("Latency, mean, s", &|p| number(p.avg_latency_seconds, 2)),
        row("Latency, shortest, s", &|p| number(p.min_latency_seconds, 2)),
        row("Latency, longest, s", &|p| number(p.max_latency_seconds, 2)),
        row(
            "Time to first token, mean, s",
            &figure("avg_time_to_first_token_seconds", 3),
        ),
        row("Tokens per second, mean", &figure("avg_tokens_per_second", 1)),
        row("Device", &word("device")),
        row("Compute dtype", &word("compute_dtype")),
    ];
    let head = std::iter::once("")
        .chain(models.iter().map(|(name, _)| *name))
        .map(str::to_owned)
        .collect();
    page.push(Block::Table { head, rows });
    improvements(page, report, sources);
}

fn improvements(page: &mut Vec<Block>, report: &FinalReport, sources: &Sources) {
    let improvements = &report.performance_comparison.improvements;
    let ours = |key: &str| improvements.extra.get(key).and_then(|value| value.as_f64());
    let row = |name: &str, vram, latency, resident, weights| {
        let cells = [vram, latency, resident, weights].map(|value| percent(value, 1));
        std::iter::once(name.to_owned()).chain(cells).collect::<Vec<_>>()
    };
    let comparison = &report.performance_comparison;
    let on_gpu = |value: Option<f64>| value.filter(|_| is_gpu_memory(&comparison.fp16_baseline));
    let mut rows = vec![row(
        "NF4",
        on_gpu(improvements.vram_reduction_nf4_vs_fp16_pct),
        improvements.latency_reduction_nf4_vs_fp16_pct,
        ours("resident_reduction_nf4_vs_fp16_pct"),
        ours("weight_file_reduction_nf4_vs_fp16_pct"),
    )];
    if sources.awq.is_some() {
        rows.push(row(
            "AWQ",
            on_gpu(ours("vram_reduction_awq_vs_fp16_pct")),
            ours("latency_reduction_awq_vs_fp16_pct"),
            ours("resident_reduction_awq_vs_fp16_pct"),
            ours("weight_file_reduction_awq_vs_fp16_pct"),
        ));
    }
    rows.push(row(
        "NF4 + LoRA",
        on_gpu(improvements.vram_reduction_ft_vs_fp16_pct),
        improvements.latency_reduction_ft_vs_fp16_pct,
        None,
        None,
    ));
    page.push(Block::Paragraph(
        "Reduction relative to the baseline (negative: increase):".to_owned(),
    ));
    let head = ["", "GPU memory", "Latency", "Resident memory", "Weight files"];
    page.push(Block::Table {
        head: head.map(str::to_owned).to_vec(),
        rows,
    });
}

fn figures(plots: &[Plot], names: &[&str]) -> Vec<Block> {
    let wanted = plots.iter().filter(|plot| names.contains(&plot.name));
    wanted
        .map(|plot| Block::Figure {
            file: format!("plots/{}.svg", plot.name),
            caption: plot.caption.to_owned(),
            svg: plot.svg.clone(),
        })
        .collect()
}

/// Latency by document: one row per document of any benchmark, in order of occurrence.
fn latencies(page: &mut Vec<Block>, sources: &Sources) {
    let benchmarks: Vec<(&str, &Benchmark)> = sources
        .benchmarks()
        .into_iter()
        .filter_map(|(label, benchmark)| Some((label, benchmark?)))
        .collect();
    let mut documents: Vec<&str> = Vec::new();
    for result in benchmarks
        .iter()
        .flat_map(|(_, record)| &record.inference_results)
    {
        if !documents.contains(&result.image.as_str()) {
            documents.push(&result.image);
        }
    }
    if documents.is_empty() {
        return;
    }
    let rows = documents
        .iter()
        .map(|document| {
            let cells = benchmarks.iter().map(|(_, record)| {
                let result = record
                    .inference_results
                    .iter()
                    .find(|result| result.image == *document);
                number(result.map(|result| result.latency_seconds), 2)
            });
            std::iter::once((*document).to_owned()).chain(cells).collect()
        })
        .collect();
    page.push(heading(2, "Latency by document, s"));
    let labels = benchmarks.iter().map(|(label, _)| (*label).to_owned());
    page.push(Block::Table {
        head: std::iter::once("Document".to_owned()).chain(labels).collect(),
        rows,
    });
}

fn accuracy(page: &mut Vec<Block>, report: &FinalReport) {
    let accuracy = &report.medical_accuracy;
    page.push(heading(2, "Accuracy"));
    let cases = match accuracy.test_cases {
        Some(cases) => format!("{cases} evaluation cases: {}.", accuracy.test_types.join(", ")),
        None => "The evaluation cases were not run.".to_owned(),
    };
    page.push(Block::Paragraph(format!(
        "Percentage of the expected terms and values that occur in the answers. {cases}"
    )));
    let row = |name: &str, averages: &AccuracyAverages| {
        vec![
            name.to_owned(),
            percent(averages.avg_term_accuracy_pct, 2),
            percent(averages.avg_value_accuracy_pct, 2),
            percent(averages.avg_combined_accuracy_pct, 2),
        ]
    };
    let delta = &accuracy.accuracy_delta;
    let mut rows = vec![
        row("Evaluation cases, base NF4", &accuracy.base_nf4),
        row("Evaluation cases, NF4 + LoRA", &accuracy.finetuned),
        vec![
            "Difference, percentage points".to_owned(),
            number(delta.term_accuracy_delta_pct, 2),
            number(delta.value_accuracy_delta_pct, 2),
            number(delta.combined_accuracy_delta_pct, 2),
        ],
    ];
    for (name, key) in [
        ("Test documents, FP16 baseline", "fp16_baseline"),
        ("Test documents, NF4", "nf4_quantized"),
        ("Test documents, AWQ", "awq_quantized"),
        ("Test documents, NF4 + LoRA", "finetuned_nf4_lora"),
    ] {
        let averages = accuracy
            .extra
            .get("test_documents")
            .and_then(|models| models.get(key))
            .and_then(|averages| serde_json::from_value(averages.clone()).ok());
        if let Some(averages) = averages {
            rows.push(row(name, &averages));
        }
    }
    let head = ["", "Terms", "Values", "Both"];
    page.push(Block::Table {
        head: head.map(str::to_owned).to_vec(),
        rows,
    });
}

fn pairs(page: &mut Vec<Block>, title: &str, rows: Vec<(&str, String)>) {
    page.push(heading(2, title));
    page.push(Block::Table {
        head: vec![String::new(), String::new()],
        rows: rows
            .into_iter()
            .map(|(name, value)| vec![name.to_owned(), value])
            .collect(),
    });
}

fn model(page: &mut Vec<Block>, report: &FinalReport) {
    let (model, quantization) = (&report.model, &report.quantization);
    let awq = match (&quantization.awq_attempted, &quantization.awq_failed_reason) {
        (Some(true), Some(reason)) => format!("failed: {reason}"),
        (Some(true), None) => "successful".to_owned(),
        (Some(false), _) => "not attempted".to_owned(),
        (None, _) => UNKNOWN.to_owned(),
    };
    let rows = vec![
        ("Base model", text(model.name.as_deref())),
        ("Source", text(model.source.as_deref())),
        ("Size, GiB", number(model.size_gb, 2)),
        ("Download, s", number(model.download_time_seconds, 1)),
        ("Parameters", count(model.total_parameters)),
        ("Active quantization", text(quantization.method.as_deref())),
        ("NF4 settings", text(quantization.details.as_deref())),
        ("AWQ", awq),
    ];
    pairs(page, "Model and quantization", rows);
}

fn fine_tuning(page: &mut Vec<Block>, report: &FinalReport) {
    let tuning = &report.fine_tuning;
    if tuning.method.is_none() {
        page.push(heading(2, "Fine-tuning"));
        page.push(Block::Paragraph("No record of a training run.".to_owned()));
        return;
    }
    let rows = vec![
        ("Method", text(tuning.method.as_deref())),
        ("LoRA rank", count(tuning.lora_rank)),
        ("LoRA alpha", number(tuning.lora_alpha, 0)),
        ("Trainable parameters", count(tuning.trainable_params)),
        ("Trainable share", percent(tuning.trainable_pct, 2)),
        ("Training samples", count(tuning.training_samples)),
        ("Epochs", number(tuning.epochs, 1)),
        ("Effective batch size", count(tuning.effective_batch_size)),
        (
            "Learning rate",
            tuning
                .learning_rate
                .map_or_else(|| UNKNOWN.to_owned(), |rate| rate.to_string()),
        ),
        ("Time, minutes", number(tuning.training_time_minutes, 1)),
        ("Initial loss", number(tuning.initial_loss, 4)),
        ("Final loss", number(tuning.final_loss, 4)),
        ("Loss reduction", percent(tuning.loss_reduction_pct, 1)),
    ];
    pairs(page, "Fine-tuning", rows);
}

fn data(page: &mut Vec<Block>, report: &FinalReport, sources: &Sources) {
    let data = &report.datasets;
    let pubmedvision = data.extra.get("pubmedvision_formatted");
    let rows = vec![
        ("PathVQA", count(data.pathvqa_formatted)),
        (
            "PubMedVision",
            count(pubmedvision.and_then(|value| value.as_u64())),
        ),
        ("MTSamples", count(data.mtsamples_formatted)),
        ("Total", count(data.total_formatted)),
        ("Training", count(data.train_split)),
        ("Validation", count(data.val_split)),
        ("Test", count(data.test_split)),
        ("Split", text(data.split_ratio.as_deref())),
    ];
    pairs(page, "Data, samples", rows);
    let failed: Vec<String> = sources
        .downloads
        .iter()
        .flat_map(|downloads| &downloads.datasets)
        .filter(|dataset| !dataset.success)
        .map(|dataset| {
            let reason = dataset.error.as_deref().unwrap_or("no reason was recorded");
            format!("{} could not be downloaded: {reason}", dataset.name)
        })
        .collect();
    if !failed.is_empty() {
        page.push(Block::List(failed));
    }
}

fn environment(page: &mut Vec<Block>, report: &FinalReport) {
    let machine = &report.environment;
    let packages: Vec<String> = machine
        .key_packages
        .iter()
        .map(|(name, version)| format!("{name} {}", version.as_deref().unwrap_or("missing")))
        .collect();
    let cpu = machine.extra.get("cpu_name").and_then(|name| name.as_str());
    let rows = vec![
        ("GPU", text(machine.gpu.as_deref())),
        ("GPUs", count(machine.gpu_count)),
        ("GPU memory, GiB", number(machine.total_vram_gb, 1)),
        ("Processor", text(cpu)),
        ("Platform", text(machine.platform.as_deref())),
        ("CUDA", text(machine.cuda_version.as_deref())),
        ("libtorch (PyTorch)", text(machine.pytorch_version.as_deref())),
        ("Python", text(machine.python_version.as_deref())),
        (
            "Packages",
            if packages.is_empty() {
                UNKNOWN.to_owned()
            } else {
                packages.join(", ")
            },
        ),
        ("API", report.api_deployment.endpoints.join(", ")),
    ];
    pairs(page, "Machine and software", rows);
}

fn origins(page: &mut Vec<Block>, report: &FinalReport, sources: &Sources) {
    page.push(heading(2, "Records"));
    let mut items: Vec<String> = report
        .report_metadata
        .source_files
        .iter()
        .map(|file| format!("{file}: read"))
        .collect();
    items.extend(
        sources
            .problems
            .iter()
            .map(|problem| format!("{}: not used: {}", problem.file, problem.reason)),
    );
    items.extend(sources.missing.iter().map(|file| format!("{file}: missing")));
    items.extend(
        sources
            .others
            .iter()
            .map(|file| format!("{file}: not a known record, not used")),
    );
    page.push(Block::List(items));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_missing_ones_are_not_available() {
        assert_eq!(number(Some(15820.1), 1), "15,820.1");
        assert_eq!(number(Some(1_234_567.0), 0), "1,234,567");
        assert_eq!(number(Some(-999.999), 2), "-1,000.00");
        assert_eq!(number(Some(-0.0), 1), "0.0");
        assert_eq!(number(Some(12.0), 0), "12");
        assert_eq!(number(None, 2), "n/a");
        assert_eq!(number(Some(f64::NAN), 2), "n/a");
        assert_eq!(percent(Some(64.2), 1), "64.2 %");
        assert_eq!(percent(None, 1), "n/a");
    }
}
