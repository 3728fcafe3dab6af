//! What the running program has given up: started as root, every thread of it is another user without capabilities, and mail
//! is taken all the same. Needs root and says loudly when it is skipped.

#[path = "faults/mail.rs"]
#[allow(dead_code)]
mod mail;
#[path = "faults/program.rs"]
#[allow(dead_code)]
mod program;

use mail::{Destination, Ledger};
use program::{Program, Setup, skipped};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A user that every machine has.
const USER: &str = "nobody";
const USER_NUMBER: &str = "65534";

/// A setup whose spool lies where that user can reach it.
fn setup(name: &str) -> Option<(Setup, std::path::PathBuf)> {
    // SAFETY: asks for a number of this process.
    if unsafe { libc::geteuid() } != 0 {
        skipped("THE CHANGE OF THE USER IS NOT TESTED: that needs root");
        return None;
    }
    let place = std::env::temp_dir().join(format!("ringpost-hardening-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&place).expect("a directory");
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let mut setup = Setup::new(&format!("hardening-{name}"));
    setup.spool_directory = place.join("spool");
    Some((setup, place))
}

/// The value of a line of a thread's status.
fn status_of(thread: &Path, key: &str) -> String {
    let status = std::fs::read_to_string(thread.join("status")).expect("a thread's status");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("the line");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn threads(program: &Program) -> Vec<std::path::PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", program.process())).expect("the threads");
    tasks.map(|task| task.expect("a thread").path()).collect()
}

#[test]
fn started_as_root_every_thread_is_another_user_without_capabilities_and_mail_flows() {
    let Some((mut setup, place)) = setup("user") else { return };
    let (ledger, destination) = (Ledger::default(), Destination::start(true));
    setup.next_hop = Some(destination.address);
    setup.dns.push_str(&format!("[process]\nuser = \"{USER}\"\n"));
    let program = setup.start();
    let all = threads(&program);
    assert!(all.len() >= 4, "{all:?}");
    for thread in &all {
        for (key, value) in [
            ("Uid:", format!("{USER_NUMBER} {USER_NUMBER} {USER_NUMBER} {USER_NUMBER}")),
            ("CapEff:", "0".repeat(16)),
            ("CapPrm:", "0".repeat(16)),
            ("CapInh:", "0".repeat(16)),
            ("CapBnd:", "0".repeat(16)),
            ("CapAmb:", "0".repeat(16)),
            ("NoNewPrivs:", "1".into()),
        ] {
            assert_eq!(status_of(thread, key), value, "{key} of {}", thread.display());
        }
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.process())).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    ledger.send(&setup, "small", 1000).expect("mail is taken");
    // One that goes to a file of its own.
    ledger.send(&setup, "large", 2 << 20).expect("mail is taken");
    ledger.wait_delivered(&setup, &destination);
    let (code, text) = setup.queue_says(&["list"]);
    assert_eq!(code, 0, "{text}");
    program.stop(&setup);
    std::fs::remove_dir_all(place).expect("the spool goes");
}

#[test]
fn a_spool_that_root_made_is_told_with_the_chown_to_run() {
    let Some((mut setup, place)) = setup("foreign") else { return };
    setup.start().stop(&setup);
    setup.dns.push_str(&format!("[process]\nuser = \"{USER}\"\n"));
    let (code, text) = setup.refusal();
    assert_eq!(code, 73, "{text}");
    let spool = setup.spool_directory.display();
    assert!(text.contains("belongs to root") && text.contains(&format!("chown -R {USER}:nogroup {spool}")), "{text}");
    setup.dns = setup.dns.replace(USER, "no-such-user");
    let (code, text) = setup.refusal();
    assert!(code == 77 && text.contains("no user `no-such-user`") && text.contains("useradd"), "{code} {text}");
    std::fs::remove_dir_all(place).expect("the spool goes");
}

#[test]
fn a_key_that_the_user_may_not_read_is_told_with_the_cure() {
    // A user that is known by /etc/passwd alone.
    let Some((mut setup, place)) = setup("key") else { return };
    let pair = rcgen::KeyPair::generate().expect("a key");
    let made = rcgen::CertificateParams::new(vec!["relay.test".to_owned()]).expect("a name");
    let (certificate, key) = (place.join("chain.pem"), place.join("private/key.pem"));
    std::fs::write(&certificate, made.self_signed(&pair).expect("a certificate").pem()).expect("the certificate");
    std::fs::create_dir(place.join("private")).expect("a directory");
    std::fs::write(&key, pair.serialize_pem()).expect("the key");
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    setup.dns.push_str(&format!("[process]\nuser = \"daemon\"\n[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n"));
    let (directory, key) = (key.parent().expect("its directory").to_owned(), key);
    for (directory_mode, cure) in [
        (0o700, format!("chgrp daemon {}; chmod 750 {}", directory.display(), directory.display())),
        (0o755, format!("chgrp daemon {}; chmod 640 {}", key.display(), key.display())),
    ] {
        mode(&directory, directory_mode);
        mode(&key, 0o600);
        let (code, text) = setup.refusal();
        assert_eq!(code, 78, "{text}");
        assert!(text.contains("the user `daemon` may not") && text.contains(&cure), "{cure}: {text}");
    }
    // The cure is one.
    let group = nix::unistd::Group::from_name("daemon").expect("the list of groups").expect("its group").gid;
    nix::unistd::chown(&key, None, Some(group)).expect("it is given to the group");
    mode(&key, 0o640);
    let program = setup.start();
    // Taken away while the relay runs, the certificate stays in use.
    mode(&key, 0o600);
    let spool = setup.spool_directory.to_string_lossy().into_owned();
    let (code, text) = setup.run(&["certificate", "reload", "--spool", &spool]);
    assert!(code == 1 && text.contains("stays in use") && text.contains("chmod 640"), "{code} {text}");
    program.stop(&setup);
    std::fs::remove_dir_all(place).expect("the spool goes");
}
