//! One run: the real program between a source and a destination, ended and started again on the same spool, and
//! judged at the end. How it is ended, and on which disk it works, is decided by the tests.

use super::judge::{Figures, Kill, judge, suspects};
use ringpost_load::destination::Token;
use ringpost_load::ledger::Ledger;
use ringpost_load::random::Random;
use ringpost_load::relay::{Relay, RelayCommand, free_address};
use ringpost_load::sink::{Sink, SinkConfig};
use ringpost_load::source::{Source, SourceConfig};
use ringpost_load::workload::Workload;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sessions of the source.
const SESSIONS: usize = 8;
/// Connections to the destination.
pub const CONNECTIONS: u32 = 6;
/// Messages for each round, at most.
const MESSAGES_PER_ROUND: u32 = 4000;
/// The longest wait for one thing: an acknowledgement, a delivery that is due, an end.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Octets on the disk from which on the spool gets time to deliver and to shrink: lives as short as these leave
/// segments behind that hold little, and the test must not fill the disk of whoever runs it.
const SPOOL_LARGE: u64 = 4 << 30;
/// What it has to shrink to.
const SPOOL_SMALL: u64 = 2 << 30;

/// A number in the environment.
pub fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A directory of this test's own on the disk that holds the build, which is a real one.
pub fn own_directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a directory for the test");
    path
}

