//! The whole program but src/io, run in simulated worlds: seeds with troubles of every kind, the same seed twice, faults
//! planted on purpose, and one scenario for each trouble that operators know. See docs/TESTING.md, "Simulation".
//!
//! RINGPOST_SIM_SEEDS=n runs so many seeds instead of 60, from RINGPOST_SIM_FIRST on; RINGPOST_SIM_SEED=n runs one and
//! prints its whole trace.

#[path = "simulation/mod.rs"]
mod world;

use world::plan::{Kind, Plan};
use world::planted::Planted;
use world::run::{number_from, run, run_seed};

/// Seeds in an ordinary run.
const SEEDS: u64 = 60;
/// Every planted fault is found within so many.
const SEEDS_PER_FAULT: u64 = 200;

/// The kinds of worlds, in turn.
const KINDS: [Kind; 4] = [Kind::Mixed, Kind::Mixed, Kind::PowerCuts, Kind::Churn];

fn kind_of(seed: u64) -> Kind {
    KINDS[(seed % KINDS.len() as u64) as usize]
}

#[test]
fn every_acknowledged_recipient_ends_once_whatever_happens() {
    if let Some(seed) = number_from("RINGPOST_SIM_SEED") {
        let outcome = run(Plan::new(seed, kind_of(seed)), None, true);
        outcome.print();
        assert!(outcome.is_good(), "seed {seed} failed");
        return;
    }
    let seeds = number_from("RINGPOST_SIM_SEEDS").unwrap_or(SEEDS);
    let mut failed = Vec::new();
    let first = number_from("RINGPOST_SIM_FIRST").unwrap_or(1);
    for seed in first..first + seeds {
        let outcome = run_seed(seed, kind_of(seed), None);
        if !outcome.is_good() {
            if failed.is_empty() {
                outcome.print();
            }
            for violation in outcome.violations.iter().take(3) {
                println!("seed {seed}: {violation}");
            }
            failed.push(seed);
        }
    }
    assert!(failed.is_empty(), "these seeds failed: {failed:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 1_000_003, 1_000_006] {
        let (first, second) = (run_seed(seed, kind_of(seed), None), run_seed(seed, kind_of(seed), None));
        assert_eq!(first.world.trace.count(), second.world.trace.count(), "seed {seed}");
        assert_eq!(first.world.trace.hash(), second.world.trace.hash(), "seed {seed}");
        assert!(first.world.trace.count() > 1_000, "seed {seed}: little happened");
    }
}

#[test]
fn every_planted_fault_is_found() {
    let only = std::env::var("RINGPOST_SIM_FAULT").ok();
    for (planted, kind) in Planted::ALL {
        if only.as_ref().is_some_and(|only| *only != format!("{planted:?}")) {
            continue;
        }
        if let Some(seed) = number_from("RINGPOST_SIM_SEED") {
            run(Plan::new(seed, kind), Some(planted), true).print();
            continue;
        }
        let found = (1..=SEEDS_PER_FAULT).find_map(|seed| {
            let outcome = run_seed(seed, kind, Some(planted));
            outcome.violations.first().map(|violation| (seed, violation.clone()))
        });
        match found {
            Some((seed, violation)) => println!("{planted:?} is found by seed {seed}: {violation}"),
            None => panic!("{planted:?} is not found within {SEEDS_PER_FAULT} seeds"),
        }
    }
}
