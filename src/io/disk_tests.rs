//! Tests of disk work: real files in a temporary directory.

use crate::io::handler::Command;
use crate::io::testing::{Event, TestShard, directory};
use bytes::Bytes;
use ringpost_spool::{DiskError, DiskOp, FileId, OpId, SegmentId};

fn done(shard: &TestShard) -> (u64, Result<Bytes, DiskError>) {
    match shard.event() {
        Event::Done(done) => (done.op.0, done.result),
        other => panic!("{other:?} instead of an answer of the disk"),
    }
}

fn perform(shard: &TestShard, op: DiskOp) -> Result<Bytes, DiskError> {
    shard.command(Command::Disk(op));
    done(shard).1
}

fn prepare(shard: &TestShard, segment: u32) -> Result<Bytes, DiskError> {
    perform(shard, DiskOp::Prepare { op: OpId(1), segment: SegmentId(segment) })
}

fn names(shard: &TestShard, of: &str) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(shard.directory.join(of))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn written_synced_and_read_back() {
    let shard = TestShard::start("disk");
    let segment = SegmentId(0x0200_0010);
    assert!(prepare(&shard, segment.0).is_ok());
    assert_eq!(names(&shard, "segments"), ["02-000010.seg"]);
    assert_eq!(std::fs::metadata(shard.directory.join("segments/02-000010.seg")).unwrap().len(), 1 << 20);
    let chunks = vec![Bytes::from(vec![b'a'; 5000]), Bytes::from_static(b"end")];
    // The sync is asked for before the write is done, and covers it all the same.
    shard.command(Command::Disk(DiskOp::Write { op: OpId(2), segment, offset: 8192, chunks, len: 8192 }));
    shard.command(Command::Disk(DiskOp::Sync { op: OpId(3), segment }));
    assert_eq!(done(&shard), (2, Ok(Bytes::new())));
    assert_eq!(done(&shard), (3, Ok(Bytes::new())));
    let read = |offset, len| perform(&shard, DiskOp::Read { op: OpId(4), file: FileId::Segment(segment), offset, len });
    assert_eq!(read(8192 + 4999, 4).unwrap(), b"aend"[..]);
    assert_eq!(read(8192 + 5003, 3189).unwrap(), vec![0; 3189]);
    assert_eq!(read(0, 1 << 20).unwrap().len(), 1 << 20);
    assert_eq!(read((1 << 20) - 10, 11), Err(DiskError::Short));
    assert_eq!(read(2 << 20, 1), Err(DiskError::Short));
    let missing = DiskOp::Read { op: OpId(5), file: FileId::Content(99), offset: 0, len: 1 };
    assert_eq!(perform(&shard, missing), Err(DiskError::NotFound));
    shard.exit().unwrap();
}

#[test]
fn a_recycled_segment_becomes_a_spare_and_then_a_segment_again() {
    let shard = TestShard::start("recycle");
    for segment in 0..4 {
        assert!(prepare(&shard, segment).is_ok());
    }
    let chunks = vec![Bytes::from_static(b"old")];
    let write = DiskOp::Write { op: OpId(2), segment: SegmentId(0), offset: 0, chunks, len: 4096 };
    assert!(perform(&shard, write).is_ok());
    for segment in 0..3 {
        let recycle = DiskOp::Recycle { op: OpId(3), segment: SegmentId(segment) };
        assert_eq!(perform(&shard, recycle), Ok(Bytes::new()));
    }
    // Two spares are kept, the third is removed.
    assert_eq!(names(&shard, "segments"), ["00-000003.seg", "spare-00-000000", "spare-00-000001"]);
    assert!(prepare(&shard, 4).is_ok());
    assert!(prepare(&shard, 5).is_ok());
    assert!(prepare(&shard, 6).is_ok());
    let expected = ["00-000003.seg", "00-000004.seg", "00-000005.seg", "00-000006.seg"];
    assert_eq!(names(&shard, "segments"), expected);
    let recycle = DiskOp::Recycle { op: OpId(3), segment: SegmentId(77) };
    shard.command(Command::Disk(recycle));
    assert!(matches!(shard.event(), Event::Trouble(text) if text.contains("00-00004d.seg failed")));
    assert_eq!(done(&shard).1, Err(DiskError::NotFound));
    shard.exit().unwrap();
}

