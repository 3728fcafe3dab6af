//! What a seed means: how many shards, which mail from whom to whom, which troubles when, which stops and restarts.
//! Everything that shapes a world at large is decided here, before it begins; the small delays are rolled on the way.

use crate::world::geography::{self, Geography};
use crate::world::random::{MS, Ns, Random, S};
use arc_swap::ArcSwap;
use ringpost::policy::dkim::Algorithm;
use ringpost::policy::domain::{Domain, DomainKey, KeyState};
use ringpost::policy::identity::Directory;
use ringpost::shard::settings::Settings;
use std::sync::{Arc, OnceLock};
use zeroize::Zeroizing;

/// How the process ends.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGKILL: what was written stays.
    Kill,
    /// The power fails: what was not synced may be lost, and the clock that counts from boot begins again.
    Power,
    /// SIGTERM: it drains first.
    Graceful,
}

/// Something that is wrong for a while.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// So many of 1,000 writes fail.
    WriteErrors(u32),
    /// So many of 1,000 syncs fail.
    SyncErrors(u32),
    /// So many of 1,000 reads fail.
    ReadErrors(u32),
    /// So many of 1,000 operations on names fail.
    NameErrors(u32),
    /// No file can be made or grown.
    DiskFull,
    /// Every operation of the disk takes up to this long.
    SlowDisk(Ns),
    /// DNS says SERVFAIL.
    DnsFails,
    /// Questions to DNS, or their answers, are lost.
    DnsLost,
    /// A host refuses connections.
    Refuses(usize),
    /// A host does not answer to connections.
    Silent(usize),
    /// A host greets with 421.
    Unwilling(usize),
    /// A host stops in the midst of things.
    Stalls(usize),
    /// The process has no descriptors left.
    Descriptors,
}

impl Trouble {
    /// Whether it may hold up the disk, so that outcomes wait for their sync.
    pub fn is_of_disk(self) -> bool {
        !matches!(
            self,
            Trouble::DnsFails
                | Trouble::DnsLost
                | Trouble::Refuses(_)
                | Trouble::Silent(_)
                | Trouble::Unwilling(_)
                | Trouble::Stalls(_)
                | Trouble::Descriptors
        )
    }
}

/// A trouble and its time.
#[derive(Copy, Clone, Debug)]
pub struct Window {
    pub from: Ns,
    pub to: Ns,
    pub trouble: Trouble,
}

/// What an operator does to one message, or to all.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Deletes one of the messages acknowledged so far.
    DeleteOne,
    /// Holds everything.
    HoldAll,
    /// Releases everything.
    ReleaseAll,
    /// Attempts everything now.
    RetryAll,
}

/// How a client speaks.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// One command, one reply.
    Lockstep,
    /// MAIL, RCPT and DATA in one flight.
    Pipelined,
    /// The content by BDAT.
    Chunks,
}

/// One recipient as submitted.
#[derive(Clone, Debug)]
pub struct RecipientPlan {
    /// Its address.
    pub address: String,
    /// NOTIFY=…, when given.
    pub notify: Option<&'static str>,
}

impl RecipientPlan {
    /// Whether the sender is to be told of this ("FAILURE", "SUCCESS", "DELAY").
    pub fn wants(&self, what: &str) -> bool {
        match self.notify {
            None => what != "SUCCESS",
            Some(notify) => notify.contains(what),
        }
    }
}

/// One message as submitted.
#[derive(Clone, Debug)]
pub struct MessagePlan {
    /// Its name in the ledger, in its content and in all its addresses.
    pub token: u32,
    /// The reverse path; none for the null one.
    pub sender: Option<String>,
    pub recipients: Vec<RecipientPlan>,
    /// Octets of content, about.
    pub size: usize,
    /// BODY=8BITMIME.
    pub eight_bit: bool,
    /// SMTPUTF8.
    pub utf8: bool,
}

/// One connection of a client.
#[derive(Clone, Debug)]
pub struct SessionPlan {
    pub at: Ns,
    pub manner: Manner,
    /// Asks for STARTTLS; the second says whether the handshake will work.
    pub tls: Option<bool>,
    /// Goes away, hangs or half-closes after so many replies.
    pub leaves_after: Option<u32>,
    pub messages: Vec<MessagePlan>,
}

/// How often things go wrong by themselves, in parts of 1,000.
#[derive(Clone, Debug)]
pub struct Rates {
    /// A reply of a destination is not what was hoped for.
    pub peer: u32,
    /// A message between shards, or a report, finds no room.
    pub mailbox: u32,
    /// A connection is reset when bytes arrive.
    pub reset: u32,
}

/// Everything about a world.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Shards at each start, in turn.
    pub shards: Vec<u8>,
    /// Mail is submitted and things go wrong until then; afterwards all is well.
    pub active: Ns,
    pub sessions: Vec<SessionPlan>,
    pub windows: Vec<Window>,
    pub stops: Vec<(Ns, Stop)>,
    /// The wall clock jumps by so many milliseconds.
    pub jumps: Vec<(Ns, i64)>,
    pub operations: Vec<(Ns, Operation)>,
    pub rates: Rates,
    pub geography: Geography,
    pub settings: Arc<Settings>,
    /// The disk's usual slowness.
    pub disk_delay: Ns,
    /// The network's usual slowness.
    pub network_delay: Ns,
    /// How long the executor may take to end a turn.
    pub turn_delay: Ns,
    /// A byte is flipped while the process is down for the first time.
    pub damage: Option<Damaged>,
}

