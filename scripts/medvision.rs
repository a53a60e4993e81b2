//! All programs in one binary, selected by the name under which it is started; `medvision` by default.

fn main() -> std::process::ExitCode {
    medical_vision::cli::main()
}
