//! Segments whose header is bad though nothing else speaks of them: damage is told and kept, a torn first write is not.

mod rig;

use rig::{Rig, SEGMENT, config};
use ringpost_spool::sim_disk::SimDiskConfig;
use ringpost_spool::verify::{DumpItem, dump, verify};
use ringpost_spool::{Damage, Disk, DiskOp, FileId, Log, LogConfig, SegmentId, SimDisk, Snapshot, recover};

const FIRST: SegmentId = SegmentId::new(0, 0);

/// A spool that was stopped in good order, with so many acknowledged messages in one segment, each in its own batch.
fn stopped(messages: u64) -> Rig {
    let mut rig = Rig::new();
    for id in 1..=messages {
        assert_eq!(rig.append(id, 1_000).content.segment, FIRST);
        rig.flush();
        rig.run();
    }
    rig
}

fn change(rig: &Rig, segment: SegmentId, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = rig.disk.bytes(FileId::Segment(segment)).unwrap();
    how(&mut bytes);
    rig.disk.put(FileId::Segment(segment), bytes);
}

fn scribble(bytes: &mut [u8]) {
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = (place as u8).wrapping_mul(151) ^ 0xa7;
    }
}

/// What a start finds after its look for unused segments: messages and damage.
fn start(rig: &mut Rig) -> (Vec<u64>, Vec<Damage>) {
    let mut snapshot = Snapshot::take(&rig.disk).unwrap();
    snapshot.free_unused(&rig.disk, 4).unwrap();
    let (messages, report) = rig.restart();
    (messages.iter().map(|message| message.id).collect(), report.damage)
}

/// The damage is told by `verify` and by every start, the file stays, and what can be read is handed out.
fn assert_told(rig: &mut Rig, readable: &[u64]) {
    let before = rig.disk.bytes(FileId::Segment(FIRST)).unwrap();
    let report = verify(&rig.disk).unwrap();
    assert!(report.damage.iter().any(|damage| damage.file == FileId::Segment(FIRST)), "{:?}", report.damage);
    assert_eq!(report.messages, readable.len() as u64);
    for life in 0..3 {
        let (messages, damage) = start(rig);
        assert_eq!(messages, readable, "life {life}");
        assert!(damage.iter().any(|damage| damage.file == FileId::Segment(FIRST)), "life {life}: {damage:?}");
        rig.settle();
        let content = rig.append(100 + life, 100).content;
        rig.settle();
        rig.deliver(100 + life, content);
        rig.settle();
        assert_eq!(rig.disk.bytes(FileId::Segment(FIRST)).as_ref(), Some(&before), "life {life}: it is kept");
    }
}

#[test]
fn a_header_that_was_written_over_is_damage_and_loses_no_message() {
    for messages in [1, 4] {
        let mut rig = stopped(messages);
        change(&rig, FIRST, |bytes| scribble(&mut bytes[..64]));
        assert_told(&mut rig, &[1, 2, 3, 4][..messages as usize]);
    }
}

#[test]
fn a_header_of_zeros_is_damage_where_a_batch_says_that_it_was_durable() {
    for len in [64, 512, 4096] {
        let mut rig = stopped(4);
        change(&rig, FIRST, |bytes| bytes[..len].fill(0));
        assert_told(&mut rig, &[1, 2, 3, 4]);
    }
}

#[test]
fn where_the_first_batch_is_damaged_too_the_file_is_kept() {
    let mut rig = stopped(4);
    change(&rig, FIRST, |bytes| bytes[..8192].fill(0));
    assert_told(&mut rig, &[]);
    let mut rig = stopped(1);
    change(&rig, FIRST, |bytes| scribble(&mut bytes[..8192]));
    assert_told(&mut rig, &[]);
}

#[test]
fn a_file_of_a_wrong_size_is_damage() {
    for len in [0, 1_000, 4_096, 8_192, 12_288] {
        let mut rig = stopped(4);
        change(&rig, FIRST, |bytes| bytes.truncate(len));
        let readable: &[u64] = if len == 12_288 {
            &[1, 2]
        } else if len == 8_192 {
            &[1]
        } else {
            &[]
        };
        assert_told(&mut rig, readable);
    }
}

#[test]
fn an_unused_segment_with_something_in_its_first_block_is_damage() {
    let mut rig = stopped(2);
    let second = SegmentId::new(0, 1);
    rig.disk.damage(FileId::Segment(second), 4_095, 1);
    let (messages, damage) = start(&mut rig);
    assert_eq!((messages, damage.first().map(|damage| damage.file)), (vec![1, 2], Some(FileId::Segment(second))));
}

