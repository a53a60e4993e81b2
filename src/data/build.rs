//! Published files → the raw form: rows in order, each checked, pictures decoded once to know that they can be.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{
    cell::{Picture, Row},
    pictures::Pictures,
    published::{Publication, Sample},
    raw::{RawManifest, RawRecord, RawWriter, SkippedRows},
    rows::read_rows,
};
use crate::console::Progress;
use crate::hub::ManifestFile;
use crate::processing::{DecodeLimits, decode};
use crate::{Error, Result};

/// Pictures that are decoded at the same time; so many are in memory.
const BATCH: usize = 32;

/// What a raw dataset is made of.
pub(super) struct Material<'a> {
    pub publication: &'a Publication,
    /// Files of rows, in order.
    pub files: Vec<PathBuf>,
    /// Where pictures lie that rows name by path.
    pub pictures: PathBuf,
    pub row_limit: Option<u64>,
}

/// Where it comes from, for the manifest.
pub(super) struct Origin {
    pub name: &'static str,
    pub source: String,
    pub revision: Option<String>,
    pub files: Vec<ManifestFile>,
}

/// Writes the raw dataset to `folder`, which is emptied first.
pub(super) fn build(
    material: &Material<'_>,
    origin: Origin,
    folder: &Path,
    bar: &Progress,
) -> Result<RawManifest> {
    let mut intake = Intake {
        material,
        pictures: None,
        writer: RawWriter::create(folder)?,
        batch: Vec::new(),
        rows: 0,
        skipped: SkippedRows::default(),
        bar,
    };
    for file in &material.files {
        if intake.is_full() {
            break;
        }
        read_rows(file, &mut |row| intake.take(row))?;
    }
    intake.flush()?;
    if intake.writer.records() == 0 {
        let reason = format!(
            "none of its {} rows can be used ({} without text, {} without picture, {} with a broken one, {} malformed)",
            intake.rows,
            intake.skipped.without_text,
            intake.skipped.without_image,
            intake.skipped.broken_image,
            intake.skipped.malformed
        );
        return Err(Error::checkpoint(&origin.source, reason));
    }
    intake.writer.finish(RawManifest {
        format: 0,
        name: origin.name.to_owned(),
        label: material.publication.label.to_owned(),
        source: origin.source,
        revision: origin.revision,
        source_files: origin.files,
        row_limit: material.row_limit,
        rows: intake.rows,
        records: 0,
        skipped: intake.skipped,
        records_sha256: String::new(),
        image_bytes: 0,
        tool: crate::hub::tool_version(),
    })
}

/// Paths of the pictures that the wanted rows name.
pub(super) fn named_pictures(material: &Material<'_>) -> Result<Vec<String>> {
    let (mut names, mut rows) = (Vec::new(), 0);
    for file in &material.files {
        read_rows(file, &mut |row| {
            rows += 1;
            let sample = row.as_ref().and_then(|row| material.publication.sample(row).ok());
            if let Some(Sample {
                text: Some(_),
                picture: Some(Picture::Path(path)),
                ..
            }) = sample
            {
                names.push(path.to_owned());
            }
            Ok(flow(material.row_limit.is_some_and(|limit| rows >= limit)))
        })?;
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn flow(enough: bool) -> ControlFlow<()> {
    if enough {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

struct Intake<'a> {
    material: &'a Material<'a>,
    /// Listed when the first row names one by path.
    pictures: Option<Pictures>,
    writer: RawWriter,
    batch: Vec<(RawRecord, Option<Vec<u8>>)>,
    rows: u64,
    skipped: SkippedRows,
    bar: &'a Progress,
}

impl Intake<'_> {
    fn is_full(&self) -> bool {
        self.material.row_limit.is_some_and(|limit| self.rows >= limit)
    }

    fn take(&mut self, row: Option<Row>) -> Result<ControlFlow<()>> {
        let number = self.rows;
        self.rows += 1;
        self.bar.inc(1);
        let sample = row.as_ref().map(|row| self.material.publication.sample(row));
        match sample {
            Some(Ok(sample)) => self.keep(number, &sample)?,
            _ => self.skipped.malformed += 1,
        }
        if self.batch.len() >= BATCH {
            self.flush()?;
        }
        Ok(flow(self.is_full()))
    }

    fn keep(&mut self, row: u64, sample: &Sample<'_>) -> Result<()> {
        let Some(text) = sample.text else {
            self.skipped.without_text += 1;
            return Ok(());
        };
        let mut picture = None;
        if self.material.publication.has_pictures() {
            picture = match &sample.picture {
                Some(Picture::Bytes(bytes)) => Some(bytes.to_vec()),
                Some(Picture::Path(path)) => self.read_picture(path)?,
                None => None,
            };
            if picture.is_none() {
                self.skipped.without_image += 1;
                return Ok(());
            }
        }
        let record = RawRecord {
            row,
            image: None,
            question: sample.question.map(str::to_owned),
            text: text.to_owned(),
            specialty: sample.specialty.map(str::to_owned),
        };
        self.batch.push((record, picture));
        Ok(())
    }

    fn read_picture(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        if self.pictures.is_none() {
            self.pictures = Some(Pictures::below(&self.material.pictures)?);
        }
        self.pictures
            .as_mut()
            .map_or(Ok(None), |pictures| pictures.read(path))
    }

    /// Checks the pictures of the batch, on all cores, and writes what is whole.
    fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let suffixes: Vec<Option<&str>> = batch
            .par_iter()
            .map(|(_, picture)| suffix(picture.as_deref()?))
            .collect();
        for ((record, picture), suffix) in batch.into_iter().zip(suffixes) {
            match (picture, suffix) {
                (None, _) => self.writer.push(record, None)?,
                (Some(picture), Some(suffix)) => self.writer.push(record, Some((&picture, suffix)))?,
                (Some(_), None) => self.skipped.broken_image += 1,
            }
        }
        Ok(())
    }
}

/// The suffix for a picture that decodes.
fn suffix(picture: &[u8]) -> Option<&'static str> {
    decode(picture, &DecodeLimits::default()).ok()?;
    let format = ::image::guess_format(picture).ok()?;
    format.extensions_str().first().copied()
}
