//! The summary that `quantize_base` prints.

use serde::Deserialize;

use super::{DocumentAccuracy, PageAccuracy, nf4::LayerOutputErrors};
use crate::records::{AwqAttempt, BnbSetup, Extra, QuantizationInfo, mebibytes};

/// Returns the summary of a run.
pub fn summary(info: &QuantizationInfo) -> String {
    let mut text = nf4_lines(&info.bnb_setup) + &awq_lines(&info.awq_attempt);
    match (&info.active_method, info.extra.get("active_reason")) {
        (Some(method), Some(reason)) => {
            text += &format!("active: {method} ({})\n", reason.as_str().unwrap_or_default());
        }
        _ => text += "active: none\n",
    }
    let before = info
        .extra
        .get("calibration")
        .and_then(|part| part.get("base_documents"));
    if let Some(before) = before.and_then(|part| DocumentAccuracy::deserialize(part).ok()) {
        text += &format!(
            "before quantization: {:.2} % of the documents' terms and values found\n",
            before.avg_combined_accuracy_pct
        );
    }
    text
}

fn nf4_lines(setup: &BnbSetup) -> String {
    let dir = setup.output_dir.as_deref().unwrap_or_default();
    if let Some(error) = &setup.error {
        return format!("NF4: {error}\n");
    }
    let figure = |key: &str| setup.extra.get(key).and_then(serde_json::Value::as_f64);
    let output_bytes = setup
        .extra
        .get("output_bytes")
        .and_then(serde_json::Value::as_u64);
    let mut text = format!("NF4: {dir}");
    if setup.extra.get("up_to_date").and_then(serde_json::Value::as_bool) == Some(true) {
        text += " (was up to date)";
    }
    if let (Some(parameters), Some(bytes)) = (setup.total_params, output_bytes) {
        text += &format!(
            "\n  {:.1} M parameters, {:.1} MiB",
            parameters as f64 / 1e6,
            mebibytes(bytes)
        );
    }
    if let Some(seconds) = setup.time_seconds {
        text += &format!("\n  made in {seconds:.1} s");
    }
    if let Some(peak) = figure("peak_memory_mb") {
        text += &format!(", peak memory {peak:.0} MiB");
    }
    if let Some(seconds) = setup.load_time_seconds {
        text += &format!("; loads in {seconds:.1} s");
    }
    if let Some(error) = setup.extra.get("weight_error") {
        let value = |key: &str| error.get(key).and_then(serde_json::Value::as_f64);
        if let (Some(rmse), Some(rms), Some(largest)) = (value("rmse"), value("rms"), value("max_abs")) {
            text += &format!("\n  weights: RMSE {rmse:.3e} (of RMS {rms:.3e}), largest error {largest:.3e}");
        }
    }
    text + "\n" + &accuracy_line(&setup.extra)
}

fn awq_lines(attempt: &AwqAttempt) -> String {
    let dir = attempt.output_dir.as_deref().unwrap_or_default();
    if let Some(error) = &attempt.error {
        return format!("AWQ: {error}\n");
    }
    let figure = |key: &str| attempt.extra.get(key).and_then(serde_json::Value::as_f64);
    let mut text = format!("AWQ: {dir}");
    if attempt
        .extra
        .get("up_to_date")
        .and_then(serde_json::Value::as_bool)
        == Some(true)
    {
        text += " (was up to date)";
    }
    let output_bytes = attempt.extra.get("output_bytes");
    if let Some(bytes) = output_bytes.and_then(serde_json::Value::as_u64) {
        text += &format!("\n  {:.1} MiB", mebibytes(bytes));
    }
    if let Some(seconds) = attempt.time_seconds {
        text += &format!("\n  made in {seconds:.1} s");
    }
    if let Some(seconds) = figure("load_time_seconds") {
        text += &format!("; loads in {seconds:.1} s");
    }
    if let Some(error) = attempt.extra.get("relative_output_error") {
        let value = |key: &str| error.get(key).and_then(serde_json::Value::as_f64);
        if let (Some(awq), Some(plain)) = (value("awq"), value("round_to_nearest")) {
            text += &format!(
                "\n  linear outputs: relative squared error {awq:.2e} (round to nearest: {plain:.2e})"
            );
        }
    }
    text + "\n" + &accuracy_line(&attempt.extra)
}

/// Accuracy of a method on calibration pages and documents.
fn accuracy_line(extra: &Extra) -> String {
    let documents = extra
        .get("documents")
        .and_then(|part| DocumentAccuracy::deserialize(part).ok());
    let documents = documents.filter(|figures| figures.documents > 0).map(|figures| {
        format!(
            "  documents: {:.2} % of terms and values found\n",
            figures.avg_combined_accuracy_pct
        )
    });
    pages_line(extra) + &layers_line(extra) + &documents.unwrap_or_default()
}

fn layers_line(extra: &Extra) -> String {
    match extra
        .get("layer_outputs")
        .and_then(|part| LayerOutputErrors::deserialize(part).ok())
    {
        Some(LayerOutputErrors {
            mean_cosine,
            worst: Some(worst),
            layers,
        }) => format!(
            "  layer outputs: mean cosine {mean_cosine:.5}, worst {:.5} ({worst})\n",
            layers.get(&worst).map_or(f64::NAN, |layer| layer.cosine)
        ),
        _ => String::new(),
    }
}

fn pages_line(extra: &Extra) -> String {
    let figures = extra.get("calibration");
    match figures.and_then(|figures| PageAccuracy::deserialize(figures).ok()) {
        Some(figures) => {
            let outputs = figures.outputs.as_ref().map(|outputs| {
                format!(
                    "; outputs: cosine {:.5}, RMSE {:.4}",
                    outputs.output_cosine, outputs.output_rmse
                )
            });
            format!(
                "  {} calibration page{}, {} tokens: top-1 accuracy {:.3} %{}\n",
                figures.pages,
                if figures.pages == 1 { "" } else { "s" },
                figures.tokens,
                figures.token_accuracy_pct,
                outputs.unwrap_or_default()
            )
        }
        None => String::new(),
    }
}
