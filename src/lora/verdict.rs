//! What the evaluation says of an adapter, kept in its folder.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::ADAPTER_EVALUATION;
use crate::fs::json::{read_object, write_pretty};
use crate::{Error, Result};

/// Whether an adapter is to be used without being asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// It reads held-out pages no worse than the base does.
    pub recommended: bool,
    /// Why, in one line.
    #[serde(default)]
    pub reason: String,
}

impl Verdict {
    /// The verdict on the adapter in `dir`; `None` where it was never evaluated.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(ADAPTER_EVALUATION);
        let Some(map) = read_object(&path)? else {
            return Ok(None);
        };
        serde_json::from_value(map.into())
            .map(Some)
            .map_err(|error| Error::checkpoint(path, format!("no verdict on an adapter: {error}")))
    }

    /// Writes it to the adapter's folder.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_pretty(&dir.join(ADAPTER_EVALUATION), self)
    }
}
