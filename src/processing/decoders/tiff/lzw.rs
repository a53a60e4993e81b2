//! LZW, TIFF variant.

use std::io::{self, BufRead, Read};

const CLEAR: usize = 256;
const END: usize = 257;
const FIRST: usize = 258;
const CODES: usize = 4096;

/// LZW decoder for most significant bits first, and for the old variant: least significant bits first, with codes that widen one
/// later.
pub(super) struct Lzw<'a> {
    stored: Box<dyn BufRead + 'a>,
    old: bool,
    bits: Bits,
    strings: Box<[Entry; CODES]>,
    /// Next code to define.
    next: usize,
    last: Option<usize>,
    /// Bytes of the last code that did not fit the output, and the number of those already copied.
    waiting: Vec<u8>,
    taken: usize,
    ended: bool,
}

/// Bit buffer.
#[derive(Debug, Clone, Copy)]
struct Bits {
    bits: u64,
    count: u32,
    /// Bits per code.
    width: u32,
}

/// A string: the string of another code and one more byte.
#[derive(Debug, Clone, Copy)]
struct Entry {
    prefix: u16,
    length: u16,
    first: u8,
    byte: u8,
    /// Whether all bytes are equal, as in most of a blank page: written faster.
    repeats: bool,
}

impl Bits {
    /// Next code; `None` if the bytes end.
    fn code(&mut self, bytes: &mut &[u8], old: bool) -> Option<usize> {
        if self.count < self.width {
            self.fill(bytes, old);
            if self.count < self.width {
                return None;
            }
        }
        self.count -= self.width;
        let code = if old {
            let code = self.bits & ((1 << self.width) - 1);
            self.bits >>= self.width;
            code
        } else {
            let code = self.bits >> (64 - self.width);
            self.bits <<= self.width;
            code
        };
        Some(code as usize % CODES)
    }

    fn fill(&mut self, bytes: &mut &[u8], old: bool) {
        if let Some(word) = bytes.first_chunk()
            && !old
        {
            // Bits of bytes that are not counted yet are read again later, with the same values.
            self.bits |= u64::from_be_bytes(*word) >> self.count;
            let whole = (63 - self.count) / 8;
            self.count += whole * 8;
            *bytes = &bytes[whole as usize..];
            return;
        }
        let most = bytes.len().min((64 - self.count as usize) / 8);
        let (now, later) = bytes.split_at(most);
        for byte in now {
            let shift = if old { self.count } else { 56 - self.count };
            self.bits |= u64::from(*byte) << shift;
            self.count += 8;
        }
        *bytes = later;
    }
}

impl<'a> Lzw<'a> {
    /// Detects the variant by the first code, the clear code.
    pub(super) fn new(mut stored: Box<dyn BufRead + 'a>) -> Self {
        let old = matches!(stored.fill_buf(), Ok([0, second, ..]) if second & 1 == 1);
        let entry = |code| Entry {
            prefix: 0,
            length: 1,
            first: code as u8,
            byte: code as u8,
            repeats: true,
        };
        let bits = Bits {
            bits: 0,
            count: 0,
            width: 9,
        };
        Self {
            stored,
            old,
            bits,
            strings: Box::new(std::array::from_fn(entry)),
            next: FIRST,
            last: None,
            waiting: Vec::new(),
            taken: 0,
            ended: false,
        }
    }

    /// Defines the next string from `code` and the previous one; returns the string of `code`, or `None` if it is invalid.
    fn define(&mut self, code: usize, width: &mut u32) -> Option<Entry> {
        let Some(last) = self.last.replace(code) else {
            return (code < CLEAR).then(|| self.strings[code]);
        };
        if code > self.next || code == CODES {
            return None;
        }
        let before = self.strings[last];
        if let Some(new) = self.strings.get_mut(self.next) {
            new.prefix = last as u16;
            new.length = before.length + 1;
            new.first = before.first;
            // For the code being defined this is also the last byte.
            new.byte = before.first;
            let byte = self.strings[code].first;
            let new = &mut self.strings[self.next];
            new.byte = byte;
            new.repeats = before.repeats && byte == before.first;
            self.next += 1;
            let widens = self.next + usize::from(!self.old) >= 1 << *width;
            *width += u32::from(widens && *width < 12);
        }
        Some(self.strings[code])
    }

    /// Decodes `bytes` until they end or `out` is full; returns the number of bytes written.
    fn decode(&mut self, bytes: &mut &[u8], out: &mut [u8]) -> usize {
        // A local copy stays in registers.
        let mut bits = self.bits;
        let mut at = 0;
        while at < out.len() {
            let entry = match bits.code(bytes, self.old) {
                None => break,
                Some(CLEAR) => {
                    (bits.width, self.next, self.last) = (9, FIRST, None);
                    continue;
                }
                Some(END) => None,
                Some(code) => self.define(code, &mut bits.width),
            };
            let Some(entry) = entry else {
                self.ended = true;
                break;
            };
            let length = usize::from(entry.length);
            if let Some(room) = out.get_mut(at..at + length) {
                write(&self.strings, entry, room);
                at += length;
            } else {
                self.waiting.resize(length, 0);
                write(&self.strings, entry, &mut self.waiting);
                self.taken = out.len() - at;
                out[at..].copy_from_slice(&self.waiting[..self.taken]);
                at = out.len();
            }
        }
        self.bits = bits;
        at
    }
}

/// Writes the string that ends with `entry`.
fn write(strings: &[Entry; CODES], mut entry: Entry, out: &mut [u8]) {
    match out {
        [only] => return *only = entry.byte,
        [first, second] => return (*first, *second) = (entry.first, entry.byte),
        _ if entry.repeats => return out.fill(entry.byte),
        _ => {}
    }
    for byte in out.iter_mut().rev() {
        *byte = entry.byte;
        entry = strings[usize::from(entry.prefix) % CODES];
    }
}

impl Read for Lzw<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut at = (&self.waiting[self.taken..]).read(out)?;
        self.taken += at;
        let mut stored = std::mem::replace(&mut self.stored, Box::new(io::empty()));
        while at < out.len() && !self.ended {
            let bytes = stored.fill_buf()?;
            let (mut left, length) = (bytes, bytes.len());
            at += self.decode(&mut left, &mut out[at..]);
            let used = length - left.len();
            // Without input or output space, only the end can follow.
            self.ended |= length == 0 && at < out.len();
            stored.consume(used);
        }
        self.stored = stored;
        Ok(at)
    }
}
