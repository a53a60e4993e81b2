//! Writes TIFF files with any directories.

/// A file, little-endian: directories in order.
pub struct TiffFile {
    bytes: Vec<u8>,
    /// Where the offset of the next directory is written.
    link: usize,
}

/// Tag and value, of type LONG.
pub type Field = (u16, u32);

/// A directory and the strip that it points to.
pub struct Page {
    pub fields: Vec<Field>,
    pub strip: Vec<u8>,
}

/// An uncompressed page of one grey value.
pub fn grey_page(width: u32, height: u32, grey: u8) -> Page {
    Page {
        fields: vec![
            (256, width),
            (257, height),
            (258, 8),
            (259, 1),
            (262, 1),
            (277, 1),
            (278, height),
        ],
        strip: vec![grey; (width * height) as usize],
    }
}

impl TiffFile {
    pub fn new() -> Self {
        Self {
            bytes: b"II*\0\0\0\0\0".to_vec(),
            link: 4,
        }
    }

    /// Adds a page, and returns the offset of its directory.
    pub fn page(&mut self, page: &Page) -> u32 {
        let strip = self.bytes.len() as u32;
        self.bytes.extend(&page.strip);
        let mut fields = page.fields.clone();
        fields.extend([(273, strip), (279, page.strip.len() as u32)]);
        fields.sort_unstable();
        let at = self.bytes.len() as u32;
        self.point_to(at);
        self.bytes.extend((fields.len() as u16).to_le_bytes());
        for (tag, value) in fields {
            self.bytes.extend(tag.to_le_bytes());
            self.bytes.extend(4_u16.to_le_bytes());
            self.bytes.extend(1_u32.to_le_bytes());
            self.bytes.extend(value.to_le_bytes());
        }
        self.link = self.bytes.len();
        self.bytes.extend(0_u32.to_le_bytes());
        at
    }

    /// Sets the directory that follows the last one.
    pub fn point_to(&mut self, offset: u32) {
        self.bytes[self.link..self.link + 4].copy_from_slice(&offset.to_le_bytes());
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
