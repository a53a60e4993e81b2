//! Header, image file directories and the values of their fields.

use crate::error::ImageError;

/// Maximum values of a field.
const MAX_VALUES: usize = 1 << 20;
/// Maximum directories that are counted.
const MAX_DIRECTORIES: usize = 65_535;
/// Entries of a later directory that are searched for its kind: entries are sorted, and 254 is the lowest tag.
const FIRST_ENTRIES: usize = 16;
const NEW_SUBFILE_TYPE: u16 = 254;
/// Bits of NewSubfileType: a reduced-resolution version of another page, and a transparency mask.
const NO_PAGE: u64 = 1 | 4;

/// Byte order, and the number sizes of classic TIFF or BigTIFF.
#[derive(Debug, Clone, Copy)]
struct Form {
    big_endian: bool,
    big_tiff: bool,
}

impl Form {
    /// Reads the form and the offset of the first directory.
    fn read(file: &[u8]) -> Option<(Self, usize)> {
        // A version number in the wrong byte order is accepted, as in Pillow.
        let (big_endian, big_tiff) = match *file.first_chunk()? {
            [b'I', b'I', 42, 0] | [b'I', b'I', 0, 42] => (false, false),
            [b'M', b'M', 0, 42] | [b'M', b'M', 42, 0] => (true, false),
            [b'I', b'I', 43, 0] => (false, true),
            [b'M', b'M', 0, 43] => (true, true),
            _ => return None,
        };
        let form = Self { big_endian, big_tiff };
        let at = if big_tiff { 8 } else { 4 };
        if big_tiff && form.at(file, 4, 2) != Some(8) {
            return None;
        }
        Some((form, form.offset(file, at)?))
    }

    /// The number of `size` bytes at `at`.
    fn at(self, file: &[u8], at: usize, size: usize) -> Option<u64> {
        let bytes = file.get(at..at.checked_add(size)?)?;
        Some(number(bytes, self.big_endian))
    }

    fn offset(self, file: &[u8], at: usize) -> Option<usize> {
        self.at(file, at, self.word())?.try_into().ok()
    }

    /// Bytes of an offset.
    fn word(self) -> usize {
        if self.big_tiff { 8 } else { 4 }
    }

    /// The number of entries of the directory at `at`, where the first one starts, and the bytes of one.
    fn entries(self, file: &[u8], at: usize) -> Option<(usize, usize, usize)> {
        let (head, entry) = if self.big_tiff { (8, 20) } else { (2, 12) };
        let count = usize::try_from(self.at(file, at, head)?).ok()?;
        Some((count, at.checked_add(head)?, entry))
    }

    /// Offset of the directory after the one at `at`; `None` at the end of the chain or if it is damaged.
    fn next(self, file: &[u8], at: usize) -> Option<usize> {
        let (count, first, entry) = self.entries(file, at)?;
        let end = first.checked_add(count.checked_mul(entry)?)?;
        self.offset(file, end).filter(|next| *next != 0)
    }
}

/// An unsigned number of up to 8 bytes.
fn number(bytes: &[u8], big_endian: bool) -> u64 {
    let join = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    if big_endian {
        bytes.iter().fold(0, join)
    } else {
        bytes.iter().rev().fold(0, join)
    }
}

/// The directory of a page.
pub(super) struct Directory<'a> {
    /// The whole file.
    pub(super) file: &'a [u8],
    /// Whether the most significant byte of a number comes first.
    pub(super) big_endian: bool,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    tag: u16,
    kind: u16,
    /// `None` if outside the file.
    values: Option<&'a [u8]>,
}

/// The values of one field.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values<'a> {
    /// The stored bytes.
    pub(super) bytes: &'a [u8],
    kind: u16,
    big_endian: bool,
}

/// Bytes of one value of a field's type.
fn size(kind: u16) -> usize {
    match kind {
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16..=18 => 8,
        _ => 1,
    }
}

impl<'a> Directory<'a> {
    /// Reads the directory of a page, counted from 0; `None` without a header, if there is no such page, or if it is incomplete.
    pub(super) fn read(file: &'a [u8], page: u32) -> Option<Self> {
        let (form, first) = Form::read(file)?;
        let at = match page {
            0 if subfile_type(file, form, first).is_some_and(|kind| kind & NO_PAGE == 0) => first,
            _ => *page_offsets(file, form, first).get(page as usize)?,
        };
        let (count, first, length) = form.entries(file, at)?;
        let table = file.get(first..first.checked_add(count.checked_mul(length)?)?)?;
        let entries = table.chunks_exact(length).map(|entry| Entry {
            tag: number(&entry[..2], form.big_endian) as u16,
            kind: number(&entry[2..4], form.big_endian) as u16,
            values: values(file, form, entry),
        });
        Some(Self {
            file,
            big_endian: form.big_endian,
            entries: entries.collect(),
        })
    }

