//! Runs a [`Handler`] on one core: a glommio executor on a thread of its own, with the tasks that bring it what happens.
//!
//! The executor's known defects are cured here (docs/adr/0001-runtime-and-its-cures.md): the default preempt timer stays,
//! a heartbeat every 20 ms bounds a stall and measures it, no task wakes itself in a loop, and a panic anywhere ends the
//! shard with an error that names it. A dead shard must end the process: whoever joins the thread sees to that.

use crate::io::alarm;
use crate::io::disk::{Disk, DiskEvent};
use crate::io::disk_helper::Helper;
use crate::io::handler::Handler;
use crate::io::listener::listen;
use crate::io::mailbox::{InboxSender, Mailbox, Sender};
use crate::io::tls::TlsSetup;
use crate::io::turn::{Outlets, Shard};
use glommio::timer::Timer;
use glommio::{LocalExecutorBuilder, Placement};
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

pub use crate::io::disk_helper::DiskSpec;
pub use crate::io::listener::ListeningSocket;

/// The heartbeat: bounds how long a stalled executor sleeps.
pub const HEARTBEAT: Duration = Duration::from_millis(20);

/// Entries of each ring. The kernel keeps waiting polls in a hash table whose size goes by this, and every pass of the
/// executor cancels a timer, which walks one chain of it: at the default of 128 there are 8 chains, and 5,000 idle
/// connections make each pass walk hundreds of entries.
const RING_DEPTH: usize = 2048;

/// Messages that are taken from the mailbox before the others get their turn.
const MESSAGES_IN_A_ROW: usize = 256;

/// A pause that only sends the executor through its reactor once.
const BREATH: Duration = Duration::from_micros(10);

/// The mailboxes of a shard.
#[derive(Debug)]
pub struct Mailboxes<M, R> {
    /// This shard's own.
    pub own: Mailbox<M>,
    /// Those of all shards, by number, this one's included.
    pub shards: Vec<Sender<M>>,
    /// The control thread's.
    pub control: InboxSender<R>,
}

/// At the end the tasks are waited for so many milliseconds; the heartbeat, which may be asleep, is the last to see it.
const ENDINGS_MAX: u32 = 1000;

/// What a shard is made of.
#[derive(Debug)]
pub struct ShardSpec<M, R> {
    /// Its number.
    pub shard: u8,
    /// The core it is pinned to, if any.
    pub cpu: Option<usize>,
    /// How long it looks for work before it sleeps; zero for not at all.
    pub busy_poll: Duration,
    /// Where it takes connections.
    pub listeners: Vec<ListeningSocket>,
    /// Its part of the spool.
    pub disk: DiskSpec,
    /// Certificates and what is accepted.
    pub tls: TlsSetup,
    /// Its own mailbox and the ways out.
    pub mailboxes: Mailboxes<M, R>,
    /// Octets of memory registered with the kernel for disk writes and reads; what does not fit is allocated as needed.
    /// Resident from the start; at least 64 KiB.
    pub io_memory: usize,
}

/// Starts a shard on a thread of its own; `make` makes its handler there. The thread ends with `Ok` after
/// [`Command::Exit`](crate::io::handler::Command::Exit), when every connection is closed and all disk work is done. It ends
/// with an error in words when a task of the shard panicked or the executor could not be made: the process must end then.
///
/// # Errors
/// When the spool's directories cannot be made or the thread cannot be started.
pub fn run_shard<H: Handler + 'static>(
    spec: ShardSpec<H::Message, H::Report>,
    make: impl FnOnce() -> H + Send + 'static,
) -> io::Result<JoinHandle<Result<(), String>>> {
    let helper = Disk::start_helper(&spec.disk, spec.shard)?;
    std::thread::Builder::new().name(format!("shard-{}", spec.shard)).spawn(move || {
        let number = spec.shard;
        let placement = spec.cpu.map_or(Placement::Unbound, Placement::Fixed);
        let executor = LocalExecutorBuilder::new(placement)
            .name(&format!("shard-{number}"))
            .io_memory(spec.io_memory)
            .ring_depth(RING_DEPTH)
            .spin_before_park(spec.busy_poll)
            .make()
            .map_err(|error| {
                format!("shard {number}: the executor cannot be made: {error}; see `ringpost check-config`")
            })?;
        let result = executor.run(run(spec, helper, make));
        if result.is_err() {
            // Its tasks are in an unknown state, and the process is about to end: nothing is taken apart.
            std::mem::forget(executor);
        }
        result
    })
}

