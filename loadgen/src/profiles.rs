//! Named profiles: a relay, a destination and a load each, run from beginning to end and judged by the ledger.
//!
//! A profile says what its figures are about; all of them must lose nothing and repeat nothing. It fails in words when the
//! relay does not start, when mail does not arrive for as long as the patience lasts, or when the relay does not stop in
//! good order.

mod half;
mod waiting;

use crate::ledger::Ledger;
use crate::names::NameServer;
use crate::process::Usage;
use crate::receive::{self, ReceiveConfig, Receiver};
use crate::record::Record;
use crate::relay::{Relay, RelayCommand, free_address, waiting};
use crate::results::{LedgerFigures, RelayFigures, Results};
use crate::send::protocol::TlsMode;
use crate::send::schedule::Profile;
use crate::send::tally::{Point, Tally};
use crate::send::{SendConfig, Sender, tls_client};
use crate::workload::{Domains, Sizes, Workload};
use half::Half;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest time without any arrival while some are missing.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest time that a relay may take to stop.
const STOP_TIME: Duration = Duration::from_secs(60);

/// A profile.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: &'static str,
    /// What its figures are about.
    pub about: &'static str,
    kind: Kind,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Kind {
    Accept,
    Deliver,
    Burst,
    Mixed,
    Tls,
    Deferred,
    Domains,
    Restart,
    Latency,
    Waiting,
}

/// All profiles, in the order in which they are run.
pub const ALL: [Named; 10] = [
    Named {
        name: "accept",
        about: "1 KB messages made durable, none delivered until all are accepted",
        kind: Kind::Accept,
    },
    Named { name: "deliver", about: "1 KB messages accepted and delivered to one destination", kind: Kind::Deliver },
    Named { name: "burst", about: "idle, then all messages at once over many connections", kind: Kind::Burst },
    Named {
        name: "mixed",
        about: "sizes to several hundred KB, one to five recipients, some refused",
        kind: Kind::Mixed,
    },
    Named { name: "tls", about: "STARTTLS towards the relay, and offered by the destination", kind: Kind::Tls },
    Named { name: "deferred", about: "a third of the recipients refused for now, once or twice", kind: Kind::Deferred },
    Named { name: "domains", about: "recipients over many domains by Zipf's law", kind: Kind::Domains },
    Named {
        name: "restart",
        about: "a backlog, the relay killed, and all of it delivered afterwards",
        kind: Kind::Restart,
    },
    Named {
        name: "latency",
        about: "1 KB messages at half of the rate that a closed loop has reached, beside a bare sync of the disk",
        kind: Kind::Latency,
    },
    Named {
        name: "waiting",
        about: "many recipients over many domains, each of them deferred once; a restart; then all are delivered",
        kind: Kind::Waiting,
    },
];

/// How profiles are run.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The relay's executable.
    pub binary: PathBuf,
    /// Where spools and logs are made; a directory for each profile, which must not be there yet.
    pub directory: PathBuf,
    /// Hundreds of messages instead of tens of thousands.
    pub quick: bool,
    /// Shards of the relay.
    pub shards: u8,
    /// Everything random comes from it.
    pub seed: u64,
}

/// What a profile came to.
#[derive(Debug)]
pub struct Ran {
    /// The figures.
    pub results: Results,
    /// The sums and latencies behind them.
    pub tally: Tally,
}

impl Named {
    /// The profile of a name.
    pub fn find(name: &str) -> Option<Named> {
        ALL.into_iter().find(|one| one.name == name)
    }

    fn messages(&self, quick: bool) -> u64 {
        match (self.kind, quick) {
            // It sends twice as many: in a closed loop, and in an open one.
            (Kind::Latency, true) => 200,
            (_, true) => 400,
            (Kind::Latency, false) => 60_000,
            (Kind::Waiting, false) => 1_000_000,
            (Kind::Burst, false) => 100_000,
            (Kind::Accept | Kind::Restart, false) => 50_000,
            (Kind::Mixed, false) => 10_000,
            (Kind::Tls | Kind::Deferred, false) => 20_000,
            (_, false) => 40_000,
        }
    }

