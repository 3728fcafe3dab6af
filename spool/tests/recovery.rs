//! The table of recovery, row by row, and that no bytes whatever make it panic.

mod rig;

use proptest::prelude::*;
use rig::{Rig, SEGMENT, config};
use ringpost_spool::batch::{BatchHead, DurableEnd};
use ringpost_spool::sim_disk::{FaultAt, SimDiskConfig};
use ringpost_spool::verify::{DumpItem, dump, verify};
use ringpost_spool::{
    ContentRef, Disk, DiskError, DiskOp, FileId, Log, LogConfig, LogEvent, NewContent, NewMessage, OutcomeKind,
    RecoveryError, SegmentId, SimDisk, Snapshot, recover, recover_from,
};

/// Appends messages, each in a batch of its own and durable, and gives their places.
fn store(rig: &mut Rig, ids: std::ops::Range<u64>, len: usize) -> Vec<(u64, ContentRef)> {
    let mut stored = Vec::new();
    for id in ids {
        stored.push((id, rig.append(id, len).content));
        rig.flush();
        rig.run();
    }
    stored
}

fn batch_offsets(rig: &Rig, segment: SegmentId) -> Vec<u32> {
    let mut offsets = Vec::new();
    dump(&rig.disk, Some(segment), &mut |line| {
        if matches!(line.item, DumpItem::Batch { .. }) {
            offsets.push(line.offset);
        }
    })
    .unwrap();
    offsets
}

fn ids(stored: &[(u64, ContentRef)]) -> Vec<u64> {
    stored.iter().map(|(id, _)| *id).collect()
}

fn assert_sound(rig: &Rig) {
    let damage = rig.recover().1.damage;
    assert!(damage.is_empty(), "{damage:?}");
}

#[test]
fn prepared_segments_are_free() {
    let rig = Rig::new();
    let (messages, report) = rig.recover();
    assert!(messages.is_empty() && report.damage.is_empty());
    assert_eq!(report.next_sequence, 3);
    assert!(report.segments[0].iter().all(|segment| segment.live == 0 && !segment.damaged));
}

#[test]
fn a_damaged_header_loses_no_message() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..30, 4_000);
    rig.disk.damage(FileId::Segment(stored[0].1.segment), 20, 0xff);
    let (messages, report) = rig.recover();
    assert_eq!(messages.iter().map(|m| m.id).collect::<Vec<_>>(), ids(&stored));
    assert_eq!(report.damage.len(), 1);
    assert!(report.segments[0].iter().any(|segment| segment.damaged && segment.segment == stored[0].1.segment));
}

/// The segment's header says that a newer version wrote it.
fn make_newer(rig: &Rig, segment: SegmentId) {
    let file = FileId::Segment(segment);
    let mut bytes = rig.disk.bytes(file).unwrap();
    bytes[8] = 9;
    // The version is covered by the header's checksum, so it is made anew.
    let seed = crc32c::crc32c_append(crc32c::crc32c(&bytes[16..24]), &bytes[12..16]);
    let sum = crc32c::crc32c_append(seed, &bytes[..60]);
    bytes[60..64].copy_from_slice(&sum.to_le_bytes());
    rig.disk.put(file, bytes);
}

#[test]
fn a_newer_version_is_refused_and_nothing_is_touched() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..2, 100);
    make_newer(&rig, stored[0].1.segment);
    rig.disk.put(FileId::Content(77), vec![0; 4096]);
    let refused = recover(&rig.disk, 1, &mut |_, _| ());
    assert!(matches!(refused, Err(RecoveryError::Version { version: 9, .. })));
    assert_eq!(rig.disk.removed_contents(), 0);
}

#[test]
fn a_sealed_segment_is_read_by_its_footer_and_verify_looks_at_contents() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..30, 4_000);
    let (id, place) = stored[2];
    rig.disk.damage(FileId::Segment(place.segment), u64::from(place.offset) + 100, 1);
    assert_eq!(rig.ids(), ids(&stored));
    assert_sound(&rig);
    let report = verify(&rig.disk).unwrap();
    assert_eq!(report.damage.len(), 1);
    assert_eq!(report.damage[0].message, Some(id));
    assert!(report.damage[0].to_string().contains(&format!("message {id:016x}: ")));
}