/// What the flipped byte belongs to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Damaged {
    /// The content of a message.
    Content,
    /// The record that says whose message it is.
    Record,
    /// Content in a file of its own.
    File,
}

/// Which kind of world: faults are found faster where they matter.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bit of everything.
    Mixed,
    /// Nothing goes wrong but what a scenario adds, and messages of hundreds of kilobytes.
    Large,
    /// Many power cuts.
    PowerCuts,
    /// Small segments and much mail, so that segments are recycled often.
    Churn,
}

/// An Ed25519 key in PKCS#8, the same in each world, whose signatures are then the same, too.
const KEY: &[u8] = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20simulated key of thirty-two octe";

impl Plan {
    /// Whether the clients' domain is one that signs, as it is in half of the worlds.
    pub fn signs(&self) -> bool {
        self.seed % 2 == 1
    }

    /// Whether a content filter sees what clients submit, as it does in a third of the worlds.
    pub fn filters(&self) -> bool {
        !self.settings.listeners[0].filters.is_empty()
    }

    /// Whose domains are known.
    pub fn directory(&self) -> Arc<ArcSwap<Directory>> {
        let key = DomainKey {
            selector: "s".into(),
            algorithm: Algorithm::Ed25519,
            private: Some(Zeroizing::new(KEY.to_vec()).into()),
            state: KeyState::Active,
            since_ms: 0,
            recipients: Vec::new(),
            ready: OnceLock::new(),
        };
        let domain = Domain {
            name: "client.test".into(),
            tenant: self.settings.listeners[0].tenant.clone(),
            created_ms: 0,
            verified_ms: self.signs().then_some(0),
            keys: vec![key],
            revision: 1,
        };
        let directory = Directory::new(Vec::new(), Vec::new()).with_domains(vec![domain], &Directory::default());
        Arc::new(ArcSwap::from_pointee(directory))
    }

    /// The plan of a seed.
    pub fn new(seed: u64, kind: Kind) -> Plan {
        let mut random = Random::new(seed ^ 0x7269_6e67_706f_7374);
        let calm = kind == Kind::Large;
        let geography = Geography::new(&mut random, calm);
        let active = random.range(40, 200) * S;
        let large = calm || (kind != Kind::Churn && random.chance(250));
        let settings = geography::settings(&mut random, large, kind == Kind::Churn);
        let stops = stops(&mut random, active, kind);
        let windows = if calm { Vec::new() } else { windows(&mut random, active, &geography, kind) };
        let near: Vec<Ns> = stops.iter().map(|stop| stop.0).chain(windows.iter().map(|window| window.from)).collect();
        let mut tokens = 0;
        let count = if kind == Kind::Churn { random.range(60, 120) } else { random.range(8, 40) };
        let mut sessions: Vec<SessionPlan> = (0..count)
            .map(|_| session(&mut random, active, &near, &mut tokens, &geography, &settings, large))
            .collect();
        sessions.sort_by_key(|session| session.at);
        let few = |random: &mut Random| if calm || random.chance(500) { 0 } else { random.range(1, 3) };
        let jumps = (0..few(&mut random))
            .map(|_| {
                let hours = random.range(1, 10_000) as i64 * 3_600;
                (random.below(active), if random.chance(500) { hours } else { -hours })
            })
            .collect();
        let operations = (0..few(&mut random)).flat_map(|_| operations(&mut random, active)).collect();
        let rates = Rates {
            peer: if calm { 0 } else { *random.pick(&[0, 20, 60, 150]) },
            mailbox: if calm { 0 } else { *random.pick(&[0, 0, 5, 50]) },
            reset: if calm { 0 } else { *random.pick(&[0, 0, 2, 10]) },
        };
        Plan {
            seed,
            shards: (0..4).map(|_| *random.pick(&[1, 1, 2, 2, 3, 4])).collect(),
            active,
            sessions,
            windows,
            stops,
            jumps,
            operations,
            rates,
            settings: Arc::new(settings),
            geography,
            disk_delay: *random.pick(&[MS / 5, 2 * MS, 10 * MS, 40 * MS]),
            network_delay: *random.pick(&[MS / 10, 5 * MS, 60 * MS]),
            turn_delay: *random.pick(&[MS / 20, MS, 8 * MS]),
            damage: None,
        }
    }

    /// The trouble of this kind under way, if there is one.
    pub fn trouble_at<T>(&self, at: Ns, which: impl Fn(Trouble) -> Option<T>) -> Option<T> {
        self.windows
            .iter()
            .filter(|window| window.from <= at && at < window.to)
            .find_map(|window| which(window.trouble))
    }
}

