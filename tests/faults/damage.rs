//! Damage in the spool: told with file and offset, by the program and by `ringpost spool`; everything else is delivered.

use super::mail::{Destination, Ledger};
use super::program::{Setup, wait};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const BLOCK: usize = 4096;
const MESSAGES: usize = 60;
/// The message whose place is damaged: in the middle of a sealed segment.
const VICTIM: &str = "message-10";

/// A place in a segment.
pub struct Found {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    /// Of the content's mark.
    pub offset: usize,
}

/// The segment that holds a message.
pub fn segment_with(setup: &Setup, name: &str) -> Found {
    let mark = format!("X-Fault: {name}\r\n");
    let directory = std::fs::read_dir(setup.spool_directory.join("segments")).expect("the spool");
    for entry in directory {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            let bytes = std::fs::read(&path).expect("a segment");
            if let Some(offset) = bytes.windows(mark.len()).position(|window| window == mark.as_bytes()) {
                return Found { path, bytes, offset };
            }
        }
    }
    panic!("{name} is in no segment");
}

impl Found {
    /// The batch of the message begins here.
    fn batch(&self) -> usize {
        let blocks = (0..=self.offset / BLOCK).rev().map(|block| block * BLOCK);
        blocks.into_iter().find(|&at| self.bytes[at..].starts_with(b"RPB\x01")).expect("a batch")
    }

    /// Turns the bits of some octets.
    fn damage(&self, at: usize, len: usize) {
        let turned: Vec<u8> = self.bytes[at..at + len].iter().map(|octet| !octet).collect();
        let file = std::fs::File::options().write(true).open(&self.path).expect("the segment");
        file.write_all_at(&turned, at as u64).expect("the damage is written");
    }

    fn file_name(&self) -> String {
        self.path.file_name().expect("a name").to_string_lossy().into_owned()
    }
}

/// A spool with mail in several segments, all of it waiting.
fn filled(name: &str) -> (Setup, Ledger) {
    let mut setup = Setup::new(name);
    setup.top.push_str("hold = true\n");
    let ledger = Ledger::default();
    let program = setup.start();
    for number in 0..MESSAGES {
        ledger.send(&setup, &format!("message-{number}"), 60_000).expect("mail is taken");
    }
    program.stop(&setup);
    assert_eq!(setup.spool_says("verify").0, 0);
    (setup, ledger)
}

/// Starts it with a destination, and waits for everything that can be delivered.
fn deliver(setup: &mut Setup, ledger: &Ledger) -> (super::program::Program, Destination) {
    let destination = Destination::start(true);
    setup.next_hop = Some(destination.address);
    setup.top = setup.top.replace("hold = true\n", "");
    let program = setup.start();
    ledger.wait_delivered(setup, &destination);
    (program, destination)
}

#[test]
fn a_damaged_content_is_never_sent_and_told() {
    let (mut setup, ledger) = filled("content");
    let found = segment_with(&setup, VICTIM);
    found.damage(found.offset + 30_000, 3);
    let (code, text) = setup.spool_says("verify");
    assert_eq!(code, 65, "{text}");
    let told = text.lines().find(|line| line.starts_with("DAMAGED ")).unwrap_or_default();
    assert!(told.contains(&found.file_name()) && told.contains("offset"), "{text}");
    let (code, text) = setup.spool_says("dump");
    assert_eq!(code, 0, "{text}");
    assert_eq!(text.matches("CONTENT DAMAGED").count(), 1);
    ledger.forget(VICTIM);
    let (mut program, destination) = deliver(&mut setup, &ledger);
    let line = setup.wait_line(&["error"], &["damage", &found.file_name()]);
    println!("{line}");
    program.must_run(&setup);
    assert_eq!(destination.arrivals(&Ledger::address(VICTIM)), 0, "what is damaged is not sent");
    let (_, listed) = setup.queue_says(&["list"]);
    println!("{listed}");
    // It is not forgotten either: it waits for an operator, or its sender was told.
    let waits = listed.contains(&Ledger::address(VICTIM));
    let told = setup.events("bounced").len() + setup.events("dsn").len() > 0;
    assert!(waits || told, "{listed}\n{}", setup.log_end());
    program.stop(&setup);
}

