//! Report over all records of a project: `FINAL_REPORT.json`, Markdown, a self-contained HTML page and plots.
//!
//! Every figure is taken or computed from a record; without a record it is `null` in the JSON and "n/a" in the text. A record
//! that cannot be read is listed with the reason; the other figures are not affected.

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

/// Path of the Markdown report, relative to the project folder.
pub const MARKDOWN: &str = "docs/BENCHMARK_REPORT.md";
/// Path of the HTML report, which embeds the plots.
pub const HTML: &str = "docs/BENCHMARK_REPORT.html";
/// Folder of the plots, next to the Markdown report.
pub const PLOTS: &str = "docs/plots";

/// A generated report.
#[derive(Debug)]
pub struct GeneratedReport {
    /// The report.
    pub report: FinalReport,
    /// Records that could not be read.
    pub problems: Vec<Problem>,
    /// Files written, in order.
    pub files: Vec<PathBuf>,
}

/// Reads the records of `project` and writes the report.
///
/// # Errors
/// Only if a file cannot be written; unreadable records are listed in the report.
pub fn generate(project: &Project) -> Result<GeneratedReport> {
    let sources = Sources::read(project);
    let report = compile(&sources);
    let plots = plots::draw(&sources);
    let page = pages::page(&report, &sources, &plots);
    let mut files = Vec::new();
    for name in plots::NAMES {
        let path = project.file(PLOTS).join(format!("{name}.svg"));
        match plots.iter().find(|plot| plot.name == name) {
            Some(plot) => write_text(&mut files, path, &plot.svg)?,
            // Left over from an earlier report: the records have no such figures any more.
            None => remove(&path)?,
        }
    }
    write_text(&mut files, project.file(MARKDOWN), &blocks::markdown(&page))?;
    write_text(&mut files, project.file(HTML), &blocks::html(&page))?;
    // Last: it must not be newer than the files it summarizes.
    let path = project.file(paths::FINAL_REPORT);
    records::write(&path, &report)?;
    files.push(path);
    Ok(GeneratedReport {
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
