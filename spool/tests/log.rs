//! The log, call by call: when it writes, when it syncs, what it reports, what it refuses.

mod rig;

use bytes::Bytes;
use rig::{Rig, SEGMENT, config};
use ringpost_spool::record::{message_record_len, outcome_record_len};
use ringpost_spool::sim_disk::{FaultAt, SimDiskConfig};
use ringpost_spool::{
    ContentError, ContentRef, DiskDone, DiskError, DiskOp, FileId, Log, LogConfig, LogEvent, LogFull, NewContent,
    NewMessage, OutcomeKind, RecipientFold,
};
use std::collections::BTreeMap;

const EIO: DiskError = DiskError::Io { errno: 5 };

fn ok(op: &DiskOp) -> DiskDone {
    DiskDone { op: op.op(), result: Ok(Bytes::new()) }
}

fn is_write(op: &&DiskOp) -> bool {
    matches!(op, DiskOp::Write { .. })
}

fn is_sync(op: &&DiskOp) -> bool {
    matches!(op, DiskOp::Sync { .. })
}

#[test]
fn a_log_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Log>();
}

#[test]
fn an_idle_log_writes_and_syncs_at_once_and_only_then_reports() {
    let mut rig = Rig::new();
    let stored = rig.append(1, 100);
    assert!(rig.ops().is_empty());
    rig.flush();
    let ops = rig.ops();
    assert_eq!((ops.len(), ops.iter().filter(is_write).count()), (1, 1));
    rig.done(ok(&ops[0]));
    rig.take_events();
    assert_eq!(rig.durable(), 0);
    let ops = rig.ops();
    assert_eq!((ops.len(), ops.iter().filter(is_sync).count()), (1, 1));
    rig.done(ok(&ops[0]));
    rig.take_events();
    assert_eq!(rig.durable(), stored.position.0);
}

#[test]
fn a_sync_covers_only_writes_answered_before_it_and_in_order() {
    let mut rig = Rig::new();
    let home = rig.append(1, 14_000).content.segment;
    rig.append(2, 14_000);
    rig.append(3, 14_000);
    rig.flush();
    let first: Vec<DiskOp> = rig.ops();
    assert_eq!(
        first.iter().filter(is_write).count(),
        2,
        "two full batches; the third grows while writes are in flight"
    );
    rig.done(ok(&first[1]));
    assert!(rig.ops().is_empty(), "the second is written, but not the first: nothing to sync");
    rig.done(ok(&first[0]));
    let sync = rig.ops();
    assert_eq!(sync.iter().filter(is_sync).count(), 1);
    rig.flush();
    assert!(rig.ops().is_empty(), "during a sync messages wait for the next one anyway");
    rig.outcome(1, OutcomeKind::Deferred, home);
    rig.flush();
    let third = rig.ops();
    assert_eq!(third.iter().filter(is_write).count(), 1, "but outcomes are handed over at once");
    rig.done(ok(&third[0]));
    assert!(rig.ops().is_empty(), "one sync at a time");
    rig.done(ok(&sync[0]));
    rig.take_events();
    assert_eq!(rig.durable(), 2, "the third was answered after the sync began");
    let sync = rig.ops();
    rig.done(ok(&sync[0]));
    rig.take_events();
    assert_eq!(rig.durable(), 4);
}

#[test]
fn a_batch_grows_while_a_write_is_in_flight_unless_it_holds_outcomes() {
    let mut rig = Rig::new();
    let stored = rig.append(1, 100);
    rig.flush();
    assert_eq!(rig.ops().len(), 1);
    for id in 2..6 {
        rig.append(id, 100);
        rig.flush();
        assert!(rig.ops().is_empty());
    }
    rig.outcome(1, OutcomeKind::Deferred, stored.content.segment);
    rig.flush();
    assert_eq!(rig.ops().iter().filter(is_write).count(), 1, "an outcome is handed to the kernel at once");
}

