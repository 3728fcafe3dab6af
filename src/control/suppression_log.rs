//! The suppressed addresses on disk: a file of records that only grows, read whole at the start into the table that shards look
//! into. A later record of an address stands in place of an earlier one.
//!
//! A record counts once it is synced; what a crash left of one at the end is cut off at the next start. Damage in the middle costs
//! the records that it has hit, and is told. At the start, a file most of which is out of date is written anew.

use crate::clock::UnixTime;
use crate::policy::suppression::{Entry, FOR_EVER, Fingerprint, PLACE_OCTETS, SuppressionTable, holds};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The name of the file in the spool directory.
pub const FILE_NAME: &str = "suppression.log";

const MAGIC: &[u8; 8] = b"rpsuppr1";
/// Octets of the file's header: magic, then the key of the fingerprints, then zeros.
const HEADER: usize = 32;
/// Octets of a record before its texts.
const FIXED: usize = 36;
/// Octets of the longest record, with room for what may come.
const RECORD_MAX: usize = 4096;
/// Octets read at a time.
const PIECE: usize = 1 << 20;
/// So many records out of date are not worth writing the file anew.
const STALE_MIN: u64 = 50_000;

/// What a record says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The address is suppressed.
    Suppressed,
    /// It is no more.
    Removed,
    /// It bounced softly.
    SoftBounce,
}

/// How an address came to be suppressed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// By an operator's command.
    Command,
    /// From a file.
    Import,
    /// Its host said that there is no such mailbox.
    HardBounce,
    /// It failed again and again.
    SoftBounces,
}

impl Source {
    const ALL: [Source; 4] = [Source::Command, Source::Import, Source::HardBounce, Source::SoftBounces];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Source::Command => "command",
            Source::Import => "import",
            Source::HardBounce => "hard_bounce",
            Source::SoftBounces => "soft_bounces",
        }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub kind: Kind,
    /// How it came.
    pub source: Source,
    /// Of which address.
    pub fingerprint: Fingerprint,
    /// Until when, in seconds since 1970.
    pub until_s: u32,
    /// Since when, in seconds since 1970.
    pub since_s: u32,
    /// Whose list; "" for that of all.
    pub tenant: Box<str>,
    /// The address as it was given.
    pub address: Box<str>,
    /// In words.
    pub reason: Box<str>,
}

impl Record {
    fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        let len = FIXED + self.tenant.len() + self.address.len() + self.reason.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(len as u16).to_le_bytes());
        out.push(match self.kind {
            Kind::Suppressed => 1,
            Kind::Removed => 2,
            Kind::SoftBounce => 3,
        });
        out.push(Source::ALL.iter().position(|one| *one == self.source).unwrap_or_default() as u8);
        out.extend_from_slice(&self.fingerprint.to_octets());
        out.extend_from_slice(&self.until_s.to_le_bytes());
        out.extend_from_slice(&self.since_s.to_le_bytes());
        out.extend_from_slice(&(self.tenant.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.address.len() as u16).to_le_bytes());
        for text in [&self.tenant, &self.address, &self.reason] {
            out.extend_from_slice(text.as_bytes());
        }
        let sum = crc32c::crc32c(&out[begin + 4..]);
        out[begin..begin + 4].copy_from_slice(&sum.to_le_bytes());
        out.resize(out.len().next_multiple_of(PLACE_OCTETS as usize), 0);
    }

    /// Whether it fits into a record.
    pub fn fits(&self) -> bool {
        FIXED + self.tenant.len() + self.address.len() + self.reason.len() <= RECORD_MAX
    }
}

/// The first record of these octets and its length on disk.
struct Framed<'a> {
    octets: &'a [u8],
    len: usize,
}

/// Why there is none.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Unframed {
    /// More octets are needed.
    Short,
    /// What stands here is none.
    Bad,
}

