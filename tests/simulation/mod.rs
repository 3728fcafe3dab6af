//! A world around the pure parts of ringpost: shards ([`ringpost::shard::core::Core`]) on virtual time, network, disk
//! and DNS, with clients and destinations that misbehave, and an oracle that compares the books at the end.
//!
//! One seed is one world. [`World`] holds everything; each matter has its own file: `plan` and `geography` say what
//! there is, `machine` stands in for src/io, `network` moves bytes, `client` and `destination` are the others,
//! `control` is the control thread, `operations` starts, stops and troubles, `planted` makes faults on purpose,
//! `oracle` judges, `run` runs seeds. It fails by violations, which the oracle lists with the trace.

pub mod client;
pub mod content;
pub mod control;
pub mod destination;
pub mod geography;
pub mod ledger;
pub mod machine;
pub mod network;
pub mod operations;
pub mod oracle;
pub mod plan;
pub mod planted;
pub mod random;
pub mod run;
mod scenarios;
pub mod trace;
pub mod wire;

use client::Client;
use destination::Destination;
use ledger::{Ledger, Whom};
use machine::Process;
use plan::{Plan, Stop};
use planted::Planted;
use random::{MS, Ns, Random, S, US};
use ringpost::clock::{Instant, Now, UnixTime};
use ringpost::io::dns::Query;
use ringpost::metrics::ShardMetrics;
use ringpost::shard::message::{MessageSummary, ToShard};
use ringpost_spool::{DiskDone, SimDisk};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use trace::Trace;
use wire::{Link, LinkId, Way};

/// The wall clock at the beginning: 2026-09-21.
const WALL_START_MS: i64 = 1_790_000_000_000;
/// The clock that counts from boot never shows less, since nothing starts with the machine itself.
const BOOT_TIME: Ns = 5 * S;
/// Ticks without anything else before time jumps: all connections are swept and the slow housekeeping is done in them.
const QUIET_TICKS: u32 = 55;
/// The longest jump: what only the housekeeping does again is not in any deadline.
const LONGEST_JUMP: Ns = 14 * S;
/// Between two heartbeats.
const TICK: Ns = 20 * MS;
/// A world that takes more events than this does not come to rest.
const EVENTS_MAX: u64 = 1_500_000;

/// What will happen.
#[derive(Debug)]
pub enum Event {
    /// The next piece of a connection arrives.
    Arrive(LinkId, Way),
    /// The machine looks at the relay's end of a connection.
    Look(LinkId),
    /// A connection of the relay is answered, or is not in time.
    Answered(LinkId),
    ConnectTimeout(LinkId),
    /// Flushing took too long.
    FlushTimeout(LinkId),
    /// The machine closes the relay's end.
    Finish(LinkId),
    TurnEnd {
        epoch: u32,
        shard: u8,
    },
    /// A shard wanted to be woken.
    Alarm {
        epoch: u32,
        shard: u8,
        at: Instant,
    },
    /// The disk completes something.
    Disk {
        epoch: u32,
        shard: u8,
    },
    /// An answer of the disk that a planted fault made up.
    Forged {
        epoch: u32,
        shard: u8,
        done: DiskDone,
    },
    /// The next message of a mailbox is taken out.
    Mail {
        epoch: u32,
        shard: u8,
    },
    /// The control thread puts a message in.
    Deliver {
        epoch: u32,
        shard: u8,
        message: Box<ToShard>,
    },
    /// DNS answers.
    Dns {
        epoch: u32,
        shard: u8,
        query: Query,
    },
    /// The recovery thread begins.
    Recover {
        epoch: u32,
    },
    ClientStarts(usize),
    ClientWakes(usize),
    DestinationActs(LinkId),
    /// Troubles of the disk begin or end.
    DiskChanges,
    Jump(i64),
    Operation(plan::Operation),
    Stop(Stop),
    /// A stop in good order has taken too long.
    StopTimeout {
        epoch: u32,
    },
    Start,
}

