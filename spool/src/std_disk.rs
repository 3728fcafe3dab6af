//! A spool directory on a real file system, by blocking calls: `segments/LL-SSSSSS.seg` are segments,
//! `segments/spare-*` files that wait for use, `segments/new-*` files being made, `content/ID` spilled contents. A file
//! gets its final name only when it is whole and synced, so a crash never leaves a half-made segment.
//!
//! For recovery, verify and dump, and for the helper thread that prepares and recycles segments. Not for the mail path.

use crate::disk::{Disk, DiskFile, FileId};
use crate::segment::{BLOCK, SegmentId};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The directory of segments inside a spool directory.
pub const SEGMENT_DIRECTORY: &str = "segments";
/// The directory of content files inside a spool directory.
pub const CONTENT_DIRECTORY: &str = "content";
const SPARE_PREFIX: &str = "spare-";
/// Of files that are being made: worthless after a crash.
const NEW_PREFIX: &str = "new-";
/// Bytes of zeros written at a time to a new segment: so few that a log's own write does not wait long behind them.
const ZEROS_LEN: usize = 128 * 1024;

/// A spool directory.
#[derive(Clone, Debug)]
pub struct StdDisk {
    directory: PathBuf,
}

impl StdDisk {
    /// The spool in this directory, which is made (with its content directory) if it does not exist. Both are synced.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<StdDisk> {
        let disk = StdDisk { directory: directory.into() };
        let made = [SEGMENT_DIRECTORY, CONTENT_DIRECTORY].map(|name| disk.directory.join(name));
        if !made.iter().all(|directory| directory.is_dir()) {
            for directory in &made {
                fs::create_dir_all(directory)?;
                sync_directory(directory)?;
            }
            sync_directory(&disk.directory)?;
            if let Some(parent) = disk.directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                match sync_directory(parent) {
                    // A process that is confined to its spool may not open what is above; who made the spool has synced it.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    result => result?,
                }
            }
        }
        Ok(disk)
    }

    /// The spool in this directory, which exists: no file is touched.
    pub fn at(directory: impl Into<PathBuf>) -> StdDisk {
        StdDisk { directory: directory.into() }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn segment_directory(&self) -> PathBuf {
        self.directory.join(SEGMENT_DIRECTORY)
    }

    /// The path of a file.
    pub fn path(&self, file: FileId) -> PathBuf {
        match file {
            FileId::Segment(segment) => self.segment_directory().join(segment.file_name()),
            FileId::Content(id) => self.directory.join(CONTENT_DIRECTORY).join(format!("{id:016x}")),
        }
    }

    /// Performs [`DiskOp::Prepare`](crate::DiskOp::Prepare): takes a spare of `size` bytes or makes a zero-filled file,
    /// and gives it the segment's name. Spares of another size are removed.
    ///
    /// # Errors
    /// Those of the file system; `AlreadyExists` rather than writing over a segment. Nothing half-made is left behind.
    pub fn prepare(&self, segment: SegmentId, size: u32) -> io::Result<()> {
        let path = self.path(FileId::Segment(segment));
        if path.exists() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists already", path.display())));
        }
        let new = self.segment_directory().join(format!("{NEW_PREFIX}{}", segment.file_name()));
        let made = match self.take_spare(&new, size) {
            Ok(true) => Ok(()),
            // Nobody waits for it as long as there are others to write to.
            Ok(false) => fill_new(&new, size, !self.segments()?.is_empty()),
            Err(error) => Err(error),
        };
        if let Err(error) = made.and_then(|()| fs::rename(&new, &path)) {
            // It would only hold space; it is made anew when it is needed.
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        // The caller takes it as not there after an error, so it must not stay: each attempt would leave one.
        self.sync_segments().inspect_err(|_| drop(fs::remove_file(&path)))
    }

    /// Performs [`DiskOp::Recycle`](crate::DiskOp::Recycle): the file becomes a spare, or is removed if there are
    /// `spares_max` already.
    pub fn recycle(&self, segment: SegmentId, spares_max: usize) -> io::Result<()> {
        self.recycle_all(&[segment], spares_max)
    }

    /// Performs [`DiskOp::Discard`](crate::DiskOp::Discard): removes the file.
    pub fn discard(&self, segment: SegmentId) -> io::Result<()> {
        gone(fs::remove_file(self.path(FileId::Segment(segment))))?;
        self.sync_segments()
    }

    /// Removes what a crash left half-made for this log.
    pub fn remove_half_made(&self, log: u8) -> io::Result<()> {
        for path in self.named(&format!("{NEW_PREFIX}{log:02x}-"))? {
            gone(fs::remove_file(path))?;
        }
        Ok(())
    }

    /// fsync of the directory of contents.
    pub fn sync_contents(&self) -> io::Result<()> {
        sync_directory(&self.directory.join(CONTENT_DIRECTORY))
    }

    fn sync_segments(&self) -> io::Result<()> {
        sync_directory(&self.segment_directory())
    }

    fn spare_paths(&self) -> io::Result<Vec<PathBuf>> {
        self.named(SPARE_PREFIX)
    }

    /// The files of the directory of segments whose names begin so.
    fn named(&self, prefix: &str) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(self.segment_directory())? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
                paths.push(entry.path());
            }
        }
        Ok(paths)
    }

    /// Gives a spare the name `new`, with zeros in its first block, so that no header of an earlier use can be taken
    /// for a new one. False when there is none. Several shards may look at the same time.
    fn take_spare(&self, new: &Path, size: u32) -> io::Result<bool> {
        for spare in self.spare_paths()? {
            let Ok(data) = fs::metadata(&spare) else { continue };
            if data.len() != u64::from(size) {
                gone(fs::remove_file(&spare))?;
                continue;
            }
            match fs::rename(&spare, new) {
                Ok(()) => {}
                // Another shard took it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            let file = OpenOptions::new().write(true).open(new)?;
            // A process that was killed can leave direct writes under way, which land when the device is done with them.
            // This waits for them (ext4, XFS), so that none of an earlier use lands in the next one. Its result does not
            // matter: all blocks are there, and what a later write needs it reports itself.
            //
            // SAFETY: the descriptor is open for the whole call and the kernel reads nothing from our memory.
            let _ = unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, i64::from(size)) };
            file.write_all_at(&[0; BLOCK as usize], 0)?;
            file.sync_data()?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// That a file is absent already is as good as its removal.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a file of zeros whose blocks are all allocated and written, so that writing them again needs no new space and
/// no change of the file system's own records.
fn fill_new(path: &Path, size: u32, gently: bool) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // SAFETY: the descriptor is open for the whole call and the kernel reads nothing from our memory.
    let refused = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, i64::from(size)) } != 0;
    if refused {
        let error = io::Error::last_os_error();
        // File systems without fallocate allocate as the zeros are written.
        if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
            return Err(error);
        }
    }
    // Past the page cache where that is possible: nobody reads these zeros.
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path);
    match direct.and_then(|direct| write_zeros(&direct, size, gently)) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => write_zeros(&file, size, gently)?,
        other => other?,
    }
    file.sync_all()
}

