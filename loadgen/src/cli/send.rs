//! `ringpost-load send`.

use super::live::Live;
use super::output::{self, OutputArguments};
use super::{parse_cpu, parse_time, signals};
use clap::{Args, ValueEnum};
use ringpost_load::ledger::Ledger;
use ringpost_load::random::seed_of_now;
use ringpost_load::receive::{ReceiveConfig, Receiver};
use ringpost_load::record::Record;
use ringpost_load::relay::waiting;
use ringpost_load::results::{LedgerFigures, Results};
use ringpost_load::send::protocol::{AuthMethod, TlsMode};
use ringpost_load::send::schedule::Profile;
use ringpost_load::send::{self, SendConfig, Sender};
use ringpost_load::workload::{Domains, Sizes, Workload};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Sends messages and says how long each took.
///
/// Without --rate or --profile each session sends one message after the other (a closed loop). With either, messages become
/// due by a schedule that does not wait for the server, and latency counts from when a message was due: what a stalled
/// server makes others wait is in the figures (no coordinated omission).
#[derive(Args)]
pub struct Arguments {
    /// The server; repeat for several, which connections take in turn.
    #[arg(long, required = true, value_name = "ADDR:PORT")]
    to: Vec<SocketAddr>,
    /// Connections at a time.
    #[arg(long, short = 's', default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    sessions: u32,
    /// Engines, each a thread with its share of the sessions.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Keep the threads on these cores, in turn [default: wherever the kernel likes].
    #[arg(long, value_name = "N[,N..]", value_delimiter = ',', value_parser = parse_cpu)]
    cpu: Vec<usize>,
    /// Messages in all, at most.
    #[arg(long, short = 'm', default_value_t = 10_000, value_name = "N")]
    messages: u64,
    /// Time in which messages are begun, at most.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_time)]
    time: Duration,
    /// The longest wait for a reply.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_time)]
    patience: Duration,

    /// Messages a second: the same as --profile constant:RATE.
    #[arg(long, value_name = "RATE", conflicts_with = "profile", help_heading = "How load comes")]
    rate: Option<f64>,
    /// closed, constant:RATE, ramp:FROM-TO:TIME, step:RATE,RATE,..:TIME, burst:MESSAGES[:IDLE], sine:MEAN:AMPLITUDE:PERIOD,
    /// or trace:FILE with lines of SECONDS [OCTETS [RECIPIENTS]].
    #[arg(long, default_value = "closed", value_name = "PROFILE", help_heading = "How load comes")]
    profile: Profile,
    /// Random distances between messages with the profile's rate (a Poisson process), instead of even ones.
    #[arg(long, help_heading = "How load comes")]
    poisson: bool,
    /// Connect when a message is due and no connection is free, instead of beforehand.
    #[arg(long, help_heading = "How load comes")]
    cold: bool,
    /// In a closed loop, the pause of a session after each message.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = parse_time, help_heading = "How load comes")]
    think: Duration,

    /// Octets of a message: N, "mixed" up to several hundred kilobytes, or ranges with weights as in 1k-4k*80,50k*20.
    #[arg(long, default_value = "1024", value_name = "SIZES", help_heading = "What is sent")]
    size: Sizes,
    /// Recipients of a message: N, or N-N for a random number.
    #[arg(long, default_value = "1", value_name = "N[-N]", value_parser = parse_recipients, help_heading = "What is sent")]
    recipients: (u16, u16),
    /// The domain of all addresses.
    #[arg(long, default_value = "load.example", value_name = "NAME", help_heading = "What is sent")]
    domain: String,
    /// Spread recipients over so many domains d0.NAME, d1.NAME and so on.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000), help_heading = "What is sent")]
    domains: u32,
    /// The weight of domain number n is 1/(n+1)^X: 0 for all the same, 1 for the usual.
    #[arg(long, default_value_t = 1.0, value_name = "X", help_heading = "What is sent")]
    zipf: f64,
    /// Recipients in a hundred that the sink is to refuse for now.
    #[arg(long, default_value_t = 0, value_name = "PERCENT", value_parser = clap::value_parser!(u64).range(0..=100), help_heading = "What is sent")]
    refuse_for_now: u64,
    /// Recipients in a hundred that the sink is to refuse for good.
    #[arg(long, default_value_t = 0, value_name = "PERCENT", value_parser = clap::value_parser!(u64).range(0..=100), help_heading = "What is sent")]
    refuse_for_good: u64,
    /// Repeats the messages of another run.
    #[arg(long, value_name = "N", help_heading = "What is sent")]
    seed: Option<u64>,

    /// Messages of a connection.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "How it is said")]
    per_connection: u32,
    /// One command at a time, even where the server offers PIPELINING.
    #[arg(long, help_heading = "How it is said")]
    no_pipelining: bool,
    /// Send contents with BDAT where the server offers CHUNKING.
    #[arg(long, help_heading = "How it is said")]
    chunking: bool,
    /// TLS: with STARTTLS, or from the first octet. Certificates are not verified.
    #[arg(long, value_enum, default_value_t = Tls::Off, help_heading = "How it is said")]
    tls: Tls,
    /// Do not resume TLS sessions.
    #[arg(long, help_heading = "How it is said")]
    full_handshakes: bool,
    /// Log in.
    #[arg(long, value_name = "USER:PASSWORD", value_parser = parse_login, help_heading = "How it is said")]
    auth: Option<(String, String)>,
    /// How to log in.
    #[arg(long, value_enum, default_value_t = Method::Plain, help_heading = "How it is said")]
    auth_method: Method,
    /// Connect from this address; repeat for several, which connections take in turn.
    #[arg(long, value_name = "ADDR", help_heading = "How it is said")]
    from: Vec<IpAddr>,
    /// Connect from so many addresses of 127.0.0.0/8 in turn, from 127.0.1.1 on.
    #[arg(long, value_name = "N", conflicts_with = "from", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "How it is said")]
    sources: Option<u32>,