/// One seed's world.
pub struct World {
    pub plan: Plan,
    pub planted: Option<Planted>,
    pub random: Random,
    pub trace: Trace,
    pub ledger: Ledger,
    pub now: Ns,
    /// Added to the wall clock by jumps.
    wall_shift_ms: i64,
    /// When the machine was booted.
    booted: Ns,
    events: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    pub handled: u64,
    pub disk: SimDisk,
    pub process: Option<Process>,
    /// Counts starts.
    pub epoch: u32,
    pub links: BTreeMap<LinkId, Link>,
    next_link: LinkId,
    pub clients: Vec<Client>,
    pub destinations: BTreeMap<LinkId, Destination>,
    /// When the spool was last written, by the wall clock.
    pub spool_written: UnixTime,
    /// Connections of the relay to each site, and transactions begun there.
    pub site_open: Vec<u32>,
    pub site_of_link: BTreeMap<LinkId, usize>,
    pub site_begun: Vec<Vec<(u32, Ns)>>,
    /// All is well from here on.
    pub healed: bool,
    /// Bytes that were flipped, and places where recovery missed something.
    pub damaged: u32,
    pub damage_found: usize,
    /// What the shards answered.
    pub waiting: Vec<MessageSummary>,
    pub metrics: Vec<ShardMetrics>,
    /// Word of a recycled segment was dropped.
    pub segments_may_stay: bool,
    rests: u32,
}