/// A piece of zeros that direct IO accepts.
#[repr(align(4096))]
struct Zeros([u8; ZEROS_LEN]);

static ZEROS: Zeros = Zeros([0; ZEROS_LEN]);

/// Writes zeros. With `gently` the disk is left to others for half of the time.
fn write_zeros(file: &File, size: u32, gently: bool) -> io::Result<()> {
    let mut offset = 0;
    while offset < u64::from(size) {
        let len = (u64::from(size) - offset).min(ZEROS_LEN as u64);
        let began = Instant::now();
        file.write_all_at(&ZEROS.0[..len as usize], offset)?;
        if gently {
            std::thread::sleep(began.elapsed());
        }
        offset += len;
    }
    Ok(())
}

/// fsync of a directory: the names in it are on stable storage.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

impl Disk for StdDisk {
    fn segments(&self) -> io::Result<Vec<SegmentId>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(self.segment_directory())? {
            segments.extend(entry?.file_name().to_str().and_then(SegmentId::from_file_name));
        }
        Ok(segments)
    }

    fn contents(&self) -> io::Result<Vec<u64>> {
        let mut contents = Vec::new();
        for entry in fs::read_dir(self.directory.join(CONTENT_DIRECTORY))? {
            let name = entry?.file_name();
            let id = name.to_str().filter(|name| name.len() == 16).and_then(|name| u64::from_str_radix(name, 16).ok());
            contents.extend(id);
        }
        Ok(contents)
    }

    fn spares(&self) -> io::Result<usize> {
        Ok(self.spare_paths()?.len())
    }

    fn spares_end(&self) -> io::Result<u32> {
        let mut end = 0;
        for path in self.spare_paths()? {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(SPARE_PREFIX));
            let segment = name.and_then(|name| SegmentId::from_file_name(&format!("{name}.seg")));
            end = segment.map_or(end, |segment| end.max(segment.sequence() + 1));
        }
        Ok(end)
    }

    fn recycle_all(&self, segments: &[SegmentId], spares_max: usize) -> io::Result<()> {
        let mut spares = self.spare_paths()?.len();
        for segment in segments {
            let path = self.path(FileId::Segment(*segment));
            if spares < spares_max {
                // Where a number comes again because nothing above it was left, the older spare of that name gives way.
                fs::rename(&path, self.segment_directory().join(format!("{SPARE_PREFIX}{segment}")))?;
                spares += 1;
            } else {
                fs::remove_file(&path)?;
            }
        }
        self.sync_segments()
    }

    fn open(&self, file: FileId) -> io::Result<Box<dyn DiskFile + '_>> {
        Ok(Box::new(StdFile(File::open(self.path(file))?)))
    }

    fn sync(&self, segment: SegmentId) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.path(FileId::Segment(segment)))?.sync_data()
    }

    fn remove_content(&self, content: u64) -> io::Result<()> {
        gone(fs::remove_file(self.path(FileId::Content(content))))
    }
}

