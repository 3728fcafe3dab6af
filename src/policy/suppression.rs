//! Addresses to which nothing is sent any more: who is suppressed, for which tenant, until when.
//!
//! A table of 24 octets for each of its places, shared by all shards: a look-up is a keyed hash of 128 bits and a few atomic
//! loads, an entry is in force as soon as it is put in. Only the control thread writes. The table is cut into parts that grow
//! one by one, so that growing takes neither long nor twice the memory. What an entry says of itself (reason, source) is on
//! disk (src/control/suppression_log.rs), at the place that the table names.
//!
//! Addresses are compared without regard to case, local parts included: RFC 5321 2.4 lets hosts tell them apart, none that
//! matters does, and a suppressed address must not be reached by writing it otherwise.

use crate::clock::UnixTime;
use crate::limits::SUPPRESSION_PARTS;
use crate::reply::Reply;
use crate::reply::class::{BounceKind, Meaning, ReplyClass};
use crate::smtp::client::Stage;
use arc_swap::ArcSwap;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What an address is known by in the table: 128 bits that nobody can foresee who does not know the key.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Never zero, which stands for an empty place.
    low: u64,
    high: u64,
}

impl Fingerprint {
    /// As on disk.
    pub fn to_octets(self) -> [u8; 16] {
        (u128::from(self.high) << 64 | u128::from(self.low)).to_le_bytes()
    }

    /// The other way round.
    pub fn from_octets(octets: [u8; 16]) -> Fingerprint {
        let whole = u128::from_le_bytes(octets);
        Fingerprint { low: (whole as u64).max(1), high: (whole >> 64) as u64 }
    }
}

/// The address as it is compared, within a tenant's list or, without a tenant, that of all.
pub fn fingerprint(key: &[u8; 16], tenant: Option<&str>, address: &str) -> Fingerprint {
    let mut hasher = SipHasher13::new_with_key(key);
    let tenant = tenant.map_or(&[][..], str::as_bytes);
    // No name is empty, and the length says where it ends.
    hasher.write(&(tenant.len() as u32).to_le_bytes());
    hasher.write(tenant);
    if address.is_ascii() {
        let mut folded = [0; 256];
        for piece in address.as_bytes().chunks(folded.len()) {
            let folded = &mut folded[..piece.len()];
            folded.copy_from_slice(piece);
            folded.make_ascii_lowercase();
            hasher.write(folded);
        }
    } else {
        hasher.write(address.to_lowercase().as_bytes());
    }
    let hash = hasher.finish128();
    Fingerprint { low: hash.h1.max(1), high: hash.h2 }
}

/// Where an entry is on disk and until when it holds.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its record's place, in units of [`PLACE_OCTETS`].
    pub place: u32,
    /// Seconds since 1970; [`FOR_EVER`] for no end, 0 when it was removed.
    pub until_s: u32,
}

/// Octets of the unit in which records' places are counted.
pub const PLACE_OCTETS: u64 = 8;
/// The end of an entry that has none.
pub const FOR_EVER: u32 = u32::MAX;

impl Entry {
    fn packed(self) -> u64 {
        u64::from(self.place) << 32 | u64::from(self.until_s)
    }

    fn unpacked(value: u64) -> Entry {
        Entry { place: (value >> 32) as u32, until_s: value as u32 }
    }
}

/// A fingerprint, four of which are a line of the cache.
#[derive(Debug, Default)]
#[repr(align(16))]
struct Slot {
    low: AtomicU64,
    high: AtomicU64,
}

/// One part: open addressing with linear probing, never full. Entries lie apart, since most look-ups find none.
#[derive(Debug)]
struct Part {
    slots: Box<[Slot]>,
    entries: Box<[AtomicU64]>,
}

