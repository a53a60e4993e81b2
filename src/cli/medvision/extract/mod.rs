//! `medvision extract`: extracts the text of documents, page by page.

mod output;

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::builder::FalseyValueParser;

use self::output::{PageRecord, PageWriter, Style};
use super::{
    inputs::{self, Source},
    load_model,
    options::{DocumentArgs, FileArgs, GenerationArgs, PixelArgs},
    page_options, prompt_or_default, read_safely,
};
use crate::cli::{AdapterArgs, CommonArgs, EXIT_CODES_HELP, EXIT_FAILURE, EXIT_OK, free_text};
use crate::console::{self, EXIT_INTERRUPTED, Interrupt, Level, Progress, Unit};
use crate::documents::{self, DicomFacts, DocumentPage, OpenOptions};
use crate::engine::{ReadRequest, Reader, Reading, page_bounds};
use crate::error::{DocumentError, PromptError};
use crate::generation::FinishReason;
use crate::processing::{PageWarning, PixelBounds};
use crate::{Error, device};

/// Extract text from documents
///
/// Streams text to standard output; statistics and errors go to standard error. Pages that
/// cannot be read are reported, and processing continues.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES_HELP)]
pub(super) struct ExtractArgs {
    /// Files (PDF, DICOM, PNG, JPEG, WebP, TIFF, BMP, GIF), folders, or - for standard input
    #[arg(required = true, value_name = "FILE|DIR|-")]
    inputs: Vec<PathBuf>,

    /// Prompt for each page [default: list diagnoses, medications, laboratory values, ...]
    ///
    /// With its adapter the embedded model knows the ten fine-tuning prompts (medications, laboratory values, ...);
    /// without it, it transcribes the page regardless of the prompt.
    #[arg(short, long, value_name = "TEXT", env = "MVP_PROMPT", hide_env_values = true,
          allow_hyphen_values = true, value_parser = free_text)]
    prompt: Option<String>,

    /// Print one JSON object per page, one per line
    #[arg(long, env = "MVP_JSON", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    json: bool,

    /// Search folders recursively
    #[arg(short, long, env = "MVP_RECURSIVE", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    recursive: bool,

    #[command(flatten)]
    files: FileArgs,

    #[command(flatten)]
    documents: DocumentArgs,

    #[command(flatten)]
    generation: GenerationArgs,

    #[command(flatten)]
    pixels: PixelArgs,

    #[command(flatten)]
    adapter: AdapterArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Reads every page; the exit code tells whether all could be read.
pub(super) fn run(args: &ExtractArgs) -> anyhow::Result<ExitCode> {
    args.common.start_logging(Level::WARN);
    let prompt = prompt_or_default(args.prompt.as_deref())?;
    let project = args.common.project()?;
    let model = args.common.model_folder(&project)?;
    let adapter = args.adapter.named_or_found(&project, &model.path)?;
    let open_options = args.documents.open_options()?;
    let sources = inputs::collect(&args.inputs, args.recursive);
    let terminal = io::stdout().is_terminal();
    let style = if args.json {
        Style::Json
    } else {
        Style::Text {
            headers: sources.len() > 1,
            terminal,
        }
    };
    let bar = if sources.len() > 1 && !terminal {
        console::progress()
    } else {
        Progress::without_bar()
    };
    // If they cannot be determined, loading the model reports why.
    let bounds = page_bounds(&model.path, &page_options(adapter.as_deref(), &args.pixels)).ok();
    let mut extraction = Extraction {
        args,
        prompt,
        open_options,
        bounds,
        model: model.path,
        adapter,
        reader: None,
        interrupt: Interrupt::install(STOPPING)?,
        bar,
        pages: sources.len(),
        pages_read: 0,
        pages_failed: 0,
    };
    extraction.run(sources, &mut PageWriter::new(io::stdout(), style))
}

const STOPPING: &str = "stopping after the next token";

/// Result of one page.
enum PageStatus {
    Read,
    Failed,
    Interrupted,
}

/// A page, for messages and records.
struct PageName<'a> {
    /// The file's name, with the page's number where it has several.
    shown: String,
    file: &'a str,
    number: u32,
    dicom: Option<&'a DicomFacts>,
}

const STDOUT: &str = "cannot write to standard output";

