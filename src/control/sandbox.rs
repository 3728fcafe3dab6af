//! The sandbox: an SMTP server inside the control thread that takes every message, keeps the last ones in memory and
//! sends nothing on. It is the destination of the embedded default configuration, so that a first try cannot reach
//! anybody. It listens on loopback only and keeps nothing over a restart.

use crate::clock::Now;
use crate::envelope::Recipient;
use crate::id::MessageId;
use crate::reply::Reply;
use crate::smtp::server::{BareNewlines, MailFrom, Session, SessionConfig, Step, Transactions};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Octets kept of one message's content.
pub const KEPT_OCTETS_MAX: usize = 64 * 1024;
/// Octets kept of all messages together; the oldest go first.
pub const ALL_OCTETS_MAX: usize = 32 << 20;
/// Connections at a time; further ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 256;
/// Octets read at a time.
const READ_OCTETS: usize = 16 * 1024;

/// A message that the sandbox took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxMessage {
    /// Counts from 1 since the start.
    pub number: u64,
    /// The id under which ringpost had queued it, from its Received header.
    pub id: Option<String>,
    /// When it came, RFC 3339.
    pub arrived: String,
    /// The delivering client's address and the name it gave.
    pub client: String,
    /// "" for the null reverse path.
    pub sender: String,
    /// All of them.
    pub recipients: Vec<String>,
    /// The Subject header, if it has one.
    pub subject: Option<String>,
    /// Octets of content as it came.
    pub size: u64,
    /// Whether less than that was kept.
    pub truncated: bool,
    /// What was kept; what is not UTF-8 is shown with replacement characters. Left out in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

#[derive(Debug)]
struct Kept {
    message: SandboxMessage,
    content: Vec<u8>,
}

#[derive(Debug, Default)]
struct Messages {
    kept: VecDeque<Kept>,
    octets: usize,
    taken: u64,
}

/// What the sandbox has taken. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    keep: usize,
    messages: Arc<Mutex<Messages>>,
}

impl Sandbox {
    /// One that keeps the last `keep` messages.
    pub fn new(keep: usize) -> Sandbox {
        Sandbox { keep, messages: Arc::default() }
    }

    /// The messages kept, oldest first, without their content.
    pub fn list(&self) -> Vec<SandboxMessage> {
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.kept.iter().map(|kept| kept.message.clone()).collect()
    }

    /// One message by its number or by the id it was queued under (the last one delivered, when several were).
    pub fn show(&self, name: &str) -> Option<SandboxMessage> {
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |kept: &&Kept| {
            kept.message.id.as_deref().is_some_and(|id| id.eq_ignore_ascii_case(name))
                || kept.message.number.to_string() == name
        };
        let kept = messages.kept.iter().rev().find(named)?;
        let content = String::from_utf8_lossy(&kept.content).into_owned();
        Some(SandboxMessage { content: Some(content), ..kept.message.clone() })
    }

    /// How many it has taken since the start.
    pub fn taken(&self) -> u64 {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).taken
    }

    fn keep(&self, mut message: SandboxMessage, content: Vec<u8>) -> u64 {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.taken += 1;
        message.number = messages.taken;
        let number = message.number;
        messages.octets += content.len();
        messages.kept.push_back(Kept { message, content });
        while messages.kept.len() > self.keep || messages.octets > ALL_OCTETS_MAX {
            match messages.kept.pop_front() {
                Some(old) => messages.octets -= old.content.len(),
                None => break,
            }
        }
        number
    }

    /// Serves the listener for as long as it can be.
    pub async fn serve(self, listener: TcpListener, hostname: Box<str>) -> io::Error {
        let config = Arc::new(session_config(hostname));
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return io::Error::other("the sandbox has no places");
            };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (sandbox, config) = (self.clone(), Arc::clone(&config));
                    tokio::spawn(async move {
                        // A broken connection is the client's affair: it will try again.
                        let _ = sandbox.session(stream, peer, config).await;
                        drop(place);
                    });
                }
                Err(error) if is_passing(&error) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => return error,
            }
        }
    }

    async fn session(&self, mut stream: TcpStream, peer: SocketAddr, config: Arc<SessionConfig>) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut owner = Intake { peer, ..Intake::new(peer) };
        let now = now();
        let mut session = Session::new(config, false, now.instant);
        let mut out = Vec::new();
        session.start(now.instant, &mut out);
        let mut input = vec![0u8; READ_OCTETS];
        let mut filled = 0;
        loop {
            if !out.is_empty() {
                stream.write_all(&out).await?;
                out.clear();
            }
            let wait = session.deadline().since(self::now().instant);
            let step = match tokio::time::timeout(wait, stream.read(&mut input[filled..])).await {
                Ok(read) => match read? {
                    0 => return Ok(()),
                    octets => {
                        filled += octets;
                        self.take(&mut session, &mut owner, &mut input, &mut filled, &mut out)
                    }
                },
                Err(_) => session.handle_timeout(self::now().instant, &mut out),
            };
            if step == Step::Close {
                stream.write_all(&out).await?;
                return stream.shutdown().await;
            }
        }
    }

    /// Gives the session what was read, and stores at once what it wants stored.
    fn take(
        &self,
        session: &mut Session,
        owner: &mut Intake,
        input: &mut [u8],
        filled: &mut usize,
        out: &mut Vec<u8>,
    ) -> Step {
        let mut start = 0;
        loop {
            let (used, mut step) = session.handle_input(&input[start..*filled], now(), owner, out);
            start += used;
            if step == Step::AwaitStorage {
                let number = owner.store(self);
                step = session.handle_stored(Ok(MessageId(number)), now().instant, out);
                if step == Step::Read && start < *filled {
                    continue;
                }
            }
            input.copy_within(start..*filled, 0);
            *filled -= start;
            return step;
        }
    }
}

