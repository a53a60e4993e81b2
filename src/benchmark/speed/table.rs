//! The table of `medvision bench`.

use std::fmt::Write as _;

use crate::records::{Speed, mebibytes, percent};

/// All figures of `record`, one per line; medians.
pub fn speed_table(record: &Speed) -> String {
    let mut text = heading(record);
    let on_gpu = record.machine.gpu.is_some();
    let memory = |stage: &str| match on_gpu {
        true => format!("GPU memory {stage}, MiB"),
        false => format!("resident memory {stage}, MiB"),
    };
    let mut row = |name: &str, figure: Option<f64>, decimals: usize| {
        let figure = figure.map_or_else(|| "n/a".to_owned(), |figure| format!("{figure:.decimals$}"));
        let _ = writeln!(text, "{name:46} {figure:>12}");
    };
    let (base, settings) = (&record.base, &record.settings);
    let load = match record.model.random_weights {
        true => "load, with making the weights, s",
        false => "load, s",
    };
    row(load, Some(record.load_seconds), 2);
    row(&memory("after loading"), record.memory_after_loading_mib, 1);
    row(&memory("at its peak"), record.memory_peak_mib, 1);
    row("time to first token, s", Some(base.first_token_seconds.median), 3);
    row(
        "decode, one sequence, tokens/s",
        Some(base.decode_tokens_per_second.median),
        1,
    );
    row(
        "  share of the bandwidth limit, %",
        Some(base.bandwidth_share_pct),
        1,
    );
    if let Some(together) = record.sequences_tokens_per_second {
        let name = format!("decode, {} sequences, tokens/s", settings.sequences);
        row(&name, Some(together.median), 1);
    }
    if let Some(stall) = record.stall_seconds {
        let name = "longest wait for a token beside a prefill, s";
        row(name, Some(stall.median), 3);
    }
    let answer = format!("answer of {} tokens, s", settings.answer_tokens);
    row(&answer, Some(base.answer_seconds.median), 3);
    if let (Some(adapter), Some(rank)) = (&record.adapter, settings.adapter_rank) {
        let first = Some(adapter.first_token_seconds.median);
        row(
            &format!("with LoRA of rank {rank}: time to first token, s"),
            first,
            3,
        );
        let (with, without) = (
            adapter.decode_tokens_per_second.median,
            base.decode_tokens_per_second.median,
        );
        row("  decode, one sequence, tokens/s", Some(with), 1);
        row("  slower than without, %", percent(without - with, without), 1);
        row(&format!("  {answer}"), Some(adapter.answer_seconds.median), 3);
    }
    row("bandwidth of a copy, GB/s", Some(record.copy_gb_per_second), 1);
    let weights = mebibytes(base.weight_bytes_per_token);
    row("weights read per token, MiB", Some(weights), 1);
    if let Some(stages) = &record.profile {
        let _ = writeln!(
            text,
            "\n{:20} {:>12} {:>14} {:>10} {:>14}",
            "stage", "time, ms", "weights, MiB", "GB/s", "bandwidth, %"
        );
        for stage in stages {
            let _ = writeln!(
                text,
                "{:20} {:>12.3} {:>14.1} {:>10.1} {:>14.1}",
                stage.stage,
                stage.seconds * 1e3,
                mebibytes(stage.weight_bytes),
                stage.gb_per_second,
                stage.bandwidth_share_pct,
            );
        }
    }
    text
}

