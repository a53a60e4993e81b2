//! Tables that the benchmarks print.

use std::fmt::Write;

use super::load::load_note;
use crate::records::{Benchmark, GpuMemory, mebibytes, percent};

/// One line per document, then totals.
pub fn summary_table(record: &Benchmark) -> String {
    let width = record
        .inference_results
        .iter()
        .map(|result| result.image.chars().count())
        .fold("document".len(), usize::max);
    let mut text = format!(
        "{:width$} {:>9} {:>9} {:>9} {:>7} {:>7} {:>7}\n",
        "document", "latency s", "first s", "tokens/s", "tokens", "terms%", "values%"
    );
    for result in &record.inference_results {
        let accuracy = result.accuracy.as_ref();
        let _ = writeln!(
            text,
            "{:width$} {:>9.2} {:>9} {:>9} {:>7} {:>7} {:>7}",
            result.image,
            result.latency_seconds,
            figure(result.time_to_first_token_seconds, 3),
            figure(result.tokens_per_second, 1),
            result
                .completion_tokens
                .map_or_else(|| UNKNOWN.to_owned(), |tokens| tokens.to_string()),
            figure(accuracy.map(|accuracy| accuracy.term_accuracy), 1),
            figure(accuracy.map(|accuracy| accuracy.value_accuracy), 1),
        );
    }
    let run = record.run.clone().unwrap_or_default();
    let resident = run.resident_memory.unwrap_or_default();
    let device = run.device.as_deref().unwrap_or(UNKNOWN);
    let dtype = run.compute_dtype.as_deref().unwrap_or(UNKNOWN);
    let _ = writeln!(
        text,
        "{} ({}), computed in {dtype} on {device}: loaded in {} s, latency {} s on average",
        record.model_name,
        record.precision,
        figure(record.load_time_seconds, 2),
        figure(record.latency_stats.as_ref().map(|stats| stats.avg_seconds), 2),
    );
    let on_gpu = |memory: &Option<GpuMemory>| memory.as_ref().and_then(GpuMemory::on_gpu).cloned();
    let vram = &record.vram;
    if let (Some(before), Some(loaded), Some(peak)) = (
        on_gpu(&vram.pre_load_mb),
        on_gpu(&vram.post_load_mb),
        on_gpu(&vram.peak_mb),
    ) {
        let (before, loaded, most) = (before.allocated_mb, loaded.allocated_mb, peak.max_allocated_mb);
        let _ = writeln!(
            text,
            "GPU memory, MiB: {before:.1} before, {loaded:.1} loaded, {most:.1} at most"
        );
    }
    let _ = writeln!(
        text,
        "resident memory, MiB: {} before, {} loaded, {} at most",
        figure(resident.pre_load_mb, 1),
        figure(resident.post_load_mb, 1),
        figure(resident.peak_mb, 1),
    );
    text
}

