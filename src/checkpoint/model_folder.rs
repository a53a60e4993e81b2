//! A model folder's JSON files, each read and parsed once.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value};

use crate::fs::json;
use crate::{Error, Result};

/// A JSON object and the file that it was read from.
#[derive(Debug, Clone)]
pub struct JsonFile {
    /// The file, for errors.
    pub path: PathBuf,
    /// Its keys; empty if there is no such file.
    pub keys: Map<String, Value>,
}

impl JsonFile {
    /// The parsed content `value` of `path`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if it is not a JSON object.
    pub fn new(path: impl Into<PathBuf>, value: Value) -> Result<Self> {
        let path = path.into();
        match value {
            Value::Object(keys) => Ok(Self { path, keys }),
            _ => Err(Error::invalid_file(path, "must hold a JSON object")),
        }
    }
}

/// A model folder whose JSON files are read on first use and kept: everything that a load reads shares them.
#[derive(Debug)]
pub struct ModelFolder {
    dir: PathBuf,
    config: OnceLock<JsonFile>,
    generation_config: OnceLock<JsonFile>,
    tokenizer_config: OnceLock<JsonFile>,
}

impl ModelFolder {
    /// The folder `dir`; reads nothing yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            config: OnceLock::new(),
            generation_config: OnceLock::new(),
            tokenizer_config: OnceLock::new(),
        }
    }

    /// The folder's path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `config.json`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is missing, [`Error::InvalidFile`] if it is not a JSON object, [`Error::Io`] if it cannot be
    /// read.
    pub fn config(&self) -> Result<&JsonFile> {
        self.read(&self.config, "config.json", |path| Err(missing_config(path)))
    }

    /// `generation_config.json`.
    ///
    /// # Errors
    /// As [`Self::config`], except that the file may be missing.
    pub fn generation_config(&self) -> Result<&JsonFile> {
        self.read(&self.generation_config, "generation_config.json", |_| {
            Ok(Map::new())
        })
    }

    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// As [`Self::config`], except that the file may be missing.
    pub fn tokenizer_config(&self) -> Result<&JsonFile> {
        self.read(
            &self.tokenizer_config,
            "tokenizer_config.json",
            |_| Ok(Map::new()),
        )
    }

    fn read<'a>(
        &self,
        cell: &'a OnceLock<JsonFile>,
        name: &str,
        missing: impl FnOnce(&Path) -> Result<Map<String, Value>>,
    ) -> Result<&'a JsonFile> {
        if let Some(file) = cell.get() {
            return Ok(file);
        }
        let path = self.dir.join(name);
        let keys = match json::read_object(&path)? {
            Some(keys) => keys,
            None => missing(&path)?,
        };
        Ok(cell.get_or_init(|| JsonFile { path, keys }))
    }
}

pub(super) fn missing_config(path: &Path) -> Error {
    Error::not_found(path, "no such file: a model folder needs its config.json")
}
