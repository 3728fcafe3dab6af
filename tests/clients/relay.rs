//! The program under test as a process: started with a configuration of the test's own, watched by its log, asked by
//! its own commands, and killed when dropped.

use super::PATIENCE;
use super::programs::{Finished, run, stop_with_parent};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Where the program is.
pub const RINGPOST: &str = env!("CARGO_BIN_EXE_ringpost");

/// A directory that goes with its value.
pub struct Directory(PathBuf);

impl Directory {
    /// On the disk that holds the build, which is a real one.
    pub fn new() -> Directory {
        Directory::below(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    pub fn below(parent: &Path) -> Directory {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("clients-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory for the test");
        Directory(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and says where.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, content).expect("a file of the test");
        path
    }

    /// Writes a file that its owner alone may read and says where.
    pub fn secret(&self, name: &str, content: &str) -> PathBuf {
        let path = self.file(name, content);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What a killed process leaves behind is of no use to the next test; a failure here must not hide the test's.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A free port of loopback, found by the kernel and given back.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

/// Lines that a thread reads from a process, and a way to wait for one.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Lines {
    pub fn read(from: impl Read + Send + 'static) -> Lines {
        let lines = Lines::default();
        let shared = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                let (all, changed) = &*shared.0;
                all.lock().expect("lines").push(String::from_utf8_lossy(&line).into_owned());
                changed.notify_all();
            }
        });
        lines
    }

    pub fn all(&self) -> Vec<String> {
        self.0.0.lock().expect("lines").clone()
    }

    /// Waits until the lines satisfy `look`.
    pub fn wait<T>(&self, mut look: impl FnMut(&[String]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        let (all, changed) = &*self.0;
        let mut lines = all.lock().expect("lines");
        loop {
            if let Some(found) = look(&lines) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            lines = changed.wait_timeout(lines, left).expect("lines").0;
        }
    }
}

/// How a relay is started; what is not said is as in the embedded default.
#[derive(Default)]
pub struct Setup {
    flags: Vec<String>,
    extra: String,
    listener: String,
    human: bool,
}

impl Setup {
    pub fn new() -> Setup {
        Setup::default()
    }

    pub fn flag(mut self, name: &str, value: impl ToString) -> Setup {
        self.flags.extend([name.to_owned(), value.to_string()]);
        self
    }

    /// Takes mail and delivers nothing.
    pub fn hold(mut self) -> Setup {
        self.flags.push("--hold".into());
        self
    }

    pub fn next_hop(self, address: SocketAddr) -> Setup {
        self.flag("--next-hop", address)
    }

    /// Logs for people instead of programs; then no event can be waited for.
    pub fn human(mut self) -> Setup {
        self.human = true;
        self
    }

    /// Further lines of the listener's section.
    pub fn listener(mut self, lines: &str) -> Setup {
        self.listener.push_str(lines);
        self.listener.push('\n');
        self
    }

    /// Further sections of the configuration.
    pub fn sections(mut self, lines: &str) -> Setup {
        self.extra.push_str(lines);
        self.extra.push('\n');
        self
    }

    pub fn start(self) -> Relay {
        self.start_in(Directory::new())
    }

    /// Starts it and expects that it does not; what it says.
    pub fn fails(self) -> String {
        let mut relay = self.spawn_in(Directory::new());
        assert!(!relay.wait_end().success(), "it ended well");
        let last = |lines: &[String]| lines.iter().find(|line| line.starts_with("ringpost: ")).cloned();
        let told = relay.log.wait(last);
        told.unwrap_or_default()
    }

    /// Starts it in a directory that another one may have used, and waits until it listens.
    pub fn start_in(self, directory: Directory) -> Relay {
        let relay = self.spawn_in(directory);
        let listens = relay.log.wait(|lines| lines.iter().any(|line| line.contains(" listens on ")).then_some(()));
        assert!(listens.is_some(), "it does not listen within {PATIENCE:?}\n{}", relay.log.all().join("\n"));
        relay
    }