/// A row of the comparison tables: name, decimals, figure.
type Row = (&'static str, usize, fn(&Benchmark) -> Option<f64>);

const ROWS: [Row; 11] = [
    ("GPU memory after loading, MiB", 1, |record| {
        Some(record.vram.post_load_mb.as_ref()?.on_gpu()?.allocated_mb)
    }),
    ("GPU memory, peak, MiB", 1, |record| {
        Some(record.vram.peak_mb.as_ref()?.on_gpu()?.max_allocated_mb)
    }),
    ("resident memory after loading, MiB", 1, |record| {
        record.resident_post_load_mb()
    }),
    ("weight files, MiB", 1, |record| {
        record.run.as_ref()?.weight_file_bytes.map(mebibytes)
    }),
    ("load time, s", 2, |record| record.load_time_seconds),
    ("latency, mean, s", 2, |record| {
        Some(record.latency_stats.as_ref()?.avg_seconds)
    }),
    ("latency, shortest, s", 2, |record| {
        Some(record.latency_stats.as_ref()?.min_seconds)
    }),
    ("latency, longest, s", 2, |record| {
        Some(record.latency_stats.as_ref()?.max_seconds)
    }),
    ("time to first token, mean, s", 3, |record| {
        let run = record.run.as_ref()?;
        Some(run.time_to_first_token_stats.as_ref()?.avg_seconds)
    }),
    ("tokens per second, mean", 1, |record| {
        record.run.as_ref()?.avg_tokens_per_second
    }),
    ("terms and values read, %", 2, |record| {
        record.run.as_ref()?.avg_combined_accuracy_pct
    }),
];

/// Compares two models, with the relative change.
pub fn comparison_table(before: (&str, &Benchmark), after: (&str, &Benchmark)) -> String {
    let ((before_name, before), (after_name, after)) = (before, after);
    let mut text = format!("{:34} {before_name:>12} {after_name:>12} {:>10}\n", "", "change");
    for (name, decimals, read) in ROWS {
        let (old, new) = (read(before), read(after));
        let change = old
            .zip(new)
            .and_then(|(old, new)| percent(new - old, old))
            .map_or_else(|| UNKNOWN.to_owned(), |change| format!("{change:+.1}%"));
        let (old, new) = (figure(old, decimals), figure(new, decimals));
        let _ = writeln!(text, "{name:34} {old:>12} {new:>12} {change:>10}");
    }
    text + &note(&[(before_name, before), (after_name, after)])
}

/// Compares base, quantized and fine-tuned model; a missing record is "n/a".
pub fn three_way_table(
    baseline: Option<&Benchmark>,
    quantized: Option<&Benchmark>,
    finetuned: &Benchmark,
) -> String {
    let mut text = format!("{:34} {:>12} {:>12} {:>12}\n", "", "FP16", "NF4", "NF4 + LoRA");
    for (name, decimals, read) in ROWS {
        let [baseline, quantized, finetuned] =
            [baseline, quantized, Some(finetuned)].map(|record| figure(record.and_then(read), decimals));
        let _ = writeln!(text, "{name:34} {baseline:>12} {quantized:>12} {finetuned:>12}");
    }
    let sides = [
        ("FP16", baseline),
        ("NF4", quantized),
        ("NF4 + LoRA", Some(finetuned)),
    ];
    let sides: Vec<(&str, &Benchmark)> = sides
        .into_iter()
        .filter_map(|(name, record)| Some((name, record?)))
        .collect();
    text + &note(&sides)
}

/// Note below a table whose columns were measured under different load.
fn note(sides: &[(&str, &Benchmark)]) -> String {
    load_note(sides)
        .map(|note| format!("{note}\n"))
        .unwrap_or_default()
}

const UNKNOWN: &str = "n/a";

fn figure(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |value| format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Extra, InferenceResult, LatencyStats, MachineLoad, MemoryStages, RunDetails};

    fn record(megabytes: f64, latency: f64) -> Benchmark {
        let memory = Some(GpuMemory {
            allocated_mb: megabytes,
            max_allocated_mb: megabytes,
            ..GpuMemory::default()
        });
        Benchmark {
            model_name: "model".to_owned(),
            precision: "FP16".to_owned(),
            quantization_method: None,
            adapter_path: None,
            model_dir: None,
            load_time_seconds: Some(1.0),
            vram: MemoryStages {
                post_load_mb: memory.clone(),
                peak_mb: memory,
                ..MemoryStages::default()
            },
            inference_results: vec![InferenceResult {
                image: "a_long_name_of_a_document.png".to_owned(),
                prompt: String::new(),
                response: "secret".to_owned(),
                latency_seconds: latency,
                time_to_first_token_seconds: None,
                tokens_per_second: Some(12.34),
                prompt_tokens: None,
                completion_tokens: Some(7),
                finish_reason: None,
                accuracy: None,
                extra: Extra::new(),
            }],
            latency_stats: LatencyStats::from_seconds(&[latency]),
            run: None,
            extra: Extra::new(),
        }
    }

    #[test]
    fn changes_are_relative_to_the_first() {
        let table = comparison_table(("FP16", &record(15820.0, 31.1)), ("NF4", &record(5664.0, 15.24)));
        let line = |name: &str| {
            let line = table.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().rev().take(3).collect::<Vec<_>>()
        };
        assert_eq!(line("GPU memory after loading"), ["-64.2%", "5664.0", "15820.0"]);
        assert_eq!(line("latency, mean"), ["-51.0%", "15.24", "31.10"]);
        assert_eq!(line("weight files"), ["n/a", "n/a", "n/a"]);
        // A record of a CPU: there is no GPU memory to compare.
        let table = comparison_table(("FP16", &record(0.0, 1.0)), ("NF4", &record(0.0, 1.0)));
        assert!(table.lines().nth(1).unwrap().ends_with("n/a"), "{table}");
    }

    #[test]
    fn a_missing_record_is_not_available_in_the_three_way_table() {
        let (nf4, tuned) = (record(5664.0, 15.24), record(5700.0, 15.5));
        let table = three_way_table(None, Some(&nf4), &tuned);
        let line = table
            .lines()
            .find(|line| line.starts_with("GPU memory after"))
            .unwrap();
        let figures: Vec<&str> = line.split_whitespace().rev().take(3).collect();
        assert_eq!(figures, ["5700.0", "5664.0", "n/a"]);
        let widths: std::collections::HashSet<usize> = table.lines().map(str::len).collect();
        assert_eq!(widths.len(), 1, "{table}");
    }

    #[test]
    fn a_note_names_columns_measured_under_different_load() {
        let loaded = |load: MachineLoad| Benchmark {
            run: Some(RunDetails {
                cpu_threads: Some(2),
                load: Some(load),
                ..RunDetails::default()
            }),
            ..record(1.0, 2.0)
        };
        let share = |share: f64| {
            loaded(MachineLoad {
                load_average_before: Some(1.0),
                load_average_after: Some(1.0),
                own_cpu_share: Some(0.9),
                other_cpu_share: Some(share),
            })
        };
        let average = |average: f64| {
            loaded(MachineLoad {
                load_average_before: Some(average),
                load_average_after: Some(average),
                ..MachineLoad::default()
            })
        };
        let (quiet, busy) = (share(0.02), share(0.48));
        let table = comparison_table(("FP16", &quiet), ("NF4", &busy));
        let note = table.lines().last().unwrap();
        assert!(
            note.contains("different load") && note.contains("2 %") && note.contains("48 %"),
            "{table}"
        );
        assert!(three_way_table(Some(&quiet), None, &busy).contains("while NF4 + LoRA was"));
        for (one, other, told) in [
            (&quiet, &share(0.1), false),
            (&quiet, &record(1.0, 2.0), false),
            (&average(2.0), &average(5.0), true),
            (&average(2.0), &average(2.4), false),
        ] {
            let table = comparison_table(("FP16", one), ("NF4", other));
            assert_eq!(table.contains("different load"), told, "{table}");
        }
    }

    #[test]
    fn cpu_memory_is_called_resident() {
        let resident = Some(GpuMemory::resident(300 << 20, 400 << 20));
        let of_cpu = Benchmark {
            vram: MemoryStages {
                pre_load_mb: resident.clone(),
                post_load_mb: resident.clone(),
                peak_mb: resident,
                ..MemoryStages::default()
            },
            ..record(0.0, 1.0)
        };
        let table = comparison_table(("FP16", &of_cpu), ("NF4", &of_cpu));
        let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("GPU memory after").contains("n/a") && !line("GPU memory after").contains("300"));
        assert!(line("resident memory after").contains("300.0"), "{table}");
        assert!(!summary_table(&of_cpu).contains("GPU memory"));
    }

    #[test]
    fn columns_are_aligned_and_answers_are_not_shown() {
        let table = summary_table(&record(1.0, 2.0));
        let mut lines = table.lines();
        let head = lines.next().unwrap();
        assert_eq!(head.len(), lines.next().unwrap().len());
        assert!(!table.contains("secret"));
    }
}
