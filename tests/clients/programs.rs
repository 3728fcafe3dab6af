//! Other programs: whether they are there, and how they are run with a bound and with all they say kept.

use super::PATIENCE;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Which Debian package brings a program.
const PACKAGES: &[(&str, &str)] = &[
    ("swaks", "swaks"),
    ("msmtp", "msmtp"),
    ("gsasl", "gsasl"),
    ("curl", "curl"),
    ("node", "node-nodemailer"),
    ("openssl", "openssl"),
    ("python3", "python3"),
    ("knotd", "knot"),
    ("keymgr", "knot"),
    ("unbound", "unbound"),
    ("postconf", "postfix"),
    ("smtp-source", "postfix"),
    ("smtp-sink", "postfix"),
];

/// Where a program is.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|place| place.join(name)).find(|file| file.is_file())
}

/// A program to run, or none after saying loudly that its test is skipped.
pub fn program(name: &str) -> Option<Command> {
    match find(name) {
        Some(path) => Some(Command::new(path)),
        None => {
            let package = PACKAGES.iter().find(|(program, _)| *program == name).map_or(name, |(_, package)| package);
            skip(&format!("{name} is not installed; apt-get install {package}"));
            None
        }
    }
}

/// Says that a test is skipped, past the harness's capture.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    assert!(std::env::var_os("RINGPOST_CLIENTS_STRICT").is_none(), "{test}: {why}");
    // Written directly: what goes through println! is shown only for tests that fail.
    let _ = writeln!(io::stderr(), "SKIPPED: {test}: {why}");
}

/// What became of a program.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// It must have succeeded.
    pub fn succeeded(self) -> Finished {
        assert!(self.status.success(), "{}\n{}\n{}", self.status, self.stdout, self.stderr);
        self
    }

    /// It must have failed, and said this.
    #[track_caller]
    pub fn fails(self, why: &str) {
        assert!(
            !self.status.success() && self.stderr.contains(why),
            "{}\n{}\n{}",
            self.status,
            self.stdout,
            self.stderr
        );
    }
}

/// The kernel ends the process when the thread that starts it ends.
pub fn stop_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec there is one system call, which is allowed there.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// Runs a program to its end, within the tests' patience.
pub fn run(mut command: Command, input: &[u8]) -> Finished {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    stop_with_parent(&mut command);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("its standard input");
    let input = input.to_vec();
    // A program that ends without reading its input says why in another way.
    std::thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = collect(child.stdout.take().expect("its standard output"));
    let stderr = collect(child.stderr.take().expect("its standard error"));
    let status = wait(&mut child, &command);
    let text = |thread: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().expect("a reader")).into_owned()
    };
    Finished { status, stdout: text(stdout), stderr: text(stderr) }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what there is.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

fn wait(child: &mut Child, command: &Command) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("a look at the process") {
            return status;
        }
        if Instant::now() > deadline {
            kill_group(child);
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a process that leads a group of its own, and the group.
pub fn kill_group(child: &mut Child) {
    // SAFETY: a signal to the group of a child that has not been waited for.
    unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
    let _ = child.wait();
}
