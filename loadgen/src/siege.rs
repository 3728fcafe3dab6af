//! A siege: very many sessions that dawdle, and some that guess passwords, each opened again when it is cut. Not a load whose
//! own figures matter: what matters is what a well-behaved client sees meanwhile, which `send` measures beside it.
//!
//! Sessions that dawdle are of four kinds: silent, within a command, within a chunk of content that nobody may send, and
//! within a handshake, where there is STARTTLS; else all are within the handshake. Each gives an octet a second. All come from
//! addresses of 127.0.0.0/8, spread over networks, so that limits per client and network see them as strangers' own.

use crate::engine::{self, Close, ConnId, Driver, Ended, Io, TlsRole};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Sessions of a siege, at most.
pub const SESSIONS_MAX: u32 = 50_000;
/// Networks that they come from, at most.
pub const NETWORKS_MAX: u32 = 25_000;
/// How often a session that dawdles gives an octet, and how long it stays away when it was cut.
const DRIP: Duration = Duration::from_secs(1);
/// How long one that guesses stays away.
const BACK_AFTER: Duration = Duration::from_millis(100);
/// The sessions come one by one, within this time.
const ARRIVAL: Duration = Duration::from_secs(2);

/// Who besieges what.
#[derive(Clone, Debug)]
pub struct SiegeConfig {
    /// The server.
    pub to: SocketAddr,
    /// Sessions that dawdle.
    pub slow: u32,
    /// Sessions that guess.
    pub guessing: u32,
    /// Networks (/24) that all of them come from.
    pub networks: u32,
    /// TLS from the first octet, instead of STARTTLS.
    pub implicit: bool,
    /// What is offered.
    pub tls: Arc<rustls::ClientConfig>,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SiegeReport {
    /// Connections that stood.
    pub connections: u64,
    /// Connections that did not.
    pub refused: u64,
    /// Sessions that the server ended.
    pub cut: u64,
    /// Octets given one by one.
    pub octets: u64,
    /// Answers to guesses, by code.
    pub answers: BTreeMap<u16, u64>,
    /// Sessions open at the end.
    pub open: u64,
}

/// Besieges until `stop` is set.
///
/// # Errors
/// When the engine fails.
pub fn run(config: SiegeConfig, stop: &AtomicBool) -> io::Result<SiegeReport> {
    let clients = (0..config.slow + config.guessing).map(|_| Client::default()).collect();
    let mut siege = Siege { config, clients, owners: Vec::new(), report: SiegeReport::default() };
    engine::run(&mut siege, Vec::new(), stop)?;
    Ok(siege.report)
}

/// One session, again and again.
#[derive(Default)]
struct Client {
    conn: Option<ConnId>,
    /// Whole replies seen on this connection.
    replies: u32,
    /// The start of a reply.
    input: Vec<u8>,
    /// Whether an octet is given each second.
    drips: bool,
    dripped: usize,
    guesses: u64,
}

struct Siege {
    config: SiegeConfig,
    clients: Vec<Client>,
    /// The client of a connection, by its place.
    owners: Vec<usize>,
    report: SiegeReport,
}

/// What a client that dawdles does.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Dawdling {
    Silent,
    Command,
    Content,
    Handshake,
}

/// The octets that are given one by one within a handshake: the start of a long first message.
const HANDSHAKE: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

impl Siege {
    fn address(&self, number: usize) -> IpAddr {
        let networks = self.config.networks.max(1) as usize;
        let (network, host) = (number % networks, number / networks);
        Ipv4Addr::new(127, 100 + (network / 250) as u8, (network % 250) as u8, (host % 250) as u8 + 1).into()
    }

    fn dawdling(&self, number: usize) -> Option<Dawdling> {
        if number >= self.config.slow as usize {
            return None;
        }
        Some(match number % 4 {
            _ if self.config.implicit => Dawdling::Handshake,
            0 => Dawdling::Silent,
            1 => Dawdling::Command,
            2 => Dawdling::Content,
            _ => Dawdling::Handshake,
        })
    }

