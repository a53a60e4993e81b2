//! Writes the text of pages to standard output.

use std::io::{self, Write};

use serde::Serialize;

use crate::documents::DicomFacts;
use crate::engine::{ModelInfo, Reading};
use crate::generation::FinishReason;
use crate::processing::PageWarning;
use crate::records::seconds;

/// The JSON object of a page.
#[derive(Debug, Serialize)]
pub(super) struct PageRecord<'a> {
    file: &'a str,
    page: u32,
    extracted_content: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dicom: Option<&'a DicomFacts>,
    inference_latency_seconds: f64,
    time_to_first_token_seconds: f64,
    tokens_per_second: Option<f64>,
    prompt_tokens: usize,
    completion_tokens: usize,
    finish_reason: FinishReason,
    warnings: &'a [PageWarning],
    model_info: &'a ModelInfo,
}

/// The JSON object of a DICOM report.
#[derive(Debug, Serialize)]
struct ReportRecord<'a> {
    file: &'a str,
    page: u32,
    extracted_content: &'a str,
    source: &'a str,
    dicom: Option<&'a DicomFacts>,
}

impl<'a> PageRecord<'a> {
    /// Creates the object of a page that was read.
    pub(super) fn new(
        (file, page, dicom): (&'a str, u32, Option<&'a DicomFacts>),
        reading: &'a Reading,
        warnings: &'a [PageWarning],
        model_info: &'a ModelInfo,
    ) -> Self {
        Self {
            file,
            page,
            dicom,
            extracted_content: &reading.text,
            inference_latency_seconds: seconds(reading.latency_seconds),
            time_to_first_token_seconds: seconds(reading.time_to_first_token_seconds),
            tokens_per_second: reading.tokens_per_second().map(seconds),
            prompt_tokens: reading.prompt_tokens,
            completion_tokens: reading.completion_tokens,
            finish_reason: reading.finish_reason,
            warnings,
            model_info,
        }
    }
}

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Text, streamed; with `headers` each page is preceded by a line with its name.
    Text {
        /// More than one page.
        headers: bool,
        /// Output is a terminal: control characters, which it would interpret, are replaced.
        terminal: bool,
    },
    /// One JSON object per line.
    Json,
}

/// Writes pages in sequence. Every write is flushed, so that the other end of a pipe receives it at once.
pub(super) struct PageWriter<W> {
    out: W,
    style: Style,
    pages: usize,
    at_line_start: bool,
}

impl<W: Write> PageWriter<W> {
    /// Creates a writer to `out`.
    pub(super) fn new(out: W, style: Style) -> Self {
        Self {
            out,
            style,
            pages: 0,
            at_line_start: true,
        }
    }

    /// From now on each page has its name above it: there is more than one.
    pub(super) fn show_names(&mut self) {
        if let Style::Text { headers, .. } = &mut self.style {
            *headers = true;
        }
    }

    /// Starts a page.
    pub(super) fn begin(&mut self, name: &str) -> io::Result<()> {
        let separator = if self.pages == 0 { "" } else { "\n" };
        self.pages += 1;
        match self.style {
            Style::Text { headers: true, .. } => self.write(&format!("{separator}==> {name} <==\n")),
            _ => Ok(()),
        }
    }

    /// Appends to the text of the page.
    pub(super) fn piece(&mut self, text: &str) -> io::Result<()> {
        match self.style {
            Style::Text { .. } => self.write(text),
            Style::Json => Ok(()),
        }
    }

    /// Writes the text of a report, which no model read.
    pub(super) fn report(&mut self, name: &str, text: &str, dicom: Option<&DicomFacts>) -> io::Result<()> {
        match self.style {
            Style::Text { .. } => {
                self.begin(name)?;
                self.write(text)?;
                self.abandon()
            }
            Style::Json => self.line(&ReportRecord {
                file: name,
                page: 1,
                extracted_content: text,
                source: "sr",
                dicom,
            }),
        }
    }

    /// Ends a page that failed.
    pub(super) fn abandon(&mut self) -> io::Result<()> {
        if self.at_line_start {
            Ok(())
        } else {
            self.write("\n")
        }
    }

    /// Ends a page.
    pub(super) fn end(&mut self, record: &PageRecord<'_>) -> io::Result<()> {
        match self.style {
            Style::Text { .. } => self.abandon(),
            Style::Json => self.line(record),
        }
    }

    fn line(&mut self, record: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.out.write_all(&line)?;
        self.out.flush()
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let Some(last) = text.chars().next_back() else {
            return Ok(());
        };
        self.at_line_start = last == '\n';
        if matches!(self.style, Style::Text { terminal: true, .. }) {
            let shown = crate::console::without_control_characters(text);
            self.out.write_all(shown.as_bytes())?;
        } else {
            self.out.write_all(text.as_bytes())?;
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(text: &str) -> Reading {
        Reading {
            text: text.to_owned(),
            tokens: vec![1, 2, 3],
            prompt_tokens: 10,
            completion_tokens: 4,
            finish_reason: FinishReason::Stop,
            time_to_first_token_seconds: 0.25,
            latency_seconds: 0.75,
            ..Reading::default()
        }
    }

    fn info() -> ModelInfo {
        ModelInfo {
            model_name: "nano".to_owned(),
            precision: "FP32".to_owned(),
            lora_adapter: None,
            device: "cpu".to_owned(),
        }
    }

    fn write(style: Style, pages: &[(&str, &[&str])]) -> String {
        let mut writer = PageWriter::new(Vec::new(), style);
        for (name, pieces) in pages {
            writer.begin(name).unwrap();
            for piece in *pieces {
                writer.piece(piece).unwrap();
            }
            writer
                .end(&PageRecord::new(
                    (name, 1, None),
                    &reading(&pieces.concat()),
                    &[PageWarning::Truncated],
                    &info(),
                ))
                .unwrap();
        }
        String::from_utf8(writer.out).unwrap()
    }

    #[test]
    fn one_page_is_its_text_and_a_line_end() {
        let style = Style::Text {
            headers: false,
            terminal: false,
        };
        assert_eq!(write(style, &[("a", &["one ", "two"])]), "one two\n");
        assert_eq!(write(style, &[("a", &["one\n"])]), "one\n");
        assert_eq!(write(style, &[("a", &[])]), "");
    }

    #[test]
    fn several_pages_have_headers() {
        let style = Style::Text {
            headers: true,
            terminal: false,
        };
        let text = write(style, &[("a", &["one"]), ("b", &["two\n"])]);
        assert_eq!(text, "==> a <==\none\n\n==> b <==\ntwo\n");
    }

    #[test]
    fn a_terminal_gets_no_control_characters() {
        let style = Style::Text {
            headers: false,
            terminal: true,
        };
        assert_eq!(
            write(style, &[("a", &["\u{1b}[31mred\ttab\n"])]),
            "\u{fffd}[31mred\ttab\n"
        );
    }

    #[test]
    fn a_json_page_is_one_line_with_the_figures() {
        let text = write(Style::Json, &[("a \"b\"", &["x\ny"])]);
        assert_eq!(text.matches('\n').count(), 1);
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(record["file"], "a \"b\"");
        assert_eq!(record["page"], 1);
        assert_eq!(record["extracted_content"], "x\ny");
        assert_eq!(record["tokens_per_second"], 6.0);
        assert_eq!(record["finish_reason"], "stop");
        assert_eq!(record["warnings"], serde_json::json!(["truncated"]));
        assert_eq!(record["model_info"]["model_name"], "nano");
    }
}
