//! Tracks request boundaries byte by byte, in parallel with the HTTP parser.
//!
//! The parser buffers 128 KiB of a request head and panics on a header name of 64 KiB (actix-http 3.20.0). Heads are therefore
//! bounded before it sees them, which requires knowing which bytes belong to a head. Requests that the parser rejects are ignored
//! here: it reads nothing after a rejection.

/// Maximum size of a head: leading empty lines, request line and header lines.
pub(super) const MAX_HEAD_BYTES: usize = 32 * 1024;
/// The parser's limit on header lines.
const MAX_PARSED_HEADERS: usize = 96;

/// The head is longer than [`MAX_HEAD_BYTES`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HeadTooLarge;

/// The part of a request that the next byte belongs to.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Head,
    /// A body with a known length; the remaining bytes.
    Body(u64),
    /// The size line of a chunk.
    ChunkSize(Size),
    Chunk(u64),
    /// The line break after a chunk.
    ChunkEnd,
    /// Trailer lines; whether the current one is empty so far.
    Trailers {
        empty: bool,
    },
    /// A body until the connection closes, or a request that the parser rejects.
    Rest,
}

#[derive(Debug, PartialEq, Eq)]
struct Size {
    value: u64,
    digits: u8,
    /// After `;` or spaces.
    extension: bool,
}

const NO_SIZE: Size = Size {
    value: 0,
    digits: 0,
    extension: false,
};

/// Tracks one connection.
#[derive(Debug)]
pub(super) struct Framing {
    part: Part,
    /// The current head so far, or a rejected one.
    head: Vec<u8>,
    /// Bytes of its current line, without line breaks.
    line: usize,
    /// Whether more than empty lines has arrived.
    begun: bool,
    /// Whether a head has begun since the last query.
    news: bool,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self {
            part: Part::Head,
            head: Vec::new(),
            line: 0,
            begun: false,
            news: false,
        }
    }

    /// Whether a head is incomplete.
    pub(super) fn in_head(&self) -> bool {
        self.begun
    }

    /// Whether a head has begun since the last call.
    pub(super) fn head_began(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Path of the current request, as far as its head has arrived or if it is rejected.
    pub(super) fn path(&self) -> Option<&str> {
        let line = self.head.trim_ascii_start().split(|&byte| byte == b'\n').next()?;
        let target = std::str::from_utf8(line).ok()?.split(' ').nth(1)?;
        target.trim_end().split('?').next()
    }

    /// Processes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), HeadTooLarge> {
        while let Some((&byte, rest)) = bytes.split_first() {
            match &mut self.part {
                Part::Head => {
                    bytes = rest;
                    self.head_byte(byte)?;
                }
                Part::Body(left) | Part::Chunk(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[taken..];
                    *left -= taken as u64;
                    if *left == 0 {
                        self.part = match self.part {
                            Part::Chunk(_) => Part::ChunkEnd,
                            _ => Part::Head,
                        };
                    }
                }
                Part::ChunkSize(size) => {
                    bytes = rest;
                    self.part = match size_byte(size, byte) {
                        None => continue,
                        Some(next) => next,
                    };
                }
                Part::ChunkEnd => {
                    bytes = rest;
                    match byte {
                        b'\n' => self.part = Part::ChunkSize(NO_SIZE),
                        b'\r' => {}
                        _ => self.part = Part::Rest,
                    }
                }
                Part::Trailers { empty } => {
                    bytes = rest;
                    match byte {
                        b'\n' if *empty => self.part = Part::Head,
                        b'\n' => *empty = true,
                        b'\r' => {}
                        _ => *empty = false,
                    }
                }
                Part::Rest => return Ok(()),
            }
        }
        Ok(())
    }

    fn head_byte(&mut self, byte: u8) -> Result<(), HeadTooLarge> {
        if self.head.len() >= MAX_HEAD_BYTES {
            return Err(HeadTooLarge);
        }
        self.head.push(byte);
        match byte {
            // Empty lines before a request are ignored.
            b'\n' if self.line == 0 && !self.begun => {}
            b'\n' if self.line == 0 => {
                self.part = after_head(&self.head);
                if self.part != Part::Rest {
                    self.head = Vec::new();
                }
                self.begun = false;
            }
            b'\n' => self.line = 0,
            b'\r' => {}
            _ => {
                self.news |= !self.begun;
                self.begun = true;
                self.line += 1;
            }
        }
        Ok(())
    }
}