/// The main task: starts the others and waits for their end.
async fn run<H: Handler + 'static>(
    spec: ShardSpec<H::Message, H::Report>,
    helper: Helper,
    make: impl FnOnce() -> H,
) -> Result<(), String> {
    let ShardSpec { shard: number, cpu: _, busy_poll: _, listeners, disk, tls, mailboxes, io_memory: _ } = spec;
    let disk = Rc::new(Disk::new(disk, number, helper));
    disk.probe().await;
    let outlets = Outlets { shards: mailboxes.shards, control: mailboxes.control };
    let shard = Rc::new(Shard::new(number, make(), tls, disk, outlets));
    let own = Rc::new(mailboxes.own);

    shard.listeners.replace(listeners.iter().map(|listener| listener.socket.as_raw_fd()).collect());
    let started = Rc::clone(&shard);
    let mailbox = Rc::clone(&own);
    shard.spawn(async move {
        started.call(|handler, now| handler.started(now));
        started.spawn(end_turns(Rc::clone(&started)));
        started.spawn(alarm::ring(Rc::clone(&started)));
        started.spawn(take_disk_events(Rc::clone(&started)));
        started.spawn(take_messages(Rc::clone(&started), mailbox));
        started.spawn(beat(Rc::clone(&started)));
        for (index, listener) in listeners.into_iter().enumerate() {
            started.spawn(listen(Rc::clone(&started), index, listener));
        }
    });

    poll_fn(|context| {
        shard.main.keep(context);
        if shard.has_failed() || shard.is_over() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    if let Some(failure) = shard.take_failure() {
        return Err(failure);
    }
    // The tasks see the end and go; each holds the shard while it lives. Senders on other threads may outlive the
    // executor, so its wakers must not stay with them.
    for _ in 0..ENDINGS_MAX {
        if let Some(waker) = own.forget_waker() {
            waker.wake();
        }
        if Rc::strong_count(&shard) == 1 {
            break;
        }
        Timer::new(Duration::from_millis(1)).await;
    }
    shard.disk.forget_wakers();
    Ok(())
}

/// Calls `turn_ended` after everything that was ready has run: it is woken by the first call of a turn, so it stands in the
/// queue behind all tasks that were ready with that one.
async fn end_turns<H: Handler + 'static>(shard: Rc<Shard<H>>) {
    // Between two turns that follow each other by themselves, others become ready: the executor looks for them at a timer.
    let mut breath: Option<Timer> = None;
    poll_fn(|context| {
        shard.flusher.keep(context);
        if breath.as_mut().is_some_and(|timer| Pin::new(timer).poll(context).is_ready()) {
            breath = None;
            shard.begin_turn();
        }
        shard.end_turn();
        if shard.wants_turn() && breath.is_none() {
            let timer = breath.insert(Timer::new(BREATH));
            if Pin::new(timer).poll(context).is_ready() {
                breath = None;
                shard.begin_turn();
                context.waker().wake_by_ref();
            }
        }
        if shard.is_over() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    shard.flusher.forget();
}

async fn take_disk_events<H: Handler + 'static>(shard: Rc<Shard<H>>) {
    loop {
        let event = poll_fn(|context| match shard.disk.poll_event(context) {
            Poll::Ready(event) => Poll::Ready(Some(event)),
            Poll::Pending if shard.is_over() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await;
        match event {
            Some(DiskEvent::Done(done)) => shard.call(|handler, now| handler.disk_done(done, now)),
            Some(DiskEvent::Trouble(text)) => shard.call(|handler, now| handler.trouble(text, now)),
            None => return,
        }
    }
}

async fn take_messages<H: Handler + 'static>(shard: Rc<Shard<H>>, mailbox: Rc<Mailbox<H::Message>>) {
    let mut in_a_row = 0;
    while !shard.is_over() {
        let message = poll_fn(|context| match mailbox.poll_pop(context) {
            Poll::Ready(message) => Poll::Ready(Some(message)),
            Poll::Pending if shard.is_over() => Poll::Ready(None),
            Poll::Pending => {
                in_a_row = 0;
                Poll::Pending
            }
        })
        .await;
        let Some(message) = message else { return };
        shard.call(|handler, now| handler.message(message, now));
        in_a_row += 1;
        if in_a_row >= MESSAGES_IN_A_ROW {
            in_a_row = 0;
            Timer::new(BREATH).await;
        }
    }
}

/// The heartbeat: calls `tick` with how late it is, and ends what has taken too long.
async fn beat<H: Handler + 'static>(shard: Rc<Shard<H>>) {
    let mut due = shard.clock.now().instant.after(HEARTBEAT);
    while !shard.is_over() {
        Timer::new(due.since(shard.clock.now().instant)).await;
        shard.clock.refresh();
        let now = shard.clock.now().instant;
        let late = now.since(due);
        // After a stall the rhythm begins anew; ticks are not made up for.
        due = if late < HEARTBEAT { due.after(HEARTBEAT) } else { now.after(HEARTBEAT) };
        shard.check_deadlines(now);
        if shard.disk.is_broken() {
            shard.fail(format!("shard {}: its disk helper has died", shard.number));
            return;
        }
        shard.call(|handler, now| handler.tick(now, late));
    }
}
