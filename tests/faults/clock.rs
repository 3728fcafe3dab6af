//! The wall clock jumps, while the program runs and between two runs. A small library, compiled by the C compiler that
//! links Rust programs, shifts CLOCK_REALTIME for the program alone.

use super::mail::{Destination, Ledger};
use super::program::{Setup, skipped, wait};
use std::os::unix::fs::FileExt;
use std::process::Command;

const MONTH: i64 = 30 * 24 * 3600;

const SHIFTED_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long long *shift;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("FAULTS_CLOCK");
    int file = name ? open(name, O_RDONLY) : -1;
    void *map = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (map == MAP_FAILED) _exit(99);
    shift = map;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec += *shift;
    return result;
}
"#;

/// Sets the program's clock apart from the machine's by so many seconds.
fn shift(setup: &Setup, seconds: i64) {
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(setup.path("shift"));
    file.and_then(|file| file.write_all_at(&seconds.to_ne_bytes(), 0)).expect("the shift is written");
}

/// A program whose clock can be shifted. None where there is no C compiler.
fn prepare(name: &str) -> Option<Setup> {
    let mut setup = Setup::new(name);
    let (source, library) = (setup.path("clock.c"), setup.path("clock.so"));
    std::fs::write(&source, SHIFTED_CLOCK).expect("the source is written");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).status();
    if !compiled.is_ok_and(|status| status.success()) {
        skipped("NO CLOCK JUMP IS TESTED ON THIS MACHINE: there is no C compiler");
        return None;
    }
    shift(&setup, 0);
    setup.variables = vec![("LD_PRELOAD", library), ("FAULTS_CLOCK", setup.path("shift"))];
    Some(setup)
}

/// Waits for so many more attempts than there were.
fn attempts(setup: &Setup, more: usize) {
    let before = setup.events("deferred").len();
    wait("further attempts", setup, || (setup.events("deferred").len() >= before + more).then_some(()));
}

fn nothing_given_up(setup: &Setup) {
    let bad: Vec<_> = ["bounced", "expired", "dsn"].into_iter().flat_map(|event| setup.events(event)).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

/// The year of the program's own clock, as its last event has it.
fn jumped(setup: &Setup, event: &str) -> Option<String> {
    setup.events(event).last().and_then(|event| event["time"].as_str().map(|time| time[..10].to_owned()))
}

#[test]
fn a_jump_while_it_runs_makes_no_mail_older_and_stops_no_retry() {
    let Some(mut setup) = prepare("jump") else { return };
    let (ledger, destination) = (Ledger::default(), Destination::start(false));
    setup.next_hop = Some(destination.address);
    let program = setup.start();
    ledger.send(&setup, "steady", 1000).expect("mail is taken");
    attempts(&setup, 1);
    let today = jumped(&setup, "deferred");
    for seconds in [MONTH, -MONTH, 0] {
        shift(&setup, seconds);
        attempts(&setup, 3);
        assert_eq!(jumped(&setup, "deferred") == today, seconds == 0, "the library shifts the clock");
        ledger.send(&setup, &format!("shifted{seconds}"), 1000).expect("mail is taken");
        nothing_given_up(&setup);
    }
    destination.open();
    ledger.wait_delivered(&setup, &destination);
    nothing_given_up(&setup);
    program.stop(&setup);
}

#[test]
fn after_a_start_in_the_far_future_nothing_expires_before_an_attempt() {
    let Some(mut setup) = prepare("future") else { return };
    let (ledger, destination) = (Ledger::default(), Destination::start(false));
    setup.next_hop = Some(destination.address);
    let program = setup.start();
    for number in 0..10 {
        ledger.send(&setup, &format!("old{number}"), 1000).expect("mail is taken");
    }
    attempts(&setup, 1);
    program.stop(&setup);
    shift(&setup, MONTH);
    destination.open();
    let program = setup.start();
    ledger.wait_delivered(&setup, &destination);
    nothing_given_up(&setup);

    // What fails once more at that age is given up, and its sender is told.
    destination.close();
    ledger.send(&setup, "hopeless", 1000).expect("mail is taken");
    attempts(&setup, 1);
    program.stop(&setup);
    shift(&setup, 2 * MONTH);
    let program = setup.start();
    wait("an end", &setup, || (setup.events("expired").len() == 1).then_some(()));
    wait("a report", &setup, || (setup.events("dsn").len() == 1).then_some(()));
    program.stop(&setup);
}

#[test]
fn due_times_from_a_clock_that_was_far_ahead_are_brought_back() {
    let Some(mut setup) = prepare("past") else { return };
    let (ledger, destination) = (Ledger::default(), Destination::start(false));
    setup.next_hop = Some(destination.address);
    shift(&setup, MONTH);
    let program = setup.start();
    for number in 0..10 {
        ledger.send(&setup, &format!("early{number}"), 1000).expect("mail is taken");
    }
    attempts(&setup, 10);
    program.kill(&setup);
    shift(&setup, 0);
    destination.open();
    let program = setup.start();
    ledger.wait_delivered(&setup, &destination);
    let id = ledger.send(&setup, "now", 1000).expect("mail is taken");
    ledger.wait_delivered(&setup, &destination);
    let same = setup.events("received").iter().filter(|event| event["id"] == id.as_str()).count();
    assert_eq!(same, 1, "no id is given twice although the clock went back");
    program.stop(&setup);
}