#[test]
fn large_content_has_files_of_its_own() {
    let shard = TestShard::start("content");
    let id = 0xabc;
    let piece = |byte: u8| vec![Bytes::from(vec![byte; 65_536])];
    for (number, byte) in [b'x', b'y', b'z'].into_iter().enumerate() {
        let offset = number as u64 * 65_536;
        let write = DiskOp::ContentWrite {
            op: OpId(number as u64),
            content: id,
            create: offset == 0,
            offset,
            chunks: piece(byte),
            len: 65_536,
        };
        shard.command(Command::Disk(write));
    }
    shard.command(Command::Disk(DiskOp::ContentSync { op: OpId(9), content: id }));
    let mut ops: Vec<_> = (0..4).map(|_| done(&shard)).collect();
    assert_eq!(ops.pop(), Some((9, Ok(Bytes::new()))));
    assert!(ops.iter().all(|(_, result)| result.is_ok()), "{ops:?}");
    assert_eq!(names(&shard, "content"), ["0000000000000abc"]);
    let read = DiskOp::Read { op: OpId(10), file: FileId::Content(id), offset: 65_535, len: 65_538 };
    let bytes = perform(&shard, read).unwrap();
    assert_eq!((bytes[0], bytes[1], bytes[65_536], bytes[65_537]), (b'x', b'y', b'y', b'z'));
    assert!(perform(&shard, DiskOp::ContentRemove { op: OpId(11), content: id }).is_ok());
    assert!(names(&shard, "content").is_empty());
    // Gone already is as good.
    assert!(perform(&shard, DiskOp::ContentRemove { op: OpId(12), content: id }).is_ok());
    shard.exit().unwrap();
}

#[test]
fn what_a_crash_left_half_made_is_cleared_away() {
    let path = directory("crash");
    std::fs::create_dir_all(path.join("segments")).unwrap();
    std::fs::write(path.join("segments/new-00-000001"), b"half").unwrap();
    std::fs::write(path.join("segments/new-01-000001"), b"another shard's").unwrap();
    std::fs::write(path.join("segments/spare-9"), b"of another size").unwrap();
    let shard = TestShard::start_in(&path);
    assert!(prepare(&shard, 1).is_ok());
    assert_eq!(names(&shard, "segments"), ["00-000001.seg", "new-01-000001"]);
    shard.exit().unwrap();
}

#[test]
fn many_operations_at_once_are_all_answered() {
    let shard = TestShard::start("many");
    assert!(prepare(&shard, 1).is_ok());
    let remove = |number| DiskOp::ContentRemove { op: OpId(number), content: number };
    let mut wanted: Vec<u64> = (0..3000).collect();
    for number in 0..3000 {
        shard.command(Command::Disk(remove(number)));
    }
    let mut answered: Vec<u64> = (0..3000).map(|_| done(&shard).0).collect();
    answered.sort_unstable();
    wanted.sort_unstable();
    assert!(answered == wanted);
    shard.exit().unwrap();
}

/// A tiny file system of its own; needs the right to mount.
#[test]
fn a_full_disk_is_said_so() {
    struct Mount(std::ffi::CString);
    impl Drop for Mount {
        fn drop(&mut self) {
            // SAFETY: the path is a C string that outlives the call.
            unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
        }
    }
    let path = directory("full");
    let target = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: all strings are C strings that outlive the call.
    let mounted = unsafe {
        libc::mount(
            c"none".as_ptr(),
            target.as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            c"size=2500k".as_ptr().cast::<libc::c_void>(),
        )
    };
    if mounted != 0 {
        eprintln!("SKIPPED: a full disk cannot be tried without the right to mount a tmpfs");
        return;
    }
    let mount = Mount(target);
    let shard = TestShard::start_in(&path);
    assert!(prepare(&shard, 1).is_ok());
    assert!(prepare(&shard, 2).is_ok());
    shard.command(Command::Disk(DiskOp::Prepare { op: OpId(1), segment: SegmentId(3) }));
    match shard.event() {
        Event::Trouble(text) => assert!(text.contains("00-000003.seg failed") && text.contains("free space"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(done(&shard).1, Err(DiskError::NoSpace));
    assert_eq!(names(&shard, "segments"), ["00-000001.seg", "00-000002.seg"]);
    let chunks = vec![Bytes::from(vec![1; 1 << 20])];
    let write = DiskOp::ContentWrite { op: OpId(2), content: 5, create: true, offset: 0, chunks, len: 1 << 20 };
    let result = perform(&shard, write);
    assert!(matches!(result, Err(DiskError::NoSpace | DiskError::Short)), "{result:?}");
    // What was prepared can be written: its space is there.
    let write = DiskOp::Write { op: OpId(3), segment: SegmentId(2), offset: 0, chunks: vec![], len: 1 << 20 };
    assert!(perform(&shard, write).is_ok());
    shard.exit().unwrap();
    drop(mount);
    let _ = std::fs::remove_dir_all(&path);
}
