//! Readers of row files: Parquet, JSON lines, a JSON list, CSV; all but Parquet also compressed with gzip.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde_json::Value;

use super::row::{Cell, Row};
use crate::fs::open_regular;
use crate::{Error, Result};

/// Maximum length of a row in a text file.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// Number of Parquet rows in memory, each with its image.
const ROW_BATCH: usize = 32;

/// Callback for each row; `None` is a malformed one. `Break` ends reading.
pub(super) type OnRow<'a> = dyn FnMut(Option<Row>) -> Result<ControlFlow<()>> + 'a;

/// Formats of row files, preferred ones first: a `.json` beside another format usually describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    Parquet,
    JsonLines,
    Csv,
    Json,
}

impl Format {
    /// Returns the format by the file name's suffix, and whether the file is compressed.
    pub(super) fn of(name: &str) -> Option<(Self, bool)> {
        let name = name.to_ascii_lowercase();
        let (stem, gzip) = match name.strip_suffix(".gz") {
            Some(stem) => (stem, true),
            None => (name.as_str(), false),
        };
        match stem.rsplit_once('.')?.1 {
            "parquet" if !gzip => Some((Self::Parquet, gzip)),
            "jsonl" | "ndjson" => Some((Self::JsonLines, gzip)),
            "json" => Some((Self::Json, gzip)),
            "csv" => Some((Self::Csv, gzip)),
            _ => None,
        }
    }
}

/// Reads the rows of the file at `path` in order.
pub(super) fn read_rows(path: &Path, on_row: &mut OnRow<'_>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some((format, gzip)) = Format::of(&name) else {
        return Err(Error::unsuitable(
            path,
            "not a row file; expected .parquet, .jsonl, .json or .csv (or .gz of these)",
        ));
    };
    let file = open_regular(path).map_err(|error| Error::io(path, error))?;
    if format == Format::Parquet {
        return parquet(path, file, on_row);
    }
    let reader: Box<dyn Read> = match gzip {
        true => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        false => Box::new(file),
    };
    let mut reader = BufReader::with_capacity(1 << 18, reader);
    skip_byte_order_mark(&mut reader).map_err(|error| Error::io(path, error))?;
    match format {
        Format::JsonLines => json_lines(path, reader, on_row),
        // Many .json files contain JSON lines.
        Format::Json if !starts_with_list(&mut reader).map_err(|error| Error::io(path, error))? => {
            json_lines(path, reader, on_row)
        }
        Format::Json => json_list(path, reader, on_row),
        _ => csv_rows(path, reader, on_row),
    }
}

