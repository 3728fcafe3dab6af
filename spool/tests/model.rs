//! The spool against a naive shadow: random appends, outcomes, groups, spills, reads, failures, full disks, crashes and
//! kills, over several lives with different numbers of shards, with reclaim running. After each crash the recovered
//! state must be one that the shadow allows: everything reported durable is there, nothing durably finished comes back,
//! and no damage is reported where none was done.
//!
//! `SPOOL_MODEL_SEEDS` sets how many seeds run (default 150), `SPOOL_MODEL_FIRST` the first one.

mod shadow;

use shadow::{Faults, World};

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let first = number("SPOOL_MODEL_FIRST", 0);
    first..first + number("SPOOL_MODEL_SEEDS", default)
}

fn run(seed: u64, faults: Faults) -> Result<(), String> {
    let mut world = World::new(seed, faults);
    for _ in 0..5 {
        world.live()?;
        world.crash_and_recover()?;
    }
    Ok(())
}

fn run_all(faults: Faults) {
    for seed in seeds(150) {
        if let Err(why) = run(seed, faults) {
            panic!("seed {seed}: {why}");
        }
    }
}

#[test]
fn a_sound_disk_loses_nothing() {
    run_all(Faults::None);
}

#[test]
fn io_errors_lose_nothing() {
    run_all(Faults::Errors);
}

#[test]
fn full_disks_lose_nothing() {
    run_all(Faults::Full);
}

#[test]
fn everything_at_once_loses_nothing() {
    run_all(Faults::All);
}

#[test]
fn all_space_comes_back_when_all_mail_is_done() {
    for seed in seeds(60) {
        let mut world = World::new(seed, Faults::None);
        for _ in 0..2 {
            world.live().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            world.crash_and_recover().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
        world.finish_everything().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn one_slow_message_does_not_pin_the_disk() {
    for seed in seeds(20) {
        let mut world = World::new(seed, Faults::None);
        world.outlive_much_traffic().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        world.crash_and_recover().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[cfg(feature = "planted-faults")]
mod planted {
    use super::*;
    use ringpost_spool::planted::{PlantedFault, plant};

    /// The model test finds a planted fault within this many seeds.
    fn is_found(fault: PlantedFault) {
        plant(Some(fault));
        let found = (0..400).find(|seed| run(*seed, Faults::None).is_err());
        plant(None);
        assert!(found.is_some(), "{fault:?} was not found");
    }

    #[test]
    fn ack_before_sync_is_found() {
        is_found(PlantedFault::AckBeforeSync);
    }

    #[test]
    fn a_tombstone_recycled_early_is_found() {
        is_found(PlantedFault::TombstoneEarly);
    }

    #[test]
    fn a_stale_generation_is_found() {
        is_found(PlantedFault::StaleGeneration);
    }
}