fn stops(random: &mut Random, active: Ns, kind: Kind) -> Vec<(Ns, Stop)> {
    let (count, choices): (u64, &[Stop]) = match kind {
        Kind::Large => (0, &[Stop::Kill]),
        Kind::PowerCuts => (random.range(2, 5), &[Stop::Power]),
        Kind::Churn => (random.range(2, 5), &[Stop::Kill, Stop::Power, Stop::Graceful]),
        Kind::Mixed if random.chance(200) => (0, &[Stop::Kill]),
        Kind::Mixed => (random.range(1, 4), &[Stop::Kill, Stop::Kill, Stop::Power, Stop::Power, Stop::Graceful]),
    };
    let mut stops: Vec<(Ns, Stop)> = (0..count).map(|_| (random.range(S, active), *random.pick(choices))).collect();
    stops.sort_by_key(|stop| stop.0);
    stops
}

fn windows(random: &mut Random, active: Ns, geography: &Geography, kind: Kind) -> Vec<Window> {
    let mut windows = Vec::new();
    let disk = if random.chance(500) || kind != Kind::Mixed { 0 } else { random.range(1, 3) };
    let other = random.range(0, 4);
    for number in 0..disk + other {
        let from = random.below(active);
        let to = (from + random.range(100 * MS, 40 * S)).min(active);
        let host = random.below(geography.hosts.len() as u64) as usize;
        let trouble = if number < disk {
            *random.pick(&[
                Trouble::WriteErrors(200),
                Trouble::WriteErrors(1_000),
                Trouble::SyncErrors(200),
                Trouble::SyncErrors(1_000),
                Trouble::ReadErrors(300),
                Trouble::NameErrors(500),
                Trouble::DiskFull,
                Trouble::DiskFull,
                Trouble::SlowDisk(400 * MS),
                Trouble::SlowDisk(3 * S),
            ])
        } else {
            *random.pick(&[
                Trouble::DnsFails,
                Trouble::DnsLost,
                Trouble::Refuses(host),
                Trouble::Silent(host),
                Trouble::Unwilling(host),
                Trouble::Stalls(host),
                Trouble::Descriptors,
            ])
        };
        windows.push(Window { from, to, trouble });
    }
    windows
}

fn operations(random: &mut Random, active: Ns) -> Vec<(Ns, Operation)> {
    let at = random.below(active);
    match random.below(3) {
        0 => vec![(at, Operation::DeleteOne)],
        1 => vec![(at, Operation::RetryAll)],
        // A hold is always ended, at the latest when all is well again.
        _ => vec![(at, Operation::HoldAll), (at + random.range(S, 60 * S), Operation::ReleaseAll)],
    }
}

fn session(
    random: &mut Random,
    active: Ns,
    near: &[Ns],
    tokens: &mut u32,
    geography: &Geography,
    settings: &Settings,
    large: bool,
) -> SessionPlan {
    let at = match near.is_empty() || random.chance(500) {
        true => random.below(active),
        // Shortly before something happens.
        false => random.pick(near).saturating_sub(random.skewed(0, 3 * S)),
    };
    let count = random.range(1, 5);
    SessionPlan {
        at,
        manner: *random.pick(&[Manner::Lockstep, Manner::Pipelined, Manner::Pipelined, Manner::Chunks]),
        tls: random.chance(150).then(|| random.chance(800)),
        leaves_after: random.chance(150).then(|| random.range(0, 30) as u32),
        messages: (0..count)
            .map(|_| {
                *tokens += 1;
                message(random, *tokens, geography, settings, large)
            })
            .collect(),
    }
}

fn message(random: &mut Random, token: u32, geography: &Geography, settings: &Settings, large: bool) -> MessagePlan {
    let utf8 = random.chance(60);
    let recipients = if random.chance(600) { 1 } else { random.range(1, 6) };
    let sender = match random.below(20) {
        0 => None,
        1 => Some(format!("s.t{token}@void.test")),
        _ => Some(format!("s.t{token}@senders.test")),
    };
    let recipients = (0..recipients)
        .map(|index| {
            let domain = random.pick(&geography.domains);
            // "x" is refused by every host at RCPT, "y" at the end of the content.
            let first = *random.pick(&["r", "r", "r", "r", "r", "r", "r", "r", "r", "x", "y"]);
            let mark = if utf8 && index == 0 { ".ü" } else { "" };
            let notify = match random.below(12) {
                0 => Some("NEVER"),
                1 => Some("SUCCESS,FAILURE"),
                2 => Some("FAILURE,DELAY"),
                3 => Some("DELAY"),
                _ => None,
            };
            RecipientPlan { address: format!("{first}{index}.t{token}{mark}@{domain}"), notify }
        })
        .collect();
    let size = match random.below(if large { 8 } else { 20 }) {
        0..=2 if large => random.range(40_000, 700_000),
        3 if large => random.range(200_000, 300_000),
        0 => random.range(8_000, 30_000),
        _ => random.range(100, 4_000),
    };
    // Now and then one that is too large for the listener.
    let most = settings.listeners[0].session.max_message_size;
    let size = if random.chance(5) { most + 1 } else { size.min(most - 4_096) };
    MessagePlan { token, sender, recipients, size: size as usize, eight_bit: utf8 || random.chance(150), utf8 }
}
