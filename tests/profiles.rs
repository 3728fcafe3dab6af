//! Each profile of `ringpost-load profile` in its short form, against the real program: nothing lost, nothing repeated.

use ringpost_load::profiles::{ALL, Named, Setting};
use ringpost_load::random::seed_of_now;
use ringpost_load::results::Results;
use std::path::Path;

fn run(name: &str) -> Results {
    let seed = seed_of_now();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("profile-{name}-{}", std::process::id()));
    let setting = Setting {
        binary: env!("CARGO_BIN_EXE_ringpost").into(),
        directory: directory.clone(),
        quick: true,
        shards: 2,
        seed,
    };
    let named = Named::find(name).expect("a profile of this name");
    let mut points = 0;
    let ran = named.run(&setting, &mut |_, _| points += 1).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let results = &ran.results;
    let ledger = results.ledger.expect("a ledger");
    assert!(ledger.is_clean(), "seed {seed}, the spool is in {}:\n{results}", directory.display());
    assert_eq!(ledger.acknowledged, 400, "seed {seed}:\n{results}");
    assert_eq!(ran.tally.acknowledged, ran.tally.begun, "seed {seed}:\n{results}");
    assert_eq!((ran.tally.lost_connections, ran.tally.unsent), (0, 0), "seed {seed}:\n{results}");
    assert!(points >= results.points.len(), "seed {seed}: each point of the course is shown");
    std::fs::remove_dir_all(directory).expect("the profile's directory");
    ran.results
}

#[test]
fn accept() {
    run("accept");
}

#[test]
fn deliver() {
    run("deliver");
}

#[test]
fn burst() {
    run("burst");
}

#[test]
fn mixed() {
    run("mixed");
}

#[test]
fn tls() {
    run("tls");
}

#[test]
fn deferred() {
    run("deferred");
}

#[test]
fn domains() {
    run("domains");
}

#[test]
fn restart() {
    run("restart");
}

#[test]
fn latency() {
    let results = run("latency");
    let half = results.half.as_ref().expect("what the latency is held against");
    assert_eq!((half.bare_sync.count, results.sent.acknowledged, half.first_attempts), (50, 200, 200), "{results}");
    assert_eq!(half.capacity_per_second, 2.0 * half.offered_per_second);
    assert!(results.to_string().contains("  bound         p99 to 250 "), "{results}");
}

#[test]
fn waiting() {
    run("waiting");
}

#[test]
fn each_profile_has_its_test() {
    let names: Vec<&str> = ALL.iter().map(|one| one.name).collect();
    assert_eq!(
        names,
        ["accept", "deliver", "burst", "mixed", "tls", "deferred", "domains", "restart", "latency", "waiting"]
    );
}
