//! The model disk as a mounted file system, and the power switch.
//!
//! Programs see an ordinary file system: page cache, O_DIRECT, shared read-only maps, locks and sockets are the
//! kernel's. Writes arrive here as they are made (no write-back cache), so this side alone knows what was synced.
//! While the power is off no request is answered until the process that made it was killed, so that no program ever
//! sees a reply from after the cut.

use super::disk::{Cut, Disk, Kind, ROOT, Refusal};
use fuser::{
    AccessFlags, BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use ringpost_load::random::Random;
use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The kernel may remember names and attributes: nothing changes behind its back.
const TTL: Duration = Duration::from_secs(60);
/// Octets of one write request.
const MAX_WRITE: u32 = 1 << 20;
/// Requests served at once, so that a slow sync does not hold up the others.
const THREADS: usize = 4;

/// Writes whose time is remembered, the latest ones.
const WRITES_REMEMBERED: usize = 10_000;

/// How the drive behaves while it has power.
#[derive(Copy, Clone, Debug)]
pub struct Behaviour {
    /// The longest time that a sync takes; each takes a random part of it, so that cuts fall into syncs.
    pub sync_us_max: u64,
    /// Octets of room.
    pub capacity: u64,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour { sync_us_max: 3000, capacity: 16 << 30 }
    }
}

struct Machine {
    disk: Disk,
    random: Random,
    powered: bool,
    /// Syncs still to be answered before one fails; each failure lasts for one sync.
    failing_sync_in: Option<u64>,
    /// Whether all syncs fail.
    all_syncs_fail: bool,
    /// As for syncs.
    failing_write_in: Option<u64>,
    syncs: u64,
    /// When writes were made, by their place in the order of all changes.
    written: VecDeque<(u64, Instant)>,
}

impl Machine {
    fn note_written(&mut self) {
        self.written.push_back((self.disk.mark(), Instant::now()));
        if self.written.len() > WRITES_REMEMBERED {
            self.written.pop_front();
        }
    }

    /// How long ago the oldest write was made that is not durable, of those to files whose names end so.
    fn oldest_unsynced(&self, name_end: &str) -> Duration {
        let place = self.disk.unsynced_of(name_end).1;
        let found = place.and_then(|place| self.written.iter().find(|(written, _)| *written == place));
        found.map_or(Duration::ZERO, |(_, at)| at.elapsed())
    }
}

#[derive(Clone)]
struct Shared {
    machine: Arc<(Mutex<Machine>, Condvar)>,
    behaviour: Behaviour,
}

/// Counts down to a failure; true when it is due, once.
fn is_due(left: &mut Option<u64>) -> bool {
    let due = *left == Some(0);
    *left = left.and_then(|left| left.checked_sub(1));
    due
}

/// What an answer was refused with.
fn errno(refusal: Refusal) -> Errno {
    Errno::from_i32(refusal)
}

