//! Every record of a project in one report: `FINAL_REPORT.json`, Markdown, a self-contained HTML page and plots.
//!
//! Each figure is a record's, or computed from records; where there is no record it is `null` in the JSON and "n/a" in the
//! text. A record that cannot be read costs its own figures alone and is named with the reason.

mod blocks;
mod compile;
mod pages;
mod plots;
mod sources;

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

pub use self::compile::compile;
pub use self::sources::{Problem, Sources};
use crate::fs::write_atomically;
use crate::project::Project;
use crate::records::{self, FinalReport, paths};
use crate::{Error, Result};

/// The report for people, below the project folder; the HTML page lies beside it.
pub const MARKDOWN: &str = "docs/BENCHMARK_REPORT.md";
/// The same with its plots inside, for a browser or a mail.
pub const HTML: &str = "docs/BENCHMARK_REPORT.html";
/// Folder of the plots, beside the Markdown.
pub const PLOTS: &str = "docs/plots";

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The report.
    pub report: FinalReport,
    /// Records that could not be read.
    pub problems: Vec<Problem>,
    /// Files, in the order they were written.
    pub files: Vec<PathBuf>,
}

/// Reads the records of `project` and writes the report; an error is one of writing.
pub fn generate(project: &Project) -> Result<Written> {
    let sources = Sources::read(project);
    let report = compile(&sources);
    let plots = plots::draw(&sources);
    let page = pages::page(&report, &sources, &plots);
    let mut files = Vec::new();
    for name in plots::NAMES {
        let path = project.file(PLOTS).join(format!("{name}.svg"));
        match plots.iter().find(|plot| plot.name == name) {
            Some(plot) => write_text(&mut files, path, &plot.svg)?,
            // An older report's: its figures are no longer in the records.
            None => remove(&path)?,
        }
    }
    write_text(&mut files, project.file(MARKDOWN), &blocks::markdown(&page))?;
    write_text(&mut files, project.file(HTML), &blocks::html(&page))?;
    // Last, so that it is never newer than what it is the summary of.
    let path = project.file(paths::FINAL_REPORT);
    records::write(&path, &report)?;
    files.push(path);
    Ok(Written {
        report,
        problems: sources.problems,
        files,
    })
}

fn write_text(files: &mut Vec<PathBuf>, path: PathBuf, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    }
    write_atomically(&path, |file| file.write_all(text.as_bytes()))?;
    files.push(path);
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}