fn frame(octets: &[u8]) -> Result<Framed<'_>, Unframed> {
    let Some(head) = octets.get(..FIXED) else { return Err(Unframed::Short) };
    let len = usize::from(u16::from_le_bytes([head[4], head[5]]));
    if !(FIXED..=RECORD_MAX).contains(&len) || !(1..=3).contains(&head[6]) {
        return Err(Unframed::Bad);
    }
    let padded = len.next_multiple_of(PLACE_OCTETS as usize);
    let Some(whole) = octets.get(..padded) else { return Err(Unframed::Short) };
    if crc32c::crc32c(&whole[4..len]) != u32::from_le_bytes([head[0], head[1], head[2], head[3]]) {
        return Err(Unframed::Bad);
    }
    Ok(Framed { octets: &whole[..len], len: padded })
}

impl Framed<'_> {
    fn word(&self, at: usize) -> u32 {
        let word = self.octets.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map_or(0, u32::from_le_bytes)
    }

    fn kind(&self) -> Kind {
        match self.octets[6] {
            1 => Kind::Suppressed,
            2 => Kind::Removed,
            _ => Kind::SoftBounce,
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        let octets = self.octets.get(8..24).and_then(|octets| octets.try_into().ok());
        Fingerprint::from_octets(octets.unwrap_or_default())
    }

    fn record(&self) -> Record {
        let len_at = |at: usize| usize::from(u16::from_le_bytes([self.octets[at], self.octets[at + 1]]));
        let (tenant, address) = (FIXED + len_at(32), FIXED + len_at(32) + len_at(34));
        let text = |from: usize, to: usize| -> Box<str> {
            self.octets.get(from..to).map(|text| String::from_utf8_lossy(text).into()).unwrap_or_default()
        };
        Record {
            kind: self.kind(),
            source: Source::ALL.get(usize::from(self.octets[7])).copied().unwrap_or(Source::Command),
            fingerprint: self.fingerprint(),
            until_s: self.word(24),
            since_s: self.word(28),
            tenant: text(FIXED, tenant),
            address: text(tenant, address),
            reason: text(address, self.octets.len()),
        }
    }
}

