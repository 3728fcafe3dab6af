//! Disks that are full or fail: what a client is told, what the operator is told, and that what was acknowledged is
//! delivered all the same.

use super::disk::Cut;
use super::fuse::{Behaviour, PowerDisk, own_mounts};
use super::mail::{Client, Destination, Ledger};
use super::program::{Program, Setup, skipped, wait};
use ringpost_spool::{SegmentId, StdDisk};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
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
    mount(place, c"tmpfs", &format!("size={octets},mode=700"))
}

/// A file system that needs no device, in mounts of this thread's own.
fn mount(place: &Path, kind: &CStr, options: &str) -> Result<(), String> {
    if !may_mount() {
        return Err(format!("no mounts of one's own: {}", io::Error::last_os_error()));
    }
    let (place, options) = (text(place), CString::new(options).expect("no NUL"));
    // SAFETY: all strings live through the call and have their ends.
    let result = unsafe {
        libc::mount(c"faults".as_ptr(), place.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast::<libc::c_void>())
    };
    if result == 0 { Ok(()) } else { Err(format!("no {kind:?}: {}", io::Error::last_os_error())) }
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

/// The program on a disk whose failures and power the test decides, with a destination that takes nothing yet.
struct Failing {
    setup: Setup,
    disk: PowerDisk,
    ledger: Ledger,
    destination: Destination,
}

impl Failing {
    /// None, and a word about it, where this user may not mount.
    fn new(name: &str) -> Option<Failing> {
        if let Err(why) = own_mounts() {
            skipped(&format!("NO FAILING DISK IS TESTED ON THIS MACHINE: {why}"));
            return None;
        }
        let mut setup = Setup::new(name);
        let place = setup.path("disk");
        std::fs::create_dir_all(&place).expect("a directory");
        let disk = PowerDisk::mount(&place, Behaviour::default(), 1).expect("a mount");
        let destination = Destination::start(false);
        setup.next_hop = Some(destination.address);
        setup.spool_directory = place.join("spool");
        Some(Failing { setup, disk, ledger: Ledger::default(), destination })
    }

    /// Has the disk fail, and sends, until somebody is refused; gives all refusals.
    fn refusals(&self, fail: impl Fn(&PowerDisk)) -> Vec<String> {
        let refused = Mutex::new(Vec::new());
        for round in 0..20 {
            fail(&self.disk);
            std::thread::scope(|scope| {
                for number in 0..4 {
                    let (setup, ledger, refused) = (&self.setup, &self.ledger, &refused);
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
        refused.into_inner().expect("no panic")
    }

    /// Mail is taken again and all that was acknowledged is delivered; then, over a power cut that keeps nothing but what
    /// was synced, once more.
    fn recovers(self, mut program: Program) {
        let Failing { setup, disk, ledger, destination } = self;
        program.must_run(&setup);
        wait("mail is taken again", &setup, || ledger.send(&setup, "after", 10_000).ok());
        destination.open();
        ledger.wait_delivered(&setup, &destination);

        destination.close();
        ledger.send(&setup, "last", 10_000).expect("mail is taken");
        // Outcomes are recorded when the replies to deliveries were read, and synced a moment later; a cut before that may
        // repeat deliveries.
        wait("recorded outcomes", &setup, || {
            setup.queue_says(&["list"]).1.lines().any(|line| line == "1 message").then_some(())
        });
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
        let (code, text) = setup.spool_says("verify");
        assert_eq!(code, 0, "{text}");
        drop(disk);
    }
}

#[test]
fn a_sync_that_fails_is_answered_451_and_loses_nothing_that_was_acknowledged() {
    let Some(failing) = Failing::new("eio") else { return };
    let program = failing.setup.start();
    failing.ledger.send(&failing.setup, "before", 10_000).expect("mail is taken");
    let refused = failing.refusals(|disk| disk.fail_sync_after(0));
    assert!(!refused.is_empty(), "a failed sync is told to those who wait for it");
    assert!(refused.iter().all(|reply| reply.starts_with("451 4.3.0 ")), "{refused:?}");
    failing.setup.wait_line(&["error"], &["the disk failed", "Input/output error", "451"]);
    failing.recovers(program);
}

#[test]
fn a_write_that_fails_is_answered_451_and_loses_nothing_that_was_acknowledged() {
    let Some(failing) = Failing::new("eio-write") else { return };
    let program = failing.setup.start();
    failing.ledger.send(&failing.setup, "before", 10_000).expect("mail is taken");
    let refused = failing.refusals(|disk| disk.fail_write_after(0));
    assert!(!refused.is_empty(), "a failed write is told to those who wait for it");
    assert!(refused.iter().all(|reply| reply.starts_with("451 4.3.0 ")), "{refused:?}");
    failing.setup.wait_line(&["error"], &["the disk failed", "Input/output error", "451"]);
    failing.recovers(program);
}

#[test]
fn a_disk_that_goes_on_failing_is_named_and_not_called_full() {
    let Some(failing) = Failing::new("eio-all") else { return };
    let mut program = failing.setup.start();
    failing.ledger.send(&failing.setup, "before", 10_000).expect("mail is taken");
    failing.disk.fail_all_syncs(true);
    wait("the reason of a refusal", &failing.setup, || {
        let refusal = failing.ledger.send(&failing.setup, "meanwhile", 10_000).expect_err("no sync succeeds");
        assert!(refusal.starts_with("451 4.3.0 "), "{refusal}");
        refusal.contains("disk reports errors").then_some(())
    });
    program.must_run(&failing.setup);
    failing.disk.fail_all_syncs(false);
    failing.recovers(program);
}

#[test]
fn a_file_system_without_direct_io_is_used_through_the_page_cache() {
    let mut setup = Setup::new("no-direct");
    let place = setup.path("disk");
    std::fs::create_dir_all(&place).expect("a directory");
    if let Err(why) = mount(&place, c"ramfs", "") {
        return skipped(&format!("NO FILE SYSTEM WITHOUT DIRECT IO IS TESTED ON THIS MACHINE: {why}"));
    }
    let disk = Mounted(place);
    let file = disk.0.join("file");
    File::create(&file).expect("a file");
    let direct = File::options().write(true).custom_flags(libc::O_DIRECT).open(&file);
    if direct.is_ok() {
        return skipped("NO FILE SYSTEM WITHOUT DIRECT IO IS TESTED ON THIS MACHINE: its ramfs has it");
    }
    let (ledger, destination) = (Ledger::default(), Destination::start(false));
    setup.next_hop = Some(destination.address);
    setup.spool_directory = disk.0.join("spool");
    let program = setup.start();
    setup.wait_line(&["error", "warn"], &["refuses direct IO", "page cache"]);
    for number in 0..5 {
        ledger.send(&setup, &format!("inline{number}"), 10_000).expect("mail is taken");
    }
    // One that gets a file of its own.
    ledger.send(&setup, "spilled", 2 << 20).expect("large mail is taken");
    program.kill(&setup);
    let (code, text) = setup.spool_says("verify");
    assert_eq!(code, 0, "{text}");
    // What is delivered now was written and is read through the page cache, all of it.
    destination.open();
    let program = setup.start();
    ledger.wait_delivered(&setup, &destination);
    ledger.send(&setup, "after", 10_000).expect("mail is taken");
    ledger.wait_delivered(&setup, &destination);
    program.stop(&setup);
}

#[test]
fn a_preparation_that_fails_leaves_no_file() {
    if let Err(why) = own_mounts() {
        return skipped(&format!("NO FAILING PREPARATION IS TESTED ON THIS MACHINE: {why}"));
    }
    let setup = Setup::new("prepare");
    let place = setup.path("disk");
    std::fs::create_dir_all(&place).expect("a directory");
    let mounted = PowerDisk::mount(&place, Behaviour::default(), 1).expect("a mount");
    let disk = StdDisk::open(place.join("spool")).expect("directories");
    let left = || std::fs::read_dir(place.join("spool/segments")).expect("a list").count();
    // The first sync is the file's, the second the directory's.
    for (number, syncs) in (0..).zip([0, 1]) {
        mounted.fail_sync_after(syncs);
        disk.prepare(SegmentId::new(0, number), 1 << 20).expect_err("a sync fails");
        assert_eq!(left(), 0, "after sync {syncs}");
    }
    disk.prepare(SegmentId::new(0, 2), 1 << 20).expect("a sound disk");
    assert_eq!(left(), 1);
}
