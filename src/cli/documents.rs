//! `ringpost completions` and `ringpost man`: generated from the flags themselves, so that they cannot be out of date.

use super::{Cli, Failure, exit};
use clap::CommandFactory;
use std::io::{self, Write};
use std::path::Path;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringpost", &mut script);
    io::stdout().write_all(&script)?;
    Ok(exit::OK)
}

/// Writes ringpost.1 and one page for each command.
pub fn man_pages(directory: &Path) -> Result<u8, Failure> {
    let failed = |error: io::Error| Failure::new(exit::IO, format!("{}: {error}", directory.display()));
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(failed)?;
    Ok(exit::OK)
}
