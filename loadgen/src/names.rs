//! A name server that makes up its answers, so that a load can have as many domains as it likes, each a site of its own.
//!
//! Each name has one MX record, `mx.` before the name. A name that begins with `mx.` has one A record: an address in
//! 127.0.0.0/8 made from the name, the same each time, never below 127.1.1.1. All of them lead to a destination that listens
//! on 0.0.0.0. Anything else has no records. Nothing is looked up and nothing kept, so that one thread answers all by UDP;
//! TCP is there for those who insist, one connection at a time. What is no question that can be answered gets an error
//! (RFC 1035 4.1.1); what may itself be an answer gets nothing, so that two servers never talk to each other.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

/// Seconds for which answers may be believed.
const TTL: u32 = 3600;
/// How often the end is looked for; a client by TCP that says nothing for so long is left.
const LOOK: Duration = Duration::from_millis(200);
/// Octets of a question; the rest of a longer one is cut off, and it is answered by its beginning.
const QUESTION_MAX: usize = 4096;
/// Octets of questions that wait in the kernel; it may allow less.
const WAITING_OCTETS: usize = 4 << 20;
/// Octets of a name as it is sent, with lengths (RFC 1035 2.3.4).
const NAME_MAX: usize = 255;
/// Octets of a header.
const HEADER: usize = 12;
/// Ports that are tried until one is free for UDP and TCP.
const PORTS_TRIED: u32 = 100;

const A: u16 = 1;
const SOA: u16 = 6;
const MX: u16 = 15;
const CLASS_IN: u16 = 1;

/// Why there is no answer, as in RFC 1035 4.1.1.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Code {
    None = 0,
    Malformed = 1,
    NotImplemented = 4,
    Refused = 5,
}

/// A running name server; it stops when dropped.
pub struct NameServer {
    address: SocketAddr,
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl NameServer {
    /// Answers at an address, by UDP and TCP; port 0 for any that is free for both.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(address: SocketAddr) -> io::Result<NameServer> {
        let (udp, tcp) = sockets(address)?;
        let address = udp.local_addr()?;
        udp.set_read_timeout(Some(LOOK))?;
        let waiting = socket2::SockRef::from(&udp);
        waiting.set_recv_buffer_size(WAITING_OCTETS)?;
        // On Linux this is how long accept waits.
        socket2::SockRef::from(&tcp).set_read_timeout(Some(LOOK))?;
        let (answered, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut server = NameServer { address, answered, stop, threads: Vec::new() };
        let (answered, stop) = (server.answered.clone(), server.stop.clone());
        server.spawn("names-udp", move || serve_udp(&udp, &answered, &stop))?;
        let (answered, stop) = (server.answered.clone(), server.stop.clone());
        server.spawn("names-tcp", move || serve_tcp(&tcp, &answered, &stop))?;
        Ok(server)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(work)?);
        Ok(())
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Questions answered so far, those with an error too.
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Whether a thread has ended, which none does by itself unless it failed.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops, and waits for the threads.
    ///
    /// # Errors
    /// When one of them failed.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.stop.store(true, Relaxed);
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(ended) => result = result.and(ended),
                Err(_panic) => result = Err(io::Error::other("a thread of the name server panicked")),
            }
        }
        result
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // Who wants to know calls `stop`.
        let _ = self.end();
    }
}

/// Both sockets on one port.
fn sockets(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = if address.port() == 0 { PORTS_TRIED } else { 1 };
    loop {
        let udp = UdpSocket::bind(address)?;
        match TcpListener::bind(udp.local_addr()?) {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if tries == 1 => return Err(error),
            Err(_taken) => tries -= 1,
        }
    }
}

/// Whether a call only came back to look for the end.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn serve_udp(udp: &UdpSocket, answered: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let (mut question, mut out) = ([0; QUESTION_MAX], Vec::with_capacity(512));
    while !stop.load(Relaxed) {
        let (len, from) = match udp.recv_from(&mut question) {
            Ok(came) => came,
            Err(error) if is_pause(&error) => continue,
            Err(error) => return Err(error),
        };
        if answer(&question[..len], &mut out) {
            answered.fetch_add(1, Relaxed);
            // Who does not get an answer asks again.
            let _ = udp.send_to(&out, from);
        }
    }
    Ok(())
}

