//! A name server of the tests' own, by UDP and TCP on one port: answers made by hand from a table, which a test can
//! change while it runs.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const MX: u16 = 15;
const TXT: u16 = 16;

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

#[derive(Clone, Debug)]
struct Record {
    kind: u16,
    ttl: u32,
    data: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    records: Vec<Record>,
    servfail: bool,
}

#[derive(Default)]
struct Zone {
    entries: HashMap<String, Entry>,
    /// Answers by UDP longer than this are cut short.
    udp_octets: usize,
    asked: Vec<(String, u16, bool)>,
}

/// The name server; it stops when dropped.
pub struct NameServer {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    closed: Arc<AtomicBool>,
}

impl NameServer {
    pub fn new() -> NameServer {
        let (udp, tcp) = both_sockets();
        let address = tcp.local_addr().expect("its address");
        let zone = Arc::new(Mutex::new(Zone { udp_octets: 1200, ..Zone::default() }));
        let closed = Arc::new(AtomicBool::new(false));
        udp.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let (shared, end) = (Arc::clone(&zone), Arc::clone(&closed));
        std::thread::spawn(move || {
            let mut question = [0; 4096];
            while !end.load(Ordering::SeqCst) {
                let Ok((octets, from)) = udp.recv_from(&mut question) else { continue };
                if let Some(answer) = answer(&shared, &question[..octets], true) {
                    // Who does not get an answer asks again.
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        let (shared, end) = (Arc::clone(&zone), Arc::clone(&closed));
        std::thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || drop(serve_tcp(stream, &shared)));
            }
        });
        NameServer { address, zone, closed }
    }

    fn add(self, name: &str, record: Record) -> NameServer {
        self.zone.lock().expect("the zone").entries.entry(name.into()).or_default().records.push(record);
        self
    }

    pub fn mx(self, name: &str, preference: u16, host: &str) -> NameServer {
        let data = [preference.to_be_bytes().as_slice(), &encoded(host)].concat();
        self.add(name, Record { kind: MX, ttl: 1, data })
    }

    pub fn a(self, name: &str, address: [u8; 4]) -> NameServer {
        self.add(name, Record { kind: A, ttl: 1, data: address.to_vec() })
    }

    /// Adds a text, as one that publishes it later does.
    pub fn publish(&self, name: &str, text: &str) {
        let strings = text.as_bytes().chunks(255).flat_map(|part| [&[part.len() as u8], part].concat());
        let record = Record { kind: TXT, ttl: 1, data: strings.collect() };
        self.zone.lock().expect("the zone").entries.entry(name.into()).or_default().records.push(record);
    }

    /// The mail host of a domain, from now on.
    pub fn lead(&self, name: &str, host: &str) {
        let data = [10u16.to_be_bytes().as_slice(), &encoded(host)].concat();
        let record = Record { kind: MX, ttl: 1, data };
        self.zone.lock().expect("the zone").entries.entry(name.into()).or_default().records.push(record);
    }

    /// The address of a host, from now on.
    pub fn lead_address(&self, name: &str, address: [u8; 4]) {
        let record = Record { kind: A, ttl: 1, data: address.to_vec() };
        self.zone.lock().expect("the zone").entries.entry(name.into()).or_default().records.push(record);
    }

    /// Takes away all that is known of a name.
    pub fn forget(&self, name: &str) {
        self.zone.lock().expect("the zone").entries.remove(name);
    }

    pub fn cname(self, name: &str, to: &str) -> NameServer {
        self.add(name, Record { kind: CNAME, ttl: 1, data: encoded(to) })
    }

    /// Whether questions about this name fail.
    pub fn fail(&self, name: &str, fails: bool) {
        self.zone.lock().expect("the zone").entries.entry(name.into()).or_default().servfail = fails;
    }

    /// Whether this was asked for by TCP.
    pub fn was_asked_by_tcp(&self, name: &str) -> bool {
        self.zone.lock().expect("the zone").asked.iter().any(|(asked, _, udp)| asked == name && !udp)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Wakes the listener; where nobody can connect it is awake.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

/// The same port for both.
fn both_sockets() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("its address")) {
            return (udp, tcp);
        }
    }
    panic!("no port is free for UDP and TCP");
}

fn serve_tcp(mut stream: TcpStream, zone: &Mutex<Zone>) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        let Some(answer) = answer(zone, &question, false) else { return Ok(()) };
        stream.write_all(&[(answer.len() as u16).to_be_bytes().as_slice(), &answer].concat())?;
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// The name at the beginning, and how long it is.
fn decoded(bytes: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), 0);
    loop {
        let length = usize::from(*bytes.get(at)?);
        let label = bytes.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
    }
}

fn append_record(out: &mut Vec<u8>, name: &str, record: &Record) {
    out.extend(encoded(name));
    out.extend(record.kind.to_be_bytes());
    out.extend(1u16.to_be_bytes());
    out.extend(record.ttl.to_be_bytes());
    out.extend((record.data.len() as u16).to_be_bytes());
    out.extend(&record.data);
}

fn answer(zone: &Mutex<Zone>, question: &[u8], udp: bool) -> Option<Vec<u8>> {
    let (name, length) = decoded(question.get(12..)?)?;
    let asked = question.get(12..12 + length + 4)?;
    let kind = u16::from_be_bytes([asked[length], asked[length + 1]]);
    let mut zone = zone.lock().expect("the zone");
    zone.asked.push((name.clone(), kind, udp));
    let (mut code, mut records, mut here) = (0, Vec::new(), name.clone());
    loop {
        let Some(entry) = zone.entries.get(&here) else {
            code = NXDOMAIN;
            break;
        };
        if entry.servfail {
            code = SERVFAIL;
            break;
        }
        let fitting = entry.records.iter().filter(|record| record.kind == kind);
        records.extend(fitting.map(|record| (here.clone(), record.clone())));
        let Some(alias) = entry.records.iter().find(|record| record.kind == CNAME && kind != CNAME) else { break };
        records.push((here.clone(), alias.clone()));
        here = decoded(&alias.data)?.0;
    }
    let found = records.iter().any(|(_, record)| record.kind == kind);
    let mut body = Vec::new();
    records.iter().for_each(|(name, record)| append_record(&mut body, name, record));
    let authority = !found && code != SERVFAIL;
    if authority {
        let numbers = [1u32, 60, 60, 60, 1].into_iter().flat_map(u32::to_be_bytes);
        let data = encoded("ns.test").into_iter().chain(encoded("root.test")).chain(numbers).collect();
        append_record(&mut body, "test", &Record { kind: SOA, ttl: 1, data });
    }
    let cut = udp && body.len() > zone.udp_octets;
    let mut out = question[..2].to_vec();
    out.extend([0x84 | if cut { 2 } else { 0 } | (question[2] & 1), 0x80 | code]);
    let counts = [1, if cut { 0 } else { records.len() }, usize::from(authority && !cut), 0];
    counts.iter().for_each(|count| out.extend((*count as u16).to_be_bytes()));
    out.extend_from_slice(asked);
    if !cut {
        out.extend(body);
    }
    Some(out)
}