impl Part {
    fn with_room(slots: usize) -> Part {
        Part {
            slots: (0..slots).map(|_| Slot::default()).collect(),
            entries: (0..slots).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The place of this fingerprint, or the empty one where it would be.
    fn find(&self, wanted: Fingerprint) -> (usize, bool) {
        let mask = self.slots.len() - 1;
        let mut at = wanted.low as usize & mask;
        loop {
            let slot = &self.slots[at];
            let low = slot.low.load(Ordering::Acquire);
            if low == 0 || (low == wanted.low && slot.high.load(Ordering::Relaxed) == wanted.high) {
                return (at, low != 0);
            }
            at = (at + 1) & mask;
        }
    }

    fn put(&self, wanted: Fingerprint, entry: u64) -> bool {
        let (at, known) = self.find(wanted);
        self.entries[at].store(entry, Ordering::Release);
        if !known {
            let slot = &self.slots[at];
            slot.high.store(wanted.high, Ordering::Relaxed);
            // Whoever sees this sees the rest.
            slot.low.store(wanted.low, Ordering::Release);
        }
        !known
    }
}

/// Places of a part at first.
const PART_START: usize = 64;

/// All entries. Many may look up while one writes.
#[derive(Debug)]
pub struct SuppressionTable {
    key: [u8; 16],
    parts: Box<[ArcSwap<Part>]>,
    /// Used places of each part.
    used: Box<[AtomicUsize]>,
    /// Entries that were not removed.
    entries: AtomicUsize,
}

impl Default for SuppressionTable {
    fn default() -> SuppressionTable {
        SuppressionTable::new([0; 16])
    }
}

impl SuppressionTable {
    /// An empty one, for fingerprints of this key.
    pub fn new(key: [u8; 16]) -> SuppressionTable {
        let part = || ArcSwap::from_pointee(Part::with_room(PART_START));
        SuppressionTable {
            key,
            parts: (0..SUPPRESSION_PARTS).map(|_| part()).collect(),
            used: (0..SUPPRESSION_PARTS).map(|_| AtomicUsize::new(0)).collect(),
            entries: AtomicUsize::new(0),
        }
    }

    /// How many there are, expired ones included.
    pub fn len(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The fingerprint of an address in a tenant's list, or in that of all.
    pub fn fingerprint(&self, tenant: Option<&str>, address: &str) -> Fingerprint {
        fingerprint(&self.key, tenant, address)
    }

    /// Whether nothing is sent to this address for this tenant now.
    pub fn is_suppressed(&self, tenant: &str, address: &str, now: UnixTime) -> bool {
        if self.is_empty() {
            return false;
        }
        // Both are known before either is looked for, so that the memory for them comes at the same time.
        let (own, common) = (self.fingerprint(Some(tenant), address), self.fingerprint(None, address));
        let found = [self.get(own), self.get(common)];
        found.into_iter().flatten().any(|entry| holds(entry, now))
    }

    /// The entry of this fingerprint, removed and expired ones included.
    pub fn get(&self, wanted: Fingerprint) -> Option<Entry> {
        let part = self.parts[part_of(wanted)].load();
        let (at, known) = part.find(wanted);
        known.then(|| Entry::unpacked(part.entries[at].load(Ordering::Acquire)))
    }

    /// Puts an entry in, in place of what was there. To be called by one thread at a time.
    pub fn put(&self, wanted: Fingerprint, entry: Entry) {
        let number = part_of(wanted);
        let before = self.get(wanted).is_some_and(|known| known.until_s != 0);
        self.make_room(number);
        if self.parts[number].load().put(wanted, entry.packed()) {
            self.used[number].fetch_add(1, Ordering::Relaxed);
        }
        match (before, entry.until_s != 0) {
            (false, true) => self.entries.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.entries.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    /// Leaves a fourth of a part free; what was removed goes when it grows.
    fn make_room(&self, number: usize) {
        let part = self.parts[number].load_full();
        if self.used[number].load(Ordering::Relaxed) < part.slots.len() / 4 * 3 {
            return;
        }
        let live = || {
            part.slots.iter().zip(&part.entries).filter_map(|(slot, entry)| {
                let (low, entry) = (slot.low.load(Ordering::Acquire), entry.load(Ordering::Acquire));
                let known = Fingerprint { low, high: slot.high.load(Ordering::Relaxed) };
                (low != 0 && Entry::unpacked(entry).until_s != 0).then_some((known, entry))
            })
        };
        let kept = live().count();
        let room = if kept * 2 > part.slots.len() { part.slots.len() * 2 } else { part.slots.len() };
        let grown = Part::with_room(room);
        for (known, entry) in live() {
            grown.put(known, entry);
        }
        self.used[number].store(kept, Ordering::Relaxed);
        self.parts[number].store(Arc::new(grown));
    }
}

fn part_of(wanted: Fingerprint) -> usize {
    (wanted.high >> 32) as usize % SUPPRESSION_PARTS
}

/// Whether an entry is in force.
pub fn holds(entry: Entry, now: UnixTime) -> bool {
    u64::from(entry.until_s) > now.as_millis() / 1000 || entry.until_s == FOR_EVER
}

/// What a failed delivery says of its address.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Bounce {
    /// There is no such mailbox, and there will be none: nothing more should be sent.
    Hard,
    /// It cannot take mail now; again and again, it counts.
    Soft,
}

impl Bounce {
    /// What the reply to a failed delivery says of its address, by what it was found to mean; none when it is about something
    /// else: the content, the sender, the connection, how much is sent. Only replies to RCPT are about one address.
    pub fn of(meaning: Meaning, stage: Option<Stage>) -> Option<Bounce> {
        if stage != Some(Stage::Recipient) {
            return None;
        }
        match (meaning.class, meaning.kind) {
            (_, BounceKind::Hard) => Some(Bounce::Hard),
            (ReplyClass::MailboxFull | ReplyClass::InvalidRecipient | ReplyClass::InactiveMailbox, _) => {
                Some(Bounce::Soft)
            }
            _ => None,
        }
    }
}

/// What a client is told at RCPT, where it is told.
pub const SUPPRESSED: Reply = Reply::fixed(
    550,
    5,
    1,
    1,
    "This address is suppressed: mail to it has failed, or must not be sent; its entry can be removed",
);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_millis(1_000_000);

    fn entry(place: u32) -> Entry {
        Entry { place, until_s: FOR_EVER }
    }

    #[test]
    fn addresses_are_found_in_their_list_whatever_their_case() {
        let table = SuppressionTable::new([7; 16]);
        assert!(!table.is_suppressed("acme", "bob@dest.test", NOW));
        table.put(table.fingerprint(Some("acme"), "Bob@Dest.Test"), entry(1));
        table.put(table.fingerprint(None, "ÄNNE@dest.test"), entry(2));
        for (tenant, address, suppressed) in [
            ("acme", "bob@dest.test", true),
            ("acme", "BOB@DEST.TEST", true),
            ("shop", "bob@dest.test", false),
            ("acm", "ebob@dest.test", false),
            ("acme", "bob@dest.tes", false),
            ("shop", "änne@dest.test", true),
        ] {
            assert_eq!(table.is_suppressed(tenant, address, NOW), suppressed, "{tenant} {address}");
        }
        let long = format!("{}@dest.test", "x".repeat(400));
        table.put(table.fingerprint(None, &long), entry(3));
        assert!(table.is_suppressed("acme", &long.to_uppercase(), NOW), "longer than any address");
        assert!(!table.is_suppressed("acme", &long[1..], NOW));
    }

    #[test]
    fn entries_end_and_are_removed() {
        let table = SuppressionTable::new([7; 16]);
        let one = table.fingerprint(None, "a@b.test");
        let is = |second: u64| table.is_suppressed("x", "a@b.test", UnixTime::from_millis(second * 1_000));
        table.put(one, Entry { place: 1, until_s: 100 });
        assert!(is(99) && !is(100));
        table.put(one, Entry { place: 2, until_s: 200 });
        assert!(is(100) && table.len() == 1);
        table.put(one, Entry { place: 3, until_s: 0 });
        assert!(!is(0) && table.is_empty());
        assert_eq!(table.get(one), Some(Entry { place: 3, until_s: 0 }), "the place of its removal is known");
        table.put(one, entry(4));
        assert!(is(1) && table.len() == 1);
    }

    #[test]
    fn it_grows_while_others_look_up() {
        let table = SuppressionTable::new([9; 16]);
        let address = |number: u32| format!("user-{number}@dest.test");
        const COUNT: u32 = 100_000;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for number in 0..COUNT {
                    table.put(table.fingerprint(None, &address(number)), entry(number));
                }
            });
            while !writer.is_finished() {
                let known = table.len() as u32;
                for number in (0..known).step_by(997) {
                    assert!(table.is_suppressed("a", &address(number), NOW), "{number} of {known}");
                }
            }
        });
        assert_eq!(table.len(), COUNT as usize);
        for number in 0..COUNT {
            assert_eq!(table.get(table.fingerprint(None, &address(number))), Some(entry(number)));
            assert!(!table.is_suppressed("a", &address(number + COUNT), NOW));
        }
        // Those that come and go leave no more behind than a part may hold.
        for number in COUNT..4 * COUNT {
            let one = table.fingerprint(None, &address(number));
            table.put(one, entry(number));
            table.put(one, Entry { place: 0, until_s: 0 });
        }
        let places: usize = table.parts.iter().map(|part| part.load().slots.len()).sum();
        assert!(places <= 4 * COUNT as usize, "{places}");
    }

    #[test]
    fn only_replies_about_the_address_count() {
        let of = |class: ReplyClass, permanent| {
            let meaning = Meaning { class, kind: class.kind(permanent) };
            assert_eq!(Bounce::of(meaning, Some(Stage::Mail)), None, "it may be about the sender");
            assert_eq!(Bounce::of(meaning, None), None, "our own words");
            Bounce::of(meaning, Some(Stage::Recipient))
        };
        for class in ReplyClass::ALL {
            let (hard, soft) = match class {
                ReplyClass::InvalidRecipient | ReplyClass::InactiveMailbox => (Some(Bounce::Hard), Some(Bounce::Soft)),
                ReplyClass::InvalidDomain => (Some(Bounce::Hard), None),
                ReplyClass::MailboxFull => (Some(Bounce::Soft), Some(Bounce::Soft)),
                _ => (None, None),
            };
            assert_eq!((of(class, true), of(class, false)), (hard, soft), "{class:?}");
        }
    }
}
