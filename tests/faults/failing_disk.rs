//! Disks that are full or fail: what a client is told, what the operator is told, and that what was acknowledged is
//! delivered all the same.

use super::disk::Cut;
use super::fuse::{Behaviour, PowerDisk, own_mounts};
use super::mail::{Client, Destination, Ledger};
use super::program::{Setup, skipped, wait};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Octets that are left on the small disk for mail.
const ROOM: u64 = 5 << 20;

/// Gives this thread mounts of its own. False where this user may not mount.
fn may_mount() -> bool {
    // SAFETY: changes the mount namespace of this thread only; the strings are constants with their ends.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
    }
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without NUL")
}

/// A file system of so many octets in memory.
pub fn mount_memory(place: &Path, octets: u64) -> Result<(), String> {
    if !may_mount() {
        return Err(format!("no mounts of one's own: {}", io::Error::last_os_error()));
    }
    let (place, size) = (text(place), CString::new(format!("size={octets}")).expect("no NUL"));
    // SAFETY: all strings live through the call and have their ends.
    let result = unsafe {
        libc::mount(c"faults".as_ptr(), place.as_ptr(), c"tmpfs".as_ptr(), 0, size.as_ptr().cast::<libc::c_void>())
    };
    if result == 0 { Ok(()) } else { Err(format!("no tmpfs: {}", io::Error::last_os_error())) }
}

/// An ext4 of so many octets in a file.
fn mount_image(image: &Path, place: &Path, octets: u64) -> Result<(), String> {
    if !may_mount() {
        return Err(format!("no mounts of one's own: {}", io::Error::last_os_error()));
    }
    File::create(image).and_then(|file| file.set_len(octets)).map_err(|error| error.to_string())?;
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{command:?}: {error}")),
    };
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image))?;
    run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(place))
}

/// Unmounts when dropped; the program's last descriptors may take a moment.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // SAFETY: the string lives through the call. A place that is not mounted needs nothing.
        unsafe { libc::umount2(text(&self.0).as_ptr(), libc::MNT_DETACH) };
    }
}

fn free(place: &Path) -> u64 {
    let mut status = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the call fills in the structure when it succeeds, which is checked.
    unsafe {
        assert_eq!(libc::statvfs(text(place).as_ptr(), status.as_mut_ptr()), 0);
        let status = status.assume_init();
        status.f_bavail * status.f_frsize
    }
}

/// Takes room away; removed, it gives it back.
fn fill(file: &Path, octets: u64) {
    let filler = File::create(file).expect("a file");
    let len = libc::off_t::try_from(octets).expect("a length");
    // SAFETY: the descriptor is open for the whole call.
    assert_eq!(unsafe { libc::fallocate(filler.as_raw_fd(), 0, 0, len) }, 0, "{}", io::Error::last_os_error());
}

/// Sends until the first refusal; gives it.
fn send_until_refused(setup: &Setup, ledger: &Ledger, octets: usize) -> String {
    let mut client = Client::connect(setup.listen).expect("a greeting");
    client.ask("EHLO client.example").expect("a reply");
    let refusal = (0..2000).find_map(|number| ledger.send_on(&mut client, &format!("full{number}"), octets).err());
    refusal.expect("a full disk takes no two thousand messages")
}

#[test]
fn a_full_tmpfs_refuses_mail_and_loses_none() {
    let mut setup = Setup::new("tmpfs");
    let place = setup.path("disk");
    std::fs::create_dir_all(&place).expect("a directory");
    match mount_memory(&place, 24 << 20) {
        Ok(()) => full_disk(&mut setup, &Mounted(place)),
        Err(why) => skipped(&format!("NO FULL TMPFS IS TESTED ON THIS MACHINE: {why}")),
    }
}

#[test]
fn a_full_ext4_refuses_mail_and_loses_none() {
    let mut setup = Setup::new("ext4");
    let place = setup.path("disk");
    std::fs::create_dir_all(&place).expect("a directory");
    match mount_image(&setup.path("image"), &place, 48 << 20) {
        Ok(()) => full_disk(&mut setup, &Mounted(place)),
        Err(why) => skipped(&format!("NO FULL EXT4 IS TESTED ON THIS MACHINE: {why}")),
    }
}