/// Goes through the records of a file from an octet on, until `see` says that it has seen enough. Gives where it ended, and the
/// octets that are no records, from and to.
fn walk(
    file: &File,
    from: u64,
    end: u64,
    mut see: impl FnMut(u64, &Framed<'_>) -> bool,
) -> io::Result<(u64, Vec<(u64, u64)>)> {
    let (mut at, mut bad, mut bad_since) = (from, Vec::new(), None);
    let mut piece = Vec::new();
    while at < end {
        let len = (end - at).min(PIECE as u64) as usize;
        piece.resize(len, 0);
        file.read_exact_at(&mut piece, at)?;
        let last = at + len as u64 == end;
        let mut done = 0;
        while done < len {
            match frame(&piece[done..]) {
                Ok(framed) => {
                    bad.extend(bad_since.take().map(|since| (since, at + done as u64)));
                    if !see(at + done as u64, &framed) {
                        return Ok((at + done as u64, bad));
                    }
                    done += framed.len;
                }
                Err(Unframed::Short) if !last && len - done < 2 * RECORD_MAX => break,
                Err(_) => {
                    bad_since.get_or_insert(at + done as u64);
                    done += PLACE_OCTETS as usize;
                }
            }
        }
        at += done.min(len) as u64;
    }
    // What is no record up to the end was not written whole.
    Ok((bad_since.unwrap_or(end), bad))
}

/// The file.
#[derive(Debug)]
pub struct SuppressionLog {
    file: File,
    path: PathBuf,
    /// Behind the last record.
    end: u64,
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Found {
    /// Soft bounces, in their order.
    pub soft_bounces: Vec<(Fingerprint, u32)>,
    /// What an operator must know.
    pub damage: Option<String>,
}

impl SuppressionLog {
    /// Opens the file of this spool directory, or makes one with this key, and fills a table from it.
    ///
    /// # Errors
    /// When it cannot be read or written, or is no such file.
    pub fn open(spool: &Path, key: [u8; 16], now: UnixTime) -> io::Result<(SuppressionLog, SuppressionTable, Found)> {
        let path = spool.join(FILE_NAME);
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let mut head = [0; HEADER];
        let mut end = file.metadata()?.len();
        if end < HEADER as u64 {
            // A start that was cut off has left less than a header.
            head[..8].copy_from_slice(MAGIC);
            head[8..24].copy_from_slice(&key);
            file.write_all_at(&head, 0)?;
            file.sync_all()?;
            end = HEADER as u64;
        }
        (&file).read_exact(&mut head)?;
        let key: [u8; 16] = head[8..24].try_into().unwrap_or_default();
        if &head[..8] != MAGIC {
            return Err(io::Error::other("it is no list of suppressed addresses of this version; move it away"));
        }
        let table = SuppressionTable::new(key);
        let (mut found, mut records) = (Found::default(), 0);
        let (good, bad) = walk(&file, HEADER as u64, end, |at, framed| {
            records += 1;
            let place = (at / PLACE_OCTETS) as u32;
            match framed.kind() {
                Kind::Suppressed => table.put(framed.fingerprint(), Entry { place, until_s: framed.word(24) }),
                Kind::Removed => table.put(framed.fingerprint(), Entry { place, until_s: 0 }),
                Kind::SoftBounce => found.soft_bounces.push((framed.fingerprint(), framed.word(28))),
            }
            true
        })?;
        if good < end {
            file.set_len(good)?;
        }
        if let Some((from, to)) = bad.first() {
            let octets: u64 = bad.iter().map(|(from, to)| to - from).sum();
            found.damage = Some(format!(
                "{} is damaged: {octets} octets, the first between {from} and {to}, hold no entries any more; import what is \
                 missing again",
                path.display()
            ));
        }
        let log = SuppressionLog { file, path, end: good };
        let stale = records - table.len() as u64 - found.soft_bounces.len() as u64;
        if stale > STALE_MIN && stale > records / 2 {
            return log.rewritten(table, found, key, now);
        }
        Ok((log, table, found))
    }

    /// Writes the file anew without what is out of date.
    fn rewritten(
        self,
        table: SuppressionTable,
        found: Found,
        key: [u8; 16],
        now: UnixTime,
    ) -> io::Result<(SuppressionLog, SuppressionTable, Found)> {
        let path = self.path.with_extension("new");
        let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let mut out = BufWriter::with_capacity(PIECE, &file);
        let mut head = [0; HEADER];
        head[..8].copy_from_slice(MAGIC);
        head[8..24].copy_from_slice(&key);
        out.write_all(&head)?;
        let fresh = SuppressionTable::new(key);
        let (mut end, mut failed, mut encoded) = (HEADER as u64, Ok(()), Vec::new());
        walk(&self.file, HEADER as u64, self.end, |at, framed| {
            let live = match framed.kind() {
                Kind::SoftBounce => true,
                Kind::Removed => false,
                Kind::Suppressed => {
                    let entry = Entry { place: (at / PLACE_OCTETS) as u32, until_s: framed.word(24) };
                    table.get(framed.fingerprint()) == Some(entry) && holds(entry, now)
                }
            };
            if live {
                encoded.clear();
                let record = framed.record();
                record.encode(&mut encoded);
                if record.kind == Kind::Suppressed {
                    let place = (end / PLACE_OCTETS) as u32;
                    fresh.put(record.fingerprint, Entry { place, until_s: record.until_s });
                }
                end += encoded.len() as u64;
                failed = out.write_all(&encoded);
            }
            failed.is_ok()
        })?;
        failed?;
        out.flush()?;
        drop(out);
        file.sync_all()?;
        std::fs::rename(&path, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        Ok((SuppressionLog { file, path: self.path, end }, fresh, found))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends records and syncs them; then they are in force.
    ///
    /// # Errors
    /// When the disk refuses: nothing was added then.
    pub fn append(&mut self, table: &SuppressionTable, records: &[Record]) -> io::Result<()> {
        let mut out = Vec::with_capacity(records.len() * 96);
        let mut places = Vec::with_capacity(records.len());
        for record in records {
            places.push(((self.end + out.len() as u64) / PLACE_OCTETS) as u32);
            record.encode(&mut out);
        }
        if let Err(error) = self.file.write_all_at(&out, self.end).and_then(|()| self.file.sync_data()) {
            // What may be there of it must not count after a start.
            let _ = self.file.set_len(self.end);
            return Err(error);
        }
        self.end += out.len() as u64;
        for (record, place) in records.iter().zip(places) {
            match record.kind {
                Kind::Suppressed => table.put(record.fingerprint, Entry { place, until_s: record.until_s }),
                Kind::Removed => table.put(record.fingerprint, Entry { place, until_s: 0 }),
                Kind::SoftBounce => {}
            }
        }
        Ok(())
    }

    /// The record of an entry.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn record(&self, entry: Entry) -> io::Result<Record> {
        let at = u64::from(entry.place) * PLACE_OCTETS;
        let mut octets = vec![0; RECORD_MAX.min(self.end.saturating_sub(at) as usize)];
        self.file.read_exact_at(&mut octets, at)?;
        match frame(&octets) {
            Ok(framed) => Ok(framed.record()),
            Err(_) => Err(io::Error::other(format!("{} is damaged at octet {at}", self.path.display()))),
        }
    }

    /// What is needed to go through the entries beside changes.
    ///
    /// # Errors
    /// When the system has no descriptor for it.
    pub fn reader(&self) -> io::Result<Reader> {
        Ok(Reader { file: self.file.try_clone()?, end: self.end })
    }
}

/// Goes through the entries.
#[derive(Debug)]
pub struct Reader {
    file: File,
    end: u64,
}

impl Reader {
    /// Entries in force from this octet on, at most so many that are wanted; and where the next page begins.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn page(
        &self,
        table: &SuppressionTable,
        from: u64,
        most: usize,
        now: UnixTime,
        wanted: impl Fn(&Record) -> bool,
    ) -> io::Result<(Vec<Record>, Option<u64>)> {
        let mut page = Vec::new();
        let from = from.max(HEADER as u64).next_multiple_of(PLACE_OCTETS);
        let (at, _) = walk(&self.file, from, self.end, |at, framed| {
            let entry = Entry { place: (at / PLACE_OCTETS) as u32, until_s: framed.word(24) };
            if framed.kind() != Kind::Suppressed || table.get(framed.fingerprint()) != Some(entry) || !holds(entry, now)
            {
                return true;
            }
            if page.len() >= most {
                return false;
            }
            let record = framed.record();
            if wanted(&record) {
                page.push(record);
            }
            true
        })?;
        Ok((page, (at < self.end).then_some(at)))
    }
}

/// The end of an entry in seconds since 1970; [`FOR_EVER`] without one.
pub fn end_of(until_ms: Option<u64>) -> u32 {
    until_ms.map_or(FOR_EVER, |until| u32::try_from((until / 1000).max(1)).unwrap_or(FOR_EVER))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_millis(1_000_000);

    struct Spool(PathBuf);

    impl Drop for Spool {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn spool(name: &str) -> Spool {
        let path = std::env::temp_dir().join(format!("suppression-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Spool(path)
    }

    fn open(spool: &Spool) -> (SuppressionLog, SuppressionTable, Found) {
        SuppressionLog::open(&spool.0, [5; 16], NOW).unwrap()
    }

    fn record(table: &SuppressionTable, kind: Kind, address: &str) -> Record {
        Record {
            kind,
            source: Source::Import,
            fingerprint: table.fingerprint(Some("acme"), address),
            until_s: FOR_EVER,
            since_s: 7,
            tenant: "acme".into(),
            address: address.into(),
            reason: "it bounced".into(),
        }
    }

    fn addresses(log: &SuppressionLog, table: &SuppressionTable) -> Vec<String> {
        let (page, next) = log.reader().unwrap().page(table, 0, 10_000_000, NOW, |_| true).unwrap();
        assert_eq!(next, None);
        page.into_iter().map(|record| record.address.to_string()).collect()
    }

    #[test]
    fn what_was_added_is_there_after_a_start() {
        let spool = spool("start");
        let (mut log, table, _) = open(&spool);
        let all = ["a@b.test", "c@d.test", "e@f.test"].map(|address| record(&table, Kind::Suppressed, address));
        log.append(&table, &all).unwrap();
        log.append(&table, &[record(&table, Kind::Removed, "c@d.test"), record(&table, Kind::SoftBounce, "x@y.test")])
            .unwrap();
        for _ in 0..2 {
            let (log, table, found) = open(&spool);
            assert_eq!(addresses(&log, &table), ["a@b.test", "e@f.test"]);
            assert_eq!(found.soft_bounces, [(table.fingerprint(Some("acme"), "x@y.test"), 7)]);
            assert_eq!(found.damage, None);
            let entry = table.get(table.fingerprint(Some("acme"), "E@F.test")).unwrap();
            assert_eq!(log.record(entry).unwrap(), all[2]);
            assert!(!table.is_suppressed("acme", "c@d.test", NOW) && table.is_suppressed("acme", "a@b.test", NOW));
            let reader = log.reader().unwrap();
            let (page, next) = reader.page(&table, 0, 1, NOW, |_| true).unwrap();
            assert_eq!((page.len(), &*page[0].address), (1, "a@b.test"));
            let (page, next) = reader.page(&table, next.unwrap(), 1, NOW, |_| true).unwrap();
            assert_eq!((page.len(), &*page[0].address, next), (1, "e@f.test", None));
        }
    }

    #[test]
    fn what_a_crash_cut_is_cut_off_and_damage_costs_what_it_hit() {
        let spool = spool("damage");
        let (mut log, table, _) = open(&spool);
        let ends: Vec<u64> = (0..100)
            .map(|number| {
                log.append(&table, &[record(&table, Kind::Suppressed, &format!("u{number}@b.test"))]).unwrap();
                log.end
            })
            .collect();
        let file = spool.0.join(FILE_NAME);
        let whole = std::fs::read(&file).unwrap();
        // Wherever it was cut, whole records stay, and what comes next stands behind them.
        for cut in ends[97]..=ends[99] {
            std::fs::write(&file, &whole[..cut as usize]).unwrap();
            let (mut log, table, found) = open(&spool);
            let kept = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!((table.len(), found.damage), (kept, None), "cut at {cut}");
            log.append(&table, &[record(&table, Kind::Suppressed, "new@b.test")]).unwrap();
            let (log, table, found) = open(&spool);
            assert_eq!((addresses(&log, &table).len(), found.damage), (kept + 1, None));
        }
        let mut damaged = whole.clone();
        damaged[ends[9] as usize + 40] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        let (log, table, found) = open(&spool);
        let kept = addresses(&log, &table);
        assert_eq!(kept.len(), 99);
        assert!(!kept.contains(&"u10@b.test".into()) && found.damage.unwrap().contains("is damaged"));
        std::fs::write(&file, b"something else altogether, and long enough").unwrap();
        assert!(SuppressionLog::open(&spool.0, [5; 16], NOW).is_err());
    }

    #[test]
    fn what_is_out_of_date_goes_at_a_start() {
        let spool = spool("stale");
        let (mut log, table, _) = open(&spool);
        let add = |log: &mut SuppressionLog, until_s, count: u64| {
            let records: Vec<Record> = (0..count)
                .map(|number| Record { until_s, ..record(&table, Kind::Suppressed, &format!("u{number}@b.test")) })
                .collect();
            log.append(&table, &records).unwrap();
        };
        for _ in 0..3 {
            add(&mut log, FOR_EVER, STALE_MIN);
        }
        add(&mut log, 5, 10);
        let before = log.end;
        let (log, table, _) = open(&spool);
        assert!(log.end * 2 < before, "{} of {before}", log.end);
        let kept = addresses(&log, &table);
        assert_eq!(kept.len() as u64, STALE_MIN - 10, "and what has expired is not kept");
        assert!(table.is_suppressed("acme", "u10@b.test", NOW) && !table.is_suppressed("acme", "u9@b.test", NOW));
        let (log, table, _) = open(&spool);
        assert_eq!(addresses(&log, &table), kept);
    }
}
