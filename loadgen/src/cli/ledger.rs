//! `ringpost-load ledger`.

use clap::Args;
use ringpost_load::ledger::Ledger;
use ringpost_load::record;
use ringpost_load::results::LedgerFigures;
use std::io::{self, Write};
use std::path::PathBuf;

/// Compares what sources noted with what destinations noted (`send --ledger FILE`, `sink --ledger FILE`).
///
/// The exit code is 0 when nothing was lost, repeated or damaged.
#[derive(Args)]
pub struct Arguments {
    /// The files of all sources and destinations, in any order.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    /// Show so many messages of each kind of trouble.
    #[arg(long, default_value_t = 10, value_name = "N")]
    show: usize,
}

/// Compares.
pub fn run(arguments: &Arguments) -> io::Result<bool> {
    let ledger = Ledger::default();
    for file in &arguments.files {
        record::read(file, &ledger)?;
    }
    let findings = ledger.findings();
    let figures = LedgerFigures::of(&findings);
    let mut text = if arguments.json {
        serde_json::to_string(&figures).map_err(io::Error::other)? + "\n"
    } else {
        format!("{figures}\n")
    };
    if !arguments.json {
        for lost in findings.lost.iter().take(arguments.show) {
            let (token, index) = (lost.destination.token, lost.destination.index);
            text.push_str(&format!("lost      {token} for recipient {index}, acknowledged as {}\n", lost.id));
        }
        for repeated in findings.repeated.iter().chain(&findings.notified_again).take(arguments.show) {
            let (token, index, times) = (repeated.token, repeated.index, repeated.times);
            text.push_str(&format!("repeated  {token} for recipient {index}, {times} times\n"));
        }
        for damaged in findings.damaged.iter().take(arguments.show) {
            text.push_str(&format!("damaged   {damaged}\n"));
        }
        for strange in findings.strange.iter().take(arguments.show) {
            text.push_str(&format!("strange   {strange}\n"));
        }
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(figures.is_clean())
}