    fn spawn_in(self, directory: Directory) -> Relay {
        let listen = free_address();
        // Small segments: many relays are started here, and each zeroes the segments it prepares.
        let config = format!(
            "hostname = \"relay.test\"\nshards = 2\n[spool]\ndir = {:?}\nsegment_size = \"4MiB\"\nspares = 1\n\
             [[listener]]\naddress = \"{listen}\"\n{}\n[limits]\nloopback_exempt = true\n{}\n",
            directory.join("spool"),
            self.listener,
            self.extra
        );
        let config = directory.file("ringpost.toml", config);
        let mut command = Command::new(RINGPOST);
        command
            .arg("serve")
            .arg("--config")
            .arg(config)
            .args(["--log-format", if self.human { "human" } else { "json" }]);
        command.args(&self.flags);
        Relay::spawn(command, directory, listen)
    }
}

/// The running program.
pub struct Relay {
    child: Child,
    pub address: SocketAddr,
    pub log: Lines,
    pub output: Lines,
    directory: Option<Directory>,
}

impl Relay {
    pub fn spawn(mut command: Command, directory: Directory, address: SocketAddr) -> Relay {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        stop_with_parent(&mut command);
        let mut child = command.spawn().expect("the program starts");
        let log = Lines::read(child.stderr.take().expect("its standard error"));
        let output = Lines::read(child.stdout.take().expect("its standard output"));
        Relay { child, address, log, output, directory: Some(directory) }
    }

    pub fn port(&self) -> String {
        self.address.port().to_string()
    }

    pub fn directory(&self) -> &Directory {
        self.directory.as_ref().expect("a relay that was not stopped")
    }

    pub fn spool(&self) -> PathBuf {
        self.directory().join("spool")
    }

    /// Waits for an event of the log.
    pub fn wait_log(&self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let mut seen = 0;
        let found = self.log.wait(|lines| {
            let new = &lines[seen..];
            seen = lines.len();
            new.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|event| wanted(event))
        });
        found.unwrap_or_else(|| panic!("no such event within {PATIENCE:?} in\n{}", self.log.all().join("\n")))
    }

    /// Waits for an event of this name about this message and recipient.
    pub fn wait_event(&self, name: &str, id: &str, recipient: &str) -> Value {
        self.wait_log(|event| event["event"] == name && event["id"] == id && event["to"] == recipient)
    }

    /// A command of the program, for this instance.
    pub fn command(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(RINGPOST);
        command.args(arguments).arg("--spool").arg(self.spool());
        run(command, b"")
    }

    /// A command that succeeds and prints JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let finished = self.command(&[arguments, &["--json"]].concat()).succeeded();
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stdout))
    }

    /// Asks until the answer is as wanted.
    pub fn wait_json(&self, arguments: &[&str], mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.json(arguments);
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{arguments:?} still says {answer:#}\n{}", self.log.all().join("\n"));
        }
    }

    /// Waits until nothing waits.
    pub fn wait_empty(&self) {
        self.wait_json(&["queue", "list"], |messages| messages.as_array().is_some_and(Vec::is_empty));
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Waits for the end after a signal.
    pub fn wait_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a look at the process") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not stop\n{}", self.log.all().join("\n"));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The directory of one that has ended, for the next.
    pub fn take_directory(&mut self) -> Directory {
        self.directory.take().expect("it is taken once")
    }

    /// Stops it well, and gives its directory to the next.
    pub fn stop(mut self) -> Directory {
        self.terminate();
        let status = self.wait_end();
        assert!(status.success(), "{status}\n{}", self.log.all().join("\n"));
        self.take_directory()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A process that has ended cannot be killed, and needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let lines = self.log.all();
            println!("--- the relay's log\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// A text of an event or an answer; "" if it has none.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("")
}
