//! Tests of the file system itself: it behaves like one, forgets what was not synced, and catches programs that
//! answer too early.

use super::disk::Cut;
use super::fuse::{Behaviour, PowerDisk};
use super::journal::{Fault, Journal, kept_lines, line};
use super::{ready, seed};
use ringpost_load::random::Random;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A directory to mount on, of this test alone.
pub fn mount_point(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("powerloss-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a directory to mount on");
    path
}

fn cut(disk: PowerDisk, cut: Cut) -> PowerDisk {
    disk.power_cut(cut, || {}, || {}).expect("a power cut").0
}

#[test]
fn it_is_an_ordinary_file_system_until_the_power_goes() {
    if !ready() {
        return;
    }
    let place = mount_point("ordinary");
    let disk = PowerDisk::mount(&place, Behaviour::default(), seed()).expect("a mount");
    ordinary(&place).expect("an ordinary file system");
    drop(disk);
    fs::remove_dir(&place).expect("nothing is left behind");
}

fn ordinary(place: &Path) -> io::Result<()> {
    let path = place.join("file");
    let mut file = File::options().create_new(true).read(true).write(true).open(&path)?;
    file.write_all(b"buffered")?;
    let mut direct = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path)?;
    let mut block = AlignedBlock([7; 4096]);
    direct.write_all_at(&block.0, 4096)?;
    // SAFETY: a read-only map of a file that nobody cuts while it is mapped.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    assert_eq!((&map[..8], map[4096]), (&b"buffered"[..], 7));
    block.0 = [9; 4096];
    direct.write_all_at(&block.0, 4096)?;
    assert_eq!(map[4096], 9, "a direct write is seen in the map");
    direct.seek(SeekFrom::Start(4096))?;
    direct.read_exact(&mut block.0)?;
    assert_eq!(block.0, [9; 4096]);
    // SAFETY: plain system calls on an open descriptor.
    unsafe {
        assert_eq!(libc::fallocate(file.as_raw_fd(), 0, 0, 1 << 20), 0);
        assert_eq!(libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB), 0);
        assert_eq!(libc::flock(direct.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB), -1, "a lock keeps others out");
    }
    assert_eq!((file.metadata()?.len(), file.metadata()?.blocks()), (1 << 20, (1 << 20) / 512));
    fs::create_dir(place.join("directory"))?;
    fs::rename(&path, place.join("directory/renamed"))?;
    assert!(fs::remove_dir(place.join("directory")).is_err(), "it is not empty");
    fs::remove_file(place.join("directory/renamed"))?;
    file.seek(SeekFrom::Start(0))?;
    let mut text = [0; 8];
    file.read_exact(&mut text)?;
    assert_eq!(&text, b"buffered", "an open file outlives its name");
    let listener = UnixListener::bind(place.join("socket"))?;
    let mut caller = UnixStream::connect(place.join("socket"))?;
    caller.write_all(b"x")?;
    listener.accept()?.0.read_exact(&mut [0; 1])?;
    let names: io::Result<Vec<_>> = fs::read_dir(place)?.map(|entry| Ok(entry?.file_name())).collect();
    assert_eq!(names?.len(), 2);
    Ok(())
}

/// Memory as O_DIRECT wants it.
#[repr(align(4096))]
struct AlignedBlock([u8; 4096]);

#[test]
fn what_was_synced_stays_and_what_was_not_goes() {
    if !ready() {
        return;
    }
    let place = mount_point("forgets");
    let disk = PowerDisk::mount(&place, Behaviour::default(), seed()).expect("a mount");
    let directory = File::open(&place).expect("the directory");
    let write = |name: &str, sync: bool| {
        let mut file = File::create(place.join(name)).expect("a file");
        file.write_all(name.as_bytes()).expect("room");
        if sync {
            file.sync_data().expect("a sync");
        }
    };
    write("named, not written", false);
    write("both", true);
    write("to be moved", true);
    write("to be removed", true);
    directory.sync_all().expect("a sync");
    write("written, not named", true);
    fs::rename(place.join("to be moved"), place.join("moved")).expect("a rename");
    fs::remove_file(place.join("to be removed")).expect("a removal");
    drop(directory);
    let disk = cut(disk, Cut::Nothing);
    let read = |name: &str| fs::read_to_string(place.join(name)).ok();
    assert_eq!(read("both").as_deref(), Some("both"));
    assert_eq!(read("named, not written").as_deref(), Some(""));
    assert_eq!(read("written, not named"), None);
    assert_eq!((read("to be moved").as_deref(), read("moved")), (Some("to be moved"), None));
    assert_eq!(read("to be removed").as_deref(), Some("to be removed"));
    // Everything else survives a cut that loses nothing.
    write("kept by luck", false);
    let disk = cut(disk, Cut::Everything);
    assert_eq!(read("kept by luck").as_deref(), Some("kept by luck"));
    drop(disk);
    fs::remove_dir(&place).expect("nothing is left behind");
}

