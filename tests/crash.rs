//! Killed processes: SIGKILL of the real program at random moments under load, judged by the ledger of what it
//! acknowledged. See docs/TESTING.md.

#[path = "crash/judge.rs"]
mod judge;

use judge::{Kill, judge, suspects};
use ringpost_load::ledger::Ledger;
use ringpost_load::random::{Random, seed_of_now};
use ringpost_load::relay::{Relay, RelayCommand, free_address};
use ringpost_load::sink::{Sink, SinkConfig};
use ringpost_load::source::{Source, SourceConfig};
use ringpost_load::workload::Workload;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sessions of the source.
const SESSIONS: usize = 8;
/// Connections to the destination.
const CONNECTIONS: u32 = 6;
/// Messages for each round, at most.
const MESSAGES_PER_ROUND: u32 = 4000;
/// How long the program may take to acknowledge one message, and to deliver one that is due.
const PATIENCE: Duration = Duration::from_secs(60);

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn killed_at_any_moment_it_loses_nothing_it_acknowledged() {
    let seed = variable("RINGPOST_CRASH_SEED").unwrap_or_else(seed_of_now);
    let rounds = variable("RINGPOST_CRASH_ROUNDS").unwrap_or(10);
    println!("crash: {rounds} rounds, seed {seed}; RINGPOST_CRASH_SEED={seed} replays it");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{}-{seed}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for the spool");
    let mut run = Run::new(directory.clone(), seed, rounds);
    for round in 0..rounds {
        run.round(round);
    }
    run.finish();
    std::fs::remove_dir_all(&directory).expect("the spool is removed");
}

struct Run {
    command: RelayCommand,
    ledger: Arc<Ledger>,
    sink: Sink,
    source: Source,
    workload: Workload,
    random: Random,
    kills: Vec<Kill>,
    /// Kills before the program had greeted.
    early_kills: usize,
    slowest_start: Duration,
}

