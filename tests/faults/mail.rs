//! Both sides of the program: a client that speaks line by line, a destination that takes mail or does what a script
//! says, and the comparison of what was acknowledged with what arrived.

use super::program::{Setup, wait};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a silent peer is borne with.
const SILENCE: Duration = Duration::from_secs(60);
/// Octets of a line.
const LINE_MAX: u64 = 1 << 20;
/// What every content begins with; the name follows.
const MARK: &str = "X-Fault: ";

/// A client's connection.
pub struct Client {
    input: BufReader<TcpStream>,
}

impl Client {
    /// Connects and wants a greeting of 220.
    pub fn connect(address: SocketAddr) -> io::Result<Client> {
        let mut client = Client::open(address)?;
        let greeting = client.reply()?;
        if greeting.starts_with("220 ") { Ok(client) } else { Err(io::Error::other(greeting)) }
    }

    /// Connects and reads nothing.
    pub fn open(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, SILENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Client { input: BufReader::new(stream) })
    }

    pub fn stream(&self) -> &TcpStream {
        self.input.get_ref()
    }

    /// Sends octets as they are.
    pub fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.get_mut().write_all(bytes)
    }

    /// One reply, its lines separated by newlines. An error at the end of the connection.
    pub fn reply(&mut self) -> io::Result<String> {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            if (&mut self.input).take(LINE_MAX).read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            all.push_str(line.trim_end());
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(all);
            }
            all.push('\n');
        }
    }

    /// A command and its reply.
    pub fn ask(&mut self, command: &str) -> io::Result<String> {
        self.say(format!("{command}\r\n").as_bytes())?;
        self.reply()
    }

    /// Sends a message; gives the last reply, whichever it was.
    pub fn message(&mut self, recipient: &str, content: &[u8]) -> io::Result<String> {
        for (command, code) in [
            ("MAIL FROM:<sender@client.example>".to_owned(), "250"),
            (format!("RCPT TO:<{recipient}>"), "250"),
            ("DATA".into(), "354"),
        ] {
            let reply = self.ask(&command)?;
            if !reply.starts_with(code) {
                if self.ask("RSET")?.starts_with("250") {
                    return Ok(reply);
                }
                return Err(io::Error::other(reply));
            }
        }
        self.say(content)?;
        self.say(b".\r\n")?;
        self.reply()
    }

    /// Reads to the end of the connection. Gives what came.
    pub fn read_to_end(&mut self) -> String {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = (&mut self.input).take(64 << 20).read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// A content of about so many octets that tells its name; no line begins with a dot.
pub fn content(name: &str, octets: usize) -> Vec<u8> {
    let mut content = format!("{MARK}{name}\r\nFrom: <sender@client.example>\r\nSubject: {name}\r\n\r\n").into_bytes();
    let mut number = 0_u64;
    while content.len() < octets {
        content.extend_from_slice(
            format!("{name} line {number:012} of a text that has no meaning at all.\r\n").as_bytes(),
        );
        number += 1;
    }
    content
}

/// What of a content is compared: length and checksum from its mark on, since trace headers stand before it.
fn fingerprint(content: &[u8]) -> (usize, u32) {
    let head = &content[..content.len().min(16 << 10)];
    let start = head.windows(MARK.len()).position(|window| window == MARK.as_bytes()).unwrap_or(0);
    (content.len() - start, crc32c::crc32c(&content[start..]))
}

/// A message's id, and the length and checksum of its content.
type Fingerprint = (String, (usize, u32));

/// What was acknowledged, by recipient.
#[derive(Default)]
pub struct Ledger {
    acknowledged: Mutex<HashMap<String, Fingerprint>>,
}

impl Ledger {
    /// The address of a message's only recipient.
    pub fn address(name: &str) -> String {
        format!("{name}@destination.example")
    }

    /// Sends a message over a new connection. The error is a refusal, or what broke.
    pub fn send(&self, setup: &Setup, name: &str, octets: usize) -> Result<String, String> {
        let mut client = Client::connect(setup.listen).map_err(|error| error.to_string())?;
        client.ask("EHLO client.example").map_err(|error| error.to_string())?;
        self.send_on(&mut client, name, octets)
    }

    /// Sends a message over this connection; gives its id.
    pub fn send_on(&self, client: &mut Client, name: &str, octets: usize) -> Result<String, String> {
        self.send_content(client, name, &content(name, octets))
    }

    pub fn send_content(&self, client: &mut Client, name: &str, content: &[u8]) -> Result<String, String> {
        let address = Ledger::address(name);
        let reply = client.message(&address, content).map_err(|error| error.to_string())?;
        match reply.strip_prefix("250 2.0.0 OK: queued as ") {
            Some(id) => {
                let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                acknowledged.insert(address, (id.to_owned(), fingerprint(content)));
                Ok(id.to_owned())
            }
            None => Err(reply),
        }
    }

    /// Messages acknowledged.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Takes a message out of the book: it is known to be damaged.
    pub fn forget(&self, name: &str) {
        let removed = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).remove(&Ledger::address(name));
        assert!(removed.is_some(), "{name} was acknowledged");
    }

    /// Waits until all that was acknowledged has arrived, each once and as it was sent.
    pub fn wait_delivered(&self, setup: &Setup, destination: &Destination) {
        let acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        wait(&format!("the arrival of {} messages", acknowledged.len()), setup, || {
            let arrived = destination.shared.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            let missing = acknowledged.keys().filter(|address| !arrived.contains_key(*address)).count();
            (missing == 0).then_some(())
        });
        let arrived = destination.shared.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        for (address, (id, sent)) in acknowledged.iter() {
            let times = arrived.get(address).map_or(&[][..], |times| times.as_slice());
            assert!(times.iter().all(|came| came == sent), "{address} ({id}): sent {sent:?}, came {times:?}");
            assert_eq!(times.len(), 1, "{address} ({id}) arrived more than once\n{}", setup.log_end());
        }
    }
}

