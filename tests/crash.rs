//! Killed processes: SIGKILL of the real program at random moments under load, judged by the ledger of what it
//! acknowledged. See docs/TESTING.md.

#[path = "crash/judge.rs"]
mod judge;
#[path = "crash/run.rs"]
mod run;

use ringpost_load::random::seed_of_now;
use ringpost_load::relay::Relay;
use ringpost_load::workload::Workload;
use run::{Run, own_directory, variable};
use std::time::{Duration, Instant};

/// The latest moment of a kill after the first acknowledgement.
const LATEST_KILL: Duration = Duration::from_millis(400);

#[test]
fn killed_at_any_moment_it_loses_nothing_it_acknowledged() {
    let seed = variable("RINGPOST_CRASH_SEED").unwrap_or_else(seed_of_now);
    let rounds = variable("RINGPOST_CRASH_ROUNDS").unwrap_or(10);
    println!("crash: {rounds} rounds, seed {seed}; RINGPOST_CRASH_SEED={seed} replays it");
    let directory = own_directory("crash");
    let mut run = Run::new(directory.join("spool"), directory.join("log"), Workload::mixed(seed), rounds);
    for _ in 0..rounds {
        run.choose_shards();
        if run.random.percent(20) {
            kill_early(&mut run);
        }
        let relay = run.start();
        match run.load(LATEST_KILL) {
            Ok(()) => kill(&mut run, relay),
            Err(what) => run.fail(relay, &what),
        }
        if let Some(relay) = run.shrink() {
            kill(&mut run, relay);
        }
    }
    let relay = run.start();
    run.finish(relay, variable("RINGPOST_CRASH_FORGET").is_some());
    std::fs::remove_dir_all(&directory).expect("the spool is removed");
}

fn kill(run: &mut Run, mut relay: Relay) {
    let begun = Instant::now();
    relay.kill().expect("a signal");
    let ended = relay.reap();
    run.note_kill(begun, run.in_flight_max());
    if let Err(error) = ended {
        run.fail(relay, &error.to_string());
    }
}

/// Kills the program while it starts.
fn kill_early(run: &mut Run) {
    let relay = run.command.spawn().expect("the program");
    std::thread::sleep(Duration::from_micros(run.random.below(80_000)));
    kill(run, relay);
}
