//! All programs in one: `medvision` under its own name, the others under theirs.

fn main() -> std::process::ExitCode {
    medical_vision::cli::main()
}