#[test]
fn a_damaged_footer_loses_no_message() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..30, 4_000);
    rig.disk.damage(FileId::Segment(stored[0].1.segment), u64::from(SEGMENT) - 80, 1);
    let (messages, report) = rig.recover();
    assert_eq!(messages.iter().map(|m| m.id).collect::<Vec<_>>(), ids(&stored));
    assert_eq!(report.damage.len(), 1);
}

#[test]
fn a_damaged_trailer_loses_no_message_and_is_told() {
    for byte in [1, 8, 12, 20, 40, 60, 64] {
        let mut rig = Rig::new();
        let stored = store(&mut rig, 1..30, 4_000);
        let segment = stored[0].1.segment;
        rig.disk.damage(FileId::Segment(segment), u64::from(SEGMENT) - byte, 1);
        for report in [verify(&rig.disk).unwrap(), rig.recover().1] {
            assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
            assert_eq!(
                (report.damage[0].file, report.damage[0].offset),
                (FileId::Segment(segment), u64::from(SEGMENT) - 64)
            );
            assert!(report.segments[0].iter().any(|s| s.damaged && s.segment == segment));
        }
        assert_eq!(rig.ids(), ids(&stored));
    }
}

#[test]
fn verify_tells_a_damaged_trailer_that_no_start_needs() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..30, 4_000);
    // Every later segment of the run goes, so nothing says any more that it went beyond its first.
    for (id, content) in stored.iter().filter(|(_, content)| content.segment != stored[0].1.segment) {
        rig.deliver(*id, *content);
    }
    for _ in 0..2 {
        rig.settle();
        rig.restart();
    }
    rig.settle();
    assert!(verify(&rig.disk).unwrap().damage.is_empty(), "{:?}", verify(&rig.disk).unwrap().damage);
    let file = FileId::Segment(stored[0].1.segment);
    rig.disk.damage(file, u64::from(SEGMENT) - 10, 1);
    assert_eq!(verify(&rig.disk).unwrap().damage.len(), 1);
    assert_sound(&rig);
}

#[test]
fn verify_tells_a_damaged_batch_header_that_a_start_need_not_read() {
    let (mut heads, mut notes) = (0, 0);
    for batch in 0..5 {
        let mut rig = Rig::new();
        rig.log.append_note(b"a note").unwrap();
        let stored = store(&mut rig, 1..30, 4_000);
        assert!(verify(&rig.disk).unwrap().damage.is_empty());
        let segment = stored[0].1.segment;
        let at = batch_offsets(&rig, segment)[batch];
        rig.disk.damage(FileId::Segment(segment), u64::from(at) + 20, 1);
        assert_sound(&rig);
        let damage = verify(&rig.disk).unwrap().damage;
        assert_eq!((damage.len(), damage[0].offset), (1, u64::from(at)), "{damage:?}");
        heads += 1;
        // The note stands in the first batch, and recovery does not read notes of sealed segments either.
        rig.disk.damage(FileId::Segment(segment), u64::from(at) + 20, 1);
        rig.disk.damage(FileId::Segment(segment), 4096 + 48 + 41, 1);
        assert_sound(&rig);
        notes += verify(&rig.disk).unwrap().damage.iter().filter(|damage| damage.offset == 4096 + 48).count();
    }
    assert_eq!((heads, notes), (5, 5));
}

#[test]
fn a_bad_batch_below_the_durable_end_is_damage_and_the_rest_is_kept() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..7, 1_000);
    let segment = stored[0].1.segment;
    let third = batch_offsets(&rig, segment)[2];
    rig.disk.damage(FileId::Segment(segment), u64::from(third) + 8, 1);
    rig.disk.put(FileId::Content(77), vec![0; 4096]);
    let (messages, report) = rig.recover();
    assert_eq!(messages.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 2, 4, 5, 6]);
    assert_eq!((report.damage.len(), report.damage[0].offset), (1, u64::from(third)));
    assert!(report.segments[0].iter().any(|s| s.damaged && s.live == 5));
    assert_eq!((report.orphans_removed, report.orphans_kept), (0, 1), "the lost message may have named it");
    assert!(rig.disk.bytes(FileId::Content(77)).is_some());
}

