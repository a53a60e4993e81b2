//! The quantized model to benchmark, and the path of its record.

use std::path::{Path, PathBuf};

use crate::project::Project;
use crate::quant::{Method, Quantization};
use crate::records::paths;
use crate::{Error, Result};

/// Returns the folder that `quantize_base --method` wrote for `base`, or `base` itself if it is quantized.
///
/// # Errors
/// [`Error::NotFound`], if there is no such folder.
pub fn quantized_folder(project: &Project, base: &Path, method: Method) -> Result<PathBuf> {
    if Quantization::from_dir(base)? != Quantization::None {
        return Ok(base.to_owned());
    }
    let folder = project.derived_model(base, method.suffix());
    if !folder.is_dir() {
        let flag = match method {
            Method::Nf4 => "nf4",
            Method::Awq => "awq",
        };
        let reason = format!("no such folder; create it with: quantize_base --method {flag}");
        return Err(Error::not_found(&folder, reason));
    }
    Ok(folder)
}

/// Returns the path of the record of `method`'s benchmark, relative to the project folder.
pub fn quantized_record(method: Method) -> &'static str {
    match method {
        Method::Nf4 => paths::QUANTIZED_INT4,
        Method::Awq => paths::QUANTIZED_AWQ,
    }
}
