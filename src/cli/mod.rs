//! The command line: what `ringpost` understands, and what each command does. main.rs only calls [`run`].
//!
//! Exit codes are those of sysexits.h, so that scripts can tell what went wrong; they are listed in [`exit`] and in
//! `ringpost --help`. Results go to standard output, everything else to standard error: what happened, where, and
//! what to do.

mod args;
mod certificate;
mod classify;
mod client;
mod documents;
mod domain;
mod identity;
mod identity_args;
mod queue;
mod sandbox;
mod send;
mod serve;
mod shaping;
mod spool;
mod status;
mod suppression;
mod table;

pub use args::Cli;

use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;

/// The exit codes.
pub mod exit {
    /// All is well.
    pub const OK: u8 = 0;
    /// Nothing was found, or the message was refused.
    pub const NOTHING: u8 = 1;
    /// Wrong flags (EX_USAGE).
    pub const USAGE: u8 = 64;
    /// The spool is damaged (EX_DATAERR).
    pub const DATA: u8 = 65;
    /// A file is not there (EX_NOINPUT).
    pub const NO_INPUT: u8 = 66;
    /// Not running, or not reachable, or not possible yet (EX_UNAVAILABLE).
    pub const UNAVAILABLE: u8 = 69;
    /// Reading or writing failed (EX_IOERR).
    pub const IO: u8 = 74;
    /// Try again later (EX_TEMPFAIL).
    pub const TEMPORARY: u8 = 75;
    /// The configuration is wrong (EX_CONFIG).
    pub const CONFIG: u8 = 78;
}

/// Why a command failed: its exit code and what a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    fn new(code: u8, text: impl Into<String>) -> Failure {
        Failure { code, text: text.into() }
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Failure {
        let missing = error.place.is_none() && error.file.is_some();
        Failure::new(if missing { exit::NO_INPUT } else { exit::CONFIG }, error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    /// Writing the result failed. A reader that has gone (as `head` does) is no reason to complain.
    fn from(error: std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::new(exit::OK, ""),
            _ => Failure::new(exit::IO, format!("the result cannot be written: {error}")),
        }
    }
}

/// Runs the command that the arguments name; the first is the program's own name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let program = arguments.first().map_or_else(|| "ringpost".into(), |name| name.to_string_lossy().into_owned());
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let asked = !error.use_stderr();
            // Where the terminal is gone there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(if asked { exit::OK } else { exit::USAGE });
        }
    };
    match dispatch(cli, &program) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if !failure.text.is_empty() {
                eprintln!("ringpost: {}", failure.text);
            }
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(cli: Cli, program: &str) -> Result<u8, Failure> {
    match cli.command {
        args::Command::Serve(serve_args) => serve::run(*serve_args, program),
        args::Command::CheckConfig { file } => serve::check_config(&file),
        args::Command::Queue { command } => queue::run(command),
        args::Command::Status(status_args) => status::run(&status_args),
        args::Command::Tenant { command } => identity::tenant(command),
        args::Command::Credential { command } => identity::credential(command),
        args::Command::Domain { command } => domain::domain(command),
        args::Command::Suppression { command } => suppression::suppression(command),
        args::Command::Certificate { command } => certificate::certificate(command),
        args::Command::Shaping(shaping_args) => shaping::run(&shaping_args),
        args::Command::Sandbox { command } => sandbox::run(command),
        args::Command::Classify(classify_args) => classify::run(&classify_args),
        args::Command::Spool { command } => spool::run(command),
        args::Command::Send(send_args) => send::run(*send_args),
        args::Command::Completions { shell } => documents::completions(shell),
        args::Command::Man { directory } => documents::man_pages(&directory),
    }
}