#[test]
fn a_damaged_record_below_the_durable_end_is_damage_and_the_rest_is_kept() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..30, 4_000);
    let (_, place) = stored[3];
    // The head of the record stands just before its envelope.
    rig.disk.damage(FileId::Segment(place.segment), u64::from(place.offset) - 30, 1);
    let (messages, report) = rig.recover();
    assert_eq!(messages.len(), stored.len() - 1);
    assert_eq!(report.damage.len(), 1);
}

#[test]
fn a_block_that_cannot_be_read_is_damage_and_is_read_around() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..30, 4_000);
    let (lost, place) = stored[3];
    rig.disk.break_block(FileId::Segment(place.segment), u64::from(place.offset));
    let (messages, report) = rig.recover();
    let kept: Vec<u64> = ids(&stored).into_iter().filter(|id| *id != lost).collect();
    assert_eq!(messages.iter().map(|m| m.id).collect::<Vec<_>>(), kept);
    assert!(!report.damage.is_empty());
}

#[test]
fn a_spilled_message_without_its_file_is_handed_out() {
    let mut rig = Rig::new();
    let content = NewContent::Spilled { front: 0, len: 10, crc: 0 };
    rig.log.append_message(NewMessage { id: 5, envelope: b"e", recipients: 1, content, held: false }).unwrap();
    rig.settle();
    let (messages, report) = rig.recover();
    assert!(messages[0].content.spilled && report.damage.is_empty());
    assert_eq!(verify(&rig.disk).unwrap().damage.len(), 1);
}

#[test]
fn a_bad_batch_at_the_end_was_never_durable_nor_is_what_stands_behind_it() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..4, 1_000);
    for id in 4..7 {
        rig.append(id, 14_000);
    }
    rig.flush();
    rig.run();
    let segment = stored[0].1.segment;
    let offsets = batch_offsets(&rig, segment);
    assert_eq!(offsets.len(), 5, "the last one was not flushed");
    rig.disk.damage(FileId::Segment(segment), u64::from(offsets[3]) + 5_000, 1);
    let (messages, report) = rig.recover();
    assert_eq!(messages.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(report.damage.is_empty() && report.void_bytes > 0);
}

#[test]
fn later_segments_of_a_run_are_void_behind_a_gap() {
    let mut rig = Rig::new();
    // Nothing is synced: writes are performed, syncs are not.
    let mut answered = 0;
    for id in 1..40 {
        rig.append(id, 4_000);
        rig.flush();
        for op in rig.ops() {
            if matches!(op, DiskOp::Write { .. }) {
                rig.disk.submit(0, op);
                answered += 1;
            }
        }
        while let Some((_, done)) = rig.disk.complete_one() {
            rig.log.handle_done(done, rig.now_ms);
        }
    }
    assert!(answered > 8);
    let segments = Snapshot::take(&rig.disk).unwrap().next_sequence();
    assert!(segments > 3);
    let first = SegmentId::new(0, 0);
    let second = batch_offsets(&rig, first)[1];
    rig.disk.damage(FileId::Segment(first), u64::from(second) + 100, 1);
    let (messages, report) = rig.recover();
    assert_eq!(messages.iter().map(|m| m.id).collect::<Vec<_>>(), [1]);
    assert!(report.damage.is_empty(), "{:?}", report.damage);
}

#[test]
fn a_cut_voids_what_a_failed_sync_left_on_the_disk() {
    let mut rig = Rig::new();
    store(&mut rig, 1..3, 1_000);
    rig.append(3, 1_000);
    rig.disk.fail_next(FaultAt::Sync, DiskError::Io { errno: 5 });
    rig.flush();
    rig.run();
    assert_eq!(rig.failed(), [(3, 3)]);
    store(&mut rig, 4..6, 1_000);
    rig.settle();
    assert_eq!(rig.ids(), [1, 2, 4, 5]);
    assert_sound(&rig);
    let (again, report) = rig.restart();
    assert_eq!(again.len(), 4);
    assert!(report.damage.is_empty());
}

#[test]
fn an_end_that_recovery_found_is_binding() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..5, 1_000);
    let (messages, _) = rig.restart();
    assert_eq!(messages.len(), 4);
    rig.settle();
    // The last batch was never stated by a later one, but by the next life.
    let segment = stored[3].1.segment;
    let last = *batch_offsets(&rig, segment).last().unwrap();
    rig.disk.damage(FileId::Segment(segment), u64::from(last) + 8, 1);
    let (messages, report) = rig.recover();
    assert_eq!(messages.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(report.damage.len(), 1);
}

