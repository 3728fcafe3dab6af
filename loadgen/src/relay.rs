//! The program under test as a process: started, asked, killed, stopped.
//!
//! It is waited for by its socket and its exit, each wait with a bound. Its log goes to a file, whose end is part of
//! what a failing test says. It is killed when dropped, and by the kernel when the thread that started it ends.

use crate::random::{Random, seed_of_now};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a start may take.
const START_TIME: Duration = Duration::from_secs(60);
/// The pause between two looks at what cannot be waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How to start it.
#[derive(Clone, Debug)]
pub struct RelayCommand {
    /// The executable.
    pub binary: PathBuf,
    /// Its spool.
    pub spool: PathBuf,
    /// Where it takes mail.
    pub listen: SocketAddr,
    /// Where it delivers to, in order of preference.
    pub next_hops: Vec<SocketAddr>,
    /// Where there are no next hops: the name server that it asks for the domains' own mail hosts, and their port.
    pub resolver: Option<(SocketAddr, u16)>,
    /// Seconds between attempts.
    pub retry: u64,
    /// Shards.
    pub shards: u8,
    /// Connections to each site.
    pub connections: u32,
    /// Deliver nothing.
    pub hold: bool,
    /// Where its log is appended to.
    pub log: PathBuf,
}

impl RelayCommand {
    /// Starts it and waits until it greets.
    pub fn start(&self) -> io::Result<Relay> {
        let started = Instant::now();
        let mut relay = self.spawn()?;
        relay.wait_greeting(self.listen, started + START_TIME)?;
        relay.start_time = started.elapsed();
        Ok(relay)
    }

    /// Starts it and waits for nothing.
    pub fn spawn(&self) -> io::Result<Relay> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.binary);
        command.arg("serve").arg("--spool").arg(&self.spool);
        command.arg("--listen").arg(self.listen.to_string());
        for next_hop in &self.next_hops {
            command.arg("--next-hop").arg(next_hop.to_string());
        }
        if let Some((server, port)) = self.resolver {
            command.args(["--resolver", &server.to_string(), "--delivery-port", &port.to_string()]);
        }
        command.args(["--retry", &self.retry.to_string(), "--shards", &self.shards.to_string()]);
        command.args(["--connections", &self.connections.to_string()]);
        command.arg("--no-metrics");
        if self.hold {
            command.arg("--hold");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: between fork and exec there is one system call, which is allowed there.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let admin = self.spool.join("control.sock");
        Ok(Relay { child: command.spawn()?, admin, start_time: Duration::ZERO })
    }

    /// The last lines of its log.
    pub fn log_end(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// What `ringpost spool WHAT` says of the spool, while nothing runs on it.
    pub fn spool_says(&self, what: &str) -> String {
        match Command::new(&self.binary).args(["spool", what]).arg(&self.spool).output() {
            Ok(output) => {
                String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
            }
            Err(error) => format!("spool {what}: {error}"),
        }
    }
}

/// How many messages wait in the relay whose admin interface is at a socket; None if it does not say.
pub fn waiting(socket: &Path) -> Option<u64> {
    ask(socket, "/v1/status").ok()?.get("messages")?.as_u64()
}

/// A free port of loopback for a server that is started again and again. It is below those that the kernel gives to
/// outgoing connections (`ip_local_port_range`), so that none of them takes it while the server is down.
pub fn free_address() -> io::Result<SocketAddr> {
    let mut random = Random::new(seed_of_now());
    let mut failure = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..100 {
        let address = SocketAddr::from(([127, 0, 0, 1], random.between(15_000, 32_000) as u16));
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The running program.
pub struct Relay {
    child: Child,
    admin: PathBuf,
    /// From the start of the process to its first greeting; zero if that was not waited for.
    pub start_time: Duration,
}

impl Relay {
    fn wait_greeting(&mut self, address: SocketAddr, deadline: Instant) -> io::Result<()> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("it ended while starting: {}", describe(status))));
            }
            if greets(address).is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not greet"));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Sends SIGKILL, without waiting for the end.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    /// Waits for the end of a process that was killed. An end of its own before that is an error.
    pub fn reap(&mut self) -> io::Result<()> {
        let status = self.child.wait()?;
        match status.signal() {
            Some(libc::SIGKILL) => Ok(()),
            _ => Err(io::Error::other(format!("it ended by itself: {}", describe(status)))),
        }
    }

    /// The process number.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends SIGTERM and waits for the drained end.
    pub fn stop(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not stop"));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Asks the admin interface.
    pub fn ask(&self, path: &str) -> io::Result<serde_json::Value> {
        ask(&self.admin, path)
    }

    /// Where its admin interface is.
    pub fn admin(&self) -> &Path {
        &self.admin
    }

    /// Messages in the queue, at most a page.
    pub fn queued(&self) -> io::Result<Vec<serde_json::Value>> {
        match self.ask("/v1/queue?limit=1000")?.get_mut("messages") {
            Some(serde_json::Value::Array(messages)) => Ok(std::mem::take(messages)),
            _ => Err(io::Error::other("an answer without messages")),
        }
    }

    /// Waits until the queue is empty; otherwise what is left in it.
    pub fn wait_empty(&self, patience: Duration) -> io::Result<Vec<serde_json::Value>> {
        let deadline = Instant::now() + patience;
        loop {
            let queued = self.queued()?;
            if queued.is_empty() || Instant::now() > deadline {
                return Ok(queued);
            }
            std::thread::sleep(LOOK_AGAIN * 5);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A process that has ended cannot be killed, and needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "in an unknown way".to_owned(),
    }
}

fn greets(address: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    (&stream).write_all(b"QUIT\r\n")?;
    if line.starts_with("220 ") { Ok(()) } else { Err(io::Error::other(format!("it says {line:?}"))) }
}

/// Asks the admin interface at a socket; the answer is JSON.
pub fn ask(socket: &Path, path: &str) -> io::Result<serde_json::Value> {
    serde_json::from_str(&ask_text(socket, path)?).map_err(io::Error::other)
}

/// The metrics of the relay whose admin interface is at a socket, in the text form of Prometheus.
///
/// # Errors
/// When the relay does not answer, or with something else than 200.
pub fn metrics(socket: &Path) -> io::Result<String> {
    ask_text(socket, "/metrics")
}

fn ask_text(socket: &Path, path: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: ringpost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if !answer.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(format!("{path}: {}", answer.lines().next().unwrap_or_default())));
    }
    Ok(body.to_owned())
}
