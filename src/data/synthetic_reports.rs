//! Embedded reports for machines without network access: enough to try the pipeline, not to train a useful model.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::RawDataset;
use crate::fs::write_atomically;
use crate::project::Project;
use crate::test_documents::DocumentSet;
use crate::{Error, Result};

const FOLDER: &str = "datasets/synthetic";
const FILE: &str = "mtsamples_synthetic.jsonl";

/// Writes the synthetic reports in the format of MTSamples, unless they exist. Returns the file's path.
pub(crate) fn write_synthetic_reports(project: &Project) -> Result<PathBuf> {
    let folder = project.file(FOLDER);
    let path = folder.join(FILE);
    let mut text = String::new();
    for document in DocumentSet::calibration().documents {
        let transcription = format!("{}\n{}", document.title, document.content.join("\n"));
        let row = json!({"medical_specialty": "Synthetic", "transcription": transcription});
        text.push_str(&format!("{row}\n"));
    }
    if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(path);
    }
    fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
    write_atomically(&path, |file| file.write_all(text.as_bytes()))?;
    Ok(path)
}

/// Returns whether the raw data set in `folder` was built from the synthetic reports.
pub(crate) fn is_synthetic(folder: &Path) -> bool {
    let dataset = RawDataset::open(folder).ok().flatten();
    dataset.is_some_and(|dataset| {
        let files = &dataset.manifest().source_files;
        files.iter().any(|file| file.path == FILE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_rows_of_text_and_not_rewritten() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::open(Some(folder.path())).unwrap();
        let path = write_synthetic_reports(&project).unwrap();
        let rows = fs::read_to_string(&path).unwrap();
        assert!(rows.lines().count() >= 20);
        for row in rows.lines() {
            let row: serde_json::Value = serde_json::from_str(row).unwrap();
            assert!(row["transcription"].as_str().unwrap().len() > 200, "{row}");
        }
        let written = path.metadata().unwrap().modified().unwrap();
        write_synthetic_reports(&project).unwrap();
        assert_eq!(path.metadata().unwrap().modified().unwrap(), written);
        assert!(!is_synthetic(folder.path()));
    }
}
