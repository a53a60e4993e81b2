//! `medvision save-offline` and `medvision load-offline`: all that a closed network needs, in one folder.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::builder::FalseyValueParser;
use indicatif::HumanBytes;

use crate::cli::{self, AdapterArgs, CommonArgs, EXIT_CODES_HELP, EXIT_OK};
use crate::console::{self, EXIT_INTERRUPTED, Interrupt, Level, say};
use crate::offline::{self, ContainerEngine, LoadOptions, Loaded, SaveOptions, Saved};
use crate::quantize::Watch;
use crate::{Error, Result};

/// Flags for the image.
#[derive(Debug, clap::Args)]
struct ImageArgs {
    /// Leave the image out
    #[arg(long, env = "MVP_NO_IMAGE", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    no_image: bool,

    /// Container engine: docker, podman, or its path [default: the first that works]
    #[arg(long, value_name = "PROGRAM", env = "MVP_ENGINE", hide_env_values = true)]
    engine: Option<String>,
}

/// Save model, adapter and image into one folder, for a network without access to others
///
/// Writes models/, image.tar, the licences and bill of materials of an installation, and the SHA-256 of every file, which
/// load-offline checks. Every copy is read again. The folder appears complete or not at all.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES_HELP)]
pub(super) struct SaveArgs {
    /// Folder to write; it must not exist
    dir: PathBuf,

    /// Image to save
    #[arg(
        long,
        value_name = "NAME",
        env = "MVP_IMAGE",
        default_value = "medvision",
        hide_env_values = true
    )]
    image: String,

    #[command(flatten)]
    images: ImageArgs,

    #[command(flatten)]
    adapter: AdapterArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Check a folder of save-offline and load what is in it
///
/// Checks the SHA-256 of every file first and changes nothing if one is wrong. Then copies the models, each in one step, and
/// loads the image if a container engine works. What is there already, the same, stays.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES_HELP)]
pub(super) struct LoadArgs {
    /// Folder that save-offline wrote
    dir: PathBuf,

    /// Folder for the models [default: models/ of the project folder]
    #[arg(long, value_name = "DIR", env = "MVP_INTO", hide_env_values = true)]
    into: Option<PathBuf>,

    /// Replace models of the same name that differ; they are kept as NAME.previous
    #[arg(long, env = "MVP_REPLACE", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    replace: bool,

    #[command(flatten)]
    images: ImageArgs,

    #[command(flatten)]
    common: CommonArgs,
}

impl ImageArgs {
    /// The engine to use; `None` with `--no-image`, or where none was named and none works.
    fn engine(&self) -> anyhow::Result<Option<ContainerEngine>> {
        if self.no_image {
            return Ok(None);
        }
        let found = ContainerEngine::find(self.engine.as_deref());
        match (&self.engine, found) {
            (Some(named), None) => {
                bail!("{named} (--engine, MVP_ENGINE) does not work here: its `info` fails")
            }
            (_, found) => Ok(found),
        }
    }
}

/// Saves, and prints what is in the folder.
pub(super) fn save(args: &SaveArgs) -> anyhow::Result<ExitCode> {
    args.common.start_logging(Level::WARN);
    let project = args.common.project()?;
    let model = args.common.model_folder(&project)?.path;
    let adapter = args.adapter.named_or_found(&project, &model)?;
    let image = match (args.images.no_image, args.images.engine()?) {
        (true, _) => None,
        (false, Some(engine)) => Some((args.image.clone(), engine)),
        (false, None) => bail!(
            "no container engine works here: install docker or podman, or leave the image out with --no-image"
        ),
    };
    let options = SaveOptions {
        model,
        adapter,
        image,
        installation: installation(),
    };
    let saved = match watched("stopping", |watch| offline::save(&args.dir, &options, watch)) {
        // Its text promises that work is kept.
        Err(Error::Interrupted) => {
            say(Level::WARN, "interrupted; nothing was written");
            return Ok(ExitCode::from(EXIT_INTERRUPTED));
        }
        saved => saved?,
    };
    for path in &saved.left_out {
        say(
            Level::WARN,
            &format!("{}: left out, no part of a model", path.display()),
        );
    }
    cli::print(&save_summary(&args.dir, &options, &saved))?;
    Ok(ExitCode::from(EXIT_OK))
}

/// Checks and loads, and prints what is where.
pub(super) fn load(args: &LoadArgs) -> anyhow::Result<ExitCode> {
    args.common.start_logging(Level::WARN);
    let into = match &args.into {
        Some(into) => into.clone(),
        None => args.common.project()?.models(),
    };
    let options = LoadOptions {
        replace: args.replace,
        engine: args.images.engine()?,
    };
    let loaded = watched("stopping, models that are loaded stay", |watch| {
        offline::load(&args.dir, &into, &options, watch)
    })?;
    cli::print(&load_summary(&args.dir, args.images.no_image, &loaded))?;
    Ok(ExitCode::from(EXIT_OK))
}

/// Runs `work` with a progress bar, until it ends or a signal stops it.
fn watched<T>(notice: &'static str, work: impl FnOnce(Watch<'_>) -> Result<T>) -> Result<T> {
    let interrupt = Interrupt::install(notice)?;
    let bar = console::progress();
    let result = work(Watch {
        stage: &|name, unit, count| bar.begin(name, unit, count),
        total: &|count| bar.set_length(count),
        progress: &|count| bar.inc(count),
        stop: interrupt.flag(),
    });
    bar.finish_and_clear();
    result
}

/// The folder above `bin/`, of an installation.
fn installation() -> Option<PathBuf> {
    let program = std::env::current_exe().and_then(std::fs::canonicalize).ok()?;
    program.parent()?.parent().map(Path::to_owned)
}

fn save_summary(dir: &Path, options: &SaveOptions, saved: &Saved) -> String {
    let mut text = String::new();
    for model in &saved.models {
        let _ = writeln!(text, "models/{model}");
    }
    let _ = match &options.image {
        Some((name, engine)) => writeln!(text, "image.tar: {name} of {}", engine.program()),
        None => writeln!(text, "no image (--no-image)"),
    };
    if !saved.licences {
        text += "no licences and no bill of materials: this program runs from a build, not from a release\n";
    }
    let _ = writeln!(
        text,
        "{}: {} files, {}; to load it there: medvision load-offline DIR",
        dir.display(),
        saved.files,
        HumanBytes(saved.bytes)
    );
    text
}

fn load_summary(dir: &Path, no_image: bool, loaded: &Loaded) -> String {
    let mut text = format!(
        "{}: {} files, {}, every sum is right\n",
        dir.display(),
        loaded.files,
        HumanBytes(loaded.bytes)
    );
    for model in &loaded.models {
        let _ = match (&model.previous, model.was_there) {
            (Some(previous), _) => writeln!(
                text,
                "{} (before: {})",
                model.folder.display(),
                previous.display()
            ),
            (None, true) => writeln!(text, "{} (was there)", model.folder.display()),
            (None, false) => writeln!(text, "{}", model.folder.display()),
        };
    }
    let _ = match (&loaded.image, loaded.has_image) {
        (Some(printed), _) => writeln!(text, "image: {printed}"),
        (None, false) => writeln!(text, "no image in the folder"),
        (None, true) if no_image => writeln!(text, "image: left (--no-image)"),
        (None, true) => writeln!(
            text,
            "image: left, no container engine works here; where one does: docker load --input {}",
            dir.join("image.tar").display()
        ),
    };
    text
}
