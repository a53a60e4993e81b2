//! Raw data sets: written by `download_datasets` to `datasets/raw/NAME/`, read by `prepare_training_data`.
//!
//! ```text
//! records.jsonl   one RawRecord per line, in the published order
//! images/         the records' images, unchanged: 000012.jpg belongs to row 12
//! manifest.json   RawManifest: origin and skipped rows; written last, so a folder without one is not complete
//! ```
//!
//! The folder is built under another name and renamed, so it is either complete or absent.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fs::{open_regular, read_bounded};
use crate::hub::{Checksum, Hasher, ManifestFile};
use crate::{Error, Result};

/// Version of this layout.
pub const RAW_FORMAT: u32 = 1;
/// Maximum length of a record's line.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// Maximum size of a manifest.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

const RECORDS: &str = "records.jsonl";
const MANIFEST: &str = "manifest.json";
const IMAGES: &str = "images";

/// One usable row of a published data set: it has text and, if the data set has images, one that can be decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawRecord {
    /// Index among the published rows, from 0.
    pub row: u64,
    /// Image path relative to the data set's folder (`images/000012.jpg`); [`RawDataset::image_path`] resolves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Question about the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// Answer, caption, report or transcription; never blank.
    pub text: String,
    /// Medical specialty, as published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub specialty: Option<String>,
}

/// Origin and contents of a raw data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawManifest {
    /// [`RAW_FORMAT`].
    pub format: u32,
    /// Folder name: [`Dataset::name`](super::Dataset::name).
    pub name: String,
    /// `source` of the prepared samples: [`Publication::label`](super::Publication::label).
    pub label: String,
    /// Repository on the hub, or "local" for copies given with `--source`.
    pub source: String,
    /// Commit of the repository; `None` for local copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Published files that were read, each verified against the hub's checksum.
    pub source_files: Vec<ManifestFile>,
    /// Requested maximum number of rows; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_limit: Option<u64>,
    /// Number of published rows read.
    pub rows: u64,
    /// Number of records.
    pub records: u64,
    /// Skipped rows.
    pub skipped: SkippedRows,
    /// SHA-256 of `records.jsonl`.
    pub records_sha256: String,
    /// Total size of the images in bytes.
    pub image_bytes: u64,
    /// Program that wrote it, with its version.
    pub tool: String,
}

/// Numbers of skipped rows, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRows {
    /// No text, or blank text.
    pub without_text: u64,
    /// No image, although the data set has images.
    pub without_image: u64,
    /// An image that cannot be decoded.
    pub broken_image: u64,
    /// Not an object, or columns of unexpected types.
    pub malformed: u64,
}

impl SkippedRows {
    /// Total number.
    pub fn total(&self) -> u64 {
        self.without_text + self.without_image + self.broken_image + self.malformed
    }
}

/// A complete raw data set on disk.
#[derive(Debug, Clone)]
pub struct RawDataset {
    folder: PathBuf,
    manifest: RawManifest,
}

impl RawDataset {
    /// Opens `datasets/raw/NAME`; `None` if there is no such folder or it is not complete.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MANIFEST);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_bounded(&path, MAX_MANIFEST_BYTES).map_err(|error| Error::io(&path, error))?;
        let manifest: RawManifest = serde_json::from_slice(&text).map_err(|error| {
            Error::invalid_file(
                &path,
                format!("not the manifest of a raw data set ({error}); {AGAIN}"),
            )
        })?;
        if manifest.format != RAW_FORMAT {
            let format = manifest.format;
            return Err(Error::invalid_file(
                &path,
                format!("layout {format}, but this program reads {RAW_FORMAT}; {AGAIN}"),
            ));
        }
        Ok(Some(Self {
            folder: folder.to_owned(),
            manifest,
        }))
    }

    /// Returns its manifest.
    pub fn manifest(&self) -> &RawManifest {
        &self.manifest
    }

    /// Returns its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Iterates over the records in the published order; ends after the first error.
    pub fn records(&self) -> Result<RawRecords> {
        let path = self.folder.join(RECORDS);
        let file = open_regular(&path).map_err(|error| Error::io(&path, error))?;
        Ok(RawRecords {
            path,
            reader: BufReader::new(file),
            line: 0,
            ended: false,
        })
    }

    /// Returns the path of a record's image.
    pub fn image_path(&self, record: &RawRecord) -> Option<PathBuf> {
        record.image.as_ref().map(|image| self.folder.join(image))
    }

    /// Verifies the records' checksum and number, and the number and total size of the images.
    pub fn verify(&self) -> Result<()> {
        let path = self.folder.join(RECORDS);
        let found = Hasher::hash_file(&path, Checksum::sha256_hasher())?;
        if found.to_string() != self.manifest.records_sha256 {
            return Err(Error::invalid_file(
                &path,
                format!("does not match its manifest; {AGAIN}"),
            ));
        }
        let (mut records, mut image_bytes) = (0, 0);
        for record in self.records()? {
            let record = record?;
            records += 1;
            if let Some(image) = self.image_path(&record) {
                let size = image.metadata().map_err(|error| Error::io(&image, error))?.len();
                image_bytes += size;
            }
        }
        if (records, image_bytes) != (self.manifest.records, self.manifest.image_bytes) {
            return Err(Error::invalid_file(
                &self.folder,
                format!("records or images are missing or changed; {AGAIN}"),
            ));
        }
        Ok(())
    }
}

