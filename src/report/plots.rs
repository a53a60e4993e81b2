//! The report's plots as SVG: memory, latency, accuracy and loss.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::blocks::one_line;
use super::compile::benchmark_accuracy;
use super::sources::Sources;
use crate::records::Benchmark;

/// All plots; one without figures is not drawn.
pub(super) const NAMES: [&str; 4] = ["memory", "latency", "accuracy", "loss"];

const SIZE: (u32, u32) = (880, 340);
/// Okabe and Ito's palette, which is distinguishable with colour blindness.
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

/// One plot.
#[derive(Debug)]
pub(super) struct Plot {
    pub name: &'static str,
    pub caption: &'static str,
    pub svg: String,
}

/// Grouped bar chart: one group per x position, one bar per series in it.
#[derive(Debug, Default)]
struct Bars {
    groups: Vec<String>,
    /// Name and one figure per group.
    series: Vec<(String, Vec<Option<f64>>)>,
}

impl Bars {
    /// Removes series and groups without a figure above zero.
    fn compact(mut self) -> Self {
        let shown = |value: &Option<f64>| value.is_some_and(|value| value.is_finite() && value > 0.0);
        self.series.retain(|(_, values)| values.iter().any(shown));
        let keep: Vec<bool> = (0..self.groups.len())
            .map(|group| {
                let mut values = self.series.iter().filter_map(|(_, values)| values.get(group));
                values.any(shown)
            })
            .collect();
        let mut kept = keep.iter();
        self.groups.retain(|_| *kept.next().unwrap_or(&false));
        for (_, values) in &mut self.series {
            let mut kept = keep.iter();
            values.retain(|_| *kept.next().unwrap_or(&false));
        }
        self
    }
}

/// Draws all plots that have figures.
pub(super) fn draw(sources: &Sources) -> Vec<Plot> {
    let benchmarks: Vec<(&str, &Benchmark)> = sources
        .benchmarks()
        .into_iter()
        .filter_map(|(label, record)| Some((label, record?)))
        .collect();
    let mut plots = Vec::new();
    let mut add = |name, caption, svg: Option<String>| {
        if let Some(svg) = svg {
            plots.push(Plot { name, caption, svg });
        }
    };
    let caption = "Memory of each model, MiB";
    add("memory", caption, bars(&memory(&benchmarks).compact(), "MiB"));
    let caption = "Latency of each document, s";
    add("latency", caption, bars(&latency(&benchmarks).compact(), "s"));
    let caption = "Accuracy on expected terms and values, percent";
    add(
        "accuracy",
        caption,
        bars(&accuracy(sources, &benchmarks).compact(), "%"),
    );
    let history: Vec<(f64, f64)> = sources
        .training
        .iter()
        .flat_map(|training| &training.loss_history)
        .filter(|point| point.loss.is_finite())
        .map(|point| (point.step as f64, point.loss))
        .collect();
    add("loss", "Training loss by step", line(&history));
    plots
}

fn memory(benchmarks: &[(&str, &Benchmark)]) -> Bars {
    let series = |name: &str, figure: &dyn Fn(&Benchmark) -> Option<f64>| {
        let values = benchmarks.iter().map(|(_, record)| figure(record)).collect();
        (name.to_owned(), values)
    };
    let resident = |record: &Benchmark| record.run.as_ref()?.resident_memory;
    Bars {
        groups: labels(benchmarks),
        series: vec![
            series("GPU, loaded", &|record| {
                Some(record.vram.post_load_mb.as_ref()?.on_gpu()?.allocated_mb)
            }),
            series("GPU, peak", &|record| {
                Some(record.vram.peak_mb.as_ref()?.on_gpu()?.max_allocated_mb)
            }),
            series("resident, loaded", &Benchmark::resident_post_load_mb),
            series("resident, peak", &|record| resident(record)?.peak_mb),
        ],
    }
}

fn labels(benchmarks: &[(&str, &Benchmark)]) -> Vec<String> {
    benchmarks.iter().map(|(label, _)| (*label).to_owned()).collect()
}