#[test]
fn a_torn_first_write_is_silent() {
    // Sectors of header and first batch, with a batch of more than one block.
    for lost in 1..16u32 {
        let mut rig = Rig::new();
        rig.append(1, 3_000);
        rig.flush();
        rig.run();
        change(&rig, FIRST, |bytes| {
            for sector in 0..4 {
                // The sector of the header, two of the batch, one that holds zeros.
                let at = [0, 4_096, 5_120, 512][sector];
                if lost >> sector & 1 == 1 {
                    bytes[at..at + 512].fill(0);
                }
            }
        });
        let whole = lost & 0b0110 == 0;
        assert!(verify(&rig.disk).unwrap().damage.is_empty());
        for life in 0..3 {
            let (messages, damage) = start(&mut rig);
            assert!(damage.is_empty(), "{lost:04b}: {damage:?}");
            // Whole batches count as any that were written at the end of a run do.
            assert_eq!(messages, if whole { vec![1] } else { vec![] }, "{lost:04b} life {life}");
            rig.settle();
        }
        let kept = rig.disk.bytes(FileId::Segment(FIRST)).is_some();
        assert_eq!(kept, whole, "{lost:04b}: it comes back once nothing waits in it");
    }
}

/// Writes are performed, syncs are not: nothing is durable, in several segments.
fn unsynced() -> Rig {
    let mut rig = Rig::new();
    for id in 1..30 {
        rig.append(id, 4_000);
        rig.flush();
        for op in rig.ops() {
            if matches!(op, DiskOp::Write { .. }) {
                rig.disk.submit(0, op);
            }
        }
        while let Some((_, done)) = rig.disk.complete_one() {
            rig.log.handle_done(done, rig.now_ms);
        }
    }
    rig
}

/// The messages of which a dump of this segment tells.
fn messages_in(rig: &Rig, segment: SegmentId) -> Vec<u64> {
    let mut ids = Vec::new();
    dump(&rig.disk, Some(segment), &mut |line| {
        if let DumpItem::Message { id, .. } = line.item {
            ids.push(id);
        }
    })
    .unwrap();
    ids
}

#[test]
fn behind_a_gap_a_segment_without_a_header_is_void_and_stays_so() {
    let mut rig = unsynced();
    let second = SegmentId::new(0, 1);
    let (in_first, in_second) = (messages_in(&rig, FIRST), messages_in(&rig, second));
    assert!(in_first.len() > 3 && !in_second.is_empty());
    change(&rig, second, |bytes| bytes[..512].fill(0));
    assert_eq!(messages_in(&rig, second), in_second, "a dump tells them all the same");
    // The second batch of the first segment was torn.
    change(&rig, FIRST, |bytes| {
        let at = (8_192..).step_by(4_096).find(|at| bytes[*at..].starts_with(b"RPB")).unwrap();
        bytes[at + 512..at + 1_024].fill(0xee);
    });
    let mut lives = Vec::new();
    for _ in 0..4 {
        let (messages, damage) = start(&mut rig);
        assert!(damage.is_empty(), "{damage:?}");
        lives.push(messages);
        rig.settle();
    }
    assert!(lives.iter().all(|messages| messages == &in_first[..1]), "{lives:?}");
    assert!(rig.disk.bytes(FileId::Segment(second)).is_none(), "it came back");
}

#[test]
fn no_number_of_a_spare_comes_again() {
    let disk = SimDisk::new(3, SimDiskConfig::sound(SEGMENT));
    let run = |log: &mut Log| {
        while let Some(op) = log.poll_op() {
            disk.submit(0, op);
        }
        while let Some((_, done)) = disk.complete_one() {
            log.handle_done(done, 0);
        }
    };
    run(&mut Log::new(LogConfig { seed: 5, ..config() }, 7));
    let mut snapshot = Snapshot::take(&disk).unwrap();
    let next = snapshot.next_sequence();
    assert!(snapshot.free_unused(&disk, 4).unwrap() > 0 && disk.segments().unwrap().is_empty());
    // Killed here: only spares are left, which may hold batches under their old numbers.
    assert_eq!(Snapshot::take(&disk).unwrap().next_sequence(), next);
    assert_eq!(recover(&disk, 1, &mut |_, _| ()).unwrap().next_sequence, next);
}

#[test]
fn where_a_segment_is_doubtful_a_start_gives_nothing_back() {
    let rig = stopped(1);
    change(&rig, FIRST, |bytes| bytes[..4096].fill(0));
    let before = rig.disk.segments().unwrap();
    assert!(before.len() > 1, "there are prepared ones: {before:?}");
    let mut snapshot = Snapshot::take(&rig.disk).unwrap();
    assert_eq!(snapshot.free_unused(&rig.disk, 4).unwrap(), 0, "what is read of it may go by the files around it");
    assert_eq!(rig.disk.segments().unwrap(), before);
}