/// What the files of a directory and those below it take. A file that goes while it is looked at takes nothing.
fn octets_on_disk(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => octets_on_disk(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(size).sum()
}

pub struct Run {
    pub command: RelayCommand,
    pub ledger: Arc<Ledger>,
    pub source: Source,
    pub random: Random,
    pub kills: Vec<Kill>,
    sink: Sink,
    workload: Workload,
    slowest_start: Duration,
}

impl Run {
    /// A source that waits behind its gate, and a destination; the program is not started yet.
    pub fn new(spool: PathBuf, log: PathBuf, workload: Workload, rounds: u64) -> Run {
        let seed = workload.seed;
        let ledger = Arc::new(Ledger::default());
        let sink_config = SinkConfig {
            seed,
            slow_percent: 5,
            slow: Duration::from_millis(40),
            drop_untaken_percent: 1,
            drop_unanswered_percent: 1,
            drop_answered_percent: 1,
            ..SinkConfig::new(([127, 0, 0, 1], 0).into())
        };
        let sink = Sink::start(sink_config, ledger.clone()).expect("a destination");
        let listen = free_address().expect("a free port");
        let command = RelayCommand {
            binary: std::env::var_os("RINGPOST_TEST_BINARY")
                .map_or_else(|| env!("CARGO_BIN_EXE_ringpost").into(), PathBuf::from),
            spool,
            listen,
            next_hops: vec![sink.address()],
            resolver: None,
            retry: 1,
            shards: 2,
            connections: CONNECTIONS,
            hold: false,
            log,
        };
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
        let source_config = SourceConfig {
            sessions: SESSIONS,
            messages: MESSAGES_PER_ROUND.saturating_mul(rounds),
            duration: PATIENCE.saturating_mul(rounds.saturating_add(1)),
            patience: PATIENCE,
            per_connection: 50,
            ..SourceConfig::new(listen)
        };
        let source = Source::start_closed(source_config, workload.clone(), ledger.clone());
        let random = Random::part(seed, 3);
        let slowest_start = Duration::ZERO;
        Run { command, ledger, source, random, kills: Vec::new(), sink, workload, slowest_start }
    }

    /// Recipients that can be in flight at a time.
    pub fn in_flight_max(&self) -> usize {
        CONNECTIONS as usize * usize::from(self.workload.recipients_max)
    }

    /// Sometimes another number of shards.
    pub fn choose_shards(&mut self) {
        self.command.shards = if self.random.percent(30) { self.random.between(1, 3) as u8 } else { 2 };
    }

    /// Starts the program and waits for its greeting.
    pub fn start(&mut self) -> Relay {
        match self.command.start() {
            Ok(relay) => {
                self.slowest_start = self.slowest_start.max(relay.start_time);
                relay
            }
            Err(error) => panic!("start after {} kills: {error}\n{}", self.kills.len(), self.command.log_end(60)),
        }
    }

    /// Lets the source send, and returns so long after the first new acknowledgement, with the gate closed.
    pub fn load(&mut self, longest: Duration) -> Result<(), String> {
        let before = self.ledger.acknowledged_count();
        self.source.open_gate();
        if !self.ledger.wait_acknowledged_above(before, PATIENCE) {
            return Err(format!("nothing is acknowledged after {} kills", self.kills.len()));
        }
        // Not a wait for anything: the moment is what is being varied.
        let pause = self.random.between(5_000, longest.as_micros() as u64);
        std::thread::sleep(Duration::from_micros(pause));
        self.source.close_gate();
        Ok(())
    }

    /// Notes that the program has ended; before it is started again.
    pub fn note_kill(&mut self, begun: Instant, repeats_max: usize) {
        self.kills.push(Kill { begun, over: Instant::now(), repeats_max });
    }

    /// If the spool has become large: a life in which everything is delivered, after which it has to be small.
    pub fn shrink(&mut self) -> Option<Relay> {
        let large = octets_on_disk(&self.command.spool);
        if large < SPOOL_LARGE {
            return None;
        }
        let relay = self.start();
        self.ledger.wait_complete(PATIENCE);
        let deadline = Instant::now() + PATIENCE;
        let left = relay.wait_empty(PATIENCE).map(|left| left.len());
        loop {
            let octets = octets_on_disk(&self.command.spool);
            let kills = self.kills.len();
            if left.as_ref().is_ok_and(|left| *left == 0) && octets <= SPOOL_SMALL {
                println!("after {kills} kills the spool has shrunk from {} to {} MiB", large >> 20, octets >> 20);
                return Some(relay);
            }
            if Instant::now() > deadline {
                let (from, now) = (large >> 20, octets >> 20);
                let what = format!("after {kills} kills the spool takes {from} MiB, then {now}, and holds {left:?}");
                self.fail(relay, &what);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops the source, waits until all is delivered, and judges. `forget` takes an arrival out of the ledger
    /// before, to see whether that is noticed.
    pub fn finish(&mut self, relay: Relay, forget: bool) -> Figures {
        self.source.open_gate();
        self.source.stop();
        let source = self.source.join();
        self.ledger.wait_complete(PATIENCE);
        let left = match relay.wait_empty(PATIENCE) {
            Ok(left) => left,
            Err(error) => self.fail(relay, &format!("the queue cannot be asked for: {error}")),
        };
        if forget {
            println!("the arrival of {:?} is taken out of the ledger, as asked for", self.ledger.forget_one_arrival());
        }
        let findings = self.ledger.findings();
        println!("{findings}");
        println!("{:?}", self.sink.report());
        println!("{} in doubt, {:?}, slowest start {:?}", source.in_doubt, source.reasons, self.slowest_start);
        let figures = match judge(&findings, &self.kills) {
            Ok(figures) => figures,
            Err(faults) => {
                let queued: Vec<String> = left.iter().take(20).map(ToString::to_string).collect();
                let about = self.about(&suspects(&findings));
                self.fail(relay, &format!("{faults}\nstill queued: {}\n{about}", queued.join("\n")))
            }
        };
        println!("{figures}");
        if !left.is_empty() {
            self.fail(relay, &format!("everything arrived and the queue still holds {left:?}"));
        }
        self.stop(relay);
        self.check_the_judge();
        figures
    }

    /// Stops the program politely.
    pub fn stop(&self, mut relay: Relay) {
        match relay.stop(PATIENCE) {
            Ok(status) if status.success() => {}
            other => self.fail(relay, &format!("it does not stop well: {other:?}")),
        }
    }

    /// A judge who lets a lost message pass would let everything pass.
    fn check_the_judge(&self) {
        let token = self.ledger.forget_one_arrival().expect("something arrived");
        let verdict = judge(&self.ledger.findings(), &self.kills);
        assert!(verdict.is_err_and(|faults| faults.contains("lost:")), "the loss of {token} is noticed");
    }

    /// What the spool says of the messages in question.
    fn about(&self, suspects: &[(Token, String)]) -> String {
        let dump = self.command.spool_says("dump");
        let mut about = String::new();
        for (token, id) in suspects.iter().take(10) {
            about += &format!("--- {token}, queued as {id}\n");
            for line in dump.lines().filter(|line| line.contains(id.as_str())).take(20) {
                about += &format!("{line}\n");
            }
        }
        about
    }

    /// Ends the program and the test.
    pub fn fail(&self, relay: Relay, what: &str) -> ! {
        drop(relay);
        let spool = self.command.spool.display();
        panic!("{what}\nspool in {spool}; the end of the log:\n{}", self.command.log_end(60));
    }
}
