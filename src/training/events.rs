//! TensorBoard event files: TFRecord frames around protocol buffers. Scalars need four message types.
//!
//! Reference: tensorboard/compat/proto/{event,summary}.proto and tensorflow/core/lib/io/record_writer.cc.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// Prefix of the file names.
pub(super) const PREFIX: &str = "events.out.tfevents.";

/// One event file.
pub(super) struct Events {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Events {
    /// Creates a new file in `folder`; TensorBoard reads all files of a folder as one run.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        let now = seconds();
        let path = folder.join(format!(
            "{PREFIX}{:.0}.{}.medvision",
            now.floor(),
            std::process::id()
        ));
        let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        let mut events = Self {
            path,
            file: BufWriter::new(file),
        };
        let mut event = Message::default();
        event.double(1, now);
        event.bytes(3, b"brain.Event:2");
        events.write(&event)?;
        Ok(events)
    }

    /// Writes the scalars of a step.
    pub(super) fn scalars(&mut self, step: u64, figures: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (tag, figure) in figures {
            let mut value = Message::default();
            value.bytes(1, tag.as_bytes());
            value.float(2, *figure as f32);
            summary.bytes(1, &value.0);
        }
        let mut event = Message::default();
        event.double(1, seconds());
        event.number(2, step);
        event.bytes(5, &summary.0);
        self.write(&event)
    }

    fn write(&mut self, event: &Message) -> Result<()> {
        let frame = frame(&event.0);
        let written = self.file.write_all(&frame).and_then(|()| self.file.flush());
        written.map_err(|error| Error::io(&self.path, error))
    }
}

fn seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |time| time.as_secs_f64())
}

/// Length, its checksum, the data, its checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut frame = length.to_vec();
    frame.extend(masked(&length));
    frame.extend(data);
    frame.extend(masked(data));
    frame
}

/// Masked CRC-32C, as TFRecord defines it.
fn masked(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xA282_EAD8)
        .to_le_bytes()
}

/// Encoder of one protocol buffer.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_matches_tensorflows() {
        // As record_writer.cc defines it, with CRC-32C computed bit by bit.
        let expected = [
            3, 0, 0, 0, 0, 0, 0, 0, 176, 153, 73, 14, 97, 98, 99, 110, 87, 241, 33,
        ];
        assert_eq!(frame(b"abc"), expected);
    }

    #[test]
    fn integers_are_varints() {
        let mut message = Message::default();
        message.number(2, 300);
        message.float(2, 1.0);
        message.bytes(1, b"x");
        assert_eq!(message.0, [16, 0xAC, 2, 0x15, 0, 0, 0x80, 0x3F, 10, 1, b'x']);
    }
}
