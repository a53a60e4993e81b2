//! Writes PDF files that no program would.

/// A file: objects in order, then the table.
pub struct PdfFile {
    objects: Vec<Vec<u8>>,
    kids: Vec<usize>,
}

impl PdfFile {
    pub fn new() -> Self {
        // The catalog and the tree of pages come first.
        let catalog = b"<< /Type /Catalog /Pages 2 0 R >>".to_vec();
        Self {
            objects: vec![catalog, Vec::new()],
            kids: Vec::new(),
        }
    }

    /// Adds an object, and returns its number.
    pub fn add(&mut self, body: impl Into<Vec<u8>>) -> usize {
        self.objects.push(body.into());
        self.objects.len()
    }

    pub fn stream(&mut self, entries: &str, data: &[u8]) -> usize {
        let mut body = format!("<< {entries} /Length {} >>\nstream\n", data.len()).into_bytes();
        body.extend(data);
        body.extend(b"\nendstream");
        self.add(body)
    }

    /// Adds a page with content and entries.
    pub fn page(&mut self, content: &str, entries: &str) {
        let contents = self.stream("", content.as_bytes());
        let page = format!("<< /Type /Page /Parent 2 0 R /Contents {contents} 0 R {entries} >>");
        let page = self.add(page);
        self.kids.push(page);
    }

    /// Replaces an object.
    pub fn set(&mut self, number: usize, body: Vec<u8>) {
        self.objects[number - 1] = body;
    }

    /// Adds a page with these entries and no other.
    pub fn raw_page(&mut self, entries: &str) {
        let page = self.add(format!("<< /Type /Page /Parent 2 0 R {entries} >>"));
        self.kids.push(page);
    }

    /// Adds a page that shows the picture `image`.
    pub fn picture_page(&mut self, image: usize) {
        let entries = format!("/MediaBox [0 0 200 200] /Resources << /XObject << /I {image} 0 R >> >>");
        self.page("q 200 0 0 200 0 0 cm /I Do Q", &entries);
    }

    pub fn finish(mut self) -> Vec<u8> {
        let kids: String = self.kids.iter().map(|kid| format!("{kid} 0 R ")).collect();
        self.objects[1] =
            format!("<< /Type /Pages /Count {} /Kids [{kids}] >>", self.kids.len()).into_bytes();
        let mut file = b"%PDF-1.7\n".to_vec();
        let mut offsets = Vec::new();
        for (index, body) in self.objects.iter().enumerate() {
            offsets.push(file.len());
            file.extend(format!("{} 0 obj\n", index + 1).bytes());
            file.extend(body);
            file.extend(b"\nendobj\n");
        }
        let table = file.len();
        file.extend(format!("xref\n0 {}\n0000000000 65535 f \n", offsets.len() + 1).bytes());
        for offset in &offsets {
            file.extend(format!("{offset:010} 00000 n \n").bytes());
        }
        let size = offsets.len() + 1;
        file.extend(format!("trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n").bytes());
        file
    }
}
