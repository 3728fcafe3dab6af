//! `ringpost-load sink`.

use super::{parse_cpu, signals};
use clap::Args;
use ringpost_load::receive::rules::Rule;
use ringpost_load::receive::{Figures, ReceiveConfig, Receiver, self_signed};
use ringpost_load::record::Record;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Receives messages until it is interrupted (Ctrl-C or SIGTERM), then says what came.
///
/// A rule is SUBJECT ACTION[=ARGUMENT] [N/1000]. The subject is * for all, a domain of recipients, :PORT or ADDR:PORT of a
/// listener. Actions:
///
///   accept                 takes it, and no later rule counts
///   defer, reject          answers RCPT with 450, 550
///   defer-content, reject-content   answers the content with 451, 554
///   greylist=TIME          451 until so long after a sender and recipient were first seen
///   close-after=N          421 after N messages of a connection
///   slow=TIME              the answer to the content comes so late
///   stall                  the content is never answered
///   drop-before            breaks off instead of an answer, and has not taken the message
///   drop-unanswered        takes the message, and breaks off instead of an answer
///   drop-after             breaks off after the answer
///   refuse                 resets the connection at once
///   broken-tls             agrees to STARTTLS and sends what is no TLS
///   connections=N          more at a time get 421, and count as violations
///   rate=N[/TIME]          more messages in any second, or TIME, get 450, and count as violations
///
/// As in: --rule 'slow.example slow=2s' --rule '* defer 20/1000' --rule ':2627 connections=10'
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// Where to listen; repeat for several.
    #[arg(long, default_value = "127.0.0.1:2626", value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    /// Where to listen for TLS from the first octet.
    #[arg(long, value_name = "ADDR:PORT")]
    listen_tls: Vec<SocketAddr>,
    /// Offer STARTTLS, with a certificate made for the occasion.
    #[arg(long)]
    tls: bool,
    /// Do not offer CHUNKING.
    #[arg(long)]
    no_chunking: bool,
    /// Offer AUTH PLAIN and LOGIN for this user.
    #[arg(long, value_name = "USER:PASSWORD")]
    auth: Option<String>,
    /// Engines, each a thread.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Keep the threads on these cores, in turn [default: wherever the kernel likes].
    #[arg(long, value_name = "N[,N..]", value_delimiter = ',', value_parser = parse_cpu)]
    cpu: Vec<usize>,
    /// What is done to whom; repeat for several, which are walked in order.
    #[arg(long, value_name = "RULE")]
    rule: Vec<Rule>,
    /// More rules from a file, one a line; # begins a comment.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// What rules draw by chance comes from it.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Examine each content and note it in this file, for `ringpost-load ledger`.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// End after so many messages.
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// Print what came as JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn config(&self) -> io::Result<ReceiveConfig> {
        let mut rules = self.rule.clone();
        if let Some(path) = &self.rules {
            let text = std::fs::read_to_string(path)?;
            for (number, line) in text.lines().enumerate() {
                let line = line.split('#').next().unwrap_or_default().trim();
                if !line.is_empty() {
                    let fail = |error| io::Error::other(format!("{}, line {}: {error}", path.display(), number + 1));
                    rules.push(line.parse().map_err(fail)?);
                }
            }
        }
        let auth = self.auth.as_deref().and_then(|text| text.split_once(':'));
        Ok(ReceiveConfig {
            listen: self.listen.clone(),
            listen_tls: self.listen_tls.clone(),
            threads: self.threads as usize,
            cpus: self.cpu.clone(),
            seed: self.seed,
            chunking: !self.no_chunking,
            tls: if self.tls || !self.listen_tls.is_empty() { Some(self_signed()?) } else { None },
            auth: auth.map(|(user, password)| (user.to_owned(), password.to_owned())),
            rules,
        })
    }
}

/// How often the line on a terminal is written, and the end is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Receives until interrupted.
pub fn run(arguments: &Arguments) -> io::Result<bool> {
    let record = arguments.ledger.as_deref().map(Record::file).transpose()?.unwrap_or_default();
    signals::watch();
    let receiver = Receiver::start(arguments.config()?, record.clone())?;
    let figures = receiver.figures();
    let places: Vec<String> = receiver.addresses().iter().map(SocketAddr::to_string).collect();
    eprintln!("ringpost-load: listening on {}", places.join(", "));
    let mut line = Line { at: Instant::now(), messages: 0 };
    let enough = |figures: &Figures| {
        arguments.messages.is_some_and(|most| figures.messages.load(std::sync::atomic::Ordering::Relaxed) >= most)
    };
    while !signals::asked_to_stop() && !receiver.has_failed() && !enough(&figures) {
        std::thread::sleep(LOOK);
        line.show(&figures);
    }
    receiver.stop()?;
    record.flush()?;
    let named = figures.named();
    let mut text = String::new();
    if arguments.json {
        let map: serde_json::Map<String, serde_json::Value> =
            named.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
        text = serde_json::Value::Object(map).to_string() + "\n";
    } else {
        for (name, count) in named.iter().filter(|(_, count)| *count > 0) {
            text.push_str(&format!("{name:<20} {count}\n"));
        }
        let (_, cpu) = named[named.len() - 1];
        let (_, messages) = named[3];
        text.push_str(&format!("{:<20} {:.2}\n", "cpu_us_per_message", cpu as f64 / messages.max(1) as f64));
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(true)
}

/// The line on a terminal.
struct Line {
    at: Instant,
    messages: u64,
}

impl Line {
    fn show(&mut self, figures: &Figures) {
        let span = self.at.elapsed();
        if span < Duration::from_secs(1) || !io::stderr().is_terminal() {
            return;
        }
        let [_, (_, open), _, (_, messages), ..] = figures.named();
        let rate = (messages - self.messages) as f64 / span.as_secs_f64();
        // A terminal that is gone does not end the destination.
        let _ = write!(io::stderr(), "\r\x1b[K{messages} messages  {rate:8.0}/s  {open} connections");
        self.at = Instant::now();
        self.messages = messages;
    }
}
