//! A destination of the tests' own: takes mail as it comes and keeps it byte for byte. What it offers is a list, and
//! what it answers otherwise than usual a function, so that each test says only what is special about it.

use super::PATIENCE;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a destination usually offers.
pub const ALL: &[&str] =
    &["PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING", "DSN"];

/// What to answer to this command line instead of the usual; none is the usual, an empty one ends the connection. The
/// line is "greeting" before the first command and "." at the end of the content.
pub type Answers = dyn Fn(&str) -> Option<String> + Send + Sync;

/// One transaction.
#[derive(Clone, Debug, Default)]
pub struct Mail {
    /// What follows `MAIL FROM:`.
    pub from: String,
    /// What follows each accepted `RCPT TO:`.
    pub to: Vec<String>,
    pub content: Vec<u8>,
    pub tls: bool,
    /// It came by BDAT.
    pub chunked: bool,
}

impl Mail {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }

    /// Whether one of the recipients is this one.
    pub fn is_for(&self, address: &str) -> bool {
        self.to.iter().any(|to| to.starts_with(&format!("<{address}>")))
    }
}

struct Shared {
    offered: Vec<String>,
    tls: Option<Arc<rustls::ServerConfig>>,
    answers: Box<Answers>,
    connections: AtomicUsize,
    closed: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    mails: Mutex<Vec<Mail>>,
    changed: Condvar,
}

/// The destination; it stops when dropped.
pub struct Sink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

impl Sink {
    /// One that offers the usual and takes everything.
    pub fn new() -> Sink {
        Sink::offering(ALL)
    }

    pub fn offering(extensions: &[&str]) -> Sink {
        Sink::with(extensions, |_| None)
    }

