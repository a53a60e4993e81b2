//! `validate_environment`: checks whether the pipeline can run on this machine.

use std::process::ExitCode;

use clap::Parser;

use super::{CommonArgs, EXIT_FAILURE, EXIT_OK, print, start};
use crate::doctor::environment::examine;
use crate::records::{self, paths};
use crate::version::version;

const EXIT_CODES: &str = "\
Exit codes:
  0    the pipeline can run on this machine
  1    problems found; see the report above and the record
  2    invalid command line
  130  interrupted by Ctrl-C or SIGTERM";

/// Check the machine, libtorch, GPUs and models, and record the result
///
/// Writes benchmarks/environment.json. A machine without a GPU is valid; the pipeline then runs on the CPU.
#[derive(Parser)]
#[command(name = "validate_environment", version = version(), after_help = EXIT_CODES)]
pub(super) struct Arguments {
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    start(|arguments: &Arguments| &arguments.common, run)
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let project = arguments.common.project()?;
    let (environment, report) = examine(&project, &arguments.common.choices());
    let path = project.file(paths::ENVIRONMENT);
    records::write(&path, &environment)?;
    let verdict = match environment.errors.len() {
        0 => "valid: the pipeline can run on this machine".to_owned(),
        1 => "not valid: 1 error".to_owned(),
        errors => format!("not valid: {errors} errors"),
    };
    print(&format!("{report}{verdict}\nwritten: {}\n", path.display()))?;
    Ok(ExitCode::from(if environment.validation_passed {
        EXIT_OK
    } else {
        EXIT_FAILURE
    }))
}
