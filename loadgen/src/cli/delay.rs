//! `ringpost-load delay`.

use super::{parse_time, signals};
use clap::Args;
use ringpost_load::delay::{self, DelayReport};
use ringpost_load::engine;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Passes connections on and makes the other end seem far away, until interrupted; then says how exact it was.
///
/// Each direction takes half of the round trip, and a connection stands as late as it would. There is no limit of bandwidth
/// and no loss. Its own error is how late bytes went beyond the intended time.
#[derive(Args)]
pub struct Arguments {
    /// Where to listen.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where to pass connections on to.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// The round trip, at most a minute.
    #[arg(long, default_value = "50ms", value_name = "TIME", value_parser = parse_round_trip)]
    rtt: Duration,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn parse_round_trip(text: &str) -> Result<Duration, String> {
    let span = parse_time(text)?;
    if span <= Duration::from_secs(60) { Ok(span) } else { Err("a round trip is at most a minute".to_owned()) }
}

/// How often an interrupt is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Passes on until interrupted.
pub fn run(arguments: &Arguments) -> io::Result<bool> {
    signals::watch();
    let listener = engine::listen(arguments.listen, false)?;
    eprintln!("ringpost-load: {} is {} by {:?}", listener.address, arguments.to, arguments.rtt);
    let report = Arc::new(Mutex::new(DelayReport::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let (to, round_trip) = (arguments.to, arguments.rtt);
    let proxy = {
        let (report, stop) = (report.clone(), stop.clone());
        std::thread::Builder::new()
            .name("delay".to_owned())
            .spawn(move || delay::run(listener, to, round_trip, &report, &stop))?
    };
    while !signals::asked_to_stop() && !proxy.is_finished() {
        std::thread::sleep(LOOK);
    }
    stop.store(true, Ordering::Relaxed);
    proxy.join().map_err(|_panic| io::Error::other("the proxy panicked"))??;
    let report = report.lock().unwrap_or_else(PoisonError::into_inner);
    let text = if arguments.json {
        let error = report.error.distribution();
        serde_json::json!({
            "connections": report.connections,
            "refused": report.refused,
            "octets": report.octets,
            "error": error,
        })
        .to_string()
    } else {
        format!(
            "connections {}, refused {}, octets {}\nown error: {}",
            report.connections, report.refused, report.octets, report.error
        )
    };
    writeln!(io::stdout(), "{text}")?;
    Ok(true)
}