    /// Note each acknowledged message in this file, for `ringpost-load ledger`.
    #[arg(long, value_name = "FILE", conflicts_with = "sink", help_heading = "Results")]
    ledger: Option<PathBuf>,
    /// Receive here what the server delivers, wait for all of it, and compare.
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Results")]
    sink: Option<SocketAddr>,
    /// With --sink: the longest time without any arrival while some are missing.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = parse_time, requires = "sink", help_heading = "Results")]
    arrival_patience: Duration,
    /// Ask a relay at its admin socket how many messages wait, and show that over time.
    #[arg(long, value_name = "PATH", help_heading = "Results")]
    relay_socket: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
enum Tls {
    Off,
    Starttls,
    Implicit,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    Plain,
    Login,
}

fn parse_recipients(text: &str) -> Result<(u16, u16), String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (low.parse(), high.parse()) {
        (Ok(low), Ok(high)) if (1..=high).contains(&low) && high <= 1000 => Ok((low, high)),
        _ => Err("give a number from 1 to 1000, or two of them as in 1-5".to_owned()),
    }
}

fn parse_login(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((user, password)) => Ok((user.to_owned(), password.to_owned())),
        None => Err("give a user and a password with a colon between them".to_owned()),
    }
}

/// So many addresses of loopback, from 127.0.1.1 on.
fn loopback_addresses(count: u32) -> Vec<IpAddr> {
    (0..count).map(|number| IpAddr::V4(Ipv4Addr::from(0x7f00_0101 + number))).collect()
}

impl Arguments {
    fn workload(&self) -> Workload {
        Workload {
            sizes: self.size.clone(),
            recipients_min: self.recipients.0,
            recipients_max: self.recipients.1,
            refused_for_now: self.refuse_for_now,
            refused_for_good: self.refuse_for_good,
            domain: self.domain.clone(),
            domains: (self.domains > 1).then(|| Domains::zipf(self.domains, self.zipf)),
            ..Workload::plain(self.seed.unwrap_or_else(seed_of_now), 0)
        }
    }

    fn config(&self, seed: u64) -> io::Result<SendConfig> {
        let mut config = SendConfig::new(self.to[0], &self.domain);
        config.targets = self.to.clone();
        config.sources = self.sources.map_or_else(|| self.from.clone(), loopback_addresses);
        config.threads = self.threads as usize;
        config.cpus = self.cpu.clone();
        config.sessions = self.sessions as usize;
        config.profile = match self.rate {
            Some(rate) => format!("constant:{rate}").parse().map_err(io::Error::other)?,
            None => self.profile.clone(),
        };
        config.random_by = self.poisson.then_some(seed);
        config.messages = self.messages;
        config.duration = self.time;
        config.patience = self.patience;
        config.per_connection = self.per_connection;
        config.think = self.think;
        config.cold = self.cold;
        config.client.pipelining = !self.no_pipelining;
        config.client.chunking = self.chunking;
        config.client.tls = match self.tls {
            Tls::Off => TlsMode::Off,
            Tls::Starttls => TlsMode::Start,
            Tls::Implicit => TlsMode::Implicit,
        };
        if self.tls != Tls::Off {
            config.tls = Some((send::tls_client(self.full_handshakes)?, self.domain.clone()));
        }
        let method = if self.auth_method == Method::Plain { AuthMethod::Plain } else { AuthMethod::Login };
        config.client.auth = self.auth.clone().map(|(user, password)| (method, user, password));
        Ok(config)
    }
}

/// Sends, and says whether all is well: something was acknowledged, and nothing lost, repeated or damaged.
pub fn run(arguments: &Arguments) -> io::Result<bool> {
    let workload = arguments.workload();
    let config = arguments.config(workload.seed)?;
    let ledger = Arc::new(Ledger::default());
    let record = match (&arguments.ledger, arguments.sink) {
        (Some(path), _) => Record::file(path)?,
        (None, Some(_)) => Record::Ledger(ledger.clone()),
        (None, None) => Record::Nothing,
    };
    let sink = arguments.sink.map(|listen| Receiver::start(ReceiveConfig::new(listen), record.clone())).transpose()?;
    signals::watch();
    let sender = Sender::start(config, workload, record.clone())?;
    let stop = sender.stop_handle();
    let mut live = Live::new();
    let (tally, points) = sender.finish(|point| {
        stop.fetch_or(signals::asked_to_stop(), Ordering::Relaxed);
        let queued = arguments.relay_socket.as_deref().and_then(waiting);
        live.show(point, queued);
        queued
    })?;
    drop(live);
    record.flush()?;
    let mut results = Results::new(&arguments.output.label, &output::command(), &tally, points);
    if let Some(sink) = sink {
        ledger.wait_complete(arguments.arrival_patience);
        results.sink = sink.figures().named().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        results.ledger = Some(LedgerFigures::of(&ledger.findings()));
        sink.stop()?;
    }
    let histograms = [("latency", &tally.latency), ("transaction", &tally.service), ("connecting", &tally.connecting)];
    output::give(&results, &histograms, &arguments.output)?;
    Ok(tally.acknowledged > 0 && results.ledger.is_none_or(|ledger| ledger.is_clean()))
}