    fn workload(&self, seed: u64, quick: bool) -> Workload {
        let plain = Workload::plain(seed, 1024);
        match self.kind {
            Kind::Mixed => Workload { refused_for_now: 0, content_refused: 0, ..Workload::mixed(seed) },
            Kind::Deferred => Workload { refused_for_now: 30, content_refused: 3, ..plain },
            Kind::Domains => Workload {
                sizes: Sizes::Fixed(2048),
                domains: Some(Domains::zipf(if quick { 1000 } else { 100_000 }, 1.0)),
                ..plain
            },
            Kind::Waiting => Workload {
                sizes: Sizes::Fixed(512),
                domains: Some(Domains::zipf(if quick { 1000 } else { waiting::DOMAINS }, 0.0)),
                ..plain
            },
            _ => plain,
        }
    }

    fn send_config(&self, target: SocketAddr, domain: &str, quick: bool) -> io::Result<SendConfig> {
        let mut config = SendConfig::new(target, domain);
        config.messages = self.messages(quick);
        config.duration = Duration::from_secs(600);
        config.per_connection = if quick { 20 } else { 1000 };
        config.sessions = match (self.kind, quick) {
            (_, true) => 10,
            (Kind::Accept | Kind::Restart | Kind::Latency, false) => 200,
            (Kind::Burst, false) => 1000,
            (_, false) => 50,
        };
        match self.kind {
            Kind::Burst => {
                let idle = Duration::from_millis(if quick { 100 } else { 1000 });
                config.profile = Profile::Burst { messages: config.messages, idle };
            }
            Kind::Tls => {
                config.client.tls = TlsMode::Start;
                config.tls = Some((tls_client(false)?, domain.to_owned()));
            }
            Kind::Mixed => config.client.chunking = true,
            // No message is to wait for a connection that takes the place of another.
            Kind::Latency => config.per_connection = u32::MAX,
            _ => {}
        }
        Ok(config)
    }

    /// Runs the profile. `show` is given each point of the course and the number of messages that wait in the relay.
    ///
    /// # Errors
    /// When the relay, the destination or the source does not work, in words; the end of the relay's log is part of them.
    pub fn run(&self, setting: &Setting, show: &mut dyn FnMut(&Point, Option<u64>)) -> io::Result<Ran> {
        let directory = setting.directory.join(self.name);
        std::fs::create_dir_all(setting.directory.as_path())?;
        std::fs::create_dir(&directory)?;
        let ledger = Arc::new(Ledger::default());
        let mut receive = ReceiveConfig::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        if self.kind == Kind::Tls {
            receive.tls = Some(receive::self_signed()?);
        }
        if self.kind == Kind::Waiting {
            receive.rules = waiting::rules();
        }
        let names = match self.has_sites() {
            true => {
                // All of 127.0.0.0/8, where the name server sends the relay.
                receive.listen = vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))];
                Some(NameServer::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?)
            }
            false => None,
        };
        let receiver = Receiver::start(receive, Record::Ledger(ledger.clone()))?;
        let mut command = self.relay_command(setting, &directory, receiver.addresses())?;
        if let Some(names) = &names {
            let hosts = std::mem::take(&mut command.next_hops);
            command.resolver = hosts.first().map(|host| (names.address(), host.port()));
        }
        let run = Run { named: self, setting, command: &command, ledger: &ledger, receiver: &receiver };
        let ran = if self.kind == Kind::Waiting { run.waiting(show) } else { run.all(show) };
        let ran = ran.map_err(|error| {
            let text = format!("{}: {error}; the end of the relay's log:\n{}", self.name, command.log_end(10));
            io::Error::new(error.kind(), text)
        })?;
        receiver.stop()?;
        Ok(ran)
    }

    /// Whether each domain is a site of its own, found by DNS.
    fn has_sites(&self) -> bool {
        matches!(self.kind, Kind::Domains | Kind::Waiting)
    }

    fn relay_command(&self, setting: &Setting, directory: &Path, next_hops: &[SocketAddr]) -> io::Result<RelayCommand> {
        Ok(RelayCommand {
            binary: setting.binary.clone(),
            spool: directory.join("spool"),
            listen: free_address()?,
            next_hops: next_hops.to_vec(),
            resolver: None,
            retry: if self.kind == Kind::Waiting { waiting::RETRY_SECONDS } else { 1 },
            shards: setting.shards,
            connections: 20,
            hold: matches!(self.kind, Kind::Accept | Kind::Restart),
            log: directory.join("relay.log"),
        })
    }
}