/// What a destination's connections share.
pub struct Shared {
    arrived: Mutex<HashMap<String, Vec<(usize, u32)>>>,
    /// Whether recipients are taken; otherwise 450.
    pub open: AtomicBool,
    /// Commands of all connections, in order, each with the connection's number.
    pub commands: Mutex<Vec<(usize, String)>>,
    connections: AtomicUsize,
    stopped: AtomicBool,
}

/// What a connection does: its number, counted from 0, and its socket.
type Script = dyn Fn(&Shared, usize, TcpStream) -> io::Result<()> + Send + Sync;

/// A destination; it takes no more connections once dropped.
pub struct Destination {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
}

impl Destination {
    /// Takes everything, when open.
    pub fn start(open: bool) -> Destination {
        let destination = Destination::scripted(|shared, number, stream| serve(shared, number, stream, false));
        destination.shared.open.store(open, Ordering::SeqCst);
        destination
    }

    /// Each connection does what the script says, on a thread of its own.
    pub fn scripted(
        script: impl Fn(&Shared, usize, TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Destination {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            arrived: Mutex::default(),
            open: AtomicBool::new(true),
            commands: Mutex::default(),
            connections: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let script: Arc<Script> = Arc::new(script);
        std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared, &script)
        });
        Destination { address, shared }
    }

    /// From now on recipients are taken.
    pub fn open(&self) {
        self.shared.open.store(true, Ordering::SeqCst);
    }

    pub fn close(&self) {
        self.shared.open.store(false, Ordering::SeqCst);
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How often something arrived for this address.
    pub fn arrivals(&self, address: &str) -> usize {
        let arrived = self.shared.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.get(address).map_or(0, Vec::len)
    }

    /// Commands that came over one connection.
    pub fn commands_of(&self, number: usize) -> Vec<String> {
        let commands = self.shared.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.iter().filter(|(of, _)| *of == number).map(|(_, command)| command.clone()).collect()
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // The acceptor sees that it is to stop when somebody connects; if nobody can, it has ended already.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, script: &Arc<Script>) {
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            break;
        }
        let Ok(stream) = stream else { continue };
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        let bounded = stream.set_read_timeout(Some(SILENCE)).and(stream.set_write_timeout(Some(SILENCE)));
        if bounded.is_ok() {
            let (shared, script) = (shared.clone(), script.clone());
            // A connection that breaks is the program's affair: it repeats what was not answered.
            std::thread::spawn(move || drop(script(&shared, number, stream)));
        }
    }
}

/// Says nothing until the other side has gone.
pub fn stall(mut stream: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

/// An ordinary destination. With `stall_at_dot` it takes the content and never says so.
pub fn serve(shared: &Shared, number: usize, stream: TcpStream, stall_at_dot: bool) -> io::Result<()> {
    serve_with(shared, number, stream, &mut |_, stream| {
        if stall_at_dot { stall(stream.get_ref()).map(|()| false) } else { Ok(true) }
    })
}

/// An ordinary destination, save that `at_dot` is called with the connection's number of contents and its input before
/// a content counts as arrived; false ends the connection.
pub fn serve_with(
    shared: &Shared,
    number: usize,
    stream: TcpStream,
    at_dot: &mut dyn FnMut(usize, &mut BufReader<TcpStream>) -> io::Result<bool>,
) -> io::Result<()> {
    let mut contents = 0;
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = &stream;
    output.write_all(b"220 destination.example ESMTP\r\n")?;
    let mut recipients: Vec<String> = Vec::new();
    loop {
        let mut line = String::new();
        if (&mut input).take(LINE_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end();
        shared.commands.lock().unwrap_or_else(PoisonError::into_inner).push((number, line.to_owned()));
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let reply = match verb.as_str() {
            "EHLO" => "250-destination.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 100000000",
            "MAIL" | "RSET" => {
                recipients.clear();
                "250 2.0.0 OK"
            }
            "RCPT" if !shared.open.load(Ordering::SeqCst) => "450 4.2.1 closed for now",
            "RCPT" => {
                let address = line.split(['<', '>']).nth(1).unwrap_or_default();
                recipients.push(address.to_owned());
                "250 2.1.5 OK"
            }
            "DATA" if recipients.is_empty() => "554 5.5.1 no valid recipients",
            "DATA" => {
                output.write_all(b"354 go on\r\n")?;
                let content = read_content(&mut input)?;
                contents += 1;
                if !at_dot(contents, &mut input)? {
                    return Ok(());
                }
                let mut arrived = shared.arrived.lock().unwrap_or_else(PoisonError::into_inner);
                for recipient in recipients.drain(..) {
                    arrived.entry(recipient).or_default().push(fingerprint(&content));
                }
                "250 2.0.0 taken"
            }
            "QUIT" => {
                output.write_all(b"221 2.0.0 Goodbye\r\n")?;
                return stream.shutdown(Shutdown::Write);
            }
            _ => "500 5.5.1 unknown command",
        };
        output.write_all(reply.as_bytes())?;
        output.write_all(b"\r\n")?;
    }
}

fn read_content(input: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let start = content.len();
        if input.take(LINE_MAX).read_until(b'\n', &mut content)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if &content[start..] == b".\r\n" {
            content.truncate(start);
            return Ok(content);
        }
        if content.get(start) == Some(&b'.') {
            content.remove(start);
        }
    }
}