/// What happens now and then on a busy machine and passes.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ECONNABORTED)
    ) || error.kind() == io::ErrorKind::Interrupted
}

fn now() -> Now {
    crate::io::clock::now()
}

/// Takes everything that a session may take.
fn session_config(hostname: Box<str>) -> SessionConfig {
    SessionConfig {
        hostname,
        max_message_size: 1 << 30,
        starttls: false,
        auth: false,
        mechanisms: Default::default(),
        auth_in_clear: false,
        bare_newlines: BareNewlines::Convert,
        proxy: false,
        strangers: Default::default(),
        max_recipients: 10_000,
        max_commands: u32::MAX,
        max_errors: 1_000,
        max_transactions: 999_999,
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(180),
        message_timeout: Duration::from_secs(1800),
        chunking: true,
        dsn: true,
        smtputf8: true,
        pipelining: true,
    }
}

/// The message that a session is sending.
#[derive(Debug)]
struct Intake {
    peer: SocketAddr,
    hello: String,
    sender: String,
    recipients: Vec<String>,
    content: Vec<u8>,
    size: u64,
}

impl Intake {
    fn new(peer: SocketAddr) -> Intake {
        let (hello, sender) = (String::new(), String::new());
        Intake { peer, hello, sender, recipients: Vec::new(), content: Vec::new(), size: 0 }
    }

    fn store(&mut self, sandbox: &Sandbox) -> u64 {
        let content = std::mem::take(&mut self.content);
        let message = SandboxMessage {
            number: 0,
            id: queue_id(&content),
            arrived: now().unix.to_string(),
            client: format!("{} [{}]", self.hello, self.peer.ip()),
            sender: std::mem::take(&mut self.sender),
            recipients: std::mem::take(&mut self.recipients),
            subject: header(&content, "subject"),
            size: self.size,
            truncated: self.size > content.len() as u64,
            content: None,
        };
        self.size = 0;
        sandbox.keep(message, content)
    }
}

impl Transactions for Intake {
    fn proxied(&mut self, client: SocketAddr, _now: Now) -> Result<(), Reply> {
        self.peer = client;
        Ok(())
    }

    fn hello(&mut self, name: &str, _extended: bool) {
        self.hello = name.into();
    }

    fn mail(&mut self, mail: MailFrom, _now: Now) -> Result<(), Reply> {
        self.sender = mail.reverse_path.map(|path| path.to_string()).unwrap_or_default();
        Ok(())
    }

    fn recipient(&mut self, recipient: Recipient, _now: Now) -> Result<(), Reply> {
        self.recipients.push(recipient.address.to_string());
        Ok(())
    }

    fn begin_content(&mut self, _now: Now) -> Result<(), Reply> {
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), Reply> {
        self.size += bytes.len() as u64;
        let room = KEPT_OCTETS_MAX.saturating_sub(self.content.len());
        self.content.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(())
    }

