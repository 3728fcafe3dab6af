//! `ringpost spool`: reads a spool directory for people.

use super::args::SpoolCommand;
use super::queue::write_json;
use super::table::counted;
use super::{Failure, exit};
use crate::id::MessageId;
use crate::server::SpoolDirectory;
use ringpost_spool::std_disk::SEGMENT_DIRECTORY;
use ringpost_spool::verify::{dump, verify};
use ringpost_spool::{Damage, RecoveryError, RecoveryReport, SegmentId, StdDisk, recover};
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;

/// What a reading found.
#[derive(Debug, Serialize)]
struct Found {
    segments: usize,
    messages: u64,
    recipients: u64,
    outcomes: u64,
    notes: u64,
    unknown_records: u64,
    greatest_id: Option<String>,
    void_octets: u64,
    orphans_removed: u64,
    orphans_kept: u64,
    damage: Vec<String>,
}

/// Carries out one of the commands.
pub fn run(command: SpoolCommand) -> Result<u8, Failure> {
    match command {
        SpoolCommand::Verify { directory, json } => {
            let report = verify(&open(&directory)?).map_err(unreadable)?;
            tell(report, json, "no damage")
        }
        SpoolCommand::Recover { directory, json } => recover_here(&directory, json),
        SpoolCommand::Dump { directory, segment } => dump_here(&directory, segment.as_deref()),
    }
}

/// A spool that exists: looking must not make one.
fn open(directory: &Path) -> Result<StdDisk, Failure> {
    if !directory.is_dir() {
        let text = format!("no spool here: {} is not a directory; give a relay's spool", directory.display());
        return Err(Failure::new(exit::NO_INPUT, text));
    }
    if !directory.join(SEGMENT_DIRECTORY).is_dir() {
        let text = format!("no spool here: {} holds no directory `{SEGMENT_DIRECTORY}`", directory.display());
        return Err(Failure::new(exit::NO_INPUT, text));
    }
    StdDisk::open(directory).map_err(|error| Failure::new(exit::IO, format!("{}: {error}", directory.display())))
}

fn unreadable(error: RecoveryError) -> Failure {
    Failure::new(exit::IO, error.to_string())
}

fn recover_here(directory: &Path, json: bool) -> Result<u8, Failure> {
    let disk = open(directory)?;
    // A running relay must not have its files changed under it.
    let _lock = SpoolDirectory::open(directory).map_err(|error| Failure::new(exit::TEMPORARY, error.to_string()))?;
    let mut waiting = Vec::new();
    let report = recover(&disk, 1, &mut |_, message| waiting.push(message.id)).map_err(unreadable)?;
    if !json {
        let out = &mut io::stdout().lock();
        for id in waiting {
            writeln!(out, "waiting {}", MessageId(id))?;
        }
    }
    tell(report, json, "no damage in the records; contents were not read: `ringpost spool verify` reads them")
}

/// A message's public id, and the name of its file where its content is spilled, which the spool's own tools go by.
fn id_in_both(id: u64) -> String {
    format!("{} ({id:016x})", MessageId(id))
}

fn damage_line(damage: &Damage) -> String {
    let mut line = String::new();
    // Writing to a string does not fail.
    let _ = damage.write(&mut line, &|id| MessageId(id).to_string());
    line
}

/// Prints what was found; `sound` says so where nothing is damaged.
fn tell(report: RecoveryReport, json: bool, sound: &str) -> Result<u8, Failure> {
    let found = Found {
        segments: report.segments.iter().map(Vec::len).sum(),
        messages: report.messages,
        recipients: report.recipients,
        outcomes: report.outcomes,
        notes: report.notes,
        unknown_records: report.unknown,
        greatest_id: (report.greatest_id != 0).then(|| MessageId(report.greatest_id).to_string()),
        void_octets: report.void_bytes,
        orphans_removed: report.orphans_removed,
        orphans_kept: report.orphans_kept,
        damage: report.damage.iter().map(damage_line).collect(),
    };
    let code = if found.damage.is_empty() { exit::OK } else { exit::DATA };
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, &found)?;
        return Ok(code);
    }
    writeln!(out, "{} in use", counted(found.segments as u64, "segment"))?;
    writeln!(out, "{} with {}", counted(found.messages, "waiting message"), counted(found.recipients, "recipient"))?;
    writeln!(out, "{}, {}", counted(found.outcomes, "outcome"), counted(found.notes, "note"))?;
    if found.unknown_records > 0 {
        writeln!(out, "{} of a newer version, passed over", counted(found.unknown_records, "record"))?;
    }
    if found.void_octets > 0 {
        writeln!(out, "{} octets were written and never acknowledged", found.void_octets)?;
    }
    if found.orphans_removed > 0 {
        writeln!(out, "{} without a message removed", counted(found.orphans_removed, "content file"))?;
    }
    if found.orphans_kept > 0 {
        writeln!(out, "{} without a message", counted(found.orphans_kept, "content file"))?;
    }
    for damage in &found.damage {
        writeln!(out, "DAMAGED {damage}")?;
    }
    writeln!(out, "{}", if found.damage.is_empty() { sound } else { "the spool is damaged" })?;
    Ok(code)
}

fn dump_here(directory: &Path, segment: Option<&str>) -> Result<u8, Failure> {
    let only = match segment {
        Some(name) => {
            let file_name = if name.ends_with(".seg") { name.to_owned() } else { format!("{name}.seg") };
            let segment = SegmentId::from_file_name(&file_name);
            Some(segment.ok_or_else(|| {
                Failure::new(exit::USAGE, format!("`{name}` is not a segment: write as in 00-00002a"))
            })?)
        }
        None => None,
    };
    let disk = open(directory)?;
    let out = &mut io::BufWriter::new(io::stdout().lock());
    let (mut written, mut text) = (Ok(()), String::new());
    let read = dump(&disk, only, &mut |line| {
        if written.is_ok() {
            text.clear();
            // Writing to a string does not fail.
            let _ = line.write(&mut text, &id_in_both);
            written = writeln!(out, "{text}");
        }
    });
    written?;
    out.flush()?;
    read.map_err(|error| Failure::new(exit::IO, format!("{}: {error}", directory.display())))?;
    Ok(exit::OK)
}