struct StdFile(File);

impl DiskFile for StdFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn will_read(&self, offset: u64, len: u64) {
        let (offset, len) = (offset.min(i64::MAX as u64) as i64, len.min(i64::MAX as u64) as i64);
        // SAFETY: the descriptor is open for the whole call; advice touches no memory of ours. Refused advice is no
        // loss.
        let _ = unsafe { libc::posix_fadvise(self.0.as_raw_fd(), offset, len, libc::POSIX_FADV_WILLNEED) };
    }

    fn drop_cache(&self) {
        // SAFETY: as above. Only clean pages go; what is dirty is still on its way to the disk.
        let _ = unsafe { libc::posix_fadvise(self.0.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ringpost-spool-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn segments_are_prepared_recycled_and_discarded() {
        let directory = scratch("names");
        let disk = StdDisk::open(&directory).unwrap();
        let (first, second) = (SegmentId::new(0, 1), SegmentId::new(0, 2));
        disk.prepare(first, 65_536).unwrap();
        assert!(disk.prepare(first, 65_536).is_err());
        assert_eq!(disk.segments().unwrap(), [first]);
        fs::write(disk.path(FileId::Segment(first)), vec![7; 65_536]).unwrap();
        disk.recycle(first, 1).unwrap();
        assert_eq!((disk.segments().unwrap().len(), disk.spares().unwrap()), (0, 1));
        assert_eq!(disk.spares_end().unwrap(), 2);
        disk.prepare(second, 65_536).unwrap();
        let file = disk.open(FileId::Segment(second)).unwrap();
        let mut buffer = vec![1; 5000];
        assert_eq!(file.read_at(0, &mut buffer).unwrap(), 5000);
        assert!(buffer[..4096].iter().all(|b| *b == 0) && buffer[4096..].iter().all(|b| *b == 7));
        assert_eq!(file.read_at(65_000, &mut buffer).unwrap(), 536);
        disk.discard(second).unwrap();
        assert_eq!((disk.segments().unwrap().len(), disk.spares().unwrap()), (0, 0));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn many_starts_that_end_at_once_leave_few_files() {
        let directory = scratch("starts");
        let disk = StdDisk::open(&directory).unwrap();
        let mut numbers = Vec::new();
        for _ in 0..60 {
            let mut snapshot = crate::Snapshot::take(&disk).unwrap();
            snapshot.free_unused(&disk, 2).unwrap();
            for sequence in snapshot.next_sequence()..snapshot.next_sequence() + 3 {
                disk.prepare(SegmentId::new(0, sequence), 65_536).unwrap();
                numbers.push(sequence);
            }
            let names: Vec<_> =
                fs::read_dir(disk.segment_directory()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(names.len() <= 5, "{names:?}");
        }
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        fs::remove_dir_all(directory).unwrap();
    }
}