/// One run of a profile.
struct Run<'a> {
    named: &'a Named,
    setting: &'a Setting,
    command: &'a RelayCommand,
    ledger: &'a Arc<Ledger>,
    receiver: &'a Receiver,
}

impl Run<'_> {
    fn record(&self) -> Record {
        Record::Ledger(self.ledger.clone())
    }

    fn all(&self, show: &mut dyn FnMut(&Point, Option<u64>)) -> io::Result<Ran> {
        let quick = self.setting.quick;
        let mut workload = self.named.workload(self.setting.seed, quick);
        let mut config = self.named.send_config(self.command.listen, &workload.domain, quick)?;
        let bare = (self.named.kind == Kind::Latency).then(|| half::bare(self)).transpose()?;
        let mut relay = self.command.start()?;
        let half = match bare {
            Some(bare) => Some(Half::find(self, bare, &relay, (&mut config, &mut workload), show)?),
            None => None,
        };
        let arrived_before = self.ledger.arrived_count();
        let before = Usage::of(relay.process())?;
        let began = Instant::now();
        let mut most = before.anonymous_kib;
        let (tally, points) = Sender::start(config, workload, self.record())?.finish(|point| {
            let queued = waiting(relay.admin());
            most = most.max(Usage::of(relay.process()).map_or(0, |usage| usage.anonymous_kib));
            show(point, queued);
            queued
        })?;
        let acknowledged_at = Instant::now();
        let accepting = Usage::of(relay.process())?;
        let mut figures = RelayFigures { memory_before_kib: before.anonymous_kib, ..RelayFigures::default() };
        let per = |cpu: Duration| cpu.as_secs_f64() * 1e6 / tally.acknowledged.max(1) as f64;
        let mut arriving = began;
        if self.command.hold {
            figures.cpu_us_per_message = per(accepting.cpu.saturating_sub(before.cpu));
            relay = self.start_again(relay)?;
            arriving = Instant::now();
        }
        let complete = self.ledger.wait_complete(PATIENCE);
        let now = Instant::now();
        let after = Usage::of(relay.process())?;
        figures.memory_most_kib = most.max(accepting.anonymous_kib).max(after.anonymous_kib);
        figures.memory_after_kib = after.anonymous_kib;
        if self.command.hold {
            figures.drain_seconds = (now - arriving).as_secs_f64();
            figures.drain_cpu_us_per_message = per(after.cpu);
        } else {
            figures.drain_seconds = (now - acknowledged_at).as_secs_f64();
            figures.cpu_us_per_message = per(after.cpu.saturating_sub(before.cpu));
        }
        let arrived = self.ledger.arrived_count() - arrived_before;
        figures.arrived_per_second = arrived as f64 / (now - arriving).as_secs_f64().max(1e-9);
        let half = match half {
            Some(half) => half.figures(&relay)?,
            None => None,
        };
        if complete {
            // A repeat would be on its way until the queue is empty and the relay has stopped in good order.
            self.stop(relay)?;
        }
        let command = format!("ringpost-load profile {}{}", self.named.name, if quick { " --quick" } else { "" });
        let mut results = Results::new(self.named.name, &command, &tally, points);
        let named = self.receiver.figures().named();
        results.sink = named.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        results.ledger = Some(LedgerFigures::of(&self.ledger.findings()));
        results.about = self.named.about.to_owned();
        results.relay = Some(figures);
        results.half = half;
        Ok(Ran { results, tally })
    }

    /// Ends a relay that held everything, in the way that the profile is about, and starts one that delivers.
    fn start_again(&self, mut relay: Relay) -> io::Result<Relay> {
        if self.named.kind == Kind::Restart {
            relay.kill()?;
            relay.reap()?;
        } else {
            let status = relay.stop(STOP_TIME)?;
            if !status.success() {
                return Err(io::Error::other(format!("the relay stopped with {status}")));
            }
        }
        RelayCommand { hold: false, ..self.command.clone() }.start()
    }

    fn stop(&self, mut relay: Relay) -> io::Result<()> {
        let left = relay.wait_empty(PATIENCE)?;
        if !left.is_empty() {
            return Err(io::Error::other(format!("{} messages stay in the queue", left.len())));
        }
        let status = relay.stop(STOP_TIME)?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("the relay stopped with {status}"))) }
    }
}
