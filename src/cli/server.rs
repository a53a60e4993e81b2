//! The REST server: `/health`, `/extract`, `/analyze`, `/benchmark`, `/docs`.

use std::process::ExitCode;
use std::sync::Arc;

use crate::cli::{AdapterArgs, CommonArgs, fail, say_warnings};
use crate::console::{Level, say, say_lines};
use crate::device::{Selected, gpu_memory};
use crate::engine::{Engine, LoadOptions, Reader};
use crate::records::mebibytes;
use crate::server::{self, GpuFigures, Readiness, ServerOptions, ServerState};
use crate::version::version;
use actix_web::web::Data;
use clap::Parser;

const EXIT_CODES: &str = "\
Exit codes:
  0    stopped by SIGTERM or Ctrl-C after draining in-flight requests
  1    cannot listen, cannot load the model, or in-flight requests exceeded --shutdown-seconds
  2    invalid command line
  130, 143  stopped immediately by a second Ctrl-C or SIGTERM";

/// Serve document extraction over HTTP
///
/// Routes: GET /health, POST /extract, POST /analyze, GET /benchmark; /docs describes them.
/// Listens immediately and loads the model in the background; /health reports readiness. If the model cannot be loaded, the
/// process exits with code 1, so that a supervisor notices.
#[derive(Parser)]
#[command(name = "server", version = version(), after_help = EXIT_CODES)]
struct Arguments {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the program; its exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.common.start_logging(Level::INFO);
    server::forbid_core_dumps();
    let served = actix_web::rt::System::new().block_on(serve(arguments));
    served.unwrap_or_else(|error| fail(&error))
}

async fn serve(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments {
        server: options,
        adapter,
        common,
    } = arguments;
    let listener = server::bind(&options)?;
    let project = common.project()?;
    let model = common.served_model(&project)?;
    let adapter = adapter.named_or_found(&project, &model.path)?;
    let selected = common.select_device()?;
    let load_options = LoadOptions {
        device: selected.device,
        precision: common.precision.into(),
        adapter,
        ..LoadOptions::default()
    };
    let address = listener.local_addr()?;
    let folder = model.path.display();
    say(
        Level::INFO,
        &format!("listening on http://{address}; loading {folder}"),
    );
    let load = move || {
        let reader = Reader::load(&model.path, &load_options)?;
        say_warnings(reader.warnings());
        Ok(reader)
    };
    let engine = Arc::new(Engine::start(load, options.engine())?);
    let state = ServerState::new(engine, options, project.benchmarks());
    let state = state.with_gpu(move || gpu_figures(&selected));
    let announce = |readiness: &Readiness| say_lines(Level::INFO, &readiness.to_string());
    Ok(server::run(listener, Data::new(state), announce).await?)
}

fn gpu_figures(selected: &Selected) -> GpuFigures {
    let Some(gpu) = &selected.gpu else {
        return GpuFigures::default();
    };
    GpuFigures {
        available: true,
        name: Some(gpu.name.clone()),
        used_mb: gpu_memory(gpu.index).map_or(0.0, |memory| mebibytes(memory.used_bytes)),
        total_mb: mebibytes(gpu.total_bytes),
    }
}