#[test]
fn no_more_is_delivered_than_a_slow_disk_writes() {
    let mut rig = Rig::new();
    let home = rig.append(1, 100).content.segment;
    rig.flush();
    rig.run();
    let mut outcomes = 0;
    while rig.log.accepts_outcomes() {
        rig.outcome(1, OutcomeKind::Deferred, home);
        rig.flush();
        outcomes += 1;
        assert!(outcomes <= 64, "what a killed process repeats is bounded");
    }
    let writes: Vec<DiskOp> = rig.ops().into_iter().filter(|op| is_write(&op)).collect();
    assert!(writes.len() > 2 && !rig.log.accepts_outcomes());
    for later in &writes[1..] {
        rig.done(ok(later));
    }
    assert!(!rig.log.accepts_outcomes(), "recovery would not read beyond the gap that a kill leaves");
    rig.done(ok(&writes[0]));
    assert!(rig.log.accepts_outcomes(), "all is written");
}

#[test]
fn outcomes_are_synced_in_time_or_by_count() {
    let mut rig = Rig::new();
    let home = rig.append(1, 100).content.segment;
    rig.flush();
    rig.run();
    rig.outcome(1, OutcomeKind::Deferred, home);
    rig.flush();
    let ops = rig.ops();
    rig.done(ok(&ops[0]));
    assert!(rig.ops().is_empty(), "nobody waits");
    assert_eq!(rig.log.next_deadline_ms(), Some(rig.now_ms + 100));
    rig.now_ms += 100;
    rig.flush();
    let ops = rig.ops();
    assert_eq!(ops.iter().filter(is_sync).count(), 1);
    rig.done(ok(&ops[0]));
    assert_eq!(rig.log.next_deadline_ms(), None);
    for _ in 0..64 {
        rig.outcome(1, OutcomeKind::Deferred, home);
    }
    rig.flush();
    let ops = rig.ops();
    rig.done(ok(&ops[0]));
    assert_eq!(rig.ops().iter().filter(is_sync).count(), 1, "64 outcomes do not wait");
}

#[test]
fn content_is_given_out_as_it_came() {
    let mut rig = Rig::new();
    let content = Bytes::from(vec![7; 5_000]);
    let new = NewMessage {
        id: 1,
        envelope: b"e",
        recipients: 1,
        content: NewContent::Inline(vec![content.slice(..1_000), content.slice(1_000..)]),
        held: false,
    };
    rig.log.append_message(new).unwrap();
    rig.flush();
    let ops = rig.ops();
    let DiskOp::Write { chunks, offset, len, .. } = &ops[0] else { panic!("a write is expected") };
    assert!(chunks.iter().any(|chunk| chunk.as_ptr() == content.as_ptr() && chunk.len() == 1_000));
    assert!(offset.is_multiple_of(4096) && len.is_multiple_of(4096));
    assert!(chunks.iter().map(Bytes::len).sum::<usize>() <= *len);
}

#[test]
fn equal_seeds_and_calls_give_equal_operations() {
    let trace = || {
        let mut rig = Rig::new();
        let mut trace = String::new();
        for id in 1..60 {
            let stored = rig.append(id, (id as usize * 97) % 3_000);
            rig.deliver(id, stored.content);
            rig.now_ms += 7;
            rig.flush();
            for op in rig.ops() {
                trace.push_str(&format!("{op:?}"));
                rig.disk.submit(0, op);
            }
            rig.run();
        }
        trace
    };
    assert_eq!(trace(), trace());
}

#[test]
fn a_large_record_gets_a_batch_of_its_own_and_a_larger_one_is_refused() {
    let mut rig = Rig::new();
    rig.append(1, 10);
    rig.append(2, 40_000);
    rig.append(3, 10);
    rig.settle();
    assert_eq!(rig.durable(), 3);
    assert_eq!(rig.log.usage().batches, 3);
    assert_eq!(rig.try_append(4, SEGMENT as usize), Err(LogFull::TooLarge));
    assert_eq!(rig.ids(), [1, 2, 3]);
}

