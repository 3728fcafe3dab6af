//! `ringpost-load profile`.

use super::live::Live;
use super::output;
use clap::Args;
use ringpost_load::html;
use ringpost_load::profiles::{ALL, Named, Setting};
use ringpost_load::random::seed_of_now;
use std::io::{self, Write};
use std::path::PathBuf;

/// Starts a relay and a destination, sends a named load, checks that nothing was lost or repeated, and writes the report.
///
///   accept    1 KB messages made durable, none delivered until all are accepted
///   deliver   1 KB messages accepted and delivered to one destination
///   burst     idle, then all messages at once over many connections
///   mixed     sizes to several hundred KB, one to five recipients, some refused
///   tls       STARTTLS towards the relay, and offered by the destination
///   deferred  a third of the recipients refused for now, once or twice
///   domains   recipients over many domains by Zipf's law
///   restart   a backlog, the relay killed, and all of it delivered afterwards
///   latency   1 KB messages at half of the rate that a closed loop has reached, beside a bare sync of the disk
///   waiting   a million recipients over 10,000 domains, each deferred once; a restart; then all are delivered
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// Which ones; all if none is named.
    #[arg(value_name = "NAME", value_parser = parse_name)]
    names: Vec<Named>,
    /// Hundreds of messages instead of tens of thousands.
    #[arg(long)]
    quick: bool,
    /// The relay's executable [default: `ringpost` beside this one].
    #[arg(long, value_name = "FILE")]
    ringpost: Option<PathBuf>,
    /// Where spools are made and removed again; on the disk that is to be measured.
    #[arg(long, default_value = "var/load", value_name = "DIR")]
    dir: PathBuf,
    /// Where the report is written.
    #[arg(long, default_value = "var/load-report", value_name = "DIR")]
    out: PathBuf,
    /// Shards of the relay.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    shards: u8,
    /// Repeats the messages of another run.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

fn parse_name(name: &str) -> Result<Named, String> {
    Named::find(name).ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|one| one.name).collect();
        format!("the profiles are {}", names.join(", "))
    })
}

/// Runs the profiles.
pub fn run(arguments: &Arguments) -> io::Result<bool> {
    let binary = match &arguments.ringpost {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("ringpost"),
    };
    if !binary.exists() {
        return Err(io::Error::other(format!(
            "{} is not there; build it, or name it with --ringpost",
            binary.display()
        )));
    }
    let directory = arguments.dir.join(format!("run-{}", std::process::id()));
    let setting = Setting {
        binary,
        directory: directory.clone(),
        quick: arguments.quick,
        shards: arguments.shards,
        seed: arguments.seed.unwrap_or_else(seed_of_now),
    };
    let names = if arguments.names.is_empty() { ALL.to_vec() } else { arguments.names.clone() };
    let (mut all, mut good) = (Vec::new(), true);
    for named in names {
        let mut live = Live::new();
        let ran = named.run(&setting, &mut |point, queued| live.show(point, queued))?;
        drop(live);
        let clean = ran.results.ledger.is_some_and(|ledger| ledger.is_clean());
        good &= clean && ran.tally.acknowledged > 0;
        let histograms = [("latency", &ran.tally.latency), ("transaction", &ran.tally.service)];
        output::write_files(&ran.results, &histograms, &arguments.out)?;
        io::stdout().write_all(ran.results.to_string().as_bytes())?;
        // What went wrong stays to be looked at.
        if clean {
            std::fs::remove_dir_all(directory.join(named.name))?;
        }
        all.push(ran.results);
    }
    let page = html::page_of_profiles("ringpost under load", &all)?;
    let index = arguments.out.join("index.html");
    std::fs::write(&index, page)?;
    if good {
        std::fs::remove_dir_all(&directory)?;
    }
    writeln!(io::stdout(), "report: {}", index.display())?;
    Ok(good)
}
