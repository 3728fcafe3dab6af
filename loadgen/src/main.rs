//! `ringpost-load`: sends load to a mail server, receives what it delivers, and says in figures what happened.

use clap::{Args, Parser, Subcommand};
use ringpost_load::ledger::Ledger;
use ringpost_load::random::seed_of_now;
use ringpost_load::report::Summary;
use ringpost_load::sink::{Sink, SinkConfig};
use ringpost_load::source::{Source, SourceConfig};
use ringpost_load::workload::{Sizes, Workload};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Load for mail servers, and a destination that counts what arrives.
#[derive(Parser)]
#[command(version, name = "ringpost-load")]
struct CommandLine {
    #[command(subcommand)]
    act: Act,
    /// Print the figures as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Act {
    /// Send messages over several sessions; with --sink also receive them and compare.
    Send(SendArguments),
    /// Receive messages until standard input ends.
    Sink(SinkArguments),
}

#[derive(Args)]
struct SendArguments {
    /// The server to send to.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// Sessions at a time.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4000))]
    sessions: u16,
    /// Messages in all, at most.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    messages: u32,
    /// Time in which messages are begun, at most.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Octets of each message, or "mixed" for sizes up to several hundred kilobytes.
    #[arg(long, default_value = "1024", value_name = "N|mixed")]
    size: Sizes,
    /// Recipients of a message, at most; each has a random number of them.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    recipients: u16,
    /// Recipients in a hundred that the sink is to refuse for now.
    #[arg(long, default_value_t = 0, value_name = "PERCENT")]
    refuse_for_now: u64,
    /// Recipients in a hundred that the sink is to refuse for good.
    #[arg(long, default_value_t = 0, value_name = "PERCENT")]
    refuse_for_good: u64,
    /// Messages of one connection.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    per_connection: u32,
    /// The domain of all addresses.
    #[arg(long, default_value = "load.example", value_name = "NAME")]
    domain: String,
    /// Repeats the messages of another run.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Receive here what the server delivers, wait for all of it, and compare.
    #[arg(long, value_name = "ADDR:PORT")]
    sink: Option<SocketAddr>,
    /// With --sink: the longest time without any arrival while some are missing.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", requires = "sink")]
    patience: u64,
}

#[derive(Args)]
struct SinkArguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:2626", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Do not offer CHUNKING.
    #[arg(long)]
    no_chunking: bool,
    /// Messages in a hundred that are answered slowly.
    #[arg(long, default_value_t = 0, value_name = "PERCENT")]
    slow: u64,
    /// How slowly, at most.
    #[arg(long, default_value_t = 30, value_name = "MILLISECONDS")]
    slow_by: u64,
    /// Messages in a hundred at whose end the connection is dropped.
    #[arg(long, default_value_t = 0, value_name = "PERCENT")]
    drop: u64,
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let result = match &command_line.act {
        Act::Send(arguments) => send(arguments),
        Act::Sink(arguments) => sink(arguments),
    };
    match result {
        Ok((summary, good)) => {
            if command_line.json {
                println!("{}", summary.to_json());
            } else {
                print!("{summary}");
            }
            if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("ringpost-load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Sends, and says whether all is well: something was acknowledged, and nothing lost or damaged.
fn send(arguments: &SendArguments) -> io::Result<(Summary, bool)> {
    let ledger = Arc::new(Ledger::default());
    let sink = match arguments.sink {
        Some(listen) => Some(Sink::start(SinkConfig::new(listen), ledger.clone())?),
        None => None,
    };
    let workload = Workload {
        sizes: arguments.size.clone(),
        recipients_max: arguments.recipients,
        refused_for_now: arguments.refuse_for_now,
        refused_for_good: arguments.refuse_for_good,
        domain: arguments.domain.clone(),
        ..Workload::plain(arguments.seed.unwrap_or_else(seed_of_now), 0)
    };
    let config = SourceConfig {
        sessions: usize::from(arguments.sessions),
        messages: arguments.messages,
        duration: Duration::from_secs(arguments.seconds),
        per_connection: arguments.per_connection,
        ..SourceConfig::new(arguments.to)
    };
    let started = Instant::now();
    let source = Source::start(config, workload, ledger.clone()).join();
    let elapsed = started.elapsed();
    let mut good = source.acknowledged > 0;
    let mut findings = None;
    if sink.is_some() {
        ledger.wait_complete(Duration::from_secs(arguments.patience));
        let found = ledger.findings();
        good &= found.lost.is_empty() && found.damaged.is_empty();
        findings = Some(found);
    }
    Ok((Summary { elapsed, source: Some(source), sink: sink.map(|sink| sink.report()), findings }, good))
}

fn sink(arguments: &SinkArguments) -> io::Result<(Summary, bool)> {
    let config = SinkConfig {
        chunking: !arguments.no_chunking,
        slow_percent: arguments.slow,
        slow: Duration::from_millis(arguments.slow_by),
        drop_untaken_percent: arguments.drop,
        ..SinkConfig::new(arguments.listen)
    };
    let started = Instant::now();
    let ledger = Arc::new(Ledger::default());
    let sink = Sink::start(config, ledger.clone())?;
    eprintln!("ringpost-load: listening on {}; ends with its standard input", sink.address());
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    let report = sink.report();
    let findings = Some(ledger.findings());
    Ok((Summary { elapsed: started.elapsed(), source: None, sink: Some(report), findings }, true))
}