const AGAIN: &str = "delete the folder and run download_datasets again";

/// Iterator over the records of a [`RawDataset`].
#[derive(Debug)]
pub struct RawRecords {
    path: PathBuf,
    reader: BufReader<File>,
    line: u64,
    ended: bool,
}

impl RawRecords {
    fn read(&mut self) -> Result<Option<RawRecord>> {
        let mut line = Vec::new();
        let read = (&mut self.reader)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut line)
            .map_err(|error| Error::io(&self.path, error))?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        let fault = |reason: String| {
            Error::invalid_file(&self.path, format!("line {}: {reason}; {AGAIN}", self.line))
        };
        if read as u64 > MAX_LINE_BYTES {
            return Err(fault("exceeds the maximum length".to_owned()));
        }
        let record: RawRecord =
            serde_json::from_slice(&line).map_err(|error| fault(format!("not a record ({error})")))?;
        if let Some(image) = &record.image
            && !is_inside(Path::new(image))
        {
            return Err(fault(
                "refers to an image outside the data set's folder".to_owned(),
            ));
        }
        Ok(Some(record))
    }
}

impl Iterator for RawRecords {
    type Item = Result<RawRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

fn is_inside(path: &Path) -> bool {
    path.components()
        .all(|component| matches!(component, Component::Normal(_)))
}

/// Writes a raw data set; [`RawWriter::finish`] completes it.
#[derive(Debug)]
pub struct RawWriter {
    folder: PathBuf,
    records: std::io::BufWriter<File>,
    hasher: Hasher,
    kept: u64,
    image_bytes: u64,
}

impl RawWriter {
    /// Starts in `folder`, which is emptied first.
    pub fn create(folder: &Path) -> Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        }
        let images = folder.join(IMAGES);
        std::fs::create_dir_all(&images).map_err(|error| Error::io(&images, error))?;
        let path = folder.join(RECORDS);
        let file = File::create_new(&path).map_err(|error| Error::io(&path, error))?;
        Ok(Self {
            folder: folder.to_owned(),
            records: std::io::BufWriter::new(file),
            hasher: Checksum::sha256_hasher(),
            kept: 0,
            image_bytes: 0,
        })
    }

    /// Adds a record and, if it has one, its encoded image with the suffix (`jpg`, `png`…).
    pub fn push(&mut self, mut record: RawRecord, image: Option<(&[u8], &str)>) -> Result<()> {
        record.image = None;
        if let Some((bytes, suffix)) = image {
            let name = format!("{IMAGES}/{:06}.{suffix}", record.row);
            let path = self.folder.join(&name);
            std::fs::write(&path, bytes).map_err(|error| Error::io(&path, error))?;
            self.image_bytes += bytes.len() as u64;
            record.image = Some(name);
        }
        let mut line = serde_json::to_vec(&record)
            .map_err(|error| Error::io(&self.folder, std::io::Error::other(error)))?;
        line.push(b'\n');
        self.hasher.update(&line);
        self.records
            .write_all(&line)
            .map_err(|error| Error::io(self.folder.join(RECORDS), error))?;
        self.kept += 1;
        Ok(())
    }

    /// Returns the number of records so far.
    pub fn records(&self) -> u64 {
        self.kept
    }

    /// Syncs all files and writes the manifest; fills in format, counts, sizes and checksum.
    pub fn finish(mut self, mut manifest: RawManifest) -> Result<RawManifest> {
        let path = self.folder.join(RECORDS);
        self.records
            .flush()
            .and_then(|()| self.records.get_ref().sync_all())
            .map_err(|error| Error::io(&path, error))?;
        sync_files(&self.folder.join(IMAGES))?;
        manifest.format = RAW_FORMAT;
        manifest.records = self.kept;
        manifest.image_bytes = self.image_bytes;
        manifest.records_sha256 = self.hasher.finish().to_string();
        let path = self.folder.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| Error::io(&path, std::io::Error::other(error)))?;
        crate::fs::write_atomically(&path, |file| file.write_all(&text))?;
        Ok(manifest)
    }
}

