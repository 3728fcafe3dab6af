//! The real program on the disk that loses power, fills up and fails.

use super::disk::Cut;
use super::file_system::mount_point;
use super::fuse::{Behaviour, PowerDisk};
use super::run::{PATIENCE, Run, own_directory, variable};
use super::{ready, seed};
use ringpost_load::relay::Relay;
use ringpost_load::workload::Workload;
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The latest moment of a cut after the first acknowledgement.
const LATEST_CUT: Duration = Duration::from_millis(300);
/// Outcomes of a shard that a power cut may lose: as many as may wait for a sync, and as many as come during one.
const OUTCOMES_PER_SHARD: usize = 2 * 64;

/// A machine with the program's spool on its disk.
struct Machine {
    run: Run,
    disk: Option<PowerDisk>,
    place: PathBuf,
    directory: PathBuf,
}

impl Machine {
    fn new(name: &str, workload: Workload, rounds: u64) -> Machine {
        let place = mount_point(name);
        let disk = PowerDisk::mount(&place, Behaviour::default(), workload.seed).expect("a mount");
        let directory = own_directory(&format!("{name}-log"));
        let run = Run::new(place.join("spool"), directory.join("log"), workload, rounds);
        Machine { run, disk: Some(disk), place, directory }
    }

    fn disk(&self) -> &PowerDisk {
        self.disk.as_ref().expect("the disk is mounted but within a cut")
    }

    /// The power goes while the program runs, and comes again.
    fn cut(&mut self, relay: Relay, cut: Cut) {
        let relay = RefCell::new(relay);
        let begun = Instant::now();
        let disk = self.disk.take().expect("the disk is mounted but within a cut");
        let kill = || relay.borrow_mut().kill().expect("a signal");
        let mut ended_by_itself = None;
        let reap = || ended_by_itself = relay.borrow_mut().reap().err();
        let (disk, stake) = disk.power_cut(cut, kill, reap).expect("a power cut");
        let repeats_max = self.run.in_flight_max() + usize::from(self.run.command.shards) * OUTCOMES_PER_SHARD;
        self.run.note_kill(begun, repeats_max);
        let number = self.run.kills.len();
        println!(
            "power loss: cut {number} keeps {cut:?} of {} octets and {} changes of names, the oldest write {} ms old",
            stake.octets,
            stake.names,
            stake.oldest.as_millis()
        );
        self.disk = Some(disk);
        if let Some(error) = ended_by_itself {
            self.run.fail(relay.into_inner(), &format!("before cut {number}: {error}"));
        }
    }

    /// Everything is as it must be; nothing is left of the test.
    fn end(mut self) {
        drop(self.disk.take());
        std::fs::remove_dir(&self.place).expect("nothing is left behind");
        std::fs::remove_dir_all(&self.directory).expect("the log is removed");
    }
}

#[test]
fn after_power_cuts_everything_acknowledged_is_there() {
    if !ready() {
        return;
    }
    let rounds = variable("RINGPOST_POWER_ROUNDS").unwrap_or(5);
    println!("power loss: {rounds} rounds, seed {}", seed());
    let mut machine = Machine::new("power", Workload::mixed(seed()), rounds);
    for _ in 0..rounds {
        machine.run.choose_shards();
        if machine.run.random.percent(20) {
            let relay = machine.run.command.spawn().expect("the program");
            std::thread::sleep(Duration::from_micros(machine.run.random.below(200_000)));
            let cut = Cut::random(&mut machine.run.random);
            machine.cut(relay, cut);
        }
        let relay = machine.run.start();
        if let Err(what) = machine.run.load(LATEST_CUT) {
            machine.run.fail(relay, &what);
        }
        let cut = Cut::random(&mut machine.run.random);
        machine.cut(relay, cut);
        if let Some(relay) = machine.run.shrink() {
            machine.cut(relay, Cut::Nothing);
        }
    }
    let relay = machine.run.start();
    machine.run.finish(relay, variable("RINGPOST_POWER_FORGET").is_some());
    machine.end();
}

#[test]
fn outcomes_are_durable_a_moment_after_the_last_one() {
    if !ready() {
        return;
    }
    let mut machine = Machine::new("outcomes", Workload::mixed(seed()), 1);
    let relay = machine.run.start();
    if let Err(what) = machine.run.load(LATEST_CUT) {
        machine.run.fail(relay, &what);
    }
    machine.run.source.open_gate();
    machine.run.source.stop();
    machine.run.source.join();
    machine.run.ledger.wait_complete(PATIENCE);
    relay.wait_empty(PATIENCE).expect("an answer");
    let deadline = Instant::now() + PATIENCE;
    while machine.disk().unsynced_of(".seg") > 0 {
        if Instant::now() > deadline {
            machine.run.fail(relay, "the last outcomes are never synced");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    machine.cut(relay, Cut::Nothing);
    machine.run.kills.last_mut().expect("a cut").repeats_max = 0;
    let relay = machine.run.start();
    machine.run.finish(relay, false);
    machine.end();
}

#[test]
fn a_failing_sync_loses_nothing_that_was_acknowledged() {
    if !ready() {
        return;
    }
    let mut machine = Machine::new("sync", Workload::mixed(seed()), 2);
    for _ in 0..2 {
        let mut relay = machine.run.start();
        for _ in 0..5 {
            let syncs = machine.disk().syncs();
            let after = machine.run.random.below(20);
            machine.disk().fail_sync_after(after);
            if let Err(what) = machine.run.load(LATEST_CUT) {
                machine.run.fail(relay, &what);
            }
            assert!(machine.disk().syncs() > syncs, "something is synced while mail is taken");
        }
        if !relay.is_running().expect("a look at the process") {
            machine.run.fail(relay, "a failed sync is no reason to end");
        }
        machine.cut(relay, Cut::Nothing);
    }
    let relay = machine.run.start();
    machine.run.finish(relay, false);
    machine.end();
}

#[test]
fn a_full_disk_refuses_mail_and_loses_none() {
    if !ready() {
        return;
    }
    let mut machine = Machine::new("full", Workload::mixed(seed()), 40);
    machine.run.command.hold = true;
    let mut relay = machine.run.start();
    if let Err(what) = machine.run.load(LATEST_CUT) {
        machine.run.fail(relay, &what);
    }
    // As many segments as it has now, and no more: it fills what it has and then must refuse.
    let room = machine.disk().used();
    machine.disk().set_capacity(room);
    machine.run.source.open_gate();
    if !machine.run.source.wait_refusal("452", PATIENCE) {
        machine.run.fail(relay, "a full disk is answered with 452");
    }
    assert!(relay.is_running().expect("a look at the process"), "a full disk is no reason to end");
    machine.run.source.close_gate();
    machine.cut(relay, Cut::Nothing);
    machine.disk().set_capacity(Behaviour::default().capacity);
    machine.run.command.hold = false;
    relay = machine.run.start();
    if let Err(what) = machine.run.load(LATEST_CUT) {
        machine.run.fail(relay, &what);
    }
    machine.run.finish(relay, false);
    machine.end();
}