fn latency(benchmarks: &[(&str, &Benchmark)]) -> Bars {
    let mut groups: Vec<String> = Vec::new();
    for result in benchmarks
        .iter()
        .flat_map(|(_, record)| &record.inference_results)
    {
        if !groups.contains(&result.image) {
            groups.push(result.image.clone());
        }
    }
    let seconds = |record: &Benchmark, image: &str| {
        let mut results = record.inference_results.iter();
        Some(results.find(|result| result.image == image)?.latency_seconds)
    };
    let series = benchmarks
        .iter()
        .map(|(label, record)| {
            let values = groups.iter().map(|image| seconds(record, image)).collect();
            ((*label).to_owned(), values)
        })
        .collect();
    let groups = groups
        .iter()
        .map(|image| one_line(&image.strip_suffix(".png").unwrap_or(image).replace('_', " ")))
        .collect();
    Bars { groups, series }
}

fn accuracy(sources: &Sources, benchmarks: &[(&str, &Benchmark)]) -> Bars {
    let mut bars = Bars::default();
    let mut series: [Vec<Option<f64>>; 3] = Default::default();
    let mut add = |group: &str, figures: [Option<f64>; 3]| {
        bars.groups.push(group.to_owned());
        for (values, figure) in series.iter_mut().zip(figures) {
            values.push(figure);
        }
    };
    let evaluation = sources.evaluation.as_ref();
    let evaluated = [
        ("cases, base NF4", evaluation.map(|record| &record.base_model)),
        (
            "cases, NF4 + LoRA",
            evaluation.and_then(|record| record.finetuned_model.as_ref()),
        ),
    ];
    for (group, model) in evaluated {
        if let Some(summary) = model.and_then(|model| model.summary.as_ref()) {
            let figures = [
                summary.avg_term_accuracy_pct,
                summary.avg_value_accuracy_pct,
                summary.avg_combined_accuracy_pct,
            ];
            add(group, figures);
        }
    }
    for (label, record) in benchmarks {
        if let Some(averages) = benchmark_accuracy(record) {
            let figures = [
                averages.avg_term_accuracy_pct,
                averages.avg_value_accuracy_pct,
                averages.avg_combined_accuracy_pct,
            ];
            add(&format!("documents, {label}"), figures);
        }
    }
    bars.series = ["terms", "values", "both"]
        .map(str::to_owned)
        .into_iter()
        .zip(series)
        .collect();
    bars
}

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Draws on a canvas of the plots' size; `None` if that fails, in which case only the plot is missing.
fn svg(paint: impl FnOnce(&Canvas<'_>) -> Drawn) -> Option<String> {
    let mut text = String::new();
    let drawn = {
        let canvas = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        paint(&canvas).and_then(|()| canvas.present())
    };
    match drawn {
        Ok(()) => Some(text),
        Err(error) => {
            tracing::warn!(%error, "a plot could not be drawn");
            None
        }
    }
}

fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&RGBColor(31, 41, 51))
}

fn bars(bars: &Bars, unit: &str) -> Option<String> {
    let largest = bars
        .series
        .iter()
        .flat_map(|(_, values)| values)
        .flatten()
        .fold(0.0, |largest: f64, value| largest.max(*value));
    if largest <= 0.0 || bars.groups.is_empty() {
        return None;
    }
    svg(|canvas| {
        canvas.fill(&WHITE)?;
        let groups = bars.groups.len();
        let mut chart = ChartBuilder::on(canvas)
            .margin(12)
            .margin_top(44)
            .margin_bottom(40)
            .set_label_area_size(LabelAreaPosition::Left, 76)
            .build_cartesian_2d(0.0..groups as f64, 0.0..largest * 1.12)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(217, 226, 236))
            .y_desc(unit)
            .y_labels(6)
            .y_label_style(font(13))
            .axis_desc_style(font(13))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        let width = 0.8 / bars.series.len() as f64;
        let above = font(11).pos(Pos::new(HPos::Center, VPos::Bottom));
        for (index, (_, values)) in bars.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            for (group, value) in values.iter().enumerate() {
                let Some(value) = value.filter(|value| value.is_finite()) else {
                    continue;
                };
                let left = group as f64 + 0.1 + index as f64 * width;
                let corners = [(left, 0.0), (left + width * 0.92, value)];
                chart.draw_series([Rectangle::new(corners, colour.filled())])?;
                let place = (left + width * 0.46, value + largest * 0.012);
                chart.draw_series([Text::new(short(value), place, above.clone())])?;
            }
        }
        let below = font(12).pos(Pos::new(HPos::Center, VPos::Top));
        for (group, label) in bars.groups.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(group as f64 + 0.5, 0.0));
            canvas.draw_text(label, &below, (x, y + 8))?;
        }
        legend(canvas, bars)
    })
}