#[test]
fn a_failed_sync_voids_messages_repeats_outcomes_and_is_never_tried_again() {
    let mut rig = Rig::new();
    let first = rig.append(1, 100);
    rig.settle();
    rig.append(2, 100);
    rig.deliver(1, first.content);
    rig.append(3, 100);
    rig.disk.fail_next(FaultAt::Sync, EIO);
    rig.flush();
    rig.run();
    assert_eq!(rig.failed(), [(2, 2), (4, 4)]);
    rig.flush();
    let ops = rig.ops();
    assert!(!ops.iter().any(|op| matches!(op, DiskOp::Sync { segment, .. } if *segment == first.content.segment)));
    let DiskOp::Write { segment, .. } = ops.iter().find(is_write).expect("the outcome again") else { unreachable!() };
    assert_ne!(*segment, first.content.segment);
    for op in ops {
        rig.disk.submit(0, op);
    }
    rig.run();
    rig.settle();
    assert_eq!(rig.ids(), Vec::<u64>::new(), "1 is delivered, 2 and 3 were refused");
    assert!(rig.recover().1.damage.is_empty());
}

#[test]
fn failures_in_a_row_make_the_log_wait() {
    let mut rig = Rig::new();
    rig.append(1, 100);
    rig.disk.fail_next(FaultAt::Write, EIO);
    rig.flush();
    rig.run();
    rig.append(2, 100);
    rig.disk.fail_next(FaultAt::Write, EIO);
    rig.flush();
    rig.run();
    assert_eq!(rig.try_append(3, 100), Err(LogFull::Failing));
    assert!(!rig.log.accepts_messages() && !rig.log.accepts_outcomes());
    let at = rig.log.next_deadline_ms().expect("it tries again");
    rig.now_ms = at;
    rig.flush();
    rig.run();
    rig.append(4, 100);
    rig.settle();
    assert_eq!(rig.ids(), [4]);
}

/// Flushes and performs everything as the owner of live messages would: they are moved where reclaim wants that.
fn settle_with_moves(rig: &mut Rig, places: &mut BTreeMap<u64, ContentRef>) {
    for _ in 0..40 {
        rig.now_ms += 200;
        rig.flush();
        rig.run();
        for event in std::mem::take(&mut rig.events) {
            match event {
                LogEvent::WantState { id } => {
                    let states = places.contains_key(&id).then(|| vec![RecipientFold::default()]);
                    rig.log.provide_state(id, states);
                }
                LogEvent::Moved { id, content } => drop(places.insert(id, content)),
                _ => {}
            }
        }
    }
}

#[test]
fn reclaim_on_a_full_disk_leaves_room_for_outcomes() {
    let room = u64::from(SEGMENT) * 4;
    let config = LogConfig { spares: 1, ..config() };
    let mut rig = Rig::with(config, SimDiskConfig { capacity: room, ..SimDiskConfig::sound(SEGMENT) });
    let mut places = BTreeMap::new();
    for id in 1..1_000 {
        let Ok(stored) = rig.try_append(id, 3_000) else { break };
        places.insert(id, stored.content);
        rig.flush();
        rig.run();
    }
    // Outcomes take a part of what is held back for them; all messages are live, so that moving gives room only once a whole
    // segment was moved, for which the rest does not do.
    for id in 1..6 {
        rig.outcome(id, OutcomeKind::Deferred, places[&id].segment);
        rig.flush();
        rig.run();
    }
    settle_with_moves(&mut rig, &mut places);
    assert!(rig.log.accepts_outcomes(), "reclaim took what was held back: {:?}", rig.log.usage());
    for (id, place) in std::mem::take(&mut places) {
        rig.deliver(id, place);
    }
    settle_with_moves(&mut rig, &mut places);
    assert!(rig.log.accepts_messages(), "all mail is done, so there is room again: {:?}", rig.log.usage());
}

/// Appends until a message is refused; says why.
fn append_until_refused(rig: &mut Rig) -> LogFull {
    for id in 1..1_000 {
        match rig.try_append(id, 3_000) {
            Ok(_) => rig.flush(),
            Err(full) => return full,
        }
    }
    panic!("the log takes a thousand messages");
}

/// The answers to what prepares segments, of those given out since last time.
fn answer_preparations(rig: &mut Rig, result: Result<Bytes, DiskError>) {
    let prepared = |op: DiskOp| matches!(op, DiskOp::Prepare { .. }).then(|| op.op());
    let ops: Vec<_> = std::iter::from_fn(|| rig.log.poll_op()).filter_map(prepared).collect();
    ops.into_iter().for_each(|op| rig.done(DiskDone { op, result: result.clone() }));
    rig.take_events();
}

