//! `ringpost-load besiege`.

use super::{parse_time, signals};
use clap::Args;
use ringpost_load::send::tls_client;
use ringpost_load::siege::{self, NETWORKS_MAX, SESSIONS_MAX, SiegeConfig};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Opens sessions that give an octet a second, and sessions that guess passwords, and opens them again when they are cut.
///
/// Run `ringpost-load send` beside it to see what a well-behaved client gets. Only for servers of your own.
#[derive(Args)]
pub struct Arguments {
    /// The server; an address of loopback.
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_loopback)]
    to: SocketAddr,
    /// Sessions that dawdle: silent, in a command, in content, in a handshake.
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(SESSIONS_MAX / 2)))]
    slow: u32,
    /// Sessions that guess passwords under TLS.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(SESSIONS_MAX / 2)))]
    guessing: u32,
    /// Networks (/24) of 127.0.0.0/8 that they come from.
    #[arg(long, default_value_t = 250, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(NETWORKS_MAX)))]
    networks: u32,
    /// TLS from the first octet, instead of STARTTLS.
    #[arg(long)]
    implicit: bool,
    /// How long.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_time)]
    time: Duration,
}

fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() && address.is_ipv4() => Ok(address),
        _ => Err("give an address of 127.0.0.0/8 with a port".to_owned()),
    }
}

/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Besieges for the time given or until interrupted.
pub fn run(arguments: &Arguments) -> io::Result<bool> {
    signals::watch();
    let config = SiegeConfig {
        to: arguments.to,
        slow: arguments.slow,
        guessing: arguments.guessing,
        networks: arguments.networks,
        implicit: arguments.implicit,
        tls: tls_client(true)?,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let besieging = {
        let stop = stop.clone();
        std::thread::Builder::new().name("siege".to_owned()).spawn(move || siege::run(config, &stop))?
    };
    let end = Instant::now() + arguments.time;
    while Instant::now() < end && !signals::asked_to_stop() && !besieging.is_finished() {
        std::thread::sleep(LOOK);
    }
    stop.store(true, Ordering::Relaxed);
    let report = besieging.join().map_err(|_panic| io::Error::other("the siege panicked"))??;
    let answers: Vec<String> = report.answers.iter().map(|(code, count)| format!("{count} times {code}")).collect();
    writeln!(
        io::stdout(),
        "connections {}, refused {}, cut {}, open at the end {}, octets given one by one {}\nguesses answered: {}",
        report.connections,
        report.refused,
        report.cut,
        report.open,
        report.octets,
        if answers.is_empty() { "none".to_owned() } else { answers.join(", ") }
    )?;
    Ok(true)
}