fn serve_tcp(tcp: &TcpListener, answered: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    while !stop.load(Relaxed) {
        match tcp.accept() {
            // A client that goes, or says nothing, is no failure of the server.
            Ok((stream, _from)) => drop(serve_stream(stream, answered, stop)),
            Err(error) if is_pause(&error) || error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Questions and answers, each behind its length (RFC 1035 4.2.2).
fn serve_stream(mut stream: TcpStream, answered: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_write_timeout(Some(LOOK))?;
    let mut out = Vec::new();
    while !stop.load(Relaxed) {
        let mut len = [0; 2];
        stream.read_exact(&mut len)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut question)?;
        if !answer(&question, &mut out) {
            return Ok(());
        }
        answered.fetch_add(1, Relaxed);
        stream.write_all(&[&(out.len() as u16).to_be_bytes()[..], &out].concat())?;
    }
    Ok(())
}

/// Answers a question; what `out` held is gone. False when there is nothing to say.
fn answer(question: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    // Too short to be told apart from anything else, or an answer.
    if question.len() < HEADER || question[2] & 0x80 != 0 {
        return false;
    }
    match read(question) {
        Ok(asked) => asked.write(question, out),
        Err(code) => write_header(question, code, [0; 3], out),
    }
    true
}

/// The header of an answer: its question's number, and how many questions, answers and SOA records follow.
fn write_header(question: &[u8], code: Code, counts: [u16; 3], out: &mut Vec<u8>) {
    out.extend_from_slice(&question[..2]);
    // An answer of the one who knows; recursion is said to be there, since stub resolvers ask for it.
    out.extend_from_slice(&[0x84 | question[2] & 0x79, 0x80 | code as u8]);
    counts.iter().for_each(|count| out.extend_from_slice(&count.to_be_bytes()));
    out.extend_from_slice(&[0, 0]);
}

/// What is asked.
struct Asked<'a> {
    /// The name as it is sent: labels behind their lengths, and the zero at its end.
    name: &'a [u8],
    kind: u16,
}

/// Reads the one question; what follows it (an OPT record, mostly) is passed over.
fn read(question: &[u8]) -> Result<Asked<'_>, Code> {
    if question[2] & 0x78 != 0 {
        return Err(Code::NotImplemented);
    }
    if question[4..6] != [0, 1] {
        return Err(Code::Malformed);
    }
    let body = &question[HEADER..];
    let mut len = 0;
    loop {
        let label = usize::from(*body.get(len).ok_or(Code::Malformed)?);
        let letters = body.get(len + 1..len + 1 + label).ok_or(Code::Malformed)?;
        // A longer label is a pointer, which has nothing to point to in a question.
        let is_plain = letters.iter().all(|letter| letter.is_ascii_alphanumeric() || *letter == b'-');
        len += 1 + label;
        if label > 63 || len > NAME_MAX || !is_plain {
            return Err(Code::Malformed);
        }
        if label == 0 {
            break;
        }
    }
    let Some(&[kind_high, kind_low, class_high, class_low]) = body.get(len..len + 4) else {
        return Err(Code::Malformed);
    };
    if u16::from_be_bytes([class_high, class_low]) != CLASS_IN {
        return Err(Code::Refused);
    }
    Ok(Asked { name: &body[..len], kind: u16::from_be_bytes([kind_high, kind_low]) })
}

