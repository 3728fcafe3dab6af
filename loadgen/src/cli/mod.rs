//! The command line: one module for each command, and what they share.
//!
//! A command gives whether all was well; the exit code is 0 then, 1 if something was lost, repeated or refused to work, and
//! 2 if the arguments make no sense.

mod besiege;
mod compare;
mod delay;
mod ledger;
mod live;
mod names;
mod output;
mod profile;
mod send;
mod signals;
mod sink;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Load for mail servers: a source, a destination, a ledger between them, and reports.
#[derive(Parser)]
#[command(version, name = "ringpost-load")]
struct CommandLine {
    #[command(subcommand)]
    act: Act,
}

#[derive(Subcommand)]
enum Act {
    /// Send messages, in a closed loop of sessions or by a schedule.
    Send(Box<send::Arguments>),
    /// Receive messages, or do to those who send them what rules say.
    Sink(sink::Arguments),
    /// Compare what was acknowledged with what arrived.
    Ledger(ledger::Arguments),
    /// Compare two runs: each difference with its spread.
    Compare(compare::Arguments),
    /// Run named loads against a relay that is started for them, and write the report.
    Profile(profile::Arguments),
    /// Dawdle and guess: what a well-behaved client gets meanwhile is the question.
    Besiege(besiege::Arguments),
    /// Make the other end of connections seem far away.
    Delay(delay::Arguments),
    /// Be the name server of as many domains as a load likes to have.
    Names(names::Arguments),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let result = match CommandLine::parse().act {
        Act::Send(arguments) => send::run(&arguments),
        Act::Sink(arguments) => sink::run(&arguments),
        Act::Ledger(arguments) => ledger::run(&arguments),
        Act::Compare(arguments) => compare::run(&arguments),
        Act::Profile(arguments) => profile::run(&arguments),
        Act::Besiege(arguments) => besiege::run(&arguments),
        Act::Delay(arguments) => delay::run(&arguments),
        Act::Names(arguments) => names::run(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ringpost-load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A time on the command line.
fn parse_time(text: &str) -> Result<std::time::Duration, String> {
    ringpost_load::receive::rules::parse_span(text)
        .ok_or_else(|| "give a time as in 500us, 250ms, 30s, 5m or 2h".to_owned())
}

/// The number of a core on the command line.
fn parse_cpu(text: &str) -> Result<usize, String> {
    let most = ringpost_load::engine::CPUS_MAX;
    text.parse().ok().filter(|cpu| *cpu < most).ok_or_else(|| format!("cores are numbered from 0, below {most}"))
}
