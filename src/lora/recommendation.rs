//! Recommendation of an adapter by its evaluation, stored in the adapter's folder.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::ADAPTER_EVALUATION;
use crate::fs::json::{read_object, write_pretty};
use crate::{Error, Result};

/// Whether an adapter is attached by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recommendation {
    /// It passed the regression gate: it reads no worse than its base model.
    pub recommended: bool,
    /// Reason, in one line.
    #[serde(default)]
    pub reason: String,
}

impl Recommendation {
    /// Reads the recommendation of the adapter in `dir`; `None` if it was never evaluated.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(ADAPTER_EVALUATION);
        let Some(map) = read_object(&path)? else {
            return Ok(None);
        };
        serde_json::from_value(map.into())
            .map(Some)
            .map_err(|error| Error::invalid_file(path, format!("not an adapter's recommendation: {error}")))
    }

    /// Writes it to the adapter's folder `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_pretty(&dir.join(ADAPTER_EVALUATION), self)
    }
}