#[test]
fn each_refusal_has_its_reason() {
    // Segments are filled faster than they are prepared: room is coming.
    let mut rig = Rig::new();
    assert_eq!(rig.log.refusal_of_messages(), None);
    assert_eq!(append_until_refused(&mut rig), LogFull::Behind);
    assert_eq!((rig.log.refusal_of_messages(), rig.log.room_is_coming()), (Some(LogFull::Behind), true));
    // The disk is full: it is not.
    answer_preparations(&mut rig, Err(DiskError::NoSpace));
    assert_eq!((rig.log.refusal_of_messages(), rig.log.room_is_coming()), (Some(LogFull::NoSpace), false));
    assert_eq!(rig.try_append(1_001, 3_000), Err(LogFull::NoSpace));
    // Nor if one of several finds a spare.
    let mut rig = Rig::new();
    append_until_refused(&mut rig);
    let ops: Vec<_> =
        std::iter::from_fn(|| rig.log.poll_op()).filter(|op| matches!(op, DiskOp::Prepare { .. })).collect();
    assert!(ops.len() > 1);
    for (op, result) in ops.iter().zip([Err(DiskError::NoSpace), Ok(Bytes::new())]) {
        rig.done(DiskDone { op: op.op(), result });
    }
    append_until_refused(&mut rig);
    assert_eq!(rig.log.refusal_of_messages(), Some(LogFull::NoSpace));
    // Too much waits for its sync.
    let mut rig = Rig::with(LogConfig { unsynced_max: 10_000, ..config() }, SimDiskConfig::sound(SEGMENT));
    assert_eq!(append_until_refused(&mut rig), LogFull::Behind);
    assert!(!rig.log.room_is_coming());
}

#[test]
fn a_first_failure_to_prepare_is_waited_out_and_a_second_is_told() {
    let mut rig = Rig::new();
    append_until_refused(&mut rig);
    answer_preparations(&mut rig, Err(EIO));
    assert_eq!((rig.log.refusal_of_messages(), rig.log.room_is_coming()), (Some(LogFull::Failing), true));
    for _ in 0..2 {
        rig.now_ms = rig.log.next_deadline_ms().expect("it is tried again");
        rig.flush();
        assert!(rig.log.room_is_coming(), "it is being tried");
        answer_preparations(&mut rig, Err(EIO));
        assert_eq!((rig.log.refusal_of_messages(), rig.log.room_is_coming()), (Some(LogFull::Failing), false));
    }
    rig.now_ms = rig.log.next_deadline_ms().expect("it is tried again");
    rig.flush();
    rig.settle();
    assert_eq!(rig.log.refusal_of_messages(), None);
    // After a success the next failure is a first one.
    append_until_refused(&mut rig);
    answer_preparations(&mut rig, Err(EIO));
    assert!(rig.log.room_is_coming());
}

#[test]
fn a_group_is_appended_again_whole() {
    let mut rig = Rig::new();
    let first = rig.append(1, 100);
    rig.settle();
    let bytes = message_record_len(11, 500) + outcome_record_len(12);
    rig.log.reserve_group(bytes).unwrap();
    let notice = rig.append(2, 500);
    rig.deliver(1, first.content);
    rig.log.end_group();
    rig.disk.fail_next(FaultAt::Sync, EIO);
    rig.flush();
    rig.run();
    assert!(rig.failed().is_empty());
    let moved = rig.events.iter().find_map(|event| match event {
        LogEvent::Moved { id: 2, content } => Some(*content),
        _ => None,
    });
    assert_ne!(moved.expect("the new place").segment, notice.content.segment);
    rig.settle();
    assert_eq!(rig.ids(), [2]);
    let op = rig.log.read_content(2, moved.unwrap(), 0, 500);
    rig.run();
    let read = rig.events.iter().any(|e| matches!(e, LogEvent::ContentRead { op: o, result: Ok(_), .. } if *o == op));
    assert!(read);
}