impl Asked<'_> {
    fn write(&self, question: &[u8], out: &mut Vec<u8>) {
        let is_host = self.name.len() > 4 && self.name[..3].eq_ignore_ascii_case(b"\x02mx");
        // The name of the mail host must not be too long itself; the root has none.
        let has_host = self.name.len() > 1 && self.name.len() + 3 <= NAME_MAX;
        let found = (self.kind == A && is_host) || (self.kind == MX && has_host);
        let counts = if found { [1, 1, 0] } else { [1, 0, 1] };
        write_header(question, Code::None, counts, out);
        out.extend_from_slice(&question[HEADER..HEADER + self.name.len() + 4]);
        match (found, self.kind) {
            (true, A) => write_record(A, &address(self.name).octets(), out),
            // Preference 10, and `mx` before the name of the question.
            (true, _) => write_record(MX, &[0, 10, 2, b'm', b'x', 0xC0, HEADER as u8], out),
            // "No data" is believed for as long as its SOA record says (RFC 2308 5).
            (false, _) => {
                let mut data = [0; 22];
                [1, TTL, TTL, TTL, TTL].iter().zip(data[2..].chunks_exact_mut(4)).for_each(
                    |(number, place): (&u32, _)| {
                        place.copy_from_slice(&number.to_be_bytes());
                    },
                );
                write_record(SOA, &data, out);
            }
        }
    }
}

/// A record of the name of the question.
fn write_record(kind: u16, data: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xC0, HEADER as u8]);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&TTL.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

