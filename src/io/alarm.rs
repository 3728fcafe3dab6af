//! The one time at which a handler wants to be woken between two heartbeats: where a rate lets the next go.

use crate::clock::Instant;
use crate::io::handler::Handler;
use crate::io::turn::Shard;
use crate::io::waker::WakerCell;
use glommio::timer::Timer;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

/// When to wake.
pub(crate) struct Alarm {
    at: Cell<Instant>,
    waker: WakerCell,
}

impl Default for Alarm {
    fn default() -> Alarm {
        Alarm { at: Cell::new(Instant::MAX), waker: WakerCell::default() }
    }
}

impl Alarm {
    /// Sets it to this time.
    pub(crate) fn set(&self, at: Instant) {
        self.at.set(at);
        self.waker.wake();
    }
}

/// The task that wakes the handler.
pub(crate) async fn ring<H: Handler + 'static>(shard: Rc<Shard<H>>) {
    let mut timer: Option<(Instant, Timer)> = None;
    poll_fn(|context| {
        let alarm = &shard.alarm;
        alarm.waker.keep(context);
        if shard.is_over() {
            return Poll::Ready(());
        }
        loop {
            let at = alarm.at.get();
            if at == Instant::MAX {
                timer = None;
                return Poll::Pending;
            }
            let (_, running) = match timer.take_if(|(set, _)| *set == at) {
                Some(same) => timer.insert(same),
                None => timer.insert((at, Timer::new(at.since(shard.clock.now().instant)))),
            };
            if Pin::new(running).poll(context).is_pending() {
                return Poll::Pending;
            }
            timer = None;
            alarm.at.set(Instant::MAX);
            shard.call(|handler, now| handler.woken(now));
        }
    })
    .await;
    shard.alarm.waker.forget();
}