#[test]
fn a_full_disk_refuses_messages_and_takes_outcomes() {
    let room = u64::from(SEGMENT) * 3;
    let mut rig = Rig::with(config(), SimDiskConfig { capacity: room, ..SimDiskConfig::sound(SEGMENT) });
    let mut stored = Vec::new();
    for id in 1..1_000 {
        match rig.try_append(id, 3_000) {
            Ok(place) => stored.push((id, place.content)),
            Err(error) => {
                assert_eq!(error, LogFull::NoSpace);
                break;
            }
        }
        rig.flush();
        rig.run();
    }
    assert!(rig.events.iter().any(|event| matches!(event, LogEvent::SpaceLow)));
    assert!(!rig.log.accepts_messages() && rig.log.accepts_outcomes());
    let mut outcomes = 0;
    while rig.log.accepts_outcomes() {
        rig.outcome(stored[0].0, OutcomeKind::Deferred, stored[0].1.segment);
        outcomes += 1;
        rig.flush();
        rig.run();
    }
    while rig.log.usage().parked == 0 {
        rig.outcome(stored[0].0, OutcomeKind::Deferred, stored[0].1.segment);
    }
    assert!(outcomes > 10, "a whole segment was held back: {outcomes}");
    for (id, content) in &stored {
        rig.deliver(*id, *content);
    }
    rig.disk.set_config(SimDiskConfig::sound(SEGMENT));
    rig.now_ms += 2_000;
    rig.settle();
    assert_eq!(rig.log.usage().parked, 0);
    assert!(rig.events.iter().any(|event| matches!(event, LogEvent::SpaceBack)));
    assert!(rig.log.accepts_messages());
    assert_eq!(rig.ids(), Vec::<u64>::new());
}

#[test]
fn spilled_content_is_synced_before_it_is_reported_and_removed_after_the_last_outcome() {
    let mut rig = Rig::new();
    let content = Bytes::from(vec![3; 10_000]);
    rig.log.spill(9, 0, vec![content.slice(..8_192)], false);
    rig.run();
    rig.log.spill(9, 8_192, vec![content.slice(8_192..)], true);
    let ops = rig.ops();
    rig.done(ok(&ops[0]));
    let sync = rig.ops();
    assert!(matches!(sync[..], [DiskOp::ContentSync { content: 9, .. }]));
    rig.take_events();
    assert!(!rig.events.iter().any(|event| matches!(event, LogEvent::Spilled { .. })));
    for op in ops.into_iter().chain(sync) {
        rig.disk.submit(0, op);
    }
    rig.run();
    let crc = crc32c::crc32c(&content);
    let content = NewContent::Spilled { front: 0, len: 10_000, crc };
    let stored =
        rig.log.append_message(NewMessage { id: 9, envelope: b"e", recipients: 1, content, held: false }).unwrap();
    assert!(stored.content.spilled);
    rig.settle();
    rig.log.read_content(9, stored.content, 0, 10_000);
    rig.run();
    assert!(rig.events.iter().any(|event| matches!(event, LogEvent::ContentRead { result: Ok(_), .. })));
    rig.deliver(9, stored.content);
    rig.flush();
    assert!(!rig.ops().iter().any(|op| {
        let removal = matches!(op, DiskOp::ContentRemove { .. });
        rig.disk.submit(0, op.clone());
        removal
    }));
    rig.settle();
    assert!(rig.disk.bytes(FileId::Content(9)).is_none());
}

#[test]
fn a_failed_spill_is_reported_once_and_its_file_goes() {
    let mut rig = Rig::new();
    rig.disk.fail_next(FaultAt::ContentWrite, DiskError::NoSpace);
    rig.log.spill(9, 0, vec![Bytes::from(vec![3; 8_192])], false);
    rig.run();
    let failed = |e: &&LogEvent| matches!(e, LogEvent::Spilled { id: 9, result: Err(DiskError::NoSpace) });
    assert_eq!(rig.events.iter().filter(failed).count(), 1);
    rig.log.remove_spill(9);
    rig.run();
    assert!(rig.disk.bytes(FileId::Content(9)).is_none());
}

#[test]
fn damaged_content_is_noticed_when_it_is_read() {
    let mut rig = Rig::new();
    let stored = rig.append(1, 1_000);
    rig.settle();
    rig.disk.damage(FileId::Segment(stored.content.segment), u64::from(stored.content.offset) + 5, 1);
    rig.log.read_content(1, stored.content, 0, 1_000);
    rig.run();
    let damaged = LogEvent::ContentRead { op: ringpost_spool::OpId(0), id: 1, result: Err(ContentError::Damaged) };
    assert!(rig.events.iter().any(|event| match (event, &damaged) {
        (LogEvent::ContentRead { result: a, .. }, LogEvent::ContentRead { result: b, .. }) => a == b,
        _ => false,
    }));
}

