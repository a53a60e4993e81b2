//! Converts published files to a raw data set. Images are decoded once to skip those that cannot be decoded.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{
    datasets::{Publication, Sample},
    image_files::ImageFiles,
    raw_dataset::{RawManifest, RawRecord, RawWriter, SkippedRows},
    row::{ImageRef, Row},
    row_files::read_rows,
};
use crate::console::Progress;
use crate::hub::ManifestFile;
use crate::processing::{DecodeLimits, decode};
use crate::{Error, Result};

/// Number of images that are decoded in parallel and held in memory.
const BATCH: usize = 32;

/// Input of a raw data set.
pub(super) struct SourceData<'a> {
    pub publication: &'a Publication,
    /// Row files, in order.
    pub files: Vec<PathBuf>,
    /// Folder of the images that rows refer to by path.
    pub image_folder: PathBuf,
    pub row_limit: Option<u64>,
}

/// Origin of a raw data set, for its manifest.
pub(super) struct Origin {
    pub name: &'static str,
    pub source: String,
    pub revision: Option<String>,
    pub files: Vec<ManifestFile>,
}

/// Writes the raw data set to `folder`, which is emptied first.
pub(super) fn build(
    source: &SourceData<'_>,
    origin: Origin,
    folder: &Path,
    bar: &Progress,
) -> Result<RawManifest> {
    let mut builder = Builder {
        source,
        images: None,
        writer: RawWriter::create(folder)?,
        batch: Vec::new(),
        rows: 0,
        skipped: SkippedRows::default(),
        bar,
    };
    for file in &source.files {
        if builder.is_full() {
            break;
        }
        read_rows(file, &mut |row| builder.take(row))?;
    }
    builder.flush()?;
    if builder.writer.records() == 0 {
        let reason = format!(
            "none of its {} rows can be used ({} without text, {} without image, {} with a corrupt image, {} malformed)",
            builder.rows,
            builder.skipped.without_text,
            builder.skipped.without_image,
            builder.skipped.broken_image,
            builder.skipped.malformed
        );
        return Err(Error::unsuitable(&origin.source, reason));
    }
    builder.writer.finish(RawManifest {
        format: 0,
        name: origin.name.to_owned(),
        label: source.publication.label.to_owned(),
        source: origin.source,
        revision: origin.revision,
        source_files: origin.files,
        row_limit: source.row_limit,
        rows: builder.rows,
        records: 0,
        skipped: builder.skipped,
        records_sha256: String::new(),
        image_bytes: 0,
        tool: crate::hub::tool_version(),
    })
}

/// Returns the paths of the images that the rows up to the limit refer to.
pub(super) fn referenced_images(source: &SourceData<'_>) -> Result<Vec<String>> {
    let (mut names, mut rows) = (Vec::new(), 0);
    for file in &source.files {
        read_rows(file, &mut |row| {
            rows += 1;
            let sample = row.as_ref().and_then(|row| source.publication.sample(row).ok());
            if let Some(Sample {
                text: Some(_),
                image: Some(ImageRef::Path(path)),
                ..
            }) = sample
            {
                names.push(path.to_owned());
            }
            Ok(flow(source.row_limit.is_some_and(|limit| rows >= limit)))
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

struct Builder<'a> {
    source: &'a SourceData<'a>,
    /// Indexed when the first row refers to one by path.
    images: Option<ImageFiles>,
    writer: RawWriter,
    batch: Vec<(RawRecord, Option<Vec<u8>>)>,
    rows: u64,
    skipped: SkippedRows,
    bar: &'a Progress,
}

impl Builder<'_> {
    fn is_full(&self) -> bool {
        self.source.row_limit.is_some_and(|limit| self.rows >= limit)
    }

    fn take(&mut self, row: Option<Row>) -> Result<ControlFlow<()>> {
        let number = self.rows;
        self.rows += 1;
        self.bar.inc(1);
        let sample = row.as_ref().map(|row| self.source.publication.sample(row));
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
        let mut image = None;
        if self.source.publication.has_images() {
            image = match &sample.image {
                Some(ImageRef::Bytes(bytes)) => Some(bytes.to_vec()),
                Some(ImageRef::Path(path)) => self.read_image(path)?,
                None => None,
            };
            if image.is_none() {
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
        self.batch.push((record, image));
        Ok(())
    }

    fn read_image(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        if self.images.is_none() {
            self.images = Some(ImageFiles::below(&self.source.image_folder)?);
        }
        self.images.as_mut().map_or(Ok(None), |images| images.read(path))
    }

    /// Decodes the images of the batch in parallel and writes the records whose image is intact.
    fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let suffixes: Vec<Option<&str>> = batch
            .par_iter()
            .map(|(_, image)| suffix(image.as_deref()?))
            .collect();
        for ((record, image), suffix) in batch.into_iter().zip(suffixes) {
            match (image, suffix) {
                (None, _) => self.writer.push(record, None)?,
                (Some(image), Some(suffix)) => self.writer.push(record, Some((&image, suffix)))?,
                (Some(_), None) => self.skipped.broken_image += 1,
            }
        }
        Ok(())
    }
}

/// Returns the file suffix of an image that can be decoded.
fn suffix(image: &[u8]) -> Option<&'static str> {
    decode(image, &DecodeLimits::default()).ok()?;
    let format = ::image::guess_format(image).ok()?;
    format.extensions_str().first().copied()
}