/// The part after a complete size line.
fn size_byte(size: &mut Size, byte: u8) -> Option<Part> {
    let digit = char::from(byte).to_digit(16).map(u64::from);
    match (byte, digit) {
        (b'\n', _) if size.digits == 0 => Some(Part::Rest),
        (b'\n', _) if size.value == 0 => Some(Part::Trailers { empty: true }),
        (b'\n', _) => Some(Part::Chunk(size.value)),
        (b'\r', _) => None,
        (b';' | b' ' | b'\t', _) if size.digits > 0 => {
            size.extension = true;
            None
        }
        _ if size.extension => None,
        (_, Some(digit)) if size.digits < 16 => {
            size.value = size.value << 4 | digit;
            size.digits += 1;
            None
        }
        _ => Some(Part::Rest),
    }
}

/// The part after a complete head, by the parser's rules.
fn after_head(head: &[u8]) -> Part {
    let mut headers = [httparse::EMPTY_HEADER; MAX_PARSED_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let complete = request.parse(head);
    if !matches!(complete, Ok(httparse::Status::Complete(_))) {
        return Part::Rest;
    }
    let values = |name: &str| {
        let headers = request.headers.iter();
        let named = headers.filter(|header| header.name.eq_ignore_ascii_case(name));
        named
            .map(|header| std::str::from_utf8(header.value).unwrap_or("?").trim())
            .collect::<Vec<_>>()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let websocket = values("upgrade")
        .iter()
        .any(|value| value.eq_ignore_ascii_case("websocket"));
    match (codings.as_slice(), lengths.as_slice()) {
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") && request.version == Some(1) => {
            Part::ChunkSize(NO_SIZE)
        }
        ([], _) if websocket => Part::Rest,
        ([], []) if request.method == Some("CONNECT") => Part::Rest,
        ([], []) => Part::Head,
        ([], [length]) if !length.starts_with('+') => match length.parse() {
            Ok(0) if request.method == Some("CONNECT") => Part::Rest,
            Ok(0) => Part::Head,
            Ok(length) => Part::Body(length),
            Err(_) => Part::Rest,
        },
        _ => Part::Rest,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(bytes: &[u8]) -> Framing {
        let mut framing = Framing::new();
        framing.feed(bytes).expect("short heads");
        framing
    }

    #[test]
    fn requests_end_as_framed() {
        let next = "GET / HTTP/1.1\r\nHost: a\r\n";
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe\n\nl",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\n\r\n3\r\n\n\n\n\r\nA;x=\"1\"\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
        ] {
            let whole = format!("{request}{next}");
            let framing = after(whole.as_bytes());
            assert!(framing.in_head(), "{request:?}: {:?}", framing.part);
            assert_eq!(framing.head, next.as_bytes(), "{request:?}");
        }
    }

    #[test]
    fn a_head_begins_with_its_first_byte() {
        let mut framing = Framing::new();
        for (bytes, begins, inside) in [
            ("\r\n", false, false),
            ("G", true, true),
            ("ET / HTTP/1.1\r\nHost: a\r\n", false, true),
            ("\r\n", false, false),
            ("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", true, false),
            ("12345678", false, false),
            ("9GET", true, true),
        ] {
            framing.feed(bytes.as_bytes()).expect("short heads");
            assert_eq!(
                (framing.head_began(), framing.in_head()),
                (begins, inside),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn requests_that_the_parser_rejects_are_ignored() {
        for refused in [
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +4\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX",
            "GET / HTTP/1.1\r\nA b: c\r\n\r\n",
            "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(after(refused.as_bytes()).part, Part::Rest, "{refused:?}");
        }
    }

    #[test]
    fn heads_are_bounded_in_every_part() {
        let start = "GET / HTTP/1.1\r\nHost: a\r\n";
        for endless in [
            format!("{start}{}", "a".repeat(65_536)),
            format!("{start}a: {}", "b".repeat(65_536)),
            format!("{start}{}", "a: b\r\n".repeat(10_000)),
            format!("GET /{}", "a".repeat(65_536)),
            "\r\n".repeat(65_536),
            format!("{start}\r\n{start}{}", "a".repeat(65_536)),
        ] {
            assert_eq!(Framing::new().feed(endless.as_bytes()), Err(HeadTooLarge));
        }
        let mut framing = Framing::new();
        let body = format!(
            "POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n{}",
            "a".repeat(100_000)
        );
        assert_eq!(framing.feed(body.as_bytes()), Ok(()));
        assert_eq!(framing.part, Part::Head);
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_does_not_matter(
            cuts in prop::collection::vec(0..120_usize, 0..20),
            noise in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut bytes = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
            bytes.extend(noise);
            let whole = after(&bytes);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Framing::new();
            let mut start = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                pieces.feed(&bytes[start..cut]).expect("short heads");
                start = cut;
            }
            prop_assert_eq!(pieces.part, whole.part);
            prop_assert_eq!(pieces.head, whole.head);
        }
    }
}