#[test]
fn an_earlier_use_of_a_segment_is_not_there() {
    let mut rig = Rig::new();
    let mut id = 1;
    for _ in 0..6 {
        let stored = store(&mut rig, id..id + 16, 3_000);
        for (id, content) in stored {
            rig.deliver(id, content);
        }
        id += 16;
        rig.settle();
    }
    assert!(rig.log.usage().recycled > 3);
    let stored = store(&mut rig, id..id + 3, 500);
    assert_eq!(rig.ids(), ids(&stored));
    assert_sound(&rig);
}

#[test]
fn outcomes_fold_and_final_ones_stay() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..4, 100);
    rig.outcome(1, OutcomeKind::Deferred, stored[0].1.segment);
    rig.outcome(1, OutcomeKind::Held, stored[0].1.segment);
    rig.outcome(2, OutcomeKind::Bounced, stored[1].1.segment);
    rig.outcome(2, OutcomeKind::Released, stored[1].1.segment);
    rig.outcome(999, OutcomeKind::Delivered, stored[1].1.segment);
    rig.settle();
    let (messages, report) = rig.recover();
    assert_eq!(messages.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(messages[0].states[0].kind, Some(OutcomeKind::Held));
    assert_eq!(messages[1].states[0].kind, None);
    assert_eq!((report.outcomes, report.greatest_id, report.recipients), (5, 999, 2));
}

#[test]
fn content_files_that_nobody_names_are_removed() {
    let mut rig = Rig::new();
    store(&mut rig, 1..2, 100);
    rig.disk.put(FileId::Content(77), vec![0; 4096]);
    let (_, report) = rig.recover();
    assert_eq!((report.orphans_removed, report.greatest_id), (1, 77));
    assert!(rig.disk.bytes(FileId::Content(77)).is_none());
}

#[test]
fn the_number_of_shards_may_change() {
    let disk = SimDisk::new(5, SimDiskConfig::sound(SEGMENT));
    let mut rigs = Vec::new();
    for log in 0..3 {
        let mut rig = Rig::new();
        rig.log = ringpost_spool::Log::new(LogConfig { log, ..config() }, 0);
        rig.append_on(&disk, u64::from(log) + 1);
        rigs.push(rig);
    }
    for shards in 1..5 {
        let mut owners = Vec::new();
        let report = recover(&disk, shards, &mut |owner, message| owners.push((message.id, owner))).unwrap();
        owners.sort_unstable();
        assert_eq!(owners, [(1, 0), (2, 1 % shards), (3, 2 % shards)]);
        assert_eq!(report.segments.len(), usize::from(shards));
    }
}

impl Rig {
    /// One durable message, on a disk that several logs share.
    fn append_on(&mut self, disk: &SimDisk, id: u64) {
        for round in 0..10 {
            if round == 3 {
                self.append(id, 100);
            }
            self.log.flush(self.now_ms);
            while let Some(op) = self.log.poll_op() {
                disk.submit(0, op);
            }
            while let Some(done) = disk.complete_one_of(0) {
                self.log.handle_done(done, self.now_ms);
            }
        }
        assert!(std::iter::from_fn(|| self.log.poll_event()).any(|event| matches!(event, LogEvent::Durable(_))));
    }
}

#[test]
fn new_segments_are_left_alone() {
    let mut rig = Rig::new();
    store(&mut rig, 1..3, 100);
    let snapshot = Snapshot::take(&rig.disk).unwrap();
    let first = snapshot.next_sequence();
    let mut newer = Rig::new();
    newer.log = ringpost_spool::Log::new(config(), first);
    newer.append_on(&rig.disk, 9);
    let mut found = Vec::new();
    recover_from(&rig.disk, &snapshot, 1, &mut |_, message| found.push(message.id)).unwrap();
    assert_eq!(found, [1, 2]);
}

