//! The `kennel` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    kennel::cli::run(std::env::args_os())
}