/// The address of a name, whatever the case of its letters: FNV-1a of 64 bits, each part from 1 to 250.
fn address(name: &[u8]) -> Ipv4Addr {
    let hash = name.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(octet.to_ascii_lowercase())).wrapping_mul(0x0100_0000_01B3)
    });
    // The low bits of FNV are weak; the high half decides.
    let mut rest = hash >> 32 ^ hash & 0xFF;
    let mut part = || {
        let part = rest % 250 + 1;
        rest /= 250;
        part as u8
    };
    Ipv4Addr::new(127, part(), part(), part())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn encoded(name: &str) -> Vec<u8> {
        let labels = name.split('.').filter(|label| !label.is_empty());
        let mut bytes: Vec<u8> =
            labels.flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes())).collect();
        bytes.push(0);
        bytes
    }

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0xAB, 0xCD, 1, 0x20, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(encoded(name));
        bytes.extend([(kind >> 8) as u8, kind as u8, 0, 1]);
        bytes
    }

    fn answered(question: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![1, 2, 3];
        answer(question, &mut out).then_some(out)
    }

    fn code(question: &[u8]) -> u8 {
        answered(question).expect("an answer")[3] & 15
    }

    #[test]
    fn a_name_has_one_mail_host() {
        let asked = question("D7.Load.Example", MX);
        let mut expected = vec![0xAB, 0xCD, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        expected.extend(&asked[12..]);
        expected.extend([0xC0, 12, 0, 15, 0, 1, 0, 0, 14, 16, 0, 7, 0, 10, 2, b'm', b'x', 0xC0, 12]);
        assert_eq!(answered(&asked), Some(expected));
    }

    #[test]
    fn a_mail_host_has_an_address_of_its_own() {
        let asked = question("mx.d7.load.example", A);
        let answer = answered(&asked).unwrap();
        assert_eq!(answer[..12], [0xAB, 0xCD, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[12..asked.len()], asked[12..]);
        let record = &answer[asked.len()..];
        assert_eq!(record[..12], [0xC0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4]);
        assert_eq!(record[12..], address(&encoded("MX.D7.load.example")).octets());
    }

    #[test]
    fn addresses_are_on_loopback_and_differ() {
        let addresses: HashSet<Ipv4Addr> =
            (0..10_000).map(|number| address(&encoded(&format!("mx.d{number}.load.example")))).collect();
        assert!(addresses.iter().all(|address| {
            let [first, parts @ ..] = address.octets();
            first == 127 && parts.iter().all(|part| (1..=250).contains(part))
        }));
        // Of 15.6 million, 10,000 by chance have 3 pairs that are the same.
        assert!(addresses.len() > 9980, "{}", addresses.len());
    }

    #[test]
    fn what_has_no_records_has_a_soa_record() {
        for (name, kind) in [("mx.a.example", 28), ("a.example", A), ("a.example", 28), ("mx", A), ("", MX), ("", A)] {
            let asked = question(name, kind);
            let answer = answered(&asked).unwrap();
            assert_eq!(answer[2..12], [0x85, 0x80, 0, 1, 0, 0, 0, 1, 0, 0], "{name} {kind}");
            let record = &answer[asked.len()..];
            assert_eq!(record[..12], [0xC0, 12, 0, 6, 0, 1, 0, 0, 14, 16, 0, 22], "{name} {kind}");
            assert_eq!(record[12..].len(), 22);
            assert_eq!(record[30..], [0, 0, 14, 16], "how long it is believed");
        }
    }

    #[test]
    fn no_mail_host_has_a_name_that_is_too_long() {
        let label = "a".repeat(61);
        let longest = format!("{label}.{label}.{label}.{label}.abc");
        assert_eq!(encoded(&longest).len() + 3, NAME_MAX + 1);
        assert_eq!(answered(&question(&longest, MX)).unwrap()[6..10], [0, 0, 0, 1]);
        assert_eq!(answered(&question(&longest[1..], MX)).unwrap()[6..10], [0, 1, 0, 0]);
    }

    #[test]
    fn what_follows_the_question_does_not_matter() {
        let plain = question("a.example", MX);
        let mut with_opt = plain.clone();
        with_opt[11] = 1;
        with_opt.extend([0, 0, 41, 4, 0xD0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answered(&with_opt), answered(&plain));
    }

    #[test]
    fn what_cannot_be_answered_gets_an_error() {
        for name in ["a_b.example", "ä.example", "a b", "*", &"a".repeat(64), &"a.".repeat(128)] {
            assert_eq!(code(&question(name, MX)), Code::Malformed as u8, "{name}");
        }
        let whole = question("a.example", MX);
        for len in HEADER..whole.len() {
            assert_eq!(answered(&whole[..len]).unwrap(), [0xAB, 0xCD, 0x85, 0x81, 0, 0, 0, 0, 0, 0, 0, 0], "{len}");
        }
        let changed = |at: usize, octet: u8| {
            let mut bytes = whole.clone();
            bytes[at] = octet;
            bytes
        };
        assert_eq!(code(&changed(HEADER, 0xC0)), Code::Malformed as u8, "a pointer");
        assert_eq!(code(&changed(5, 0)), Code::Malformed as u8, "no question");
        assert_eq!(code(&changed(5, 2)), Code::Malformed as u8, "two questions");
        assert_eq!(code(&changed(2, 0x28)), Code::NotImplemented as u8, "an update");
        assert_eq!(code(&changed(whole.len() - 1, 3)), Code::Refused as u8, "another class");
    }

    #[test]
    fn what_is_no_question_gets_nothing() {
        let mut back = question("a.example", MX);
        back[2] |= 0x80;
        assert_eq!(answered(&back), None);
        for len in 0..HEADER {
            assert_eq!(answered(&question("a.example", MX)[..len]), None, "{len}");
        }
    }

    #[test]
    fn garbage_gets_an_error_or_nothing() {
        let mut random = crate::random::Random::new(11);
        for _ in 0..20_000 {
            let garbage: Vec<u8> = (0..random.below(80)).map(|_| random.below(256) as u8).collect();
            if let Some(answer) = answered(&garbage) {
                assert_eq!((&answer[..2], answer[2] & 0x80), (&garbage[..2], 0x80));
            }
        }
    }

    #[test]
    fn it_answers_by_udp_and_tcp() {
        let server = NameServer::start((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let asked = question("a.example", MX);
        let expected = answered(&asked).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        udp.send_to(&asked, server.address()).unwrap();
        let mut came = [0; 512];
        let (len, from) = udp.recv_from(&mut came).unwrap();
        assert_eq!((&came[..len], from), (&expected[..], server.address()));
        let mut tcp = TcpStream::connect(server.address()).unwrap();
        for _ in 0..2 {
            tcp.write_all(&[&[0, asked.len() as u8][..], &asked].concat()).unwrap();
            let mut came = vec![0; 2 + expected.len()];
            tcp.read_exact(&mut came).unwrap();
            assert_eq!((came[1] as usize, &came[2..]), (expected.len(), &expected[..]));
        }
        assert!(!server.has_failed());
        assert_eq!(server.answered(), 3);
        server.stop().unwrap();
    }
}