#[test]
fn a_write_that_asks_for_it_is_durable_by_itself() {
    if !ready() {
        return;
    }
    let place = mount_point("durable");
    let disk = PowerDisk::mount(&place, Behaviour::default(), seed()).expect("a mount");
    let path = place.join("file");
    let file = File::create(&path).expect("a file");
    file.write_all_at(&[1; 16384], 0).expect("room");
    file.sync_all().expect("a sync");
    File::open(&place).expect("the directory").sync_all().expect("a sync");
    let open = |flags| File::options().write(true).custom_flags(flags).open(&path).expect("the file");
    let block = AlignedBlock([2; 4096]);
    open(libc::O_DIRECT).write_all_at(&block.0, 0).expect("room");
    open(libc::O_DIRECT | libc::O_DSYNC).write_all_at(&block.0, 4096).expect("room");
    open(libc::O_DSYNC).write_all_at(&block.0, 8192).expect("room");
    let part = libc::iovec { iov_base: block.0.as_ptr().cast_mut().cast(), iov_len: block.0.len() };
    let direct = open(libc::O_DIRECT);
    // SAFETY: one part that lives through the call and is only read.
    let written = unsafe { libc::pwritev2(direct.as_raw_fd(), &part, 1, 12288, libc::RWF_DSYNC) };
    assert_eq!(written, 4096);
    drop((file, direct));
    let disk = cut(disk, Cut::Nothing);
    let kept: Vec<u8> = fs::read(&path).expect("the file").chunks(4096).map(|block| block[0]).collect();
    assert!(kept[1..] == [2, 2, 2], "{kept:?}");
    drop(disk);
    fs::remove_dir(&place).expect("nothing is left behind");
}

#[test]
fn unsynced_writes_are_torn_at_sectors() {
    if !ready() {
        return;
    }
    let place = mount_point("tears");
    let mut disk = PowerDisk::mount(&place, Behaviour::default(), seed()).expect("a mount");
    let path = place.join("file");
    let file = File::create(&path).expect("a file");
    file.write_all_at(&[1; 65536], 0).expect("room");
    file.sync_all().expect("a sync");
    File::open(&place).expect("the directory").sync_all().expect("a sync");
    drop(file);
    let mut torn = 0;
    for round in 0..20 {
        let old = fs::read(&path).expect("the file");
        let file = File::options().write(true).open(&path).expect("the file");
        file.write_all_at(&[round + 2; 65536], 0).expect("room");
        drop(file);
        disk = cut(disk, Cut::Sectors);
        let new = fs::read(&path).expect("the file");
        for (old, new) in old.chunks(512).zip(new.chunks(512)) {
            assert!(new == old || new == [round + 2; 512], "a sector is old or new as a whole");
        }
        torn += usize::from(new != old && new != [round + 2; 65536]);
    }
    assert!(torn > 0, "some of twenty writes of 128 sectors are torn");
    drop(disk);
    fs::remove_dir(&place).expect("nothing is left behind");
}

#[test]
fn a_failing_sync_and_a_full_disk_say_so() {
    if !ready() {
        return;
    }
    let place = mount_point("fails");
    let disk = PowerDisk::mount(&place, Behaviour::default(), seed()).expect("a mount");
    let mut file = File::create(place.join("file")).expect("a file");
    file.write_all(b"some").expect("room");
    disk.fail_sync_after(1);
    assert!(file.sync_data().is_ok());
    let failure = file.sync_data().map_err(|error| error.raw_os_error());
    assert_eq!(failure, Err(Some(libc::EIO)));
    assert!(file.sync_data().is_ok());
    disk.fail_all_syncs(true);
    assert!(file.sync_data().is_err() && file.sync_data().is_err());
    disk.fail_all_syncs(false);
    assert!(file.sync_data().is_ok());
    disk.fail_write_after(1);
    assert!(file.write_all(b"more").is_ok());
    let failure = file.write_all(b"lost").map_err(|error| error.raw_os_error());
    assert_eq!(failure, Err(Some(libc::EIO)));
    assert!(file.write_all(b"again").is_ok());
    disk.set_capacity(disk.used() + 8192);
    let full = file.write_all(&[1; 16384]).map_err(|error| error.kind());
    assert_eq!(full, Err(io::ErrorKind::StorageFull));
    assert!(disk.syncs() >= 3);
    drop(file);
    drop(disk);
    fs::remove_dir(&place).expect("nothing is left behind");
}

#[test]
fn a_program_that_answers_before_its_data_is_durable_is_caught() {
    if !ready() {
        return;
    }
    let seed = seed();
    assert_eq!(lost_lines(Fault::None, seed), 0, "a right program loses nothing (seed {seed})");
    assert!(lost_lines(Fault::AnswersFirst, seed) > 0, "an answer before the sync is caught (seed {seed})");
    assert!(lost_lines(Fault::ForgetsName, seed) > 0, "a name without a sync is caught (seed {seed})");
}

/// Acknowledged lines that power cuts lost in thirty rounds.
fn lost_lines(fault: Fault, seed: u64) -> usize {
    let mut random = Random::part(seed, 77);
    let mut lost = 0;
    let place = mount_point("journal");
    for round in 0..30 {
        let disk = PowerDisk::mount(&place, Behaviour::default(), seed ^ round).expect("a mount");
        let path = place.join("journal");
        let mut journal = Journal::start(&path, fault).expect("the program");
        let lines = random.between(1, 8) as usize;
        for number in 0..lines {
            journal.keep(&line(number)).expect("an answer");
        }
        let kind = Cut::random(&mut random);
        let process = std::cell::RefCell::new(journal);
        let kill = || process.borrow_mut().process().kill().expect("a kill");
        let reap = || drop(process.borrow_mut().process().wait());
        let (disk, _) = disk.power_cut(kind, kill, reap).expect("a power cut");
        lost += kept_lines(&path, lines).into_iter().filter(|&kept| !kept).count();
        drop(disk);
    }
    fs::remove_dir(&place).expect("nothing is left behind");
    lost
}
