//! Requests as the fake hub receives them.

use std::collections::HashMap;
use std::io::BufRead;

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

impl Request {
    pub(super) fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let mut next = || words.next().unwrap_or_default().to_owned();
        let (method, path) = (next(), next());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
                None => break,
            };
        }
        Ok(Some(Self {
            method,
            path,
            headers,
        }))
    }

    /// First byte of the requested range.
    pub fn range_start(&self) -> Option<usize> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        range.split_once('-')?.0.parse().ok()
    }

    /// Last byte of the requested range; `None` for the end of the file.
    pub(super) fn range_end(&self) -> Option<usize> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        range.split_once('-')?.1.parse().ok()
    }

    /// Returns whether the path ends with `file`, at the hub or at the storage host.
    pub fn is_for(&self, file: &str) -> bool {
        let path = self.path.split('?').next().unwrap_or_default();
        path.ends_with(&format!("/{file}"))
    }

    /// Returns whether it went to the storage host.
    pub fn is_for_storage(&self) -> bool {
        self.path.contains("/storage/")
    }
}