/// Syncs the files of `folder` and the folder itself.
fn sync_files(folder: &Path) -> Result<()> {
    let attempt = || {
        for entry in std::fs::read_dir(folder)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(folder)?.sync_all()
    };
    attempt().map_err(|error| Error::io(folder, error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(row: u64) -> RawRecord {
        RawRecord {
            row,
            image: None,
            question: None,
            text: format!("text {row}"),
            specialty: None,
        }
    }

    fn written() -> (tempfile::TempDir, RawDataset) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = RawWriter::create(folder.path()).unwrap();
        writer.push(record(0), Some((b"a picture", "png"))).unwrap();
        writer.push(record(7), None).unwrap();
        assert!(
            RawDataset::open(folder.path()).unwrap().is_none(),
            "not complete yet"
        );
        let manifest = RawManifest {
            format: 0,
            name: "name".to_owned(),
            label: "Label".to_owned(),
            source: "local".to_owned(),
            revision: None,
            source_files: Vec::new(),
            row_limit: None,
            rows: 8,
            records: 0,
            skipped: SkippedRows::default(),
            records_sha256: String::new(),
            image_bytes: 0,
            tool: String::new(),
        };
        writer.finish(manifest).unwrap();
        let dataset = RawDataset::open(folder.path()).unwrap().unwrap();
        (folder, dataset)
    }

    #[test]
    fn written_records_are_read_back() {
        let (_folder, dataset) = written();
        dataset.verify().unwrap();
        let records: Vec<RawRecord> = dataset.records().unwrap().map(Result::unwrap).collect();
        assert_eq!(records[0].image.as_deref(), Some("images/000000.png"));
        assert_eq!(
            fs::read(dataset.image_path(&records[0]).unwrap()).unwrap(),
            b"a picture"
        );
        assert_eq!(records[1], record(7));
        let manifest = dataset.manifest();
        assert_eq!(
            (manifest.format, manifest.records, manifest.image_bytes),
            (RAW_FORMAT, 2, 9)
        );
    }

    #[test]
    fn verify_detects_changed_and_missing_files() {
        let change = |name: &str, bytes: &[u8]| {
            let (folder, dataset) = written();
            fs::write(folder.path().join(name), bytes).unwrap();
            dataset.verify().unwrap_err().to_string()
        };
        assert!(change("images/000000.png", b"shorter").contains("missing or changed"));
        assert!(change("records.jsonl", b"{}").contains("does not match its manifest"));
        let (folder, dataset) = written();
        fs::remove_file(folder.path().join("images/000000.png")).unwrap();
        assert!(dataset.verify().unwrap_err().to_string().contains("000000.png"));
    }

    #[test]
    fn hostile_records_and_manifests_are_rejected() {
        let (folder, dataset) = written();
        for line in [
            r#"{"row": 0, "text": "x", "image": "../../etc/passwd"}"#,
            r#"{"row": 0, "text": "x", "image": "/etc/passwd"}"#,
            r#"{"row": 0}"#,
            "[]",
            "\u{0}",
        ] {
            fs::write(folder.path().join(RECORDS), line).unwrap();
            let mut records = dataset.records().unwrap();
            let error = records.next().unwrap().unwrap_err().to_string();
            assert!(
                error.contains("line 1") && error.contains("download_datasets"),
                "{error}"
            );
            assert!(records.next().is_none());
        }
        let manifest = fs::read_to_string(folder.path().join(MANIFEST)).unwrap();
        fs::write(
            folder.path().join(MANIFEST),
            manifest.replace("\"format\": 1", "\"format\": 2"),
        )
        .unwrap();
        let error = RawDataset::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("layout 2"), "{error}");
        fs::write(folder.path().join(MANIFEST), "{").unwrap();
        assert!(RawDataset::open(folder.path()).is_err());
    }
}
