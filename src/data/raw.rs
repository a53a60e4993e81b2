//! Raw datasets: what `download_datasets` leaves in `datasets/raw/NAME/` and `prepare_training_data` reads.
//!
//! ```text
//! records.jsonl   one RawRecord a line, in the published order
//! images/         the records' pictures, byte for byte as published: 000012.jpg is that of row 12
//! manifest.json   RawManifest: where it comes from, how many rows were left out; a folder without one is not complete
//! ```
//!
//! The folder is put together under another name and moved into place whole, so it is either complete or not there.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fs::{open_regular, read_bounded};
use crate::hub::{Checksum, Hasher, ManifestFile};
use crate::{Error, Result};

/// Version of this layout.
pub const RAW_FORMAT: u32 = 1;
/// A record's line may not be longer.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// A manifest may not be larger.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

const RECORDS: &str = "records.jsonl";
const MANIFEST: &str = "manifest.json";
const IMAGES: &str = "images";

/// One usable row of a published dataset: it has text and, where the dataset has pictures, one that decodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawRecord {
    /// Position among the published rows, from 0.
    pub row: u64,
    /// The picture, relative to the dataset's folder (`images/000012.jpg`); [`RawDataset::image_path`] resolves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What is asked about the picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The answer, caption, report or transcription; never blank.
    pub text: String,
    /// Medical specialty, as published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub specialty: Option<String>,
}

/// Where a raw dataset comes from and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawManifest {
    /// [`RAW_FORMAT`].
    pub format: u32,
    /// The folder's name: `roco`, `pubmedvision`, `mtsamples`.
    pub name: String,
    /// What the records are called in `source` of the formatted data: `ROCO`, `PathVQA`, `PubMedVision`, `MTSamples`.
    pub label: String,
    /// The hub's dataset, or "local" for copies given with `--source`.
    pub source: String,
    /// Commit of the hub's dataset; none for local copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The published files that were read, each checked against the hub's checksum.
    pub source_files: Vec<ManifestFile>,
    /// The most rows that were asked for; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_limit: Option<u64>,
    /// Published rows read.
    pub rows: u64,
    /// Records kept.
    pub records: u64,
    /// Rows left out.
    pub skipped: SkippedRows,
    /// SHA-256 of `records.jsonl`.
    pub records_sha256: String,
    /// Bytes of all pictures.
    pub image_bytes: u64,
    /// What wrote it.
    pub tool: String,
}

/// Rows that were left out, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRows {
    /// No text, or blank.
    pub without_text: u64,
    /// No picture where the dataset has pictures.
    pub without_image: u64,
    /// A picture that cannot be decoded.
    pub broken_image: u64,
    /// A row that is no object, or whose columns have other types than the dataset's.
    pub malformed: u64,
}

impl SkippedRows {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.without_text + self.without_image + self.broken_image + self.malformed
    }
}

/// A complete raw dataset on disk.
#[derive(Debug, Clone)]
pub struct RawDataset {
    folder: PathBuf,
    manifest: RawManifest,
}

impl RawDataset {
    /// Opens `datasets/raw/NAME`; `None` where there is no such folder or it is not complete.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MANIFEST);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_bounded(&path, MAX_MANIFEST_BYTES).map_err(|error| Error::io(&path, error))?;
        let manifest: RawManifest = serde_json::from_slice(&text).map_err(|error| {
            Error::checkpoint(&path, format!("not a raw dataset's manifest ({error}); {AGAIN}"))
        })?;
        if manifest.format != RAW_FORMAT {
            let format = manifest.format;
            return Err(Error::checkpoint(
                &path,
                format!("layout {format}, but this program reads {RAW_FORMAT}; {AGAIN}"),
            ));
        }
        Ok(Some(Self {
            folder: folder.to_owned(),
            manifest,
        }))
    }

    /// Where it comes from and what it holds.
    pub fn manifest(&self) -> &RawManifest {
        &self.manifest
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The records in the published order, one at a time; ends after the first error.
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

    /// Where a record's picture lies.
    pub fn image_path(&self, record: &RawRecord) -> Option<PathBuf> {
        record.image.as_ref().map(|image| self.folder.join(image))
    }

    /// Reads everything again: the records' checksum and number, and that every picture is there.
    pub fn verify(&self) -> Result<()> {
        let path = self.folder.join(RECORDS);
        let found = Hasher::hash_file(&path, Checksum::sha256_hasher())?;
        if found.to_string() != self.manifest.records_sha256 {
            return Err(Error::checkpoint(
                &path,
                format!("is not what its manifest describes; {AGAIN}"),
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
            return Err(Error::checkpoint(
                &self.folder,
                format!("records or pictures are missing or changed; {AGAIN}"),
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
        let fault =
            |reason: String| Error::checkpoint(&self.path, format!("line {}: {reason}; {AGAIN}", self.line));
        if read as u64 > MAX_LINE_BYTES {
            return Err(fault("longer than any record".to_owned()));
        }
        let record: RawRecord =
            serde_json::from_slice(&line).map_err(|error| fault(format!("not a record ({error})")))?;
        if let Some(image) = &record.image
            && !lies_within(Path::new(image))
        {
            return Err(fault("names a picture outside the dataset's folder".to_owned()));
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

fn lies_within(path: &Path) -> bool {
    path.components()
        .all(|component| matches!(component, Component::Normal(_)))
}

/// Puts a raw dataset together in a folder of its own; [`RawWriter::finish`] completes it.
#[derive(Debug)]
pub struct RawWriter {
    folder: PathBuf,
    records: std::io::BufWriter<File>,
    hasher: Hasher,
    kept: u64,
    image_bytes: u64,
}

impl RawWriter {
    /// Starts anew in `folder`, which is emptied.
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

    /// Adds a record, with its picture's bytes and format (`jpg`, `png`…) where it has one.
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

    /// Records so far.
    pub fn records(&self) -> u64 {
        self.kept
    }

    /// Syncs everything and writes the manifest, completed with what the writer counted.
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

/// Forces the files of `folder` and the folder itself to the disk.
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
    fn what_is_written_is_read_again() {
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
    fn anything_changed_or_missing_is_found() {
        let change = |name: &str, bytes: &[u8]| {
            let (folder, dataset) = written();
            fs::write(folder.path().join(name), bytes).unwrap();
            dataset.verify().unwrap_err().to_string()
        };
        assert!(change("images/000000.png", b"shorter").contains("missing or changed"));
        assert!(change("records.jsonl", b"{}").contains("not what its manifest describes"));
        let (folder, dataset) = written();
        fs::remove_file(folder.path().join("images/000000.png")).unwrap();
        assert!(dataset.verify().unwrap_err().to_string().contains("000000.png"));
    }

    #[test]
    fn hostile_records_and_manifests_are_refused() {
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
