//! A disk for tests that does to a spool what real ones do: forgets what was not synced, tears writes at sectors,
//! completes them in any order, runs full and reports errors. Equal seeds and equal operations give equal results.
//!
//! What was written counts as stable only once a sync that was given out after the write's answer succeeded. A crash
//! keeps of everything else, sector by sector, nothing, all, a beginning or a random part. After a failed sync the
//! written bytes are still read back but no later sync makes them stable, as Linux does it. For tests of any crate; it
//! needs no runtime. Several logs share one disk: each operation carries its owner's number.

mod faults;

pub use faults::{FaultAt, SimDiskConfig};

use crate::disk::{Disk, DiskDone, DiskError, DiskFile, DiskOp, FileId, OpId};
use crate::rng::Rng;
use crate::segment::{BLOCK, SegmentId};
use bytes::Bytes;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a disk writes whole or not at all, bytes.
const SECTOR: usize = 512;
/// Spares kept; recycled files beyond are removed.
const SPARES_MAX: usize = 4;

/// The disk.
#[derive(Debug)]
pub struct SimDisk {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: SimDiskConfig,
    rng: Rng,
    files: BTreeMap<FileId, File>,
    /// Spares keep what they held.
    spares: Vec<File>,
    pending: Vec<Pending>,
    /// What fails next, whatever the rates say.
    planned: Vec<(FaultAt, DiskError)>,
    removed_contents: u64,
    /// Blocks that cannot be read.
    broken: BTreeSet<(FileId, u64)>,
}

#[derive(Clone, Debug)]
struct Pending {
    owner: u8,
    op: DiskOp,
    /// For syncs: how many writes of the file were answered when it was given out.
    covers: u64,
}

/// A file: what is stable, what is read back, and the writes between the two.
#[derive(Clone, Debug, Default)]
struct File {
    stable: Vec<u8>,
    view: Vec<u8>,
    unsynced: Vec<Unsynced>,
    written: u64,
    /// Of a spare: above the sequence that it was used under.
    used_until: u32,
    /// Whether the name is stable (content files; segments are named durably by `Prepare`).
    named: bool,
}

