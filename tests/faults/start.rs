//! What keeps the program from starting: each cause is told with its cure and an exit code of its own.

use super::failing_disk::mount_memory;
use super::mail::{Destination, Ledger};
use super::program::{Setup, skipped};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;

/// Starts a program that must refuse, with this code and all these words.
fn refuses(setup: &Setup, code: i32, words: &[&str]) {
    let (got, text) = setup.refusal();
    println!("{text}");
    assert_eq!(got, code, "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn a_second_start_on_a_spool_is_refused_and_harms_nothing() {
    let mut setup = Setup::new("second");
    let (ledger, destination) = (Ledger::default(), Destination::start(true));
    setup.next_hop = Some(destination.address);
    let mut program = setup.start();
    let number = program.process().to_string();
    let mut second = Setup::new("second-too");
    second.spool_directory = setup.spool_directory.clone();
    refuses(&second, 75, &["in use", &number, "--spool"]);
    let (code, text) = setup.spool_says("recover");
    assert_eq!(code, 75, "{text}");
    program.must_run(&setup);
    ledger.send(&setup, "unharmed", 1000).expect("mail is taken");
    ledger.wait_delivered(&setup, &destination);
    program.stop(&setup);
}

#[test]
fn a_spool_that_cannot_be_written_is_told() {
    let mut setup = Setup::new("unwritable");
    setup.spool_directory = "/dev/null/spool".into();
    refuses(&setup, 73, &["/dev/null/spool", "--spool"]);
    setup.spool_directory = setup.path("disk");
    std::fs::create_dir_all(&setup.spool_directory).expect("a directory");
    if let Err(why) = mount_memory(&setup.spool_directory, 1 << 20) {
        return skipped(&format!("NO READ-ONLY SPOOL IS TESTED ON THIS MACHINE: {why}"));
    }
    let mut remount = std::process::Command::new("mount");
    remount.args(["-o", "remount,ro"]).arg(&setup.spool_directory);
    assert!(remount.status().is_ok_and(|status| status.success()), "{remount:?}");
    refuses(&setup, 73, &["Read-only file system", "--spool"]);
}

#[test]
fn a_spool_of_a_newer_version_is_left_alone() {
    let mut setup = Setup::new("newer");
    setup.top.push_str("hold = true\n");
    let ledger = Ledger::default();
    let program = setup.start();
    ledger.send(&setup, "kept", 1000).expect("mail is taken");
    program.stop(&setup);
    let path = super::damage::segment_with(&setup, "kept").path;
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("the segment");
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).expect("a header");
    let good = header;
    header[8..10].copy_from_slice(&2_u16.to_le_bytes());
    let seed = crc32c::crc32c_append(crc32c::crc32c(&header[16..24]), &header[12..16]);
    let sum = crc32c::crc32c_append(seed, &header[..60]);
    header[60..].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&header, 0).expect("the header is written");
    refuses(&setup, 74, &["newer version", "format 2", "nothing in it was changed"]);
    for what in ["verify", "recover", "dump"] {
        let (code, text) = setup.spool_says(what);
        assert_eq!(code, 74, "{what}: {text}");
        assert!(text.contains("newer"), "{what}: {text}");
    }
    // With the right version again, the mail is there.
    file.write_all_at(&good, 0).expect("the header is written");
    let destination = Destination::start(true);
    setup.next_hop = Some(destination.address);
    setup.top = setup.top.replace("hold = true\n", "");
    let program = setup.start();
    ledger.wait_delivered(&setup, &destination);
    program.stop(&setup);
}

#[test]
fn a_port_in_use_is_told() {
    let mut setup = Setup::new("port");
    let other = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    setup.listen = other.local_addr().expect("an address");
    let address = setup.listen.to_string();
    refuses(&setup, 69, &["cannot listen on", &address, "in use"]);
    setup.listen = "192.0.2.1:2525".parse().expect("an address");
    refuses(&setup, 69, &["cannot listen on", "192.0.2.1:2525"]);
    let setup_metrics = Setup::new("port-metrics");
    let mut setup = setup_metrics;
    setup.route = format!("[admin]\nmetrics = \"{address}\"\n");
    refuses(&setup, 69, &["cannot listen on", &address, "metrics"]);
}

#[test]
fn io_uring_that_is_forbidden_is_told() {
    let mut setup = Setup::new("seccomp");
    setup.deny_io_uring = true;
    refuses(&setup, 69, &["io_uring is forbidden", "seccomp"]);
}

#[test]
fn locked_memory_that_is_too_little_is_told() {
    let mut setup = Setup::new("memlock");
    setup.resources = vec![(libc::RLIMIT_MEMLOCK, 256 << 10)];
    refuses(&setup, 69, &["locked memory is 256 KiB", "LimitMEMLOCK=", "ulimit -l"]);
}

#[test]
fn descriptors_that_are_far_too_few_are_told() {
    let mut setup = Setup::new("nofile");
    setup.resources = vec![(libc::RLIMIT_NOFILE, 16)];
    let (code, text) = setup.refusal();
    println!("{code} {text}");
    assert!([69, 70, 71, 73, 78].contains(&code), "{code}: {text}");
    assert!(text.contains("LimitNOFILE") && !text.contains("panicked"), "{text}");
}

#[test]
fn a_configuration_that_is_wrong_is_told_with_its_place() {
    let mut setup = Setup::new("config");
    setup.spool.push_str("segment_siez = 1\n");
    refuses(&setup, 78, &["segment_siez", "config.toml"]);
    let (code, text) = setup.run(&["serve", "--config", "/nonexistent/config.toml"]);
    assert_eq!(code, 66, "{text}");
}