struct Extraction<'a> {
    args: &'a ExtractArgs,
    prompt: String,
    open_options: OpenOptions,
    /// Range of sizes that pages are scaled to while they are decoded.
    bounds: Option<PixelBounds>,
    model: PathBuf,
    adapter: Option<PathBuf>,
    /// Loaded for the first page that can be decoded, so that a mistyped name does not wait for gigabytes.
    reader: Option<Reader>,
    interrupt: Interrupt,
    bar: Progress,
    pages: usize,
    pages_read: usize,
    pages_failed: usize,
}

impl Extraction<'_> {
    fn run(
        &mut self,
        sources: Vec<crate::Result<Source>>,
        out: &mut PageWriter<impl Write>,
    ) -> anyhow::Result<ExitCode> {
        let start = Instant::now();
        let mut interrupted = false;
        for source in sources {
            if self.source(source, out)?.is_break() {
                interrupted = true;
                break;
            }
        }
        // A page that fails while a signal arrives may have failed because of it.
        interrupted |= self.pages_failed > 0 && self.interrupt.stop_requested();
        self.bar.finish_and_clear();
        if self.pages > 1 || self.pages_read > 0 {
            self.print_summary(start.elapsed().as_secs_f64());
        }
        Ok(ExitCode::from(match (interrupted, self.pages_failed) {
            (true, _) => EXIT_INTERRUPTED,
            (false, 0) => EXIT_OK,
            (false, _) => EXIT_FAILURE,
        }))
    }

    /// Reads every page of a file. Errors that affect every page (the model, the prompt, standard output) are returned.
    fn source(
        &mut self,
        source: crate::Result<Source>,
        out: &mut PageWriter<impl Write>,
    ) -> anyhow::Result<ControlFlow<()>> {
        if self.interrupt.stop_requested() {
            return Ok(ControlFlow::Break(()));
        }
        let file = source.as_ref().map_or_else(|_| String::new(), Source::name);
        let opened = source.and_then(|source| self.interrupt.exiting_immediately(|| self.open(&source)));
        let (document, numbers) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let status = self.failed(&file, &error);
                return Ok(self.count(status));
            }
        };
        if numbers.len() > 1 {
            out.show_names();
        }
        if let Some(report) = document.report() {
            out.report(&file, report, document.dicom()).context(STDOUT)?;
            return Ok(self.count(PageStatus::Read));
        }
        // The file counted as one page.
        self.pages += numbers.len() - 1;
        self.bar.set_length(self.pages as u64);
        let several = document.pages() > 1;
        let dicom = document.dicom().cloned();
        let pages = document.pages_ahead(numbers, self.bounds);
        drop(document);
        for (number, page) in pages {
            let name = PageName {
                shown: if several {
                    format!("{file}, page {number}")
                } else {
                    file.clone()
                },
                file: &file,
                number,
                dicom: dicom.as_ref(),
            };
            let status = self.page(&name, page, out)?;
            if self.count(status).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn open(&self, source: &Source) -> crate::Result<(documents::Document, Vec<u32>)> {
        let bytes = source.read(self.args.files.limit())?;
        let document = documents::open(Arc::new(bytes), &self.open_options)?;
        let numbers = self
            .args
            .documents
            .pages()
            .numbers(document.pages(), usize::MAX)?;
        Ok((document, numbers))
    }

    fn count(&mut self, status: PageStatus) -> ControlFlow<()> {
        match status {
            PageStatus::Read => self.pages_read += 1,
            PageStatus::Failed => self.pages_failed += 1,
            PageStatus::Interrupted => return ControlFlow::Break(()),
        }
        self.bar.inc(1);
        ControlFlow::Continue(())
    }

    fn page(
        &mut self,
        name: &PageName<'_>,
        decoded: Result<DocumentPage, DocumentError>,
        out: &mut PageWriter<impl Write>,
    ) -> anyhow::Result<PageStatus> {
        let DocumentPage { page, warnings, .. } = match decoded {
            Ok(decoded) => decoded,
            Err(error) => return Ok(self.failed(&name.shown, &error.into())),
        };
        let mut request = ReadRequest::page(&self.prompt, page);
        request.overrides = self.args.generation.overrides();

        if self.interrupt.stop_requested() {
            return Ok(PageStatus::Interrupted);
        }
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.load()?,
        };
        let status = self.read(&reader, name, &request, &warnings, out);
        self.reader = Some(reader);
        status
    }

    fn load(&self) -> anyhow::Result<Reader> {
        let (adapter, args) = (self.adapter.as_deref(), self.args);
        let load = || load_model(&self.model, adapter, &args.common, &args.pixels);
        let reader = self.bar.suspend(|| self.interrupt.exiting_immediately(load))?;
        self.bar.begin("reading", Unit::Of("pages"), self.pages as u64);
        self.bar
            .set_position((self.pages_read + self.pages_failed) as u64);
        Ok(reader)
    }

    fn read(
        &self,
        reader: &Reader,
        name: &PageName<'_>,
        request: &ReadRequest,
        warnings: &[PageWarning],
        out: &mut PageWriter<impl Write>,
    ) -> anyhow::Result<PageStatus> {
        let interrupt = &self.interrupt;
        let (shown, place) = (&name.shown, (name.file, name.number, name.dicom));
        out.begin(shown).context(STDOUT)?;
        let mut written = Ok(());
        let result = read_safely(reader, request, &mut |step| {
            written = out.piece(step.text);
            if written.is_err() || interrupt.stop_requested() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        written.context(STDOUT)?;
        match result {
            Ok(reading) => {
                out.end(&PageRecord::new(place, &reading, warnings, reader.info()))
                    .context(STDOUT)?;
                self.bar.suspend(|| print_statistics(shown, &reading, warnings));
                Ok(if interrupt.stop_requested() {
                    PageStatus::Interrupted
                } else {
                    PageStatus::Read
                })
            }
            // The flags are invalid for every page.
            Err(error @ (Error::Option { .. } | Error::Prompt(PromptError::TooLong { .. }))) => {
                Err(error.into())
            }
            Err(error) => {
                out.abandon().context(STDOUT)?;
                Ok(self.failed(shown, &error))
            }
        }
    }

    fn failed(&self, name: &str, error: &Error) -> PageStatus {
        let message = match error {
            // The flag's name is in the text.
            Error::Document(DocumentError::NoSuchPage { .. }) => format!("{name}: --{error}"),
            Error::Io { .. } | Error::Unsuitable { .. } => error.to_string(),
            Error::NonFinite(_) => format!("{name}: {error} (model {})", self.model.display()),
            error => format!("{name}: {error}"),
        };
        self.bar.suspend(|| console::say(Level::ERROR, &message));
        PageStatus::Failed
    }

    fn print_summary(&self, seconds: f64) {
        let plural = if self.pages_read == 1 { "page" } else { "pages" };
        let memory = device::process_memory().map_or_else(String::new, |memory| {
            format!(", peak memory {} MiB", memory.peak_resident_bytes >> 20)
        });
        let summary = format!(
            "{} {plural} read, {} failed, {seconds:.2} s total{memory}",
            self.pages_read, self.pages_failed
        );
        console::say(Level::INFO, &summary);
    }
}

/// Prints a page's statistics, and warnings if the file is truncated or the answer is incomplete.
fn print_statistics(name: &str, reading: &Reading, warnings: &[PageWarning]) {
    let speed = reading
        .tokens_per_second()
        .map_or_else(String::new, |speed| format!(", then {speed:.0} tokens/s"));
    let figures = format!(
        "{name}: {} tokens in {:.2} s (first token after {:.2} s{speed})",
        reading.completion_tokens, reading.latency_seconds, reading.time_to_first_token_seconds
    );
    console::say(Level::INFO, &figures);
    for warning in warnings {
        let warning = match warning {
            PageWarning::Truncated => "the file is truncated: part of the page is missing".to_owned(),
            PageWarning::MissingPicture => {
                "a picture on the page cannot be decoded and is missing".to_owned()
            }
            PageWarning::MissingFont => "text in a font that cannot be read is missing".to_owned(),
            PageWarning::FirstOf(pages) => format!("the file has {pages} frames; only the first was read"),
        };
        console::say(Level::WARN, &format!("{name}: {warning}"));
    }
    let incomplete = match reading.finish_reason {
        FinishReason::Stop => return,
        FinishReason::Length => "output truncated at --max-new-tokens",
        FinishReason::Repetition => "stopped in a repetition loop; the text may be incomplete",
        FinishReason::Cancelled | FinishReason::Deadline => "interrupted; the text is incomplete",
    };
    console::say(Level::WARN, &format!("{name}: {incomplete}"));
}