#[derive(Clone, Debug)]
struct Unsynced {
    number: u64,
    offset: usize,
    bytes: Vec<u8>,
    /// A sync over it failed: no later one helps.
    lost: bool,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64, config: SimDiskConfig) -> SimDisk {
        SimDisk {
            inner: Mutex::new(Inner {
                config,
                rng: Rng::new(seed),
                files: BTreeMap::new(),
                spares: Vec::new(),
                pending: Vec::new(),
                planned: Vec::new(),
                removed_contents: 0,
                broken: BTreeSet::new(),
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an operation of the log (or shard) `owner`.
    pub fn submit(&self, owner: u8, op: DiskOp) {
        let mut inner = self.inner();
        let covers = match &op {
            DiskOp::Sync { segment, .. } => inner.written(FileId::Segment(*segment)),
            DiskOp::ContentSync { content, .. } => inner.written(FileId::Content(*content)),
            _ => 0,
        };
        inner.pending.push(Pending { owner, op, covers });
    }

    /// How many operations wait for their answer.
    pub fn pending(&self) -> usize {
        self.inner().pending.len()
    }

    /// Performs one waiting operation, any of them, and gives its owner and the answer.
    pub fn complete_one(&self) -> Option<(u8, DiskDone)> {
        self.inner().complete_one()
    }

    /// Performs one waiting operation of this owner.
    pub fn complete_one_of(&self, owner: u8) -> Option<DiskDone> {
        let mut inner = self.inner();
        let own: Vec<usize> = (0..inner.pending.len()).filter(|i| inner.pending[*i].owner == owner).collect();
        if own.is_empty() {
            return None;
        }
        let place = own[inner.rng.below(own.len() as u64) as usize];
        Some(inner.complete(place).1)
    }

    /// The power fails: operations under way are done in part or not, and of what was not synced some sectors survive.
    pub fn crash(&self) {
        self.inner().crash();
    }

    /// The process dies: operations under way are done in part or not, but the kernel keeps what was written.
    pub fn kill(&self) {
        self.inner().kill();
    }

    /// The next operation of this kind fails so.
    pub fn fail_next(&self, at: FaultAt, error: DiskError) {
        self.inner().planned.push((at, error));
    }

    /// Changes how the disk behaves from here on.
    pub fn set_config(&self, config: SimDiskConfig) {
        self.inner().config = config;
    }

    /// How the disk behaves.
    pub fn config(&self) -> SimDiskConfig {
        self.inner().config.clone()
    }

    /// Flips bits of one byte, for good; false if the file has no such byte.
    pub fn damage(&self, file: FileId, offset: u64, mask: u8) -> bool {
        let mut inner = self.inner();
        let Some(found) = inner.files.get_mut(&file) else {
            return false;
        };
        let place = offset as usize;
        let hit = |bytes: &mut Vec<u8>| bytes.get_mut(place).map(|byte| *byte ^= mask).is_some();
        for write in found.unsynced.iter_mut().filter(|write| write.offset <= place) {
            let offset = write.offset;
            if let Some(byte) = write.bytes.get_mut(place - offset) {
                *byte ^= mask;
            }
        }
        hit(&mut found.stable) & hit(&mut found.view)
    }

    /// The block with this byte cannot be read any more.
    pub fn break_block(&self, file: FileId, offset: u64) {
        self.inner().broken.insert((file, offset / u64::from(BLOCK)));
    }

    /// The bytes of a file as they would be read now.
    pub fn bytes(&self, file: FileId) -> Option<Vec<u8>> {
        self.inner().files.get(&file).map(|found| found.view.clone())
    }

    /// Puts a file there, stable.
    pub fn put(&self, file: FileId, bytes: Vec<u8>) {
        let made = File { stable: bytes.clone(), view: bytes, unsynced: Vec::new(), named: true, ..File::default() };
        self.inner().files.insert(file, made);
    }

    /// Content files that recovery removed.
    pub fn removed_contents(&self) -> u64 {
        self.inner().removed_contents
    }
}

impl Inner {
    fn written(&self, file: FileId) -> u64 {
        self.files.get(&file).map_or(0, |found| found.written)
    }

    fn used(&self) -> u64 {
        self.files.values().chain(&self.spares).map(|file| file.view.len() as u64).sum()
    }

    fn complete_one(&mut self) -> Option<(u8, DiskDone)> {
        if self.pending.is_empty() {
            return None;
        }
        let place = self.rng.below(self.pending.len() as u64) as usize;
        Some(self.complete(place))
    }

    fn complete(&mut self, place: usize) -> (u8, DiskDone) {
        let pending = self.pending.swap_remove(place);
        let op: OpId = pending.op.op();
        let result = match self.fault(&pending.op) {
            Some(error) => {
                self.fail(&pending);
                Err(error)
            }
            None => self.perform(&pending),
        };
        (pending.owner, DiskDone { op, result })
    }

    fn fault(&mut self, op: &DiskOp) -> Option<DiskError> {
        let (at, rate) = match op {
            DiskOp::Prepare { .. } => (FaultAt::Prepare, self.config.name_errors),
            DiskOp::Write { .. } => (FaultAt::Write, self.config.write_errors),
            DiskOp::Sync { .. } => (FaultAt::Sync, self.config.sync_errors),
            DiskOp::Read { .. } => (FaultAt::Read, self.config.read_errors),
            DiskOp::Recycle { .. } | DiskOp::Discard { .. } => (FaultAt::Recycle, self.config.name_errors),
            DiskOp::ContentWrite { .. } => (FaultAt::ContentWrite, self.config.write_errors),
            DiskOp::ContentSync { .. } => (FaultAt::ContentSync, self.config.sync_errors),
            DiskOp::ContentRemove { .. } => (FaultAt::ContentRemove, self.config.name_errors),
        };
        if let Some(place) = self.planned.iter().position(|(planned, _)| *planned == at) {
            return Some(self.planned.remove(place).1);
        }
        self.rng.chance(rate).then_some(DiskError::Io { errno: libc::EIO })
    }

    /// What an operation that failed does all the same.
    fn fail(&mut self, pending: &Pending) {
        match &pending.op {
            DiskOp::Write { segment, offset, chunks, len, .. } => {
                self.write_part(FileId::Segment(*segment), *offset, chunks, *len);
            }
            DiskOp::ContentWrite { content, offset, chunks, len, .. } => {
                self.write_part(FileId::Content(*content), *offset, chunks, *len);
            }
            DiskOp::Sync { segment, .. } => self.sync_lost(FileId::Segment(*segment)),
            DiskOp::ContentSync { content, .. } => self.sync_lost(FileId::Content(*content)),
            _ => {}
        }
    }

    /// The written bytes stay readable; of the stable ones nobody knows.
    fn sync_lost(&mut self, file: FileId) {
        let Some(mut found) = self.files.remove(&file) else {
            return;
        };
        for write in &mut found.unsynced {
            if !write.lost {
                self.survive(&mut found.stable, write);
            }
            write.lost = true;
        }
        self.files.insert(file, found);
    }

    fn perform(&mut self, pending: &Pending) -> Result<Bytes, DiskError> {
        match &pending.op {
            DiskOp::Prepare { segment, .. } => self.prepare(*segment),
            DiskOp::Write { segment, offset, chunks, len, .. } => {
                let file = FileId::Segment(*segment);
                let size = self.files.get(&file).ok_or(DiskError::NotFound)?.view.len();
                if *offset as usize + len > size {
                    return Err(DiskError::Io { errno: libc::EFBIG });
                }
                self.write(file, *offset, &gather(chunks, *len));
                Ok(Bytes::new())
            }
            DiskOp::Sync { segment, .. } => self.sync(FileId::Segment(*segment), pending.covers),
            DiskOp::Read { file, offset, len, .. } => self.read(*file, *offset, *len),
            DiskOp::Recycle { segment, .. } => self.retire(*segment, true),
            DiskOp::Discard { segment, .. } => self.retire(*segment, false),
            DiskOp::ContentWrite { content, create, offset, chunks, len, .. } => {
                let file = FileId::Content(*content);
                if self.used() + *len as u64 > self.config.capacity {
                    return Err(DiskError::NoSpace);
                }
                if *create {
                    self.files.insert(file, File::default());
                }
                self.write(file, *offset, &gather(chunks, *len));
                Ok(Bytes::new())
            }
            DiskOp::ContentSync { content, .. } => {
                let file = FileId::Content(*content);
                self.sync(file, pending.covers)?;
                if let Some(found) = self.files.get_mut(&file) {
                    found.named = true;
                }
                Ok(Bytes::new())
            }
            DiskOp::ContentRemove { content, .. } => {
                self.files.remove(&FileId::Content(*content));
                Ok(Bytes::new())
            }
        }
    }

    fn prepare(&mut self, segment: SegmentId) -> Result<Bytes, DiskError> {
        let size = self.config.segment_size as usize;
        // A spare of another size is no use.
        let file = match self.spares.pop().filter(|spare| spare.stable.len() == size) {
            Some(mut spare) => {
                spare.stable[..BLOCK as usize].fill(0);
                spare.view = spare.stable.clone();
                spare
            }
            None if self.used() + size as u64 > self.config.capacity => return Err(DiskError::NoSpace),
            None => File { stable: vec![0; size], view: vec![0; size], ..File::default() },
        };
        self.files.insert(FileId::Segment(segment), File { named: true, ..file });
        Ok(Bytes::new())
    }

    fn retire(&mut self, segment: SegmentId, reuse: bool) -> Result<Bytes, DiskError> {
        let mut file = self.files.remove(&FileId::Segment(segment)).ok_or(DiskError::NotFound)?;
        if reuse && self.spares.len() < SPARES_MAX {
            // What was never synced reaches the disk some time.
            file.stable = std::mem::take(&mut file.view);
            file.unsynced.clear();
            file.used_until = segment.sequence() + 1;
            self.spares.push(file);
        }
        Ok(Bytes::new())
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        if let Some(found) = self.files.get_mut(&file) {
            let offset = offset as usize;
            apply(&mut found.view, offset, bytes);
            let number = found.written;
            found.written += 1;
            found.unsynced.push(Unsynced { number, offset, bytes: bytes.to_vec(), lost: false });
        }
    }

    /// Some sectors of a write that did not succeed.
    fn write_part(&mut self, file: FileId, offset: u64, chunks: &[Bytes], len: usize) {
        let bytes = gather(chunks, len);
        let limit = self.files.get(&file).map_or(0, |found| found.view.len());
        for (place, sector) in bytes.chunks(SECTOR).enumerate() {
            let at = offset as usize + place * SECTOR;
            if at + sector.len() <= limit && self.rng.chance(500) {
                self.write(file, at as u64, sector);
            }
        }
    }

    fn sync(&mut self, file: FileId, covers: u64) -> Result<Bytes, DiskError> {
        let found = self.files.get_mut(&file).ok_or(DiskError::NotFound)?;
        let File { stable, unsynced, .. } = found;
        unsynced.retain(|write| {
            let covered = write.number < covers && !write.lost;
            if covered {
                apply(stable, write.offset, &write.bytes);
            }
            !covered
        });
        Ok(Bytes::new())
    }

    fn read(&self, file: FileId, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        let found = self.files.get(&file).ok_or(DiskError::NotFound)?;
        let bytes = found.view.get(offset as usize..offset as usize + len).ok_or(DiskError::Short)?;
        if touches(&self.broken, file, offset, len) {
            return Err(DiskError::Io { errno: libc::EIO });
        }
        Ok(Bytes::copy_from_slice(bytes))
    }

    /// Operations under way at a crash or kill: some were performed though nobody learns of it.
    fn drop_pending(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            match &pending.op {
                DiskOp::Write { segment, offset, chunks, len, .. } => {
                    self.write_part(FileId::Segment(*segment), *offset, chunks, *len);
                }
                DiskOp::Sync { .. } | DiskOp::ContentSync { .. } | DiskOp::Read { .. } => {}
                _ => {
                    if self.rng.chance(500) {
                        let _ = self.perform(&pending);
                    }
                }
            }
        }
    }

    fn kill(&mut self) {
        self.drop_pending();
    }

    fn crash(&mut self) {
        self.drop_pending();
        let files = std::mem::take(&mut self.files);
        for (id, mut file) in files {
            // Which sectors of a lost write are stable was decided when its sync failed.
            for write in std::mem::take(&mut file.unsynced).iter().filter(|write| !write.lost) {
                self.survive(&mut file.stable, write);
            }
            if file.named || self.rng.chance(500) {
                file.view = file.stable.clone();
                self.files.insert(id, file);
            }
        }
    }

    /// Which sectors of an unsynced write survive.
    fn survive(&mut self, stable: &mut Vec<u8>, write: &Unsynced) {
        let sectors = write.bytes.len().div_ceil(SECTOR);
        let (mode, prefix) = (self.rng.below(4), self.rng.below(sectors as u64 + 1) as usize);
        for (place, sector) in write.bytes.chunks(SECTOR).enumerate() {
            let kept = match mode {
                0 => false,
                1 => true,
                2 => place < prefix,
                _ => self.rng.chance(500),
            };
            if kept {
                apply(stable, write.offset + place * SECTOR, sector);
            }
        }
    }
}

fn apply(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    if bytes.len() < offset + new.len() {
        bytes.resize(offset + new.len(), 0);
    }
    bytes[offset..offset + new.len()].copy_from_slice(new);
}

/// Whether any of these bytes lies in a broken block.
fn touches(broken: &BTreeSet<(FileId, u64)>, file: FileId, offset: u64, len: usize) -> bool {
    let block = u64::from(BLOCK);
    len > 0 && broken.range((file, offset / block)..=(file, (offset + len as u64 - 1) / block)).next().is_some()
}

fn gather(chunks: &[Bytes], len: usize) -> Vec<u8> {
    let mut bytes = chunks.concat();
    assert!(bytes.len() <= len && len.is_multiple_of(BLOCK as usize), "a write's length covers its chunks in blocks");
    bytes.resize(len, 0);
    bytes
}

impl Disk for SimDisk {
    fn segments(&self) -> io::Result<Vec<SegmentId>> {
        let segment = |file: &FileId| match file {
            FileId::Segment(id) => Some(*id),
            FileId::Content(_) => None,
        };
        Ok(self.inner().files.keys().filter_map(segment).collect())
    }

    fn contents(&self) -> io::Result<Vec<u64>> {
        let content = |file: &FileId| match file {
            FileId::Content(id) => Some(*id),
            FileId::Segment(_) => None,
        };
        Ok(self.inner().files.keys().filter_map(content).collect())
    }

    fn spares(&self) -> io::Result<usize> {
        Ok(self.inner().spares.len())
    }

    fn spares_end(&self) -> io::Result<u32> {
        Ok(self.inner().spares.iter().map(|spare| spare.used_until).max().unwrap_or(0))
    }

    fn recycle_all(&self, segments: &[SegmentId], spares_max: usize) -> io::Result<()> {
        let mut inner = self.inner();
        segments.iter().try_for_each(|segment| {
            let reuse = inner.spares.len() < spares_max;
            inner.retire(*segment, reuse).map(drop).map_err(|_| io::ErrorKind::NotFound.into())
        })
    }

    fn open(&self, file: FileId) -> io::Result<Box<dyn DiskFile + '_>> {
        let inner = self.inner();
        let found = inner.files.get(&file).ok_or(io::ErrorKind::NotFound)?;
        let mut on_disk = found.stable.clone();
        for write in found.unsynced.iter().filter(|write| !write.lost) {
            apply(&mut on_disk, write.offset, &write.bytes);
        }
        Ok(Box::new(SimFile {
            cached: found.view.clone(),
            on_disk,
            dropped: Cell::new(false),
            file,
            broken: inner.broken.clone(),
        }))
    }

    fn sync(&self, segment: SegmentId) -> io::Result<()> {
        let mut inner = self.inner();
        let file = FileId::Segment(segment);
        let covers = inner.written(file);
        inner.sync(file, covers).map(|_| ()).map_err(|_| io::ErrorKind::NotFound.into())
    }

    fn remove_content(&self, content: u64) -> io::Result<()> {
        let mut inner = self.inner();
        inner.removed_contents += 1;
        inner.files.remove(&FileId::Content(content)).map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }
}

struct SimFile {
    cached: Vec<u8>,
    /// Without what a failed sync lost.
    on_disk: Vec<u8>,
    dropped: Cell<bool>,
    file: FileId,
    broken: BTreeSet<(FileId, u64)>,
}

impl SimFile {
    fn bytes(&self) -> &[u8] {
        if self.dropped.get() { &self.on_disk } else { &self.cached }
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if touches(&self.broken, self.file, offset, buffer.len()) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let bytes = self.bytes();
        let from = (offset as usize).min(bytes.len());
        let len = buffer.len().min(bytes.len() - from);
        buffer[..len].copy_from_slice(&bytes[from..from + len]);
        Ok(len)
    }

    fn will_read(&self, _offset: u64, _len: u64) {}

    fn drop_cache(&self) {
        self.dropped.set(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(number: u64) -> OpId {
        OpId(number)
    }

    fn finish(disk: &SimDisk) -> Vec<DiskDone> {
        std::iter::from_fn(|| disk.complete_one()).map(|(_, done)| done).collect()
    }

    #[test]
    fn only_what_was_synced_is_sure_to_survive() {
        let segment = SegmentId::new(0, 0);
        let mut lost = 0;
        for seed in 0..50 {
            let disk = SimDisk::new(seed, SimDiskConfig::sound(16_384));
            disk.submit(0, DiskOp::Prepare { op: op(1), segment });
            finish(&disk);
            let write = |n: u64, offset, byte: u8| DiskOp::Write {
                op: op(n),
                segment,
                offset,
                chunks: vec![Bytes::from(vec![byte; 4096])],
                len: 4096,
            };
            disk.submit(0, write(2, 0, 1));
            finish(&disk);
            disk.submit(0, DiskOp::Sync { op: op(3), segment });
            disk.submit(0, write(4, 4096, 2));
            assert!(finish(&disk).iter().all(|done| done.result.is_ok()));
            disk.crash();
            let bytes = disk.bytes(FileId::Segment(segment)).unwrap();
            assert!(bytes[..4096].iter().all(|b| *b == 1));
            lost += usize::from(bytes[4096..8192].contains(&0));
        }
        assert!(lost > 10, "unsynced writes are lost now and then: {lost}");
    }

    #[test]
    fn a_failed_sync_is_never_made_good() {
        let segment = SegmentId::new(0, 0);
        let kept = (0..60).filter(|seed| {
            let disk = SimDisk::new(*seed, SimDiskConfig::sound(16_384));
            disk.submit(0, DiskOp::Prepare { op: op(1), segment });
            finish(&disk);
            let chunks = vec![Bytes::from(vec![9; 4096])];
            disk.submit(0, DiskOp::Write { op: op(2), segment, offset: 4096, chunks, len: 4096 });
            finish(&disk);
            disk.fail_next(FaultAt::Sync, DiskError::Io { errno: libc::EIO });
            disk.submit(0, DiskOp::Sync { op: op(3), segment });
            assert!(finish(&disk)[0].result.is_err());
            disk.submit(0, DiskOp::Sync { op: op(4), segment });
            assert!(finish(&disk)[0].result.is_ok());
            disk.crash();
            disk.bytes(FileId::Segment(segment)).unwrap()[4096..8192].iter().all(|b| *b == 9)
        });
        assert!((1..60).contains(&kept.count()));
    }
}
