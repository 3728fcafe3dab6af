//! Reads the spool of earlier runs on a thread of its own, while the shards take new mail, and hands each shard its
//! messages by mailbox. It keeps behind the shards: a mailbox never holds more than [`AHEAD`] messages when it adds to
//! it, so that the places of leases stay free.

use crate::control::log::EventLog;
use crate::event::Severity;
use crate::id::MessageId;
use crate::io::mailbox::Sender;
use crate::shard::message::ToShard;
use ringpost_spool::{RecoveredMessage, RecoveryReport, Snapshot, StdDisk, recover_from};
use std::time::{Duration, Instant};

/// Messages in one parcel to a shard.
const PARCEL: usize = 256;
/// A mailbox with more messages than this is left alone for a moment.
const AHEAD: usize = 64;
/// How long that moment is.
const PAUSE: Duration = Duration::from_micros(500);
/// Damage told one by one; of more only the number.
const DAMAGE_TOLD: usize = 20;

/// Reads what the snapshot names. An error means that the spool was not read and nothing in it was changed.
pub fn run(disk: &StdDisk, snapshot: &Snapshot, shards: &[Sender<ToShard>], log: &EventLog) -> Result<(), String> {
    let began = Instant::now();
    let mut parcels: Vec<Vec<RecoveredMessage>> = shards.iter().map(|_| Vec::new()).collect();
    let mut emit = |shard: u8, message: RecoveredMessage| {
        let shard = usize::from(shard);
        parcels[shard].push(message);
        if parcels[shard].len() >= PARCEL {
            deliver(&shards[shard], ToShard::Recovered(std::mem::take(&mut parcels[shard])));
        }
    };
    let count = shards.len() as u8;
    let mut report = recover_from(disk, snapshot, count, &mut emit).map_err(|error| error.to_string())?;
    let segments = std::mem::take(&mut report.segments);
    let greatest_id = report.greatest_id;
    for ((mailbox, parcel), segments) in shards.iter().zip(parcels).zip(segments) {
        if !parcel.is_empty() {
            deliver(mailbox, ToShard::Recovered(parcel));
        }
        deliver(mailbox, ToShard::RecoveryDone { segments, greatest_id });
    }
    tell(&report, began.elapsed(), log);
    Ok(())
}

/// Waits for room. A shard that never makes room is dead, and the process then ends, this thread with it.
fn deliver(mailbox: &Sender<ToShard>, mut message: ToShard) {
    loop {
        if mailbox.len() <= AHEAD {
            match mailbox.push(message) {
                Ok(()) => return,
                Err(back) => message = back,
            }
        }
        std::thread::sleep(PAUSE);
    }
}

fn tell(report: &RecoveryReport, took: Duration, log: &EventLog) {
    let RecoveryReport { messages, recipients, orphans_removed, orphans_kept, void_bytes, .. } = report;
    if *messages > 0 || !report.damage.is_empty() {
        let took_ms = took.as_millis();
        log.notice(
            Severity::Info,
            &format!("recovery: {messages} messages with {recipients} waiting recipients were read in {took_ms} ms"),
        );
    }
    if *orphans_removed > 0 || *void_bytes > 0 {
        let text = format!(
            "recovery: {orphans_removed} left-over content files and {void_bytes} octets that were never acknowledged were dropped"
        );
        log.notice(Severity::Info, &text);
    }
    for damage in report.damage.iter().take(DAMAGE_TOLD) {
        let mut place = String::new();
        // Writing to a string does not fail.
        let _ = damage.write(&mut place, &|id| MessageId(id).to_string());
        let text = format!(
            "the spool is damaged: {place}; the rest is used, the segment is kept: look with `ringpost spool verify` and at the disk"
        );
        log.notice(Severity::Error, &text);
    }
    if report.damage.len() > DAMAGE_TOLD {
        log.notice(Severity::Error, &format!("the spool has {} damaged places in all", report.damage.len()));
    }
    if *orphans_kept > 0 {
        log.notice(
            Severity::Warning,
            &format!("{orphans_kept} content files without a message are kept because of damage"),
        );
    }
}
