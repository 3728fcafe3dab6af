//! The program under test with a configuration of its own: started under limits, asked, stopped, killed.
//!
//! Everything is waited for by looking again until a deadline. A program is killed when dropped, and by the kernel when
//! the thread that started it ends. What it logs goes to a file that all its starts append to.

use ringpost_load::relay::free_address;
use serde_json::Value;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The longest wait for one thing.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The pause between two looks at what cannot be waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Looks until `look` gives something, or panics with `what` and the log.
pub fn wait<T>(what: &str, setup: &Setup, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}\n{}", setup.log_end());
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Says loudly, on both streams, what is not tested here.
pub fn skipped(what: &str) {
    println!("SKIPPED: {what}");
    eprintln!("SKIPPED: {what}");
}

/// How a program is configured and started. Each field of text holds lines for one section.
pub struct Setup {
    directory: PathBuf,
    pub spool_directory: PathBuf,
    pub listen: SocketAddr,
    pub next_hop: Option<SocketAddr>,
    pub top: String,
    pub spool: String,
    pub limits: String,
    pub route: String,
    pub retry: String,
    pub dns: String,
    pub log_format: &'static str,
    /// Soft and hard limits of the process.
    pub resources: Vec<(libc::__rlimit_resource_t, u64)>,
    pub variables: Vec<(&'static str, PathBuf)>,
    pub deny_io_uring: bool,
}

impl Setup {
    /// One shard, small segments, a retry each second; the spool lies in a directory of this test's own.
    pub fn new(name: &str) -> Setup {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for the test");
        Setup {
            spool_directory: directory.join("spool"),
            directory,
            listen: free_address().expect("a free port"),
            next_hop: None,
            top: "shards = 1\nhostname = \"relay.example\"\n".into(),
            spool: "segment_size = \"1MiB\"\nspares = 1\n".into(),
            limits: "loopback_exempt = true\n".into(),
            route: String::new(),
            retry: "first = \"1s\"\nfactor = 1\nmax = \"1s\"\njitter = 0\n".into(),
            dns: String::new(),
            log_format: "json",
            resources: Vec::new(),
            variables: Vec::new(),
            deny_io_uring: false,
        }
    }

    /// A place in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn config(&self) -> PathBuf {
        let hop = self.next_hop.map_or(String::new(), |hop| format!("next_hops = \"{hop}\"\n"));
        let text = format!(
            "{}[spool]\ndir = {:?}\n{}[[listener]]\naddress = \"{}\"\n[limits]\n{}[retry]\n{}[dns]\n{}[log]\nformat = \
             \"{}\"\n[[route]]\nname = \"destination\"\n{hop}{}",
            self.top,
            self.spool_directory,
            self.spool,
            self.listen,
            self.limits,
            self.retry,
            self.dns,
            self.log_format,
            self.route,
        );
        let path = self.path("config.toml");
        std::fs::write(&path, text).expect("the configuration is written");
        path
    }

    fn command(&self) -> Command {
        let log = File::options().create(true).append(true).open(self.path("log")).expect("the log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost"));
        command.arg("serve").arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let (resources, deny_io_uring) = (self.resources.clone(), self.deny_io_uring);
        // SAFETY: between fork and exec there are only system calls, which are allowed there, on memory made before.
        unsafe {
            command.pre_exec(move || {
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                for (resource, value) in &resources {
                    let limit = libc::rlimit { rlim_cur: *value, rlim_max: *value };
                    check(libc::setrlimit(*resource, &limit))?;
                }
                if deny_io_uring { refuse_io_uring() } else { Ok(()) }
            });
        }
        command
    }

    /// Starts it and waits for nothing.
    pub fn spawn(&self) -> Program {
        Program { child: self.command().spawn().expect("the program is started") }
    }

    /// Starts it and waits until it greets.
    pub fn start(&self) -> Program {
        let mut program = self.spawn();
        wait("a greeting", self, || {
            program.must_run(self);
            super::mail::Client::connect(self.listen).ok()
        });
        program
    }

    /// Starts it where it must refuse to run: its exit code and what it said.
    pub fn refusal(&self) -> (i32, String) {
        let before = self.log().len();
        let mut program = self.spawn();
        let status = wait("a refusal to start", self, || program.child.try_wait().expect("a look at the process"));
        (status.code().unwrap_or(-1), self.log().split_off(before))
    }

    /// Carries out another command of the program: exit code, and what it wrote on both streams.
    pub fn run(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost"));
        let output = command.args(arguments).output().expect("the program is run");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code().unwrap_or(-1), text.concat())
    }

    /// `ringpost spool WHAT` of this spool.
    pub fn spool_says(&self, what: &str) -> (i32, String) {
        self.run(&["spool", what, &self.spool_directory.to_string_lossy()])
    }

    /// `ringpost queue ...` of the running program.
    pub fn queue_says(&self, arguments: &[&str]) -> (i32, String) {
        let socket = self.spool_directory.join("control.sock");
        let socket = socket.to_string_lossy();
        let mut all = vec!["queue"];
        all.extend(arguments);
        all.extend(["--admin-socket", &socket]);
        self.run(&all)
    }

    /// All that was logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path("log")).unwrap_or_default()).into_owned()
    }

    /// The end of it.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The logged events of one name.
    pub fn events(&self, name: &str) -> Vec<Value> {
        let log = self.log();
        let all = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        all.filter(|event| event["event"] == name).collect()
    }

    /// Waits for a line of at least this level with all these words.
    pub fn wait_line(&self, levels: &[&str], words: &[&str]) -> String {
        wait(&format!("a line of {levels:?} with {words:?}"), self, || {
            let log = self.log();
            let fits = |line: &&str| {
                let level = levels.iter().any(|level| line.contains(&format!("\"level\":\"{level}\"")));
                level && words.iter().all(|word| line.contains(word))
            };
            log.lines().find(fits).map(str::to_owned)
        })
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // What a failed test leaves is for people to look at.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// From here on io_uring_setup(2) is EPERM, as under the seccomp filters of containers.
fn refuse_io_uring() -> io::Result<()> {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let filter = [
        libc::sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: JUMP_EQUAL, jt: 0, jf: 1, k: libc::SYS_io_uring_setup as u32 },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::EPERM as u32 },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the filter lives through both calls and is only read.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program))
    }
}

/// A running program; killed when dropped.
pub struct Program {
    child: Child,
}

impl Program {
    /// Panics when it has ended by itself.
    pub fn must_run(&mut self, setup: &Setup) {
        if let Some(status) = self.child.try_wait().expect("a look at the process") {
            panic!("it ended by itself: {status}\n{}", setup.log_end());
        }
    }

    /// SIGTERM, and its drained end.
    pub fn stop(mut self, setup: &Setup) {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let status: ExitStatus = wait("the end", setup, || self.child.try_wait().expect("a look at the process"));
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", setup.log_end());
    }

    /// SIGKILL, and its end.
    pub fn kill(mut self, setup: &Setup) {
        self.must_run(setup);
        self.child.kill().expect("a signal");
        self.child.wait().expect("its end");
    }

    /// Its number.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Octets of anonymous memory that are resident.
    pub fn anonymous(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A process that has ended cannot be killed, and needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