/// Fills the open segment so that it is sealed.
fn fill(rig: &mut Rig, first_id: u64) -> Vec<(u64, ringpost_spool::ContentRef)> {
    let mut stored = Vec::new();
    let mut segments = std::collections::BTreeSet::new();
    for id in first_id.. {
        let place = rig.append(id, 4_000);
        rig.flush();
        rig.run();
        segments.insert(place.content.segment);
        if segments.len() > 1 {
            stored.push((id, place.content));
            return stored;
        }
        stored.push((id, place.content));
    }
    stored
}

fn recycled(ops: &[DiskOp]) -> Vec<ringpost_spool::SegmentId> {
    let id = |op: &DiskOp| match op {
        DiskOp::Recycle { segment, .. } => Some(*segment),
        _ => None,
    };
    ops.iter().filter_map(id).collect()
}

#[test]
fn outcomes_outlast_the_messages_they_bury_and_reads_keep_a_segment() {
    let mut rig = Rig::new();
    let first = fill(&mut rig, 1);
    let home = first[0].1.segment;
    let second = fill(&mut rig, 100);
    let burial = second[0].1.segment;
    assert_ne!(home, burial);
    for (id, content) in first.iter().chain(&second) {
        rig.deliver(*id, *content);
    }
    let read = rig.log.read_content(first[0].0, first[0].1, 0, 10);
    let (reads, others): (Vec<DiskOp>, Vec<DiskOp>) =
        rig.ops().into_iter().partition(|op| matches!(op, DiskOp::Read { .. }));
    others.into_iter().for_each(|op| rig.disk.submit(0, op));
    rig.settle();
    assert_eq!(rig.disk.bytes(FileId::Segment(home)).map(|b| b.len()), Some(SEGMENT as usize), "a read is under way");
    assert_eq!(reads[0].op(), read);
    rig.done(DiskDone { op: read, result: Ok(Bytes::from(vec![1; 10])) });
    rig.now_ms += 200;
    rig.flush();
    let ops = rig.ops();
    assert_eq!(recycled(&ops), [home], "the outcomes' segments wait until it is gone");
    ops.into_iter().for_each(|op| rig.disk.submit(0, op));
    rig.settle();
    assert!(rig.disk.bytes(FileId::Segment(burial)).is_none());
    assert!(rig.log.usage().segments <= 2);
}

#[test]
fn a_survivor_moves_with_its_states_and_its_old_segment_goes() {
    let mut rig = Rig::new();
    let first = fill(&mut rig, 1);
    let second = fill(&mut rig, 100);
    let survivor = first[2];
    for (id, content) in first.iter().chain(&second).filter(|(id, _)| *id != survivor.0) {
        rig.deliver(*id, *content);
    }
    rig.outcome(survivor.0, OutcomeKind::Deferred, survivor.1.segment);
    let mut place = survivor.1;
    for _ in 0..200 {
        rig.now_ms += 200;
        rig.flush();
        rig.run();
        for event in std::mem::take(&mut rig.events) {
            match event {
                LogEvent::WantState { id } if id == survivor.0 => {
                    let fold = RecipientFold { kind: Some(OutcomeKind::Deferred), attempts: 1, next_due_ms: 0 };
                    rig.log.provide_state(id, Some(vec![fold]));
                }
                LogEvent::WantState { id } => rig.log.provide_state(id, None),
                LogEvent::Moved { id, content } => {
                    assert_eq!(id, survivor.0);
                    place = content;
                }
                _ => {}
            }
        }
    }
    assert_ne!(place.segment, survivor.1.segment);
    assert!(rig.disk.bytes(FileId::Segment(survivor.1.segment)).is_none());
    assert!(rig.log.usage().segments <= 3, "{:?}", rig.log.usage());
    let (messages, report) = rig.recover();
    assert!(report.damage.is_empty());
    assert_eq!((messages[0].id, messages[0].content), (survivor.0, place));
    assert_eq!(messages[0].states[0].kind, Some(OutcomeKind::Deferred));
    assert_eq!(messages[0].states[0].attempts, 1);
}