/// The process starts, its first segments are prepared, and it dies before its recovery has begun.
fn quick_start(rig: &mut Rig) {
    let mut snapshot = Snapshot::take(&rig.disk).unwrap();
    snapshot.free_unused(&rig.disk, 4).unwrap();
    rig.log = Log::new(LogConfig { seed: 77 + rig.now_ms, ..config() }, snapshot.next_sequence());
    rig.now_ms += 1;
    rig.run();
}

#[test]
fn quick_starts_do_not_pile_up_files() {
    let mut rig = Rig::new();
    let mut stored = Vec::new();
    let mut next = 3;
    for start in 0..150 {
        quick_start(&mut rig);
        let listed = rig.disk.segments().unwrap();
        let first = listed.iter().map(|segment| segment.sequence()).max().unwrap() - 2;
        assert!(first >= next, "start {start}: sequences rise");
        next = first + 1;
        if start % 50 == 20 {
            stored.extend(store(&mut rig, start..start + 1, 100));
        }
        // The prepared ones, those that hold something, and spares.
        let files = rig.disk.segments().unwrap().len() + rig.disk.spares().unwrap();
        assert!(files <= 3 + stored.len() + 4, "start {start} left {files} files");
        rig.disk.kill();
    }
    let (messages, report) = rig.restart();
    assert_eq!(messages.iter().map(|m| m.id).collect::<Vec<_>>(), ids(&stored));
    assert!(report.damage.is_empty(), "{:?}", report.damage);
}

/// What the start's look frees in a spool of four segments of which the first is in use.
fn freed(change: impl FnOnce(&Rig)) -> Vec<u32> {
    let mut rig = Rig::new();
    store(&mut rig, 1..2, 100);
    change(&rig);
    let before = rig.disk.segments().unwrap();
    let mut snapshot = Snapshot::take(&rig.disk).unwrap();
    let next = snapshot.next_sequence();
    let count = snapshot.free_unused(&rig.disk, 4).unwrap();
    assert_eq!(snapshot.next_sequence(), next, "numbers are not given out again in the same run");
    let after = rig.disk.segments().unwrap();
    let freed: Vec<u32> = before.iter().filter(|id| !after.contains(id)).map(|id| id.sequence()).collect();
    assert_eq!(freed.len(), count);
    // The snapshot does not name them any more: recovery misses nothing.
    let report = recover_from(&rig.disk, &snapshot, 1, &mut |_, _| ()).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    freed
}

#[test]
fn only_what_was_surely_never_used_is_freed_at_the_start() {
    let second = FileId::Segment(SegmentId::new(0, 1));
    assert_eq!(freed(|_| ()), [1, 2, 3]);
    // The first write was torn: the batch is there, the header is not.
    let torn = |rig: &Rig| {
        let head = BatchHead { generation: 9, sequence: 0, records: 0, len: 48, durable_end: DurableEnd::default() };
        let mut bytes = vec![0; SEGMENT as usize];
        bytes[4096..4144].copy_from_slice(&head.encode(SegmentId::new(0, 1), 4096));
        rig.disk.put(second, bytes);
    };
    // Then all stay: what recovery makes of that one may go by the others.
    assert_eq!(freed(torn), []);
    // A recycled file holds old batches, of another segment: it was not used as this one.
    let recycled = |rig: &Rig| {
        let mut bytes = rig.disk.bytes(FileId::Segment(SegmentId::new(0, 0))).unwrap();
        bytes[..4096].fill(0);
        rig.disk.put(second, bytes);
    };
    assert_eq!(freed(recycled), [1, 2, 3]);
    assert_eq!(freed(|rig| rig.disk.break_block(second, 0)), []);
    assert_eq!(freed(|rig| rig.disk.break_block(second, 5000)), []);
}

#[test]
fn a_segment_that_a_header_names_is_left_for_recovery_which_sees_the_gap() {
    let mut rig = Rig::new();
    store(&mut rig, 1..40, 4_000);
    let first = FileId::Segment(SegmentId::new(0, 0));
    let before = rig.disk.segments().unwrap();
    assert!(before.len() > 3);
    // As if nothing of the first had reached the disk.
    rig.disk.put(first, vec![0; SEGMENT as usize]);
    let mut snapshot = Snapshot::take(&rig.disk).unwrap();
    snapshot.free_unused(&rig.disk, 4).unwrap();
    assert!(rig.disk.bytes(first).is_some());
    let report = recover_from(&rig.disk, &snapshot, 1, &mut |_, _| ()).unwrap();
    assert_eq!(report.damage.first().map(|damage| damage.file), Some(first), "it is missed");
}

