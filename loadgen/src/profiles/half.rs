//! The profile `latency`: a bare sync of the disk, what the cores are held up, what the relay takes at most, and how long it takes at half of that.
//!
//! The closed loop is there for its rate only: the results of the profile are those of the open loop, its ledger is that of
//! both.

use super::{PATIENCE, Run};
use crate::buckets::Buckets;
use crate::hold_up::{self, HoldUps};
use crate::relay::{Relay, metrics, waiting};
use crate::report::Latency;
use crate::results::HalfFigures;
use crate::send::schedule::Profile;
use crate::send::tally::Point;
use crate::send::{SendConfig, Sender};
use crate::sync_probe;
use crate::workload::Workload;
use std::io;
use std::time::{Duration, Instant};

/// The relay's histogram of the time from the 250 to the first attempt.
const QUEUE_TIMES: &str = "ringpost_queue_seconds";
/// How many seconds the open loop lasts.
const SECONDS: f64 = 20.0;

/// What is known before the open loop.
pub(super) struct Half {
    bare: Bare,
    capacity_per_second: f64,
    queue_times: Buckets,
}

/// How long the cores are watched.
const WATCHED: Duration = Duration::from_secs(4);

/// What the machine does without a relay.
pub(super) struct Bare {
    sync: Latency,
    hold_ups: HoldUps,
}

/// Measures a bare sync in the profile's directory, and the cores; to be called while no relay runs, which would write to
/// the same disk.
pub(super) fn bare(run: &Run<'_>) -> io::Result<Bare> {
    let (blocks, time) = if run.setting.quick { (50, WATCHED / 100) } else { (2000, WATCHED) };
    let sync = sync_probe::measure(&run.command.spool.with_file_name("sync-probe"), blocks)?;
    Ok(Bare { sync, hold_ups: hold_up::watch(time) })
}

impl Half {
    /// Measures the capacity in a closed loop and waits until everything is delivered; then turns load and messages into
    /// those of the open loop.
    pub(super) fn find(
        run: &Run<'_>,
        bare: Bare,
        relay: &Relay,
        (config, workload): (&mut SendConfig, &mut Workload),
        show: &mut dyn FnMut(&Point, Option<u64>),
    ) -> io::Result<Half> {
        let began = Instant::now();
        let (tally, _) = Sender::start(config.clone(), workload.clone(), run.record())?.finish(|point| {
            let queued = waiting(relay.admin());
            show(point, queued);
            queued
        })?;
        if tally.acknowledged == 0 || tally.refused + tally.lost_connections > 0 {
            return Err(io::Error::other(format!(
                "in the closed loop {} messages were acknowledged, {} refused, and {} connections lost: {}",
                tally.acknowledged,
                tally.refused,
                tally.lost_connections,
                tally.reasons.join("; ")
            )));
        }
        let complete = run.ledger.wait_complete(PATIENCE);
        // Until the last has arrived: accepting alone may be faster for as long as the queue grows.
        let capacity_per_second = tally.acknowledged as f64 / began.elapsed().as_secs_f64().max(1e-3);
        if !complete || !relay.wait_empty(PATIENCE)?.is_empty() {
            return Err(io::Error::other("what was sent in the closed loop is not all delivered"));
        }
        let half = Half { bare, capacity_per_second, queue_times: queue_times(relay)? };
        config.profile = Profile::Constant(half.offered_per_second());
        if !run.setting.quick {
            config.messages = (half.offered_per_second() * SECONDS).ceil() as u64;
        }
        // The messages are numbered from 0 again: as those of another run they are told from the first.
        workload.run = workload.run.wrapping_add(1);
        Ok(half)
    }

    fn offered_per_second(&self) -> f64 {
        self.capacity_per_second / 2.0
    }

    /// The figures, once the queue is empty again; None when it does not become so.
    pub(super) fn figures(&self, relay: &Relay) -> io::Result<Option<HalfFigures>> {
        if !relay.wait_empty(PATIENCE)?.is_empty() {
            return Ok(None);
        }
        let queue_times = queue_times(relay)?.since(&self.queue_times);
        Ok(Some(HalfFigures {
            bare_sync: self.bare.sync.distribution(),
            hold_ups: self.bare.hold_ups.clone(),
            capacity_per_second: self.capacity_per_second,
            offered_per_second: self.offered_per_second(),
            first_attempts: queue_times.count(),
            first_attempt_p50_below_us: queue_times.bound_us(50.0),
            first_attempt_p99_below_us: queue_times.bound_us(99.0),
        }))
    }
}

fn queue_times(relay: &Relay) -> io::Result<Buckets> {
    let page = metrics(relay.admin())?;
    Buckets::read(&page, QUEUE_TIMES)
        .ok_or_else(|| io::Error::other(format!("the relay's metrics have no histogram {QUEUE_TIMES}")))
}