    fn owner(&self, conn: ConnId) -> Option<usize> {
        let number = *self.owners.get(conn.index as usize)?;
        (self.clients.get(number)?.conn == Some(conn)).then_some(number)
    }

    fn connect(&mut self, io: &mut Io, number: usize) {
        let conn = io.connect(self.config.to, Some(self.address(number)));
        let index = conn.index as usize;
        if index >= self.owners.len() {
            self.owners.resize(index + 1, usize::MAX);
        }
        self.owners[index] = number;
        let guesses = self.clients[number].guesses;
        self.clients[number] = Client { conn: Some(conn), guesses, ..Client::default() };
    }

    fn come_back(&mut self, io: &mut Io, number: usize) {
        self.clients[number].conn = None;
        let pause = if self.dawdling(number).is_some() { DRIP } else { BACK_AFTER };
        io.wake_at(Instant::now() + pause, number as u64);
    }

    fn say(&mut self, io: &mut Io, number: usize, text: &[u8]) {
        if let Some(out) = self.clients[number].conn.and_then(|conn| io.output(conn)) {
            out.extend_from_slice(text);
        }
    }

    fn begin_dripping(&mut self, io: &mut Io, number: usize) {
        if !std::mem::replace(&mut self.clients[number].drips, true) {
            io.wake_at(Instant::now() + DRIP, number as u64);
        }
    }

    fn drip(&mut self, io: &mut Io, number: usize) {
        let place = self.clients[number].dripped;
        let octet = match self.dawdling(number) {
            Some(Dawdling::Handshake) => HANDSHAKE.get(place).copied().unwrap_or(0),
            Some(Dawdling::Command) => b"EHLO "[..].get(place).copied().unwrap_or(b'x'),
            _ => b'x',
        };
        self.say(io, number, &[octet]);
        self.clients[number].dripped += 1;
        self.report.octets += 1;
        io.wake_at(Instant::now() + DRIP, number as u64);
    }

    fn start_tls(&mut self, io: &mut Io, number: usize, conn: ConnId) {
        let role = TlsRole::Client(Arc::clone(&self.config.tls), "load.example".to_owned());
        if io.start_tls(conn, role).is_err() {
            io.close(conn, Close::Now);
            self.come_back(io, number);
        }
    }

    /// A whole reply has come to one that guesses, in the clear or under TLS.
    fn guess_on(&mut self, io: &mut Io, number: usize, conn: ConnId, code: u16) {
        let replies = self.clients[number].replies;
        // In the clear: greeting, EHLO, STARTTLS; with implicit TLS the greeting is the first under it.
        let before_tls = if self.config.implicit { 0 } else { 3 };
        match replies {
            1 if before_tls > 0 => self.say(io, number, b"EHLO siege.example\r\n"),
            2 if before_tls > 0 => self.say(io, number, b"STARTTLS\r\n"),
            3 if before_tls > 0 => self.start_tls(io, number, conn),
            one if self.config.implicit && one == 1 => self.say(io, number, b"EHLO siege.example\r\n"),
            _ => {
                if replies > before_tls + if self.config.implicit { 2 } else { 1 } {
                    *self.report.answers.entry(code).or_default() += 1;
                }
                let client = &mut self.clients[number];
                client.guesses += 1;
                let login = format!("\0login{number}\0guess{}", client.guesses);
                self.say(io, number, format!("AUTH PLAIN {}\r\n", STANDARD.encode(login)).as_bytes());
            }
        }
    }

    fn dawdle_on(&mut self, io: &mut Io, number: usize, kind: Dawdling) {
        match (kind, self.clients[number].replies) {
            (Dawdling::Command, 1) => self.begin_dripping(io, number),
            (Dawdling::Content, 1) => {
                self.say(io, number, b"EHLO siege.example\r\nMAIL FROM:<a@siege.example>\r\nBDAT 1000000000\r\n");
                self.begin_dripping(io, number);
            }
            (Dawdling::Handshake, 1) => self.say(io, number, b"EHLO siege.example\r\n"),
            (Dawdling::Handshake, 2) => self.say(io, number, b"STARTTLS\r\n"),
            (Dawdling::Handshake, _) => self.begin_dripping(io, number),
            _ => {}
        }
    }
}

