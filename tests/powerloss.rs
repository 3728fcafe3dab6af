//! Power loss: the real program on a file system that forgets, tears and reorders what was not synced.
//!
//! What was acknowledged must survive each cut; see docs/TESTING.md. Without /dev/fuse, or the right to mount, these
//! tests say that they were skipped.

#[path = "powerloss/content.rs"]
mod content;
#[path = "powerloss/disk.rs"]
mod disk;
#[path = "powerloss/file_system.rs"]
mod file_system;
#[path = "powerloss/fuse.rs"]
mod fuse;
#[path = "powerloss/journal.rs"]
mod journal;
#[path = "crash/judge.rs"]
mod judge;
#[path = "powerloss/rounds.rs"]
mod rounds;
#[path = "crash/run.rs"]
mod run;

use std::sync::LazyLock;

static SEED: LazyLock<u64> = LazyLock::new(|| {
    let seed = run::variable("RINGPOST_POWER_SEED").unwrap_or_else(ringpost_load::random::seed_of_now);
    println!("power loss: seed {seed}; RINGPOST_POWER_SEED={seed} replays it");
    seed
});

/// The seed of this run.
fn seed() -> u64 {
    *SEED
}

/// Prepares this thread for mounting. False, said loudly, where that is impossible.
fn ready() -> bool {
    match fuse::own_mounts() {
        Ok(()) => true,
        Err(why) => {
            println!("SKIPPED: NO POWER LOSS IS TESTED ON THIS MACHINE: {why}");
            eprintln!("SKIPPED: NO POWER LOSS IS TESTED ON THIS MACHINE: {why}");
            false
        }
    }
}

/// Not a test: the little program that other tests start as a process of its own.
#[test]
fn journal_program() {
    journal::run_if_asked();
}