impl Run {
    fn new(directory: PathBuf, seed: u64, rounds: u64) -> Run {
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
            binary: env!("CARGO_BIN_EXE_ringpost").into(),
            spool: directory.join("spool"),
            listen,
            next_hops: vec![sink.address()],
            retry: 1,
            shards: 2,
            connections: CONNECTIONS,
            hold: false,
            log: directory.join("log"),
        };
        let workload = Workload::mixed(seed);
        let source_config = SourceConfig {
            sessions: SESSIONS,
            messages: u32::try_from(rounds).unwrap_or(u32::MAX).saturating_mul(MESSAGES_PER_ROUND),
            duration: PATIENCE * (rounds as u32 + 1),
            patience: PATIENCE,
            per_connection: 50,
            ..SourceConfig::new(listen)
        };
        let source = Source::start_closed(source_config, workload.clone(), ledger.clone());
        let random = Random::part(seed, 3);
        let slowest_start = Duration::ZERO;
        Run { command, ledger, sink, source, workload, random, kills: Vec::new(), early_kills: 0, slowest_start }
    }

    /// Starts the program, lets it acknowledge something, and kills it.
    fn round(&mut self, round: u64) {
        self.command.shards = if self.random.percent(30) { self.random.between(1, 3) as u8 } else { 2 };
        if self.random.percent(20) {
            self.kill_early();
        }
        let mut relay = self.start(round);
        let before = self.ledger.acknowledged_count();
        self.source.open_gate();
        if !self.ledger.wait_acknowledged_above(before, PATIENCE) {
            self.fail(relay, &format!("round {round}: nothing is acknowledged"));
        }
        // Not a wait for anything: the moment of the kill is what is being varied.
        std::thread::sleep(Duration::from_micros(self.random.between(5_000, 400_000)));
        self.source.close_gate();
        let repeats_max = CONNECTIONS as usize * usize::from(self.workload.recipients_max);
        self.kills.push(Kill { at: Instant::now(), repeats_max });
        relay.kill().expect("a signal");
        if let Err(error) = relay.reap() {
            self.fail(relay, &format!("round {round}: {error}"));
        }
    }

    /// Kills the program while it starts.
    fn kill_early(&mut self) {
        let mut relay = self.command.spawn().expect("the program");
        std::thread::sleep(Duration::from_micros(self.random.below(60_000)));
        self.kills.push(Kill {
            at: Instant::now(),
            repeats_max: CONNECTIONS as usize * usize::from(self.workload.recipients_max),
        });
        self.early_kills += 1;
        relay.kill().expect("a signal");
        if let Err(error) = relay.reap() {
            self.fail(relay, &format!("while it started: {error}"));
        }
    }

    fn start(&mut self, round: u64) -> Relay {
        match self.command.start() {
            Ok(relay) => {
                self.slowest_start = self.slowest_start.max(relay.start_time);
                relay
            }
            Err(error) => panic!("round {round}: {error}\n{}", self.command.log_end(40)),
        }
    }

    /// Starts it once more, lets it deliver everything, and judges.
    fn finish(mut self) {
        let mut relay = self.start(u64::MAX);
        self.source.open_gate();
        self.source.stop();
        let source = std::mem::replace(&mut self.source, Source::none()).join();
        self.ledger.wait_complete(PATIENCE);
        let left = match relay.wait_empty(PATIENCE) {
            Ok(left) => left,
            Err(error) => self.fail(relay, &format!("the queue cannot be asked for: {error}")),
        };
        if variable("RINGPOST_CRASH_FORGET").is_some() {
            let token = self.ledger.forget_one_arrival();
            println!("crash: RINGPOST_CRASH_FORGET is set, the arrival of {token:?} is taken out of the ledger");
        }
        let findings = self.ledger.findings();
        let verdict = judge(&findings, &self.kills);
        println!("crash: {findings}");
        println!("crash: {:?}", self.sink.report());
        println!(
            "crash: {} messages in doubt, {} early kills, slowest start {} ms",
            source.in_doubt,
            self.early_kills,
            self.slowest_start.as_millis()
        );
        let figures = match verdict {
            Ok(figures) => figures,
            Err(faults) => {
                let about = self.about(&suspects(&findings));
                self.fail(relay, &format!("{faults}\nstill queued: {left:?}\n{about}"))
            }
        };
        println!("crash: {figures}");
        if !left.is_empty() {
            self.fail(relay, &format!("everything arrived and the queue still holds {left:?}"));
        }
        assert!(findings.notified > 0 || findings.recipients < 200, "refused recipients were bounced");
        match relay.stop(PATIENCE) {
            Ok(status) if status.success() => {}
            other => self.fail(relay, &format!("it does not stop well: {other:?}")),
        }
        self.check_the_judge();
    }

    /// A judge who lets a lost message pass would let everything pass.
    fn check_the_judge(&self) {
        let token = self.ledger.forget_one_arrival().expect("something arrived");
        let verdict = judge(&self.ledger.findings(), &self.kills);
        assert!(verdict.is_err_and(|faults| faults.contains("lost:")), "the loss of {token} is noticed");
    }

    /// What is known of the messages in question.
    fn about(&self, suspects: &[(ringpost_load::destination::Token, String)]) -> String {
        let dump = self.command.spool_says("dump");
        let mut about = String::new();
        for (token, id) in suspects.iter().take(10) {
            about += &format!("--- {token}, queued as {id}\n");
            let token = token.to_string();
            for line in dump.lines().filter(|line| line.contains(id.as_str()) || line.contains(&token)).take(20) {
                about += &format!("{line}\n");
            }
        }
        about
    }

    fn fail(&self, relay: Relay, what: &str) -> ! {
        drop(relay);
        let spool = self.command.spool.display();
        panic!("{what}\nspool kept in {spool}; the end of the log:\n{}", self.command.log_end(60));
    }
}