    fn end_content(&mut self, _now: Now) -> Result<(), Reply> {
        Ok(())
    }

    fn abort(&mut self) {
        *self = Intake { hello: std::mem::take(&mut self.hello), ..Intake::new(self.peer) };
    }
}

/// The value of the first header of this name, unfolded, at most 200 characters.
fn header(content: &[u8], name: &str) -> Option<String> {
    let mut value: Option<String> = None;
    for line in content.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        let text = String::from_utf8_lossy(line);
        match &mut value {
            Some(value) if text.starts_with([' ', '\t']) => {
                value.push(' ');
                value.push_str(text.trim());
            }
            Some(_) => break,
            None => {
                if let Some((key, rest)) = text.split_once(':')
                    && key.trim_end().eq_ignore_ascii_case(name)
                {
                    value = Some(rest.trim().to_owned());
                }
            }
        }
    }
    value.map(|value| value.chars().take(200).collect())
}

/// The id in the topmost Received header, which the delivering ringpost has written.
fn queue_id(content: &[u8]) -> Option<String> {
    let received = header(content, "received")?;
    let words: Vec<&str> = received.split([' ', ';', '\t']).collect();
    let id = words.windows(2).find(|pair| pair[0] == "id").map(|pair| pair[1])?;
    id.parse::<MessageId>().ok().map(|id| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncBufReadExt;

    async fn start(keep: usize) -> (Sandbox, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sandbox = Sandbox::new(keep);
        tokio::spawn(sandbox.clone().serve(listener, "sandbox.test".into()));
        (sandbox, address)
    }

    async fn send(address: SocketAddr, contents: &[&str]) {
        let stream = TcpStream::connect(address).await.unwrap();
        let (read, mut write) = stream.into_split();
        let mut lines = tokio::io::BufReader::new(read).lines();
        let mut expect = async |code: &str| loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if line.as_bytes().get(3) != Some(&b'-') {
                assert!(line.starts_with(code), "{line}");
                break;
            }
        };
        expect("220").await;
        write.write_all(b"EHLO client.test\r\n").await.unwrap();
        expect("250").await;
        for content in contents {
            let transaction =
                format!("MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nRCPT TO:<c@y.test>\r\nDATA\r\n{content}");
            let (head, body) = transaction.split_at(transaction.len() - content.len());
            write.write_all(head.as_bytes()).await.unwrap();
            for code in ["250", "250", "250", "354"] {
                expect(code).await;
            }
            write.write_all(body.as_bytes()).await.unwrap();
            write.write_all(b"\r\n.\r\n").await.unwrap();
            expect("250").await;
        }
        write.write_all(b"QUIT\r\n").await.unwrap();
        expect("221").await;
    }

    #[tokio::test]
    async fn takes_messages_and_shows_them_by_number_and_by_id() {
        let (sandbox, address) = start(10).await;
        let id = MessageId(123_456_789).to_string();
        let content = format!(
            "Received: from x by y\r\n with ESMTP id {id}; Tue, 24 Nov 2026\r\nSubject: two\r\n lines\r\n\r\nhello"
        );
        send(address, &[&content]).await;
        let list = sandbox.list();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].recipients, ["b@y.test", "c@y.test"]);
        assert_eq!(list[0].subject.as_deref(), Some("two lines"));
        assert_eq!((list[0].id.as_deref(), list[0].content.as_deref()), (Some(id.as_str()), None));
        let shown = sandbox.show(&id.to_lowercase()).unwrap();
        assert!(shown.content.unwrap().contains("hello"));
        assert_eq!(sandbox.show("1").unwrap().sender, "a@x.test");
        assert_eq!(sandbox.show("2"), None);
    }

    #[tokio::test]
    async fn keeps_the_last_messages_and_the_beginning_of_long_ones() {
        let (sandbox, address) = start(2).await;
        let long = "x".repeat(100).to_string() + "\r\n";
        send(address, &["Subject: 1\r\n\r\n", "Subject: 2\r\n\r\n", &long.repeat(1_000)]).await;
        let list = sandbox.list();
        assert_eq!(list.iter().map(|message| message.number).collect::<Vec<_>>(), [2, 3]);
        assert!(list[1].truncated && list[1].size > 100_000);
        assert_eq!(sandbox.show("3").unwrap().content.unwrap().len(), KEPT_OCTETS_MAX);
        assert_eq!(sandbox.taken(), 3);
    }
}