    pub fn with(extensions: &[&str], answers: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Sink {
        Sink::on((Ipv4Addr::LOCALHOST.into(), 0), extensions, answers)
    }

    /// One that offers TLS, but only version 1.2.
    pub fn of_old_tls() -> Sink {
        let tls = Some(self_signed(&[&rustls::version::TLS12]));
        Sink::listening((Ipv4Addr::LOCALHOST.into(), 0), &["STARTTLS", "PIPELINING"], Box::new(|_| None), tls)
    }

    /// On this address; extensions with STARTTLS bring a certificate that nobody has signed.
    pub fn on(
        at: (IpAddr, u16),
        extensions: &[&str],
        answers: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Sink {
        let tls = extensions.contains(&"STARTTLS").then(|| self_signed(rustls::ALL_VERSIONS));
        Sink::listening(at, extensions, Box::new(answers), tls)
    }

    /// On this address, with the usual, these and TLS as this says.
    pub fn under(at: (IpAddr, u16), more: &[&str], tls: Arc<rustls::ServerConfig>) -> Sink {
        Sink::listening(at, &[ALL, &["STARTTLS"], more].concat(), Box::new(|_| None), Some(tls))
    }

    fn listening(
        at: (IpAddr, u16),
        extensions: &[&str],
        answers: Box<Answers>,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Sink {
        let listener = TcpListener::bind(at).expect("an address for a destination");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            offered: extensions.iter().map(|name| (*name).to_owned()).collect(),
            tls,
            answers,
            connections: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            open: Mutex::default(),
            mails: Mutex::default(),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        let listening = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.closed.load(Ordering::SeqCst) {
                    break;
                }
                serving.connections.fetch_add(1, Ordering::SeqCst);
                serving.open.lock().expect("connections").extend(stream.try_clone());
                let shared = Arc::clone(&serving);
                // A connection that breaks is seen by what did not arrive.
                std::thread::spawn(move || drop(Session::new(shared, stream).serve()));
            }
        });
        Sink { address, shared, listening: Mutex::new(Some(listening)) }
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub fn mails(&self) -> Vec<Mail> {
        self.shared.mails.lock().expect("mails").clone()
    }

    /// Waits for so many messages in all.
    pub fn wait(&self, count: usize) -> Vec<Mail> {
        self.wait_until(&format!("{count} messages"), |mails| (mails.len() >= count).then(|| mails.to_vec()))
    }

    /// Waits for a message to this recipient.
    pub fn wait_for(&self, recipient: &str) -> Mail {
        self.wait_until(recipient, |mails| mails.iter().find(|mail| mail.is_for(recipient)).cloned())
    }

    fn wait_until<T>(&self, what: &str, look: impl Fn(&[Mail]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut mails = self.shared.mails.lock().expect("mails");
        loop {
            if let Some(found) = look(&mails) {
                return found;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                let envelopes: Vec<_> = mails.iter().map(|mail| (mail.from.clone(), mail.to.clone())).collect();
                panic!("waited for {what} in vain; there are {envelopes:?}");
            };
            mails = self.shared.changed.wait_timeout(mails, left).expect("mails").0;
        }
    }

    /// Takes no more connections and breaks those that are open.
    pub fn close(&self) {
        let Some(listening) = self.listening.lock().expect("a thread").take() else { return };
        self.shared.closed.store(true, Ordering::SeqCst);
        // Wakes the listener, which then ends and frees the port. Where nobody can connect it is awake.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(5));
        listening.join().expect("the listener ends");
        for open in self.shared.open.lock().expect("connections").drain(..) {
            // It may be closed already.
            let _ = open.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.close();
    }
}

/// A certificate that no authority has signed, for a name that nobody asked for.
fn self_signed(versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<rustls::ServerConfig> {
    let made = rcgen::generate_simple_self_signed(vec!["someone-else.test".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a certificate and its key");
    Arc::new(config)
}

enum Link {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>),
}

struct Session {
    shared: Arc<Shared>,
    link: Option<Link>,
    input: Vec<u8>,
    mail: Mail,
}

impl Drop for Session {
    fn drop(&mut self) {
        let stream = match &self.link {
            Some(Link::Plain(stream)) => stream,
            Some(Link::Tls(stream)) => stream.get_ref(),
            None => return,
        };
        // Another handle of it is kept, so that dropping this one closes nothing. It may be closed already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

impl Session {
    fn new(shared: Arc<Shared>, stream: TcpStream) -> Session {
        Session { shared, link: Some(Link::Plain(stream)), input: Vec::new(), mail: Mail::default() }
    }

    fn more(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 * 1024];
        let octets = match &mut self.link {
            Some(Link::Plain(stream)) => stream.read(&mut piece)?,
            Some(Link::Tls(stream)) => stream.read(&mut piece)?,
            None => 0,
        };
        self.input.extend_from_slice(&piece[..octets]);
        if octets == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        let line = format!("{line}\r\n");
        match &mut self.link {
            Some(Link::Plain(stream)) => stream.write_all(line.as_bytes()),
            Some(Link::Tls(stream)) => stream.write_all(line.as_bytes()).and_then(|()| stream.flush()),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// A line with its CRLF.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut looked = 0;
        loop {
            let from = looked;
            if let Some(at) = self.input[from..].windows(2).position(|pair| pair == b"\r\n") {
                return Ok(self.input.drain(..from + at + 2).collect());
            }
            looked = self.input.len().saturating_sub(1);
            self.more()?;
        }
    }

    fn special(&self, line: &str) -> Option<String> {
        (self.shared.answers)(line)
    }

    fn serve(mut self) -> io::Result<()> {
        let greeting = self.special("greeting").unwrap_or_else(|| "220 sink.test ESMTP".into());
        if greeting.is_empty() {
            return Ok(());
        }
        self.say(&greeting)?;
        loop {
            let line = String::from_utf8_lossy(&self.line()?).trim_end().to_owned();
            let special = self.special(&line);
            if special.as_deref() == Some("") {
                return Ok(());
            }
            let verb = line.split([' ', ':']).next().unwrap_or("").to_ascii_uppercase();
            if verb == "BDAT" {
                self.chunk(&line, special)?;
            } else if let Some(special) = special {
                self.say(&special)?;
                if special.starts_with("421") {
                    return Ok(());
                }
            } else if verb == "QUIT" {
                return self.say("221 2.0.0 bye");
            } else {
                self.command(&verb, &line)?;
            }
        }
    }

    fn command(&mut self, verb: &str, line: &str) -> io::Result<()> {
        let after_colon = || line.split_once(':').map_or("", |(_, rest)| rest).trim().to_owned();
        match verb {
            "EHLO" => {
                let encrypted = matches!(self.link, Some(Link::Tls(_)));
                let mut lines = vec!["sink.test".to_owned()];
                lines.extend(self.shared.offered.iter().filter(|name| !encrypted || *name != "STARTTLS").cloned());
                let last = lines.len() - 1;
                for (number, line) in lines.iter().enumerate() {
                    self.say(&format!("250{}{line}", if number == last { ' ' } else { '-' }))?;
                }
                Ok(())
            }
            "HELO" => self.say("250 sink.test"),
            "STARTTLS" => self.starttls(),
            "MAIL" => {
                let tls = matches!(self.link, Some(Link::Tls(_)));
                self.mail = Mail { from: after_colon(), tls, ..Mail::default() };
                self.say("250 2.1.0 ok")
            }
            "RCPT" if self.mail.from.is_empty() => self.say("503 5.5.1 no sender"),
            "RCPT" => {
                self.mail.to.push(after_colon());
                self.say("250 2.1.5 ok")
            }
            "DATA" if self.mail.to.is_empty() => self.say("554 5.5.1 no valid recipients"),
            "DATA" => {
                self.say("354 go on")?;
                self.data()
            }
            "RSET" => {
                self.mail = Mail::default();
                self.say("250 2.0.0 ok")
            }
            "NOOP" => self.say("250 2.0.0 ok"),
            _ => self.say("502 5.5.1 not known here"),
        }
    }

    fn starttls(&mut self) -> io::Result<()> {
        let Some(config) = self.shared.tls.clone() else { return self.say("502 5.5.1 not offered") };
        self.say("220 2.0.0 ready")?;
        let connection = rustls::ServerConnection::new(config).map_err(io::Error::other)?;
        if let Some(Link::Plain(stream)) = self.link.take() {
            self.link = Some(Link::Tls(Box::new(rustls::StreamOwned::new(connection, stream))));
        }
        Ok(())
    }

    fn data(&mut self) -> io::Result<()> {
        loop {
            let line = self.line()?;
            match line.as_slice() {
                b".\r\n" => return self.end(None),
                [b'.', rest @ ..] => self.mail.content.extend_from_slice(rest),
                all => self.mail.content.extend_from_slice(all),
            }
        }
    }

    fn chunk(&mut self, line: &str, special: Option<String>) -> io::Result<()> {
        let mut words = line.split(' ').skip(1);
        let octets: usize = words.next().and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        while self.input.len() < octets {
            self.more()?;
        }
        self.mail.content.extend(self.input.drain(..octets));
        self.mail.chunked = true;
        let last = words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST"));
        if self.mail.to.is_empty() {
            return self.say("554 5.5.1 no valid recipients");
        }
        match (special, last) {
            (None, false) => self.say("250 2.0.0 ok"),
            (Some(special), false) => self.say(&special),
            (special, true) => self.end(special),
        }
    }

    fn end(&mut self, special: Option<String>) -> io::Result<()> {
        let special = special.or_else(|| self.special("."));
        let answer = special.unwrap_or_else(|| "250 2.0.0 taken".into());
        if answer.starts_with('2') {
            self.shared.mails.lock().expect("mails").push(std::mem::take(&mut self.mail));
            self.shared.changed.notify_all();
        }
        if answer.is_empty() { Err(io::ErrorKind::ConnectionAborted.into()) } else { self.say(&answer) }
    }
}