fn full_disk(setup: &mut Setup, disk: &Mounted) {
    let (ledger, destination) = (Ledger::default(), Destination::start(false));
    setup.next_hop = Some(destination.address);
    setup.spool_directory = disk.0.join("spool");
    let mut program = setup.start();
    let filler = disk.0.join("filler");
    fill(&filler, free(&disk.0).saturating_sub(ROOM));
    let refusal = send_until_refused(setup, &ledger, 40_000);
    assert!(refusal.starts_with("452 4.3.1 "), "{refusal}");
    assert!(ledger.count() > 0, "something fits");
    setup.wait_line(&["error", "warn"], &["space"]);
    // A message of the size that gets a file of its own, too.
    let refusal = ledger.send(setup, "spilled", 4 << 20).expect_err("no room");
    assert!(refusal.starts_with("452 4.3.1 "), "{refusal}");
    program.must_run(setup);
    let (_, listed) = setup.queue_says(&["list", "--limit", "0"]);
    assert!(listed.contains(&format!("{} message", ledger.count())), "{listed}");

    // Delivery goes on although the disk is full.
    destination.open();
    ledger.wait_delivered(setup, &destination);
    program.must_run(setup);
    std::fs::remove_file(&filler).expect("room again");
    wait("mail is taken again", setup, || ledger.send(setup, "again", 40_000).ok());
    wait("large mail is taken again", setup, || ledger.send(setup, "large", 4 << 20).ok());
    ledger.wait_delivered(setup, &destination);
    wait("an empty queue", setup, || setup.queue_says(&["list"]).1.contains("no message waits").then_some(()));
    program.stop(setup);

    // What was recorded on the full disk is known after a start: nothing is sent again.
    let program = setup.start();
    wait("an empty queue", setup, || setup.queue_says(&["list"]).1.contains("no message waits").then_some(()));
    program.stop(setup);
    let (code, text) = setup.spool_says("verify");
    assert_eq!(code, 0, "{text}");
    ledger.wait_delivered(setup, &destination);
}

#[test]
fn a_full_disk_at_the_start_is_told() {
    let mut setup = Setup::new("full-start");
    let place = setup.path("disk");
    std::fs::create_dir_all(&place).expect("a directory");
    if let Err(why) = mount_memory(&place, 4 << 20) {
        return skipped(&format!("NO FULL DISK AT THE START IS TESTED ON THIS MACHINE: {why}"));
    }
    let disk = Mounted(place);
    let (ledger, destination) = (Ledger::default(), Destination::start(true));
    setup.next_hop = Some(destination.address);
    setup.spool_directory = disk.0.join("spool");
    let filler = disk.0.join("filler");
    fill(&filler, free(&disk.0).saturating_sub(256 << 10));
    let mut program = setup.start();
    let refusal = ledger.send(&setup, "early", 1000).expect_err("no room");
    assert!(refusal.starts_with("452 4.3.1 "), "{refusal}");
    setup.wait_line(&["error", "warn"], &["space"]);
    program.must_run(&setup);
    std::fs::remove_file(&filler).expect("room");
    wait("mail is taken", &setup, || ledger.send(&setup, "taken", 1000).ok());
    ledger.wait_delivered(&setup, &destination);
    program.stop(&setup);
}

#[test]
fn a_sync_that_fails_is_answered_451_and_loses_nothing_that_was_acknowledged() {
    if let Err(why) = own_mounts() {
        return skipped(&format!("NO FAILING SYNC IS TESTED ON THIS MACHINE: {why}"));
    }
    let mut setup = Setup::new("eio");
    let place = setup.path("disk");
    std::fs::create_dir_all(&place).expect("a directory");
    let disk = PowerDisk::mount(&place, Behaviour::default(), 1).expect("a mount");
    let (ledger, destination) = (Ledger::default(), Destination::start(false));
    setup.next_hop = Some(destination.address);
    setup.spool_directory = place.join("spool");
    let mut program = setup.start();
    ledger.send(&setup, "before", 10_000).expect("mail is taken");

    let refused = Mutex::new(Vec::new());
    for round in 0..20 {
        disk.fail_sync_after(0);
        std::thread::scope(|scope| {
            for number in 0..4 {
                let (setup, ledger, refused) = (&setup, &ledger, &refused);
                scope.spawn(move || {
                    let result = ledger.send(setup, &format!("round{round}-{number}"), 10_000);
                    refused.lock().expect("no panic").extend(result.err());
                });
            }
        });
        if !refused.lock().expect("no panic").is_empty() {
            break;
        }
    }
    let refused = refused.into_inner().expect("no panic");
    assert!(!refused.is_empty(), "a failed sync is told to those who wait for it");
    assert!(refused.iter().all(|reply| reply.starts_with("451 4.3.0 ")), "{refused:?}");
    setup.wait_line(&["error"], &["the disk failed", "Input/output error", "451"]);
    program.must_run(&setup);
    ledger.send(&setup, "after", 10_000).expect("the next segment takes mail");
    destination.open();
    ledger.wait_delivered(&setup, &destination);

    // And over a power cut that keeps nothing but what was synced.
    destination.close();
    ledger.send(&setup, "last", 10_000).expect("mail is taken");
    // Outcomes are synced a moment later; a cut before that may repeat deliveries.
    wait("synced outcomes", &setup, || (disk.unsynced_of(".seg") == 0).then_some(()));
    let program = std::cell::RefCell::new(Some(program));
    let number = program.borrow().as_ref().map_or(0, |program| program.process());
    // SAFETY: a signal to a child that has not been waited for.
    let kill = || assert_eq!(unsafe { libc::kill(number as libc::pid_t, libc::SIGKILL) }, 0);
    let reap = || drop(program.borrow_mut().take());
    let (disk, _) = disk.power_cut(Cut::Nothing, kill, reap).expect("a power cut");
    destination.open();
    let program = setup.start();
    ledger.wait_delivered(&setup, &destination);
    program.stop(&setup);
    drop(disk);
}