/// An event and its time. Events of one instant come in random order.
#[derive(Debug)]
struct Planned {
    at: Ns,
    order: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Planned) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Planned) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Planned) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl World {
    /// The world of a plan, before anything happened.
    pub fn new(plan: Plan, planted: Option<Planted>, print: bool) -> World {
        let sites = plan.geography.sites.len();
        let mut world = World {
            random: Random::new(plan.seed),
            trace: Trace::new(print),
            ledger: Ledger { signed: plan.signs(), filtered: plan.filters(), ..Ledger::default() },
            now: 0,
            wall_shift_ms: 0,
            booted: 0,
            events: BinaryHeap::new(),
            planned: 0,
            handled: 0,
            disk: operations::new_disk(&plan),
            process: None,
            epoch: 0,
            links: BTreeMap::new(),
            next_link: 0,
            clients: Vec::new(),
            destinations: BTreeMap::new(),
            spool_written: UnixTime::from_millis(0),
            site_open: vec![0; sites],
            site_of_link: BTreeMap::new(),
            site_begun: vec![Vec::new(); sites],
            healed: false,
            damaged: 0,
            damage_found: 0,
            waiting: Vec::new(),
            metrics: Vec::new(),
            segments_may_stay: false,
            rests: 0,
            planted,
            plan,
        };
        world.plan_everything();
        world
    }

    /// Something will happen after a while.
    pub fn after(&mut self, wait: Ns, event: Event) {
        self.at(self.now + wait, event);
    }

    /// Something will happen at this time.
    pub fn at(&mut self, at: Ns, event: Event) {
        self.planned += 1;
        // Pieces of one connection must stay in order; they have different times or the same random order is harmless.
        let order = self.random.next() << 32 | self.planned & 0xffff_ffff;
        self.events.push(Reverse(Planned { at, order, event }));
    }

    /// Both clocks as the relay reads them.
    pub fn clocks(&self) -> Now {
        let wall = WALL_START_MS + (self.now / MS) as i64 + self.wall_shift_ms;
        Now {
            instant: Instant::from_nanos(BOOT_TIME + self.now - self.booted),
            unix: UnixTime::from_millis(wall.max(0) as u64),
        }
    }

    /// Whether only hosts that take nothing could take this.
    pub fn is_bound_for_dead_hosts(&self, whom: &Whom) -> bool {
        let (Whom::Recipient(token, _) | Whom::Sender(token)) = whom;
        let Some(entry) = self.ledger.entries.get(token) else { return false };
        let address = match whom {
            Whom::Recipient(_, index) => entry.plan.recipients.get(usize::from(*index)).map(|r| &r.address),
            Whom::Sender(_) => entry.plan.sender.as_ref(),
        };
        address.is_some_and(|address| address.ends_with("@dead.test") || address.ends_with("@void.test"))
    }

    /// A new connection.
    pub fn new_link(&mut self, inbound: bool, party: usize) -> LinkId {
        let id = self.next_link;
        self.next_link += 1;
        let link = Link::new(inbound, party, &mut self.random, self.plan.network_delay);
        self.links.insert(id, link);
        id
    }

    /// Runs to the end. False when it does not come to rest.
    pub fn run(&mut self) -> bool {
        let limit = self.plan.active + 2 * self.plan.settings.schedule.lifetime.as_nanos() as Ns + 3_600 * S;
        while self.handled < EVENTS_MAX && self.now < limit {
            self.healed = self.now >= self.plan.active;
            let event_at = self.events.peek().map(|Reverse(planned)| planned.at);
            let tick_at = self.next_tick();
            match (event_at, tick_at) {
                (Some(at), tick) if tick.is_none_or(|(_, tick)| at <= tick) => {
                    let Some(Reverse(planned)) = self.events.pop() else { break };
                    self.now = self.now.max(planned.at);
                    self.handled += 1;
                    if self.handled > EVENTS_MAX - 20 {
                        self.trace.line(self.now, format_args!("and on: {:?}", planned.event));
                    }
                    self.handle(planned.event);
                }
                (_, Some((shard, at))) => {
                    self.now = self.now.max(at);
                    self.handled += 1;
                    self.tick(shard);
                    if self.is_quiet() {
                        if self.is_at_rest() {
                            return true;
                        }
                        self.jump_over_idle_time();
                    }
                }
                _ => break,
            }
        }
        false
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive(link, way) => self.arrive(link, way),
            Event::Look(link) => self.look(link),
            Event::Answered(link) => self.answered(link),
            Event::ConnectTimeout(link) => self.connect_timeout(link),
            Event::FlushTimeout(link) => self.flush_timeout(link),
            Event::Finish(link) => self.finish(link),
            Event::TurnEnd { epoch, shard } => self.end_turn(epoch, shard),
            Event::Alarm { epoch, shard, at } => self.alarm(epoch, shard, at),
            Event::Disk { epoch, shard } => self.complete_disk(epoch, shard),
            Event::Forged { epoch, shard, done } => {
                if self.shard(epoch, shard).is_some() {
                    self.disk_done(shard, done);
                }
            }
            Event::Mail { epoch, shard } => self.take_mail(epoch, shard),
            Event::Deliver { epoch, shard, message } => self.control_delivers(epoch, shard, *message),
            Event::Dns { epoch, shard, query } => self.dns_answers(epoch, shard, query),
            Event::Recover { epoch } => self.recover(epoch),
            Event::ClientStarts(client) => self.client_starts(client),
            Event::ClientWakes(client) => self.client_wakes(client),
            Event::DestinationActs(link) => self.destination_acts(link),
            Event::DiskChanges => self.disk_changes(),
            Event::Jump(millis) => {
                self.wall_shift_ms += millis;
                let unix = self.clocks().unix;
                self.trace.line(self.now, format_args!("the wall clock jumps by {millis} ms to {unix}"));
            }
            Event::Operation(operation) => self.operate(operation),
            Event::Stop(stop) => self.stop(stop),
            Event::StopTimeout { epoch } => self.stop_timeout(epoch),
            Event::Start => self.start(),
        }
    }

    /// The next tick of any shard.
    fn next_tick(&self) -> Option<(u8, Ns)> {
        let process = self.process.as_ref()?;
        let running = process.shards.iter().enumerate().filter(|(_, shard)| !shard.over);
        running.map(|(number, shard)| (number as u8, shard.next_tick)).min_by_key(|&(number, at)| (at, number))
    }

    /// Whether nothing but ticks happened for a while.
    fn is_quiet(&self) -> bool {
        let quiet = |shard: &machine::Shard| shard.over || shard.quiet_ticks >= QUIET_TICKS;
        let shards = self.process.as_ref().is_some_and(|process| process.shards.iter().all(quiet));
        shards && self.events.peek().is_none_or(|Reverse(planned)| planned.at > self.now + TICK)
    }

    /// Moves the next ticks to when something is due.
    fn jump_over_idle_time(&mut self) {
        let now = self.now;
        let instant = self.clocks().instant;
        let mut to = now + LONGEST_JUMP;
        if let Some(Reverse(planned)) = self.events.peek() {
            to = to.min(planned.at);
        }
        let Some(process) = &mut self.process else { return };
        for shard in &process.shards {
            if let Some(due) = shard.deadline() {
                to = to.min(now.saturating_add(due.since(instant).as_nanos() as Ns));
            }
        }
        for (number, shard) in process.shards.iter_mut().enumerate() {
            shard.quiet_ticks = 0;
            shard.next_tick = to.max(now + TICK) + number as Ns * US;
        }
    }
}