/// Damages `len` octets of the log at the place that `place` finds, which costs the message there and no other.
fn damaged_record(name: &str, victim: &str, place: fn(&Found) -> usize) {
    let (mut setup, ledger) = filled(name);
    let found = segment_with(&setup, victim);
    found.damage(place(&found), 4);
    let (code, text) = setup.spool_says("verify");
    println!("{text}");
    assert_eq!(code, 65, "{text}");
    let told = format!("{} at offset ", found.file_name());
    let line = text.lines().find(|line| line.starts_with("DAMAGED ") && line.contains(&told)).unwrap_or_default();
    let offset = line.split("at offset ").nth(1).and_then(|rest| rest.split([',', ':']).next()?.parse::<usize>().ok());
    let batch = found.batch();
    assert!(offset.is_some_and(|offset| (batch..found.offset).contains(&offset)), "{batch}: {text}");
    let (code, text) = setup.spool_says("dump");
    assert_eq!(code, 0, "{text}");
    let (code, text) = setup.spool_says("recover");
    assert_eq!(code, 65, "{text}");
    // The log has each message in a batch of its own, since the client waited for each.
    assert_eq!(text.matches("waiting ").count(), MESSAGES - 1 + text.matches(" waiting message").count(), "{text}");
    ledger.forget(victim);
    let (program, destination) = deliver(&mut setup, &ledger);
    setup.wait_line(&["error"], &["damaged", &told]);
    assert_eq!(destination.arrivals(&Ledger::address(victim)), 0);
    wait("an empty queue", &setup, || setup.queue_says(&["list"]).1.contains("no message waits").then_some(()));
    program.stop(&setup);
    assert!(found.path.exists(), "what is damaged is kept for the operator");
    let (code, text) = setup.spool_says("verify");
    assert_eq!(code, 65, "{text}");
}

#[test]
fn a_damaged_record_in_a_sealed_segment_is_quarantined_and_the_rest_is_delivered() {
    // The head of the record stands behind the batch's header.
    damaged_record("record", VICTIM, |found| found.batch() + 48 + 8);
}

#[test]
fn a_damaged_batch_header_below_the_durable_end_is_quarantined_and_the_rest_is_delivered() {
    // In the segment that was open last there is no footer, so the records are found by their batches.
    damaged_record("batch", "message-55", |found| found.batch() + 16);
}

#[test]
fn a_damaged_batch_header_in_a_sealed_segment_costs_nothing() {
    let (mut setup, ledger) = filled("sealed-batch");
    let found = segment_with(&setup, VICTIM);
    found.damage(found.batch() + 16, 4);
    let (program, _destination) = deliver(&mut setup, &ledger);
    program.stop(&setup);
}

#[test]
fn a_damaged_footer_costs_nothing() {
    let (mut setup, ledger) = filled("footer");
    let found = segment_with(&setup, VICTIM);
    let trailer = found.bytes.len() - 64;
    assert!(found.bytes[trailer..].starts_with(b"RPFOOTR\x01"), "the segment is sealed");
    found.damage(trailer - 20, 4);
    let (code, text) = setup.spool_says("verify");
    println!("{text}");
    assert_eq!(code, 65, "{text}");
    assert!(text.contains(&found.file_name()) && text.contains("footer"), "{text}");
    let (program, _destination) = deliver(&mut setup, &ledger);
    setup.wait_line(&["error"], &["damaged", &found.file_name(), "footer"]);
    program.stop(&setup);
}

#[test]
fn a_footer_whose_end_is_unreadable_costs_nothing() {
    let (mut setup, ledger) = filled("trailer");
    let found = segment_with(&setup, VICTIM);
    found.damage(found.bytes.len() - 64 + 24, 8);
    let (program, _destination) = deliver(&mut setup, &ledger);
    program.stop(&setup);
}

#[test]
fn a_damaged_header_costs_nothing_that_can_be_read() {
    let (mut setup, ledger) = filled("header");
    let found = segment_with(&setup, VICTIM);
    found.damage(0, 64);
    let (code, text) = setup.spool_says("verify");
    println!("{text}");
    assert_eq!(code, 65, "{text}");
    assert!(text.contains(&found.file_name()), "{text}");
    let (program, _destination) = deliver(&mut setup, &ledger);
    setup.wait_line(&["error"], &["damaged", &found.file_name()]);
    program.stop(&setup);
}
