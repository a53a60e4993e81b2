//! What a file is, by its content.

use crate::processing::{PICTURE_KINDS, picture_kind};

/// Number of bytes of a file's start that [`Kind::of`] looks at.
pub const START_BYTES: usize = 1024;

/// Names of all kinds.
pub const DOCUMENT_KINDS: [&str; PICTURE_KINDS.len() + 2] = {
    let mut names = [""; PICTURE_KINDS.len() + 2];
    let mut index = 0;
    while index < PICTURE_KINDS.len() {
        names[index] = PICTURE_KINDS[index];
        index += 1;
    }
    names[index] = "pdf";
    names[index + 1] = "dicom";
    names
};

/// Kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PNG, JPEG, WebP, TIFF, BMP or GIF, by its name in [`PICTURE_KINDS`].
    Picture(&'static str),
    /// PDF.
    Pdf,
    /// DICOM.
    Dicom,
}

impl Kind {
    /// The kind of a file that starts with these bytes: [`START_BYTES`], or the whole file if it is shorter.
    pub fn of(start: &[u8]) -> Option<Self> {
        // Mail gateways put lines in front of a PDF's header; viewers search as far.
        let is_pdf = || {
            let start = &start[..start.len().min(START_BYTES)];
            start.windows(5).any(|bytes| bytes == b"%PDF-")
        };
        // The preamble can be the header of another format.
        if is_dicom(start) {
            return Some(Self::Dicom);
        }
        match picture_kind(start) {
            Some(name) => Some(Self::Picture(name)),
            None => is_pdf().then_some(Self::Pdf),
        }
    }

    /// Its name, one of [`DOCUMENT_KINDS`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Picture(name) => name,
            Self::Pdf => "pdf",
            Self::Dicom => "dicom",
        }
    }
}

/// Whether a file is DICOM: the mark after 128 bytes, or at the start, or without preamble a file meta group in explicit encoding.
fn is_dicom(start: &[u8]) -> bool {
    let has_mark = |at: usize| start.get(at..at + 4) == Some(b"DICM");
    has_mark(128) || has_mark(0) || matches!(start, [2, 0, 0..=2, 0, b'U' | b'O', b'L' | b'B' | b'I', ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_decides() {
        assert_eq!(
            Kind::of(b"\x89PNG\r\n\x1a\n %PDF-1.7"),
            Some(Kind::Picture("png"))
        );
        assert_eq!(Kind::of(b"%PDF-1.4\n"), Some(Kind::Pdf));
        let mut late = vec![b' '; START_BYTES - 5];
        late.extend(b"%PDF-");
        assert_eq!(Kind::of(&late), Some(Kind::Pdf));
        late.insert(0, b' ');
        assert_eq!(Kind::of(&late), None);
        assert_eq!(Kind::of(b""), None);
        let mut dicom = b"II*\0".to_vec();
        dicom.resize(128, 0);
        dicom.extend(b"DICM");
        assert_eq!(Kind::of(&dicom), Some(Kind::Dicom));
        assert_eq!(Kind::of(b"\x02\0\0\0UL\x04\0"), Some(Kind::Dicom));
    }
}