#[test]
fn what_is_older_than_a_run_that_wrote_stays_since_a_cut_may_speak_of_it() {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..3, 100);
    rig.restart();
    rig.settle();
    rig.append(3, 100);
    rig.settle();
    // Header and first batch of the old run's last segment are gone; the new run's cut says that they were there.
    let old = stored[0].1.segment;
    rig.disk.put(FileId::Segment(old), vec![0; SEGMENT as usize]);
    let mut snapshot = Snapshot::take(&rig.disk).unwrap();
    snapshot.free_unused(&rig.disk, 4).unwrap();
    let report = recover_from(&rig.disk, &snapshot, 1, &mut |_, _| ()).unwrap();
    assert_eq!(report.damage.first().map(|damage| damage.file), Some(FileId::Segment(old)), "it is missed");
}

#[test]
fn nothing_is_freed_where_a_newer_version_wrote() {
    let mut rig = Rig::new();
    store(&mut rig, 1..2, 100);
    make_newer(&rig, SegmentId::new(0, 0));
    let mut snapshot = Snapshot::take(&rig.disk).unwrap();
    assert_eq!(snapshot.free_unused(&rig.disk, 4).unwrap(), 0);
    assert_eq!(rig.disk.segments().unwrap().len(), 4);
}

/// A spool with some of everything, as files.
fn sample() -> Vec<(FileId, Vec<u8>)> {
    let mut rig = Rig::new();
    let stored = store(&mut rig, 1..40, 2_500);
    for (id, content) in stored.iter().filter(|(id, _)| id % 3 == 0) {
        rig.deliver(*id, *content);
    }
    rig.log.append_note(b"a note").unwrap();
    rig.append(50, 100);
    rig.disk.fail_next(FaultAt::Sync, DiskError::Io { errno: 5 });
    rig.settle();
    let segments = (0..8).map(|sequence| FileId::Segment(SegmentId::new(0, sequence)));
    segments.filter_map(|file| Some((file, rig.disk.bytes(file)?))).collect()
}

#[test]
fn dumps_tell_every_kind_of_record() {
    let disk = SimDisk::new(1, SimDiskConfig::sound(SEGMENT));
    sample().into_iter().for_each(|(file, bytes)| disk.put(file, bytes));
    let mut text = String::new();
    dump(&disk, None, &mut |line| text.push_str(&format!("{line}\n"))).unwrap();
    for word in
        ["sealed", "open", "unused", "batch 0", "message 0000000000000001", "Delivered", "a note", "cut segment"]
    {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
    assert!(!text.contains("DAMAGED"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn random_damage_never_panics(hits in proptest::collection::vec((0usize..8, any::<u32>(), any::<u8>()), 1..40)) {
        let disk = SimDisk::new(1, SimDiskConfig::sound(SEGMENT));
        let files = sample();
        for (file, bytes) in &files {
            disk.put(*file, bytes.clone());
        }
        for (file, place, mask) in hits {
            // Mostly where headers are.
            let place = if mask & 1 == 0 { place % SEGMENT } else { place % SEGMENT / 4096 * 4096 + place % 128 };
            disk.damage(files[file % files.len()].0, u64::from(place), mask | 1);
        }
        let _ = verify(&disk);
        let _ = dump(&disk, None, &mut |line| drop(line.to_string()));
        let found = recover(&disk, 2, &mut |_, _| ());
        let again = recover(&disk, 2, &mut |_, _| ());
        prop_assert_eq!(found.map(|r| r.messages).ok(), again.map(|r| r.messages).ok());
    }

    #[test]
    fn arbitrary_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20_000), names in 0u32..4) {
        let disk = SimDisk::new(1, SimDiskConfig::sound(SEGMENT));
        for sequence in 0..=names {
            disk.put(FileId::Segment(SegmentId::new(0, sequence)), bytes.clone());
        }
        let report = recover(&disk, 1, &mut |_, _| ()).unwrap();
        prop_assert_eq!(report.messages, 0);
        let _ = dump(&disk, None, &mut |line| drop(line.to_string()));
    }
}
