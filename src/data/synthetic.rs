//! Reports that come with the program, for a machine that can download none: enough to try the pipeline, not to train on.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::RawDataset;
use crate::documents::DocumentSet;
use crate::fs::write_atomically;
use crate::project::Project;
use crate::{Error, Result};

const FOLDER: &str = "datasets/synthetic";
const FILE: &str = "mtsamples_synthetic.jsonl";

/// Writes the synthetic reports in MTSamples' form, where they are not there yet; the file.
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

/// The raw data set in `folder` was made from the synthetic reports.
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
    fn the_reports_are_rows_of_text_and_the_same_each_time() {
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
