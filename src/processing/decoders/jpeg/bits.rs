//! Bits of a scan's entropy-coded data, and the restart markers among them (libjpeg-turbo: jdhuff.c, jdmarker.c).

use super::huffman::{HuffmanTable, LOOKAHEAD};
use super::markers::{EOI, RST0, RST7, next_marker};

/// Maximum unread bytes before a marker that do not count as damage: some encoders pad.
const PADDING_BYTES: usize = 16;

/// The next bits. Loops copy it to a local variable, which the compiler keeps in registers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    /// From the highest down; below `count` they are zero or what follows.
    bits: u64,
    count: u32,
}

impl Window {
    /// Drops `n` available bits.
    #[inline(always)]
    fn skip(&mut self, n: u32) {
        self.bits <<= n & 63;
        self.count = self.count.wrapping_sub(n);
    }

    /// Takes 1 to 16 available bits.
    #[inline(always)]
    fn take(&mut self, n: u32) -> u32 {
        let value = (self.bits >> ((64 - n) & 63)) as u32;
        self.skip(n);
        value
    }

    /// The bits of the first lookup.
    #[inline(always)]
    fn ahead(self) -> usize {
        (self.bits >> (64 - LOOKAHEAD)) as usize
    }
}

/// Reads bits up to the next marker, then zeros.
#[derive(Clone)]
pub(super) struct BitReader<'a> {
    data: &'a [u8],
    position: usize,
    /// Bits read but not yet taken.
    pub(super) window: Window,
    /// Number of the window's last bits that replace missing data.
    padding: u32,
    /// The marker that ended the data; the end of the file counts as EOI.
    marker: Option<u8>,
    exhausted: bool,
    /// A code that is not in the table, or data that was skipped.
    damaged: bool,
}

impl<'a> BitReader<'a> {
    /// A reader of `data` from `position` on.
    pub(super) fn new(data: &'a [u8], position: usize) -> Self {
        Self {
            data,
            position,
            window: Window::default(),
            padding: 0,
            marker: None,
            exhausted: false,
            damaged: false,
        }
    }

    /// Ensures at least 32 bits: enough for the longest code and the bits after it.
    #[inline(always)]
    fn refill(&mut self, window: &mut Window) {
        if window.count >= 32 {
            return;
        }
        let rest = self.data.get(self.position..).unwrap_or_default();
        if let Some(chunk) = rest.first_chunk::<8>() {
            let word = u64::from_be_bytes(*chunk);
            // Without 0xff there are no markers and no stuffed zeros.
            let holds_ff = word & (!word).wrapping_sub(0x0101_0101_0101_0101) & 0x8080_8080_8080_8080;
            if holds_ff == 0 && self.marker.is_none() {
                window.bits |= word >> (window.count & 63);
                let bytes = (63 - (window.count & 63)) >> 3;
                self.position = self.position.wrapping_add(bytes as usize);
                window.count = window.count.wrapping_add(bytes << 3);
                return;
            }
        }
        *window = self.refill_bytewise(*window);
    }

    #[cold]
    #[inline(never)]
    fn refill_bytewise(&mut self, mut window: Window) -> Window {
        while window.count <= 56 {
            let Some(byte) = self.data_byte() else {
                self.exhausted |= window.count < self.padding;
                self.padding = self.padding.min(window.count) + 64 - window.count;
                window.count = 64;
                break;
            };
            window.bits |= u64::from(byte) << (56 - window.count);
            window.count += 8;
        }
        window
    }

    /// The next byte of data, or none at a marker. Several 0xff before a zero stand for one, as in libjpeg.
    fn data_byte(&mut self) -> Option<u8> {
        if self.marker.is_some() {
            return None;
        }
        let Some(&first) = self.data.get(self.position) else {
            self.marker = Some(EOI);
            return None;
        };
        self.position += 1;
        if first != 0xff {
            return Some(first);
        }
        while self.data.get(self.position) == Some(&0xff) {
            self.position += 1;
        }
        let code = self.data.get(self.position).copied();
        self.position = (self.position + 1).min(self.data.len());
        if code == Some(0) {
            return Some(0xff);
        }
        self.marker = Some(code.unwrap_or(EOI));
        None
    }

    /// The next bit.
    #[inline(always)]
    pub(super) fn bit(&mut self) -> bool {
        self.number(1) == 1
    }

    /// The next `n` bits, 0 to 16.
    #[inline(always)]
    pub(super) fn number(&mut self, n: u32) -> u32 {
        if n == 0 {
            return 0;
        }
        let mut window = self.window;
        self.refill(&mut window);
        let value = window.take(n);
        self.window = window;
        value
    }

    /// Decodes a symbol and the value that follows it: (run, size, value). A value is non-zero where size is not 0.
    #[inline(always)]
    pub(super) fn run_and_value(&mut self, table: &HuffmanTable) -> (usize, u32, i32) {
        let mut window = self.window;
        let decoded = self.run_and_value_from(&mut window, table);
        self.window = window;
        decoded
    }