impl Shared {
    /// The machine, when it has power.
    fn powered(&self) -> MutexGuard<'_, Machine> {
        let (machine, changed) = &*self.machine;
        let guard = machine.lock().unwrap_or_else(PoisonError::into_inner);
        changed.wait_while(guard, |machine| !machine.powered).unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine, powered or not.
    fn any(&self) -> MutexGuard<'_, Machine> {
        self.machine.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(machine: &Machine, number: u64) -> Result<FileAttr, Refusal> {
        let node = machine.disk.node(number)?;
        let kind = match node.kind {
            Kind::File => FileType::RegularFile,
            Kind::Directory => FileType::Directory,
            Kind::Socket => FileType::Socket,
        };
        let time: SystemTime = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        // SAFETY: these calls take no arguments and cannot fail.
        let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
        Ok(FileAttr {
            ino: INodeNo(number),
            size: node.live.len(),
            blocks: node.live.allocated() / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: node.mode,
            nlink: if node.kind == Kind::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn make(&self, parent: INodeNo, name: &OsStr, kind: Kind, mode: u32) -> Result<FileAttr, Refusal> {
        let mut machine = self.powered();
        let number = machine.disk.create(parent.0, name, kind, (mode & 0o7777) as u16)?;
        Shared::attributes(&machine, number)
    }

    /// Takes its time like a drive, then makes durable what had been written when the sync was asked for.
    fn sync(&self, number: u64, apply: fn(&mut Disk, u64, u64)) -> Result<(), Refusal> {
        let (mark, pause) = {
            let mut machine = self.powered();
            let pause = machine.random.below(self.behaviour.sync_us_max + 1);
            (machine.disk.mark(), Duration::from_micros(pause))
        };
        std::thread::sleep(pause);
        let mut machine = self.powered();
        machine.syncs += 1;
        if machine.all_syncs_fail || is_due(&mut machine.failing_sync_in) {
            return Err(libc::EIO);
        }
        apply(&mut machine.disk, number, mark);
        Ok(())
    }
}

fn entry(reply: ReplyEntry, result: Result<FileAttr, Refusal>) {
    match result {
        Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        Err(refusal) => reply.error(errno(refusal)),
    }
}

fn empty(reply: ReplyEmpty, result: Result<(), Refusal>) {
    match result {
        Ok(()) => reply.ok(),
        Err(refusal) => reply.error(errno(refusal)),
    }
}

impl Filesystem for Shared {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.set_max_write(MAX_WRITE).map_err(|_| io::Error::other("the kernel refuses the size of writes"))?;
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let machine = self.powered();
        let found = machine.disk.lookup(parent.0, name);
        entry(reply, found.and_then(|number| Shared::attributes(&machine, number)));
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match Shared::attributes(&self.powered(), number.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut machine = self.powered();
        let changed = size.map_or(Ok(()), |size| machine.disk.set_len(number.0, size)).and_then(|()| {
            if let Some(mode) = mode {
                machine.disk.node_mut(number.0)?.mode = (mode & 0o7777) as u16;
            }
            Shared::attributes(&machine, number.0)
        });
        match changed {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn mknod(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = match mode & libc::S_IFMT {
            libc::S_IFREG => self.make(parent, name, Kind::File, mode & !umask),
            libc::S_IFSOCK => self.make(parent, name, Kind::Socket, mode & !umask),
            _ => Err(libc::EPERM),
        };
        entry(reply, made);
    }

    fn mkdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        entry(reply, self.make(parent, name, Kind::Directory, mode & !umask));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.powered().disk.unlink(parent.0, name));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.powered().disk.unlink(parent.0, name));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return reply.error(Errno::EINVAL);
        }
        empty(reply, self.powered().disk.rename((parent.0, name), (new_parent.0, new_name), replace));
    }

    fn open(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.powered().disk.count_open(number.0, 1);
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(parent, name, Kind::File, mode & !umask) {
            Ok(attributes) => {
                self.powered().disk.count_open(attributes.ino.0, 1);
                reply.created(&TTL, &attributes, Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.powered().disk.node(number.0).map(|node| node.live.read(offset, size as usize));
        match read {
            Ok(data) => reply.data(&data),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durable = flags.0 & libc::O_DSYNC != 0;
        let mut machine = self.powered();
        if is_due(&mut machine.failing_write_in) {
            return reply.error(Errno::EIO);
        }
        let written = machine.disk.write(number.0, offset, data, durable);
        machine.note_written();
        drop(machine);
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn flush(&self, _request: &Request, _number: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.any().disk.count_open(number.0, -1);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, number: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.sync(number.0, Disk::sync_file));
    }

    fn fsyncdir(&self, _request: &Request, number: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.sync(number.0, Disk::sync_directory));
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let machine = self.powered();
        let entries = match machine.disk.entries(number.0) {
            Ok(entries) => entries,
            Err(refusal) => return reply.error(errno(refusal)),
        };
        let dots = [(OsStr::new("."), number.0), (OsStr::new(".."), ROOT)];
        let all = dots.into_iter().chain(entries.iter().map(|(name, number)| (name.as_os_str(), *number)));
        for (position, (name, number)) in all.enumerate().skip(offset as usize) {
            let kind = match machine.disk.node(number).map(|node| node.kind) {
                Ok(Kind::Directory) => FileType::Directory,
                Ok(Kind::Socket) => FileType::Socket,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(number), position as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        let machine = self.powered();
        let free = machine.disk.capacity.saturating_sub(machine.disk.used()) / 4096;
        reply.statfs(machine.disk.capacity / 4096, free, free, 1 << 20, 1 << 20, 4096, 255, 4096);
    }

    fn access(&self, _request: &Request, _number: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.powered().disk.allocate(number.0, offset, length, mode));
    }
}

/// What a power cut could take.
#[derive(Copy, Clone, Debug)]
pub struct Stake {
    /// Octets written and not synced.
    pub octets: u64,
    /// Changes of names not synced.
    pub names: usize,
    /// How long ago the oldest write to a segment was made that is not synced.
    pub oldest: Duration,
}

/// A machine's disk, mounted.
pub struct PowerDisk {
    shared: Shared,
    session: Option<BackgroundSession>,
    directory: PathBuf,
}

impl PowerDisk {
    /// An empty disk mounted at an empty directory.
    pub fn mount(directory: &Path, behaviour: Behaviour, seed: u64) -> io::Result<PowerDisk> {
        PowerDisk::mount_disk(directory, Disk::new(behaviour.capacity), behaviour, Random::part(seed, 1))
    }

    fn mount_disk(directory: &Path, disk: Disk, behaviour: Behaviour, random: Random) -> io::Result<PowerDisk> {
        let machine = Machine {
            disk,
            random,
            powered: true,
            failing_sync_in: None,
            all_syncs_fail: false,
            failing_write_in: None,
            syncs: 0,
            written: VecDeque::new(),
        };
        let shared = Shared { machine: Arc::new((Mutex::new(machine), Condvar::new())), behaviour };
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        let session = fuser::spawn_mount(shared.clone(), directory, &config)?;
        Ok(PowerDisk { shared, session: Some(session), directory: directory.to_owned() })
    }

    /// Syncs answered so far.
    pub fn syncs(&self) -> u64 {
        self.shared.any().syncs
    }

    /// Octets in files whose names end so that a power cut could lose now.
    pub fn unsynced_of(&self, name_end: &str) -> u64 {
        self.shared.any().disk.unsynced_of(name_end).0
    }

    /// One sync fails with EIO, after so many others.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.shared.any().failing_sync_in = Some(syncs);
    }

    /// Whether every sync fails with EIO.
    pub fn fail_all_syncs(&self, fail: bool) {
        self.shared.any().all_syncs_fail = fail;
    }

    /// One write fails with EIO, and writes nothing, after so many others.
    pub fn fail_write_after(&self, writes: u64) {
        self.shared.any().failing_write_in = Some(writes);
    }

    /// Changes the room of the disk.
    pub fn set_capacity(&self, capacity: u64) {
        self.shared.any().disk.capacity = capacity;
    }

    /// Octets that files take.
    pub fn used(&self) -> u64 {
        self.shared.any().disk.used()
    }

    /// The power goes: from this moment nothing is answered. `kill` has to end all processes that use the disk and
    /// to return when it has sent their signals; `reap` waits for their end. Then the machine starts with what is
    /// left of the disk. Also tells what was at stake.
    pub fn power_cut(mut self, cut: Cut, kill: impl FnOnce(), reap: impl FnOnce()) -> io::Result<(PowerDisk, Stake)> {
        let (disk, mut random, stake) = {
            let mut machine = self.shared.any();
            machine.powered = false;
            let (octets, names) = machine.disk.unsynced();
            let stake = Stake { octets, names, oldest: machine.oldest_unsynced(".seg") };
            (machine.disk.clone(), machine.random.clone(), stake)
        };
        kill();
        self.power_on();
        reap();
        self.unmount()?;
        let disk = disk.after(cut, &mut random);
        Ok((PowerDisk::mount_disk(&self.directory, disk, self.shared.behaviour, random)?, stake))
    }

    fn power_on(&self) {
        self.shared.any().powered = true;
        self.shared.machine.1.notify_all();
    }

    fn unmount(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let path = CString::new(self.directory.as_os_str().as_bytes())?;
        // SAFETY: the path is a string with its end, valid for the call. Detaching cannot fail for a descriptor that
        // the kernel has yet to close for a killed process; joining waits for that.
        if unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) } != 0 {
            return Err(io::Error::last_os_error());
        }
        match session.join() {
            // What a thread is told that was just reading a request when the last user went.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            other => other,
        }
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        self.power_on();
        if let Err(error) = self.unmount() {
            eprintln!("{} could not be unmounted: {error}", self.directory.display());
        }
    }
}

/// Gives this thread, and what it starts, mounts of its own, which end with it: a test that is killed leaves none.
/// Says why if this machine has no FUSE or this user may not mount.
pub fn own_mounts() -> Result<(), String> {
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| format!("/dev/fuse cannot be opened: {error}"))?;
    // SAFETY: changes the mount namespace of this thread only; the strings are constants with their ends.
    let own = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
    };
    if own { Ok(()) } else { Err(format!("no mounts of one's own: {}", io::Error::last_os_error())) }
}
