//! `ringpost-load names`.

use super::signals;
use clap::Args;
use ringpost_load::names::NameServer;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

/// Answers questions for mail hosts with made-up ones, by UDP and TCP, until interrupted; then says how many.
///
/// Each name NAME has the MX record mx.NAME, and each name that begins with mx. an address in 127.0.0.0/8 made from it. So
/// a relay with `--resolver` and `--delivery-port N` delivers to a site for each domain, and a destination that listens on
/// 0.0.0.0:N is all of them.
#[derive(Args)]
pub struct Arguments {
    /// Where to answer; port 0 for any free one.
    #[arg(long, default_value = "127.0.0.1:5300", value_name = "ADDR:PORT")]
    listen: SocketAddr,
}

/// How often an interrupt is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Answers until interrupted.
pub fn run(arguments: &Arguments) -> io::Result<bool> {
    signals::watch();
    let server = NameServer::start(arguments.listen)?;
    eprintln!("ringpost-load: {} answers", server.address());
    while !signals::asked_to_stop() && !server.has_failed() {
        std::thread::sleep(LOOK);
    }
    let answered = server.answered();
    server.stop()?;
    writeln!(io::stdout(), "answered {answered}")?;
    Ok(true)
}
