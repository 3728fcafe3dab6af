//! How long a disk takes to make one block durable, with nothing around it: what a server's acknowledgement is held against.

use crate::report::Latency;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

/// Octets of a block: what O_DIRECT takes on all usual disks, and what a spool writes at least.
const BLOCK: usize = 4096;

/// A block where O_DIRECT wants it.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// Writes so many blocks of 4 KiB one after the other into a file made for that, each followed by fdatasync, and gives how
/// long a write and its fdatasync took together.
///
/// The file has its place and has been written before, so that no allocation is timed. It is written through O_DIRECT, or
/// through the page cache where the file system refuses that. It is removed at the end.
///
/// # Errors
/// When the file is there already, or cannot be made, written or removed.
pub fn measure(path: &Path, blocks: u32) -> io::Result<Latency> {
    let block = Block([b'.'; BLOCK]);
    let place = |number: u32| u64::from(number) * BLOCK as u64;
    let file = File::create_new(path)?;
    for number in 0..blocks {
        file.write_all_at(&block.0, place(number))?;
    }
    file.sync_all()?;
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path);
    let file = match direct {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => file,
        direct => direct?,
    };
    let mut latency = Latency::default();
    for number in 0..blocks {
        let began = Instant::now();
        file.write_all_at(&block.0, place(number))?;
        file.sync_data()?;
        latency.record(began.elapsed());
    }
    std::fs::remove_file(path)?;
    Ok(latency)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_is_timed_and_nothing_is_left() {
        // The one is a disk where it can be, the other often is a tmpfs.
        for directory in [Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), std::env::temp_dir()] {
            let path = directory.join(format!("sync-probe-{}", std::process::id()));
            assert_eq!(measure(&path, 20).unwrap().count(), 20);
            assert!(!path.exists());
        }
    }
}