impl Driver for Siege {
    fn started(&mut self, io: &mut Io) {
        let (now, count) = (Instant::now(), self.clients.len().max(1) as u32);
        for number in 0..self.clients.len() {
            io.wake_at(now + ARRIVAL * number as u32 / count, number as u64);
        }
    }

    fn accepted(&mut self, _io: &mut Io, _listener: usize, _conn: ConnId) -> bool {
        false
    }

    fn connected(&mut self, io: &mut Io, conn: ConnId, result: Result<(), String>) {
        let Some(number) = self.owner(conn) else { return };
        if result.is_err() {
            self.report.refused += 1;
            return self.come_back(io, number);
        }
        self.report.connections += 1;
        match self.dawdling(number) {
            Some(_) if self.config.implicit => self.begin_dripping(io, number),
            None if self.config.implicit => self.start_tls(io, number, conn),
            _ => {}
        }
    }

    fn received(&mut self, io: &mut Io, conn: ConnId, bytes: &[u8]) {
        let Some(number) = self.owner(conn) else { return };
        self.clients[number].input.extend_from_slice(bytes);
        while let Some(end) = self.clients[number].input.windows(2).position(|pair| pair == b"\r\n") {
            let line: Vec<u8> = self.clients[number].input.drain(..end + 2).collect();
            if line.get(3) == Some(&b'-') {
                continue;
            }
            self.clients[number].replies += 1;
            let code = std::str::from_utf8(&line).ok().and_then(|line| line.get(..3)?.parse().ok()).unwrap_or(0);
            match self.dawdling(number) {
                _ if code == 421 => {}
                Some(kind) => self.dawdle_on(io, number, kind),
                None => self.guess_on(io, number, conn, code),
            }
        }
    }

    fn tls_started(&mut self, io: &mut Io, conn: ConnId) {
        let Some(number) = self.owner(conn) else { return };
        if !self.config.implicit {
            self.say(io, number, b"EHLO siege.example\r\n");
        }
    }

    fn ended(&mut self, io: &mut Io, conn: ConnId, _reason: Ended) {
        let Some(number) = self.owner(conn) else { return };
        self.report.cut += 1;
        self.come_back(io, number);
    }

    fn timer(&mut self, io: &mut Io, token: u64) {
        let number = token as usize;
        match self.clients[number].conn {
            None => self.connect(io, number),
            Some(_) if self.clients[number].drips => self.drip(io, number),
            Some(_) => {}
        }
    }

    fn stop_asked(&mut self, io: &mut Io) {
        self.report.open = self.clients.iter().filter(|client| client.conn.is_some()).count() as u64;
        io.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn besiegers_are_spread_over_networks() {
        let config = SiegeConfig {
            to: SocketAddr::from(([127, 0, 0, 1], 25)),
            slow: 2_000,
            guessing: 200,
            networks: 250,
            implicit: false,
            tls: crate::send::tls_client(true).unwrap(),
        };
        let siege = Siege { config, clients: Vec::new(), owners: Vec::new(), report: SiegeReport::default() };
        let networks: std::collections::BTreeSet<[u8; 3]> = (0..2_200)
            .map(|number| match siege.address(number) {
                IpAddr::V4(address) => address.octets()[..3].try_into().unwrap(),
                IpAddr::V6(_) => unreachable!(),
            })
            .collect();
        let addresses: std::collections::BTreeSet<IpAddr> = (0..2_200).map(|number| siege.address(number)).collect();
        assert_eq!((networks.len(), addresses.len()), (250, 2_200));
        assert_eq!((siege.dawdling(1_999), siege.dawdling(2_000)), (Some(Dawdling::Handshake), None));
    }
}
