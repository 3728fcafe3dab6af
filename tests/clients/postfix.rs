//! A Postfix of the test's own: configured for one purpose in a directory of its own, on a free port, and ended with
//! the test. The system's Postfix is not touched.

use super::PATIENCE;
use super::programs::{find, kill_group, skip, stop_with_parent};
use super::relay::{Directory, free_address};
use std::ffi::CString;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Queue directories that belong to Postfix's own user.
const OWN: &[&str] =
    &["active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"];

/// Services without which it does not work: name, type, chroot apart, wakeup, limit, program.
const SERVICES: &[&str] = &[
    "pickup unix n - n 60 1 pickup",
    "cleanup unix n - n - 0 cleanup",
    "qmgr unix n - n 300 1 qmgr",
    "rewrite unix - - n - - trivial-rewrite",
    "bounce unix - - n - 0 bounce",
    "defer unix - - n - 0 bounce",
    "trace unix - - n - 0 bounce",
    "verify unix - - n - 1 verify",
    "flush unix n - n 1000? 0 flush",
    "proxymap unix - - n - - proxymap",
    "smtp unix - - n - - smtp",
    "error unix - - n - - error",
    "retry unix - - n - - error",
    "discard unix - - n - - discard",
    "virtual unix - n n - - virtual",
    "anvil unix - - n - 1 anvil",
    "tlsmgr unix - - n 1000? 1 tlsmgr",
    "postlog unix-dgram n - n - 1 postlogd",
];

/// A running Postfix.
pub struct Postfix {
    master: Child,
    pub address: SocketAddr,
    directory: Directory,
}

/// Whether Postfix can be run here; if not, that is said loudly.
pub fn possible() -> bool {
    // SAFETY: it only asks.
    let root = unsafe { libc::geteuid() } == 0;
    if find("postconf").is_none() {
        skip("Postfix is not installed; apt-get install postfix");
        return false;
    }
    if !root {
        skip("Postfix needs root; run the tests as root");
    }
    root
}

impl Postfix {
    /// Starts one with these lines in addition to what it needs to run at all, and waits until it listens.
    pub fn start(lines: &[&str]) -> Postfix {
        // Its processes run as another user, to whom the build's directory may be closed.
        let directory = Directory::below(&std::env::temp_dir());
        let address = free_address();
        prepare(&directory);
        directory.file("main.cf", main_cf(directory.path(), lines));
        let listener = format!("{address} inet n - n - - smtpd");
        let services: Vec<&str> = std::iter::once(listener.as_str()).chain(SERVICES.iter().copied()).collect();
        directory.file("master.cf", services.join("\n") + "\n");
        let mut command = Command::new(daemon_directory().join("master"));
        // It ends by itself after ten minutes, should the test be killed.
        command.args(["-d", "-e", "600", "-c"]).arg(directory.path()).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        stop_with_parent(&mut command);
        let master = command.spawn().expect("Postfix starts");
        let mut postfix = Postfix { master, address, directory };
        postfix.wait_until("it listens", |postfix| TcpStream::connect(postfix.address).is_ok());
        postfix
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Messages delivered to its mailboxes, which are one.
    pub fn mailbox(&self) -> Vec<Vec<u8>> {
        let new = self.directory.join("mail/all/new");
        let files = std::fs::read_dir(new).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read(file.path()).ok()).collect()
    }

    pub fn wait_until(&mut self, what: &str, mut reached: impl FnMut(&Postfix) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self) {
            let ended = self.master.try_wait().expect("a look at the process");
            assert!(ended.is_none(), "Postfix ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "waited until {what} in vain\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- Postfix's log\n{}", self.log());
        }
        kill_group(&mut self.master);
    }
}

fn daemon_directory() -> PathBuf {
    let postconf = find("postconf").expect("looked for before");
    let output = Command::new(postconf).args(["-d", "-h", "daemon_directory"]).output().expect("postconf runs");
    String::from_utf8_lossy(&output.stdout).trim().into()
}

fn main_cf(directory: &Path, lines: &[&str]) -> String {
    let place = directory.display();
    let always = format!(
        "compatibility_level = 3.6\nqueue_directory = {place}/queue\ndata_directory = {place}/data\n\
         maillog_file = {place}/log\nmaillog_file_prefixes = {place}\nmyhostname = postfix.test\n\
         inet_interfaces = loopback-only\ninet_protocols = ipv4\nmynetworks = 127.0.0.0/8\nmydestination =\n\
         alias_maps =\nlocal_recipient_maps =\nlocal_header_rewrite_clients =\nsmtp_dns_support_level = disabled\n\
         smtp_host_lookup = native\nsmtputf8_enable = yes\nsmtpd_peername_lookup = no\nmessage_size_limit = 0\nvirtual_mailbox_limit = 0\n\
         smtpd_client_connection_count_limit = 0\nminimal_backoff_time = 1s\nmaximal_backoff_time = 2s\n\
         queue_run_delay = 1s\nsmtpd_relay_restrictions = permit_mynetworks, reject\nsmtp_line_length_limit = 0\n"
    );
    always + &lines.join("\n") + "\n"
}

/// The directories with the owners and modes that Postfix insists on.
fn prepare(directory: &Directory) {
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    mode(directory.path(), 0o755);
    let user = named_user("postfix").expect("the user of Postfix");
    let group = named_group("postdrop").expect("the group of Postfix");
    let make = |name: &str| {
        let path = directory.join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        path
    };
    make("queue");
    make("queue/pid");
    for name in OWN {
        let path = make(&format!("queue/{name}"));
        mode(&path, 0o700);
        own(&path, user, None);
    }
    for (name, bits) in [("queue/public", 0o710), ("queue/maildrop", 0o730)] {
        let path = make(name);
        own(&path, user, Some(group));
        mode(&path, bits);
    }
    let data = make("data");
    mode(&data, 0o700);
    own(&data, user, None);
    own(&make("mail"), NOBODY, None);
}

/// Who delivers to the mailboxes.
pub const NOBODY: u32 = 65534;

fn own(path: &Path, user: u32, group: Option<u32>) {
    std::os::unix::fs::chown(path, Some(user), group).expect("an owner");
}

fn named_user(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the answer is read at once, and tests ask only for this name.
    unsafe { libc::getpwnam(name.as_ptr()).as_ref().map(|user| user.pw_uid) }
}

fn named_group(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: as above.
    unsafe { libc::getgrnam(name.as_ptr()).as_ref().map(|group| group.gr_gid) }
}
