//! The command line of `quantize_base`, and what it says at the end.

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use serde::Deserialize;

use super::{
    DocumentAccuracy, PageAccuracy,
    awq::AwqOptions,
    nf4::{LayerOutputErrors, Nf4Options},
};
use crate::quant::{Method, nf4::QuantType};
use crate::records::{AwqAttempt, BnbSetup, Extra, QuantizationInfo, mebibytes};

/// Options of `quantize_base`.
#[derive(Debug, Clone, Args)]
pub struct QuantizeArgs {
    /// Quantization method [default: run both and use the more accurate one]
    #[arg(long, value_name = "METHOD", env = "MVP_QUANT_METHOD", hide_env_values = true)]
    method: Option<MethodArg>,

    /// Linear layers to keep unquantized, by full name, prefix or suffix: visual, model.layers.0, down_proj
    #[arg(
        long,
        value_name = "MODULE,...",
        env = "MVP_SKIP_MODULES",
        value_delimiter = ',',
        hide_env_values = true
    )]
    skip_modules: Vec<String>,

    /// NF4: block size (weights per scale)
    #[arg(
        long,
        value_name = "N",
        env = "MVP_BLOCKSIZE",
        default_value_t = 64,
        hide_env_values = true
    )]
    blocksize: usize,

    /// NF4: disable double quantization (of the scales)
    #[arg(long, env = "MVP_NO_DOUBLE_QUANT", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    no_double_quant: bool,

    /// NF4: source MiB per output shard; an interrupted run repeats at most this much work
    #[arg(
        long,
        value_name = "MIB",
        env = "MVP_FILE_MIB",
        default_value_t = 2048,
        hide_env_values = true
    )]
    file_mib: usize,

    /// 4-bit data type of the bitsandbytes method
    #[arg(
        long,
        value_name = "TYPE",
        env = "MVP_QUANT_TYPE",
        default_value = "nf4",
        hide_env_values = true
    )]
    quant_type: TypeArg,

    /// Number of calibration pages [default: 8; 0 with --method nf4]
    #[arg(long, value_name = "N", env = "MVP_CALIBRATION_PAGES", hide_env_values = true)]
    calibration_pages: Option<usize>,

    /// Number of calibration pages to compare the original and both methods on
    #[arg(
        long,
        value_name = "N",
        env = "MVP_MEASURED_PAGES",
        default_value_t = 4,
        value_parser = clap::value_parser!(u64).range(1..),
        hide_env_values = true
    )]
    measured_pages: u64,

    /// AWQ: number of calibration tokens used in the scale search, evenly sampled
    #[arg(
        long,
        value_name = "N",
        env = "MVP_CALIBRATION_ROWS",
        default_value_t = AwqOptions::default().rows as u64,
        value_parser = clap::value_parser!(u64).range(1..=1 << 20),
        hide_env_values = true
    )]
    calibration_rows: u64,
}

/// `--method` as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodArg {
    /// bitsandbytes' NormalFloat 4
    Nf4,
    /// Activation-aware quantization
    Awq,
}

/// `--quant-type` as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TypeArg {
    /// NormalFloat: 16 quantiles of the normal distribution
    Nf4,
    /// Float: 1 sign, 2 exponent and 1 mantissa bit
    Fp4,
}

impl QuantizeArgs {
    /// The one method wanted.
    pub fn method(&self) -> Option<Method> {
        self.method.map(|method| match method {
            MethodArg::Nf4 => Method::Nf4,
            MethodArg::Awq => Method::Awq,
        })
    }

    /// Pages to calibrate and to compare on.
    pub fn calibration_pages(&self) -> usize {
        let default = if self.method() == Some(Method::Nf4) { 0 } else { 8 };
        self.calibration_pages.unwrap_or(default)
    }

    /// How many of them to compare on.
    pub fn measured_pages(&self) -> usize {
        usize::try_from(self.measured_pages).unwrap_or(usize::MAX)
    }

    /// Options of AWQ.
    pub fn awq(&self) -> AwqOptions {
        AwqOptions {
            rows: self.calibration_rows as usize,
            ..AwqOptions::default()
        }
    }

    /// Options of NF4.
    pub fn nf4(&self) -> Nf4Options {
        Nf4Options {
            quant_type: match self.quant_type {
                TypeArg::Nf4 => QuantType::Nf4,
                TypeArg::Fp4 => QuantType::Fp4,
            },
            blocksize: self.blocksize,
            double_quant: !self.no_double_quant,
            skip_modules: self.skip_modules.clone(),
            file_mib: self.file_mib,
        }
    }
}

/// What was made, for the person who ran it.
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
        text += &format!(" peak memory {peak:.0} MiB");
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

/// What calibration pages and documents say of a method.
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