/// What was measured, in two lines.
fn heading(record: &Speed) -> String {
    let (model, settings, machine) = (&record.model, &record.settings, &record.machine);
    let place = match &machine.gpu {
        Some(gpu) => format!("{} ({gpu})", model.device),
        None => format!(
            "{} ({}, {} threads)",
            model.device, machine.processor, machine.threads
        ),
    };
    let random = if model.random_weights {
        ", random weights"
    } else {
        ""
    };
    let page = match &settings.image {
        Some(size) => format!(
            "page of {size}, prompt of {} tokens, {} of them the page's",
            settings.prompt_tokens, settings.image_tokens
        ),
        None => format!("no page, prompt of {} tokens", settings.prompt_tokens),
    };
    format!(
        "{}{random}: {}, computed in {} on {place}\n{page}; medians of {}\n\n",
        model.name, model.weights, model.compute_dtype, settings.repeat
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Extra, SequenceSpeed, SpeedMachine, SpeedModel, SpeedSettings, Spread, StageSpeed};

    fn record() -> Speed {
        let spread = |median: f64| Spread {
            min: median / 2.0,
            median,
            max: median * 2.0,
        };
        let sequence = |speed: f64| SequenceSpeed {
            first_token_seconds: spread(0.089),
            decode_tokens_per_second: spread(speed),
            answer_seconds: spread(6.5),
            weight_bytes_per_token: 4 << 30,
            bandwidth_share_pct: 11.26,
        };
        Speed {
            what: "speed".to_owned(),
            timestamp: String::new(),
            commit: String::new(),
            version: String::new(),
            command: String::new(),
            machine: SpeedMachine {
                system: String::new(),
                processor: "CPU".to_owned(),
                cores: Some(2),
                threads: 2,
                memory_gib: None,
                gpu: None,
                gpu_memory_mib: None,
                gpu_driver: None,
                libtorch: None,
            },
            load_average: None,
            model: SpeedModel {
                name: "Qwen2.5-VL-7B shapes".to_owned(),
                random_weights: true,
                weights: "NF4 (bitsandbytes)".to_owned(),
                compute_dtype: "BF16".to_owned(),
                device: "cpu".to_owned(),
            },
            settings: SpeedSettings {
                image: Some("900x1100".to_owned()),
                image_tokens: 1248,
                prompt_tokens: 1313,
                answer_tokens: 512,
                sequences: 8,
                adapter_rank: Some(64),
                repeat: 5,
            },
            copy_gb_per_second: 3000.0,
            load_seconds: 1.6,
            memory_after_loading_mib: Some(4680.0),
            memory_peak_mib: None,
            base: sequence(80.0),
            adapter: Some(sequence(70.0)),
            sequences_tokens_per_second: Some(spread(640.0)),
            stall_seconds: Some(spread(0.016)),
            profile: Some(vec![StageSpeed {
                stage: "prefill".to_owned(),
                seconds: 0.05,
                weight_bytes: 1 << 30,
                gb_per_second: 21.5,
                bandwidth_share_pct: 0.7,
            }]),
            extra: Extra::new(),
        }
    }

    fn last<'a>(table: &'a str, name: &str) -> &'a str {
        let line = table.lines().find(|line| line.trim().starts_with(name));
        line.unwrap_or_else(|| panic!("{name} is not in:\n{table}"))
            .split_whitespace()
            .last()
            .unwrap()
    }

    #[test]
    fn every_figure_has_its_line() {
        let table = speed_table(&record());
        for (name, figure) in [
            ("load, with making", "1.60"),
            ("resident memory after loading", "4680.0"),
            ("resident memory at its peak", "n/a"),
            ("time to first token", "0.089"),
            ("decode, one sequence", "80.0"),
            ("share of the bandwidth", "11.3"),
            ("decode, 8 sequences", "640.0"),
            ("longest wait for a token", "0.016"),
            ("answer of 512 tokens", "6.500"),
            ("slower than without", "12.5"),
            ("weights read per token", "4096.0"),
            ("prefill", "0.7"),
        ] {
            assert_eq!(last(&table, name), figure, "{name}");
        }
        assert!(
            table.starts_with("Qwen2.5-VL-7B shapes, random weights: NF4"),
            "{table}"
        );
        let figures = table
            .lines()
            .filter(|line| line.len() > 46 && line.contains(", s "));
        assert!(figures.map(str::len).all(|length| length == 59), "{table}");
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let table = speed_table(&Speed {
            adapter: None,
            sequences_tokens_per_second: None,
            stall_seconds: None,
            profile: None,
            machine: SpeedMachine {
                gpu: Some("H100".to_owned()),
                ..record().machine
            },
            ..record()
        });
        for name in ["LoRA", "sequences", "stage", "resident"] {
            assert!(!table.contains(name), "{name}: {table}");
        }
        assert_eq!(last(&table, "GPU memory after loading"), "4680.0");
    }
}