    /// Values of a tag; `None` if missing or empty. An error if the tag occurs twice, has too many values, or values outside the
    /// file.
    pub(super) fn values(&self, tag: u16) -> Result<Option<Values<'a>>, ImageError> {
        let mut named = self.entries.iter().filter(|entry| entry.tag == tag);
        let Some(entry) = named.next() else {
            return Ok(None);
        };
        let bytes = entry.values.filter(|_| named.next().is_none());
        let values = Values {
            bytes: bytes.ok_or(ImageError::Undecodable)?,
            kind: entry.kind,
            big_endian: self.big_endian,
        };
        match values.len() {
            0 => Ok(None),
            1..=MAX_VALUES => Ok(Some(values)),
            _ => Err(ImageError::Undecodable),
        }
    }

    /// The first value of a tag.
    pub(super) fn first(&self, tag: u16) -> Result<Option<u64>, ImageError> {
        let first = self.values(tag)?.map(|values| values.get(0));
        first
            .map(|value| value.ok_or(ImageError::Undecodable))
            .transpose()
    }
}

impl Values<'_> {
    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() / size(self.kind)
    }

    /// A value; `None` beyond the end or if not an integer. Negative values, which no tag has, become large.
    pub(super) fn get(&self, index: usize) -> Option<u64> {
        let size = size(self.kind);
        let at = index.checked_mul(size)?;
        let value = number(self.bytes.get(at..at.checked_add(size)?)?, self.big_endian);
        match self.kind {
            1 | 3 | 4 | 7 | 13 | 16 | 18 => Some(value),
            6 | 8 | 9 | 17 => {
                let unused = 64 - 8 * size as u32;
                Some(((value << unused) as i64 >> unused) as u64)
            }
            _ => None,
        }
    }

    /// All values as integers.
    pub(super) fn integers(&self) -> impl Iterator<Item = Option<u64>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// All values as floating-point numbers, from fractions, floats or integers.
    pub(super) fn reals(&self) -> Vec<f32> {
        let real = |bytes: &[u8]| {
            let bits = number(bytes, self.big_endian);
            match self.kind {
                5 | 10 => {
                    let (first, second) = bytes.split_at(4);
                    let part = |bytes| number(bytes, self.big_endian) as u32;
                    let real = |part: u32| {
                        if self.kind == 10 {
                            f64::from(part as i32)
                        } else {
                            f64::from(part)
                        }
                    };
                    (real(part(first)) / real(part(second))) as f32
                }
                11 => f32::from_bits(bits as u32),
                12 => f64::from_bits(bits) as f32,
                _ => bits as f32,
            }
        };
        self.bytes.chunks_exact(size(self.kind)).map(real).collect()
    }
}

/// Bytes of an entry's values, which are in the entry itself if they fit.
fn values<'a>(file: &'a [u8], form: Form, entry: &'a [u8]) -> Option<&'a [u8]> {
    let word = form.word();
    let kind = number(&entry[2..4], form.big_endian) as u16;
    let count = usize::try_from(form.at(entry, 4, word)?).ok()?;
    let length = count.checked_mul(size(kind))?;
    if length <= word {
        return entry.get(4 + word..4 + word + length);
    }
    let start = form.offset(entry, 4 + word)?;
    file.get(start..start.checked_add(length)?)
}

/// Number of pages: of directories that are neither thumbnails nor masks; at least 1.
pub(in crate::processing::decoders) fn pages(file: &[u8]) -> u32 {
    let offsets = Form::read(file).map(|(form, first)| page_offsets(file, form, first));
    offsets.map_or(1, |offsets| offsets.len() as u32)
}

/// Offsets of the pages' directories: follows the chain until a damaged or repeated one. The first directory where none is a page.
fn page_offsets(file: &[u8], form: Form, first: usize) -> Vec<usize> {
    let mut seen = std::collections::HashSet::new();
    let mut pages = Vec::new();
    let mut at = Some(first);
    while let Some(next) = at
        && seen.len() < MAX_DIRECTORIES
        && seen.insert(next)
        && let Some(kind) = subfile_type(file, form, next)
    {
        if kind & NO_PAGE == 0 {
            pages.push(next);
        }
        at = form.next(file, next);
    }
    if pages.is_empty() {
        pages.push(first);
    }
    pages
}

/// NewSubfileType of the directory at `at`; `None` if the directory is incomplete.
fn subfile_type(file: &[u8], form: Form, at: usize) -> Option<u64> {
    let (count, first, length) = form.entries(file, at)?;
    let table = file.get(first..first.checked_add(count.checked_mul(length)?)?)?;
    let mut entries = table.chunks_exact(length).take(FIRST_ENTRIES);
    let entry = entries.find(|entry| number(&entry[..2], form.big_endian) == u64::from(NEW_SUBFILE_TYPE));
    let values = entry.and_then(|entry| {
        let bytes = values(file, form, entry)?;
        let kind = number(&entry[2..4], form.big_endian) as u16;
        let big_endian = form.big_endian;
        Values {
            bytes,
            kind,
            big_endian,
        }
        .get(0)
    });
    (count > 0).then_some(values.unwrap_or(0))
}
