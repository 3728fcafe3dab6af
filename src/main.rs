//! The program: hands its arguments to the command line (src/cli) and ends with the exit code that comes back.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ringpost::cli::run(std::env::args_os())
}