    /// The same with the caller's window.
    #[inline(always)]
    pub(super) fn run_and_value_from(
        &mut self,
        window: &mut Window,
        table: &HuffmanTable,
    ) -> (usize, u32, i32) {
        self.refill(window);
        let entry = table.lookup(window.ahead());
        if entry.has_value() {
            window.skip(entry.bits());
            return (entry.run(), 1, entry.value());
        }
        let (run, size) = if entry.bits() != 0 {
            window.skip(entry.bits());
            (entry.run(), entry.size())
        } else {
            let (symbol, after) = self.long_code(*window, table);
            *window = after;
            (usize::from(symbol >> 4), u32::from(symbol & 15))
        };
        if size == 0 {
            return (run, 0, 0);
        }
        let bits = window.take(size) as i32;
        (run, size, extend(bits, size))
    }

    /// Decodes a symbol alone: its high and low half.
    #[inline(always)]
    pub(super) fn symbol(&mut self, table: &HuffmanTable) -> (usize, u32) {
        let mut window = self.window;
        self.refill(&mut window);
        let length = table.lookup(window.ahead()).code_bits();
        let symbol = if length != 0 {
            table.symbol(length, window.take(length))
        } else {
            let (symbol, after) = self.long_code(window, table);
            window = after;
            symbol
        };
        self.window = window;
        (usize::from(symbol >> 4), u32::from(symbol & 15))
    }

    /// Decodes a code longer than the lookup. A code that is not in the table takes 17 bits and decodes to 0, as in libjpeg.
    #[cold]
    #[inline(never)]
    fn long_code(&mut self, mut window: Window, table: &HuffmanTable) -> (u8, Window) {
        for length in LOOKAHEAD + 1..=16 {
            let code = (window.bits >> (64 - length)) as u32;
            if table.is_code(length, code) {
                window.skip(length);
                return (table.symbol(length, code), window);
            }
        }
        window.skip(17);
        self.damaged = true;
        (0, window)
    }

    /// Whether missing bits were taken. Checked after each MCU.
    #[inline(always)]
    pub(super) fn is_exhausted(&mut self) -> bool {
        self.exhausted |= self.window.count < self.padding;
        self.exhausted
    }

    /// Whether no more data follows, even after a restart.
    pub(super) fn is_ended(&self, restarts: bool) -> bool {
        let passable = |marker| restarts && matches!(marker, 0..=0xbf | RST0..=RST7);
        let exhausted = self.exhausted || self.window.count < self.padding;
        exhausted && self.marker.is_some_and(|marker| !passable(marker))
    }

    /// Marks the data as damaged.
    pub(super) fn note_damage(&mut self) {
        self.damaged = true;
    }

    /// Whether data was missing, skipped or not decodable.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged || self.exhausted
    }

    /// Passes the restart marker of number `expected`, or does what libjpeg's jpeg_resync_to_restart does.
    pub(super) fn restart(&mut self, expected: u8) {
        self.damaged |= self.is_exhausted();
        self.seek_marker();
        let mut discard = true;
        if self.marker != Some(RST0 + expected) {
            self.damaged = true;
            discard = self.resynchronize(expected);
        }
        if discard {
            (self.marker, self.exhausted) = (None, false);
        }
    }

    /// True: the marker is to be discarded. False: it stays, and the interval before it is empty.
    fn resynchronize(&mut self, expected: u8) -> bool {
        loop {
            match self.marker.unwrap_or(EOI) {
                marker @ RST0..=RST7 => match (marker - RST0).wrapping_sub(expected) & 7 {
                    // One of the next two: the expected one was lost.
                    1 | 2 => return false,
                    // One of the last two: the expected one is ahead.
                    6 | 7 => {}
                    _ => return true,
                },
                // Not a marker of the standard: damage, read on.
                0..=0xbf => {}
                _ => return false,
            }
            self.marker = None;
            self.seek_marker();
        }
    }

    /// Drops the remaining bits and skips to the next marker, unless the reader is at one.
    fn seek_marker(&mut self) {
        let left = self.window.count.saturating_sub(self.padding) as usize / 8;
        (self.window, self.padding) = (Window::default(), 0);
        if self.marker.is_some() {
            return;
        }
        let (marker, after) = next_marker(self.data, self.position).unwrap_or((EOI, self.data.len()));
        let skipped = self.data.get(self.position..after).unwrap_or_default();
        let content = skipped.iter().filter(|byte| !matches!(byte, 0 | 0xff)).count();
        self.damaged |= left + content > PADDING_BYTES;
        (self.position, self.marker) = (after, Some(marker));
    }

    /// Where the data ends: the marker there and the position after it.
    pub(super) fn end(&mut self) -> (u8, usize) {
        self.is_exhausted();
        self.seek_marker();
        (self.marker.unwrap_or(EOI), self.position)
    }
}

/// Figure F.12: the value of `size` bits whose first bit is the sign.
#[inline(always)]
pub(super) fn extend(bits: i32, size: u32) -> i32 {
    let half = 1 << (size - 1);
    if bits < half { bits - (half << 1) + 1 } else { bits }
}