/// Legend above the plot: the names of the series with their colours.
fn legend(canvas: &Canvas<'_>, bars: &Bars) -> Drawn {
    let mut x = 88;
    for (index, (name, _)) in bars.series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        canvas.draw(&Rectangle::new([(x, 16), (x + 12, 28)], colour.filled()))?;
        canvas.draw_text(name, &font(13), (x + 18, 15))?;
        x += 42 + 7 * name.chars().count() as i32;
    }
    Ok(())
}

fn line(points: &[(f64, f64)]) -> Option<String> {
    let (first, last) = (points.first()?, points.last()?);
    let largest = points
        .iter()
        .fold(0.0, |largest: f64, point| largest.max(point.1));
    if points.len() < 2 || largest <= 0.0 || last.0 <= first.0 {
        return None;
    }
    svg(|canvas| {
        canvas.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(canvas)
            .margin(12)
            .set_label_area_size(LabelAreaPosition::Left, 76)
            .set_label_area_size(LabelAreaPosition::Bottom, 44)
            .build_cartesian_2d(first.0..last.0, 0.0..largest * 1.08)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(217, 226, 236))
            .x_desc("step")
            .y_desc("loss")
            .label_style(font(13))
            .axis_desc_style(font(13))
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        let style = COLOURS[0].stroke_width(2);
        chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        Ok(())
    })
}

/// A figure with three significant digits, or as an integer.
fn short(value: f64) -> String {
    let magnitude = value.abs();
    let decimals = if magnitude == 0.0 || magnitude >= 100.0 {
        0
    } else if magnitude >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.decimals$}");
    if decimals == 0 {
        text
    } else {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (2.0, "2"),
            (15.24, "15.2"),
            (15820.1, "15820"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn groups_and_series_without_figures_are_removed() {
        let compacted = Bars {
            groups: vec!["a".to_owned(), "b".to_owned()],
            series: vec![
                ("zero".to_owned(), vec![Some(0.0), None]),
                ("some".to_owned(), vec![None, Some(2.0)]),
            ],
        }
        .compact();
        assert_eq!(compacted.groups, ["b"]);
        assert_eq!(compacted.series, [("some".to_owned(), vec![Some(2.0)])]);
        assert_eq!(bars(&compacted, "s").map(|svg| svg.contains("<svg")), Some(true));
        assert_eq!(bars(&Bars::default(), "s"), None);
    }

    #[test]
    fn labels_are_escaped() {
        let hostile = Bars {
            groups: vec!["</text><script>".to_owned()],
            series: vec![("a&b".to_owned(), vec![Some(1.0)])],
        };
        let svg = bars(&hostile, "s").unwrap();
        assert!(!svg.contains("<script") && svg.contains("a&amp;b"), "{svg}");
    }

    #[test]
    fn a_loss_needs_two_points() {
        assert_eq!(line(&[]), None);
        assert_eq!(line(&[(1.0, 2.0)]), None);
        assert!(line(&[(1.0, 2.0), (5.0, 1.0)]).unwrap().contains("<polyline"));
    }
}
