//! The pipeline's first step: is this machine fit for it?

use std::process::ExitCode;

use crate::cli::{CommonArgs, EXIT_FAILURE, EXIT_OK, fail, print};
use crate::console::Level;
use crate::records::{self, paths};
use crate::version::version;
use clap::Parser;

const EXIT_CODES: &str = "\
Exit codes:
  0  the pipeline can run on this machine
  1  problems found; see the report above and the record
  2  invalid command line";

/// Check the machine, libtorch, GPUs and models, and record the result
///
/// Writes benchmarks/environment.json. A machine without a GPU is valid; the pipeline then runs on the CPU.
#[derive(Parser)]
#[command(name = "validate_environment", version = version(), after_help = EXIT_CODES)]
struct Arguments {
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the program; its exit code.
pub fn main() -> ExitCode {
    run(&Arguments::parse().common).unwrap_or_else(|error| fail(&error))
}

fn run(common: &CommonArgs) -> anyhow::Result<ExitCode> {
    common.start_logging(Level::WARN);
    let project = common.project()?;
    let (environment, report) = crate::doctor::environment::examine(&project, &common.choices());
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
