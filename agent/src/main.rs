//! The caudal program.

fn main() -> std::process::ExitCode {
    caudal::cli::main()
}