/// Counts the rows of the file at `path`; formats without a row count are read up to `limit` rows.
pub(super) fn count_rows(path: &Path, limit: u64) -> Result<u64> {
    let name = path.to_string_lossy();
    if let Some((Format::Parquet, _)) = Format::of(&name) {
        let file = open_regular(path).map_err(|error| Error::io(path, error))?;
        let reader = SerializedFileReader::new(file).map_err(|error| damaged(path, error))?;
        return Ok(reader.metadata().file_metadata().num_rows().max(0) as u64);
    }
    let mut rows = 0;
    read_rows(path, &mut |_| {
        rows += 1;
        Ok(if rows >= limit {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    Ok(rows)
}

fn damaged(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::invalid_file(
        path,
        format!("damaged, or not in the format that its suffix says: {reason}"),
    )
}

fn parquet(path: &Path, file: File, on_row: &mut OnRow<'_>) -> Result<()> {
    // The reader panics on some malformed files.
    let panicked = |_| Err(damaged(path, "its structure is invalid"));
    let guarded = catch_unwind(AssertUnwindSafe(|| {
        let reader = SerializedFileReader::new(file).map_err(|error| damaged(path, error))?;
        let rows = reader.get_row_iter(None).map_err(|error| damaged(path, error))?;
        for row in rows.with_batch_size(ROW_BATCH) {
            let row = row.map_err(|error| damaged(path, error))?;
            if on_row(Some(Row::from(&row)))?.is_break() {
                break;
            }
        }
        Ok(())
    }));
    guarded.unwrap_or_else(panicked)
}

fn json_lines(path: &Path, mut reader: impl BufRead, on_row: &mut OnRow<'_>) -> Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut line)
            .map_err(|error| Error::io(path, error))?;
        if read == 0 {
            return Ok(());
        }
        if read as u64 > MAX_LINE_BYTES {
            return Err(damaged(path, "a line exceeds the maximum length"));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row = serde_json::from_slice(&line).ok().and_then(object);
        if on_row(row)?.is_break() {
            return Ok(());
        }
    }
}

/// Spreadsheet programs write one at the start of UTF-8 text.
fn skip_byte_order_mark(reader: &mut impl BufRead) -> std::io::Result<()> {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    let marked = reader.fill_buf()?.starts_with(MARK);
    reader.consume(if marked { MARK.len() } else { 0 });
    Ok(())
}

fn starts_with_list(reader: &mut impl BufRead) -> std::io::Result<bool> {
    let start = reader.fill_buf()?;
    Ok(start.trim_ascii_start().starts_with(b"["))
}

fn object(value: Value) -> Option<Row> {
    match Cell::from(value) {
        Cell::Struct(row) => Some(row),
        _ => None,
    }
}

/// Reads a list of objects, one at a time.
fn json_list(path: &Path, reader: impl Read, on_row: &mut OnRow<'_>) -> Result<()> {
    let mut outcome = Ok(());
    let list = JsonList {
        on_row,
        outcome: &mut outcome,
    };
    let read = list.deserialize(&mut serde_json::Deserializer::from_reader(reader));
    outcome?;
    match read {
        Ok(()) => Ok(()),
        Err(error) if error.is_io() => Err(Error::io(path, error.into())),
        Err(error) if error.to_string().starts_with(ENOUGH) => Ok(()),
        Err(error) => Err(damaged(path, error)),
    }
}

const ENOUGH: &str = "enough rows";

struct JsonList<'a, 'b> {
    on_row: &'a mut OnRow<'b>,
    /// Error of `on_row`, which the parser's error type cannot hold.
    outcome: &'a mut Result<()>,
}

impl<'de> DeserializeSeed<'de> for JsonList<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for JsonList<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while let Some(value) = rows.next_element::<Value>()? {
            match (self.on_row)(object(value)) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Err(A::Error::custom(ENOUGH)),
                Err(error) => {
                    *self.outcome = Err(error);
                    return Err(A::Error::custom(ENOUGH));
                }
            }
        }
        Ok(())
    }
}

fn csv_rows(path: &Path, reader: impl Read, on_row: &mut OnRow<'_>) -> Result<()> {
    let mut reader = csv::Reader::from_reader(reader);
    let header = reader.headers().map_err(|error| damaged(path, error))?.clone();
    for record in reader.records() {
        let row = match record {
            Ok(record) => {
                let cells = header.iter().zip(record.iter());
                let cells = cells.map(|(name, text)| (name.to_owned(), Cell::Text(text.to_owned())));
                Some(Row(cells.collect()))
            }
            Err(error) => match error.into_kind() {
                csv::ErrorKind::Io(error) => return Err(Error::io(path, error)),
                _ => None,
            },
        };
        if on_row(row)?.is_break() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    /// Returns the `text` column of every row; `None` for malformed rows.
    fn texts(name: &str, bytes: &[u8], limit: usize) -> Result<Vec<Option<String>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut found = Vec::new();
        read_rows(&path, &mut |row| {
            found.push(row.map(|row| row.text(&["text"]).unwrap().unwrap_or_default().to_owned()));
            Ok(if found.len() == limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        Ok(found)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const LINES: &str =
        "{\"text\": \"one\"}\n\n[1]\n{\"text\": \"tw\u{f6}\", \"other\": 1}\n{broken\n{\"text\": \"three\"}";

    #[test]
    fn malformed_json_lines_are_reported() {
        let some = |text: &str| Some(text.to_owned());
        let expected = [some("one"), None, some("tw\u{f6}"), None, some("three")];
        assert_eq!(texts("a.jsonl", LINES.as_bytes(), 99).unwrap(), expected);
        assert_eq!(
            texts("a.jsonl.gz", &gzip(LINES.as_bytes()), 99).unwrap(),
            expected
        );
        let two_members = [gzip(b"{\"text\": \"one\"}\n"), gzip(b"{\"text\": \"two\"}\n")].concat();
        assert_eq!(
            texts("a.jsonl.gz", &two_members, 99).unwrap(),
            [some("one"), some("two")]
        );
        assert_eq!(texts("a.jsonl", LINES.as_bytes(), 2).unwrap(), expected[..2]);
        let mut cut = gzip(LINES.as_bytes());
        cut.truncate(cut.len() - 9);
        assert!(texts("a.jsonl.gz", &cut, 99).is_err());
    }

    #[test]
    fn a_json_list_is_read_row_by_row() {
        let list = br#"[{"text": "one"}, 7, {"text": "two"}]"#;
        let expected = [Some("one".to_owned()), None, Some("two".to_owned())];
        assert_eq!(texts("a.json", list, 99).unwrap(), expected);
        // Data after the last requested row is not read.
        assert_eq!(
            texts("a.json", br#"[{"text": "one"}, broken"#, 1).unwrap(),
            expected[..1]
        );
        let error = texts("a.json", br#"[{"text": "one"}, broken"#, 99).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
        assert_eq!(texts("a.json", br#"{"text": "one"}"#, 99).unwrap(), expected[..1]);
    }

    #[test]
    fn csv_keeps_line_breaks_within_quotes() {
        let csv = b",text,other\n0,\"one\nline, two\",x\n1,short\n2,\"say \"\"two\"\"\",y\n";
        let expected = [
            Some("one\nline, two".to_owned()),
            None,
            Some("say \"two\"".to_owned()),
        ];
        assert_eq!(texts("a.csv", csv, 99).unwrap(), expected);
        let marked = [b"\xef\xbb\xbftext\n".as_slice(), b"one\n"].concat();
        assert_eq!(texts("a.csv", &marked, 99).unwrap(), [Some("one".to_owned())]);
    }

    #[test]
    fn other_files_are_rejected() {
        for name in ["a.pkl", "a.txt", "a", "a.gz", "a.parquet.gz", "parquet"] {
            assert!(texts(name, b"x", 1).is_err(), "{name}");
        }
        assert!(texts("a.parquet", b"PAR1 no PAR1", 1).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in any::<Vec<u8>>()) {
            for name in ["a.jsonl", "a.json", "a.csv", "a.csv.gz"] {
                let _ = texts(name, &bytes, 50);
            }
            bytes.splice(0..0, *b"PAR1");
            bytes.extend_from_slice(&(bytes.len() as u32 - 4).to_le_bytes());
            bytes.extend_from_slice(b"PAR1");
            let _ = texts("a.parquet", &bytes, 50);
        }
    }
}
