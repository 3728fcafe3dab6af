//! Bounded mailboxes: from anywhere into a shard, and from shards to the control thread. No lock, no allocation per
//! message, no system call unless the receiver sleeps.
//!
//! A full mailbox gives the message back: what happens then is the sender's affair and is written at each kind of message
//! (src/shard/message.rs). A message is never lost between push and pop, and a sleeping receiver is always woken: it
//! looks, registers its waker and looks again, and a sender pushes before it wakes. Messages of one sender stay in order.

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;

/// How long reports that are not urgent wait for more of their kind.
const NAP: Duration = Duration::from_millis(5);

struct Shared<M> {
    queue: ArrayQueue<M>,
    waker: AtomicWaker,
}

/// The receiving end of a shard's mailbox: one per shard.
pub struct Mailbox<M> {
    shared: Arc<Shared<M>>,
}

/// A sending end of a shard's mailbox: as many as needed, on any thread.
pub struct Sender<M> {
    shared: Arc<Shared<M>>,
}

/// A mailbox for at most `capacity` messages (at least one).
pub fn mailbox<M: Send>(capacity: usize) -> (Sender<M>, Mailbox<M>) {
    let shared = Arc::new(Shared { queue: ArrayQueue::new(capacity.max(1)), waker: AtomicWaker::new() });
    (Sender { shared: Arc::clone(&shared) }, Mailbox { shared })
}

impl<M> Sender<M> {
    /// Puts a message in and wakes the receiver if it sleeps.
    ///
    /// # Errors
    /// Gives the message back when the mailbox is full.
    pub fn push(&self, message: M) -> Result<(), M> {
        self.shared.queue.push(message)?;
        self.shared.waker.wake();
        Ok(())
    }
}

impl<M> Sender<M> {
    /// How many messages wait in the mailbox.
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }
}

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Sender<M> {
        Sender { shared: Arc::clone(&self.shared) }
    }
}

impl<M> fmt::Debug for Sender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("waiting", &self.shared.queue.len()).finish()
    }
}

impl<M> Mailbox<M> {
    /// The next message, if one is there.
    pub fn try_pop(&self) -> Option<M> {
        self.shared.queue.pop()
    }

    /// The next message; the task is woken when one comes.
    pub fn poll_pop(&self, context: &mut Context<'_>) -> Poll<M> {
        if let Some(message) = self.shared.queue.pop() {
            return Poll::Ready(message);
        }
        self.shared.waker.register(context.waker());
        // A sender may have pushed between the look and the registration, and found nobody to wake.
        match self.shared.queue.pop() {
            Some(message) => Poll::Ready(message),
            None => Poll::Pending,
        }
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }

    /// Forgets the waker of the receiving task, so that it is dropped on the receiver's own thread and not by a sender.
    pub(crate) fn forget_waker(&self) -> Option<Waker> {
        self.shared.waker.take()
    }
}

impl<M> fmt::Debug for Mailbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("waiting", &self.len()).finish()
    }
}

struct InboxShared<R> {
    queue: ArrayQueue<R>,
    urgent: fn(&R) -> bool,
    /// Told of each urgent report.
    now: Notify,
    /// Told of each of the others.
    soon: Notify,
}

/// The receiving end of the control thread's inbox, for a tokio task.
pub struct Inbox<R> {
    shared: Arc<InboxShared<R>>,
}

/// A sending end of the control thread's inbox.
pub struct InboxSender<R> {
    shared: Arc<InboxShared<R>>,
}

/// An inbox for at most `capacity` reports (at least one). Those that are not `urgent` may wait for [`NAP`] once the
/// receiver has emptied it: under load each would otherwise wake a thread that has just gone to sleep.
pub fn inbox<R: Send>(capacity: usize, urgent: fn(&R) -> bool) -> (InboxSender<R>, Inbox<R>) {
    let queue = ArrayQueue::new(capacity.max(1));
    let shared = Arc::new(InboxShared { queue, urgent, now: Notify::new(), soon: Notify::new() });
    (InboxSender { shared: Arc::clone(&shared) }, Inbox { shared })
}

impl<R> InboxSender<R> {
    /// Puts a report in and sees to it that the control thread takes it, at once if it is urgent.
    ///
    /// # Errors
    /// Gives the report back when the inbox is full.
    pub fn push(&self, report: R) -> Result<(), R> {
        let urgent = (self.shared.urgent)(&report);
        self.shared.queue.push(report)?;
        if urgent {
            self.shared.now.notify_one()
        } else {
            self.shared.soon.notify_one()
        }
        Ok(())
    }
}

impl<R> Clone for InboxSender<R> {
    fn clone(&self) -> InboxSender<R> {
        InboxSender { shared: Arc::clone(&self.shared) }
    }
}

impl<R> fmt::Debug for InboxSender<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxSender").field("waiting", &self.shared.queue.len()).finish()
    }
}

impl<R> Inbox<R> {
    /// The next report, if one is there.
    pub fn try_recv(&self) -> Option<R> {
        self.shared.queue.pop()
    }

    /// Waits for the next report. Safe to cancel: a report is taken only when it is returned.
    pub async fn recv(&self) -> R {
        loop {
            if let Some(report) = self.shared.queue.pop() {
                return report;
            }
            // `notify_one` leaves a permit when nobody waits, so a push between the look and the wait is not missed.
            let soon = async {
                tokio::time::sleep(NAP).await;
                self.shared.soon.notified().await;
            };
            tokio::select! {
                () = self.shared.now.notified() => {}
                () = soon => {}
            }
        }
    }
}

impl<R> fmt::Debug for Inbox<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("waiting", &self.shared.queue.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let (sender, mailbox) = mailbox(2);
        assert_eq!(sender.push(1), Ok(()));
        assert_eq!(sender.push(2), Ok(()));
        assert_eq!(sender.push(3), Err(3));
        assert_eq!((mailbox.try_pop(), mailbox.len()), (Some(1), 1));
        assert_eq!(sender.push(4), Ok(()));
    }

    /// Four threads push into a small mailbox of a glommio executor that sleeps whenever it is empty: every message comes,
    /// once, and each sender's in order. A lost wake-up shows as a test that hangs.
    #[test]
    fn senders_on_other_threads_always_wake_a_sleeping_executor() {
        const SENDERS: u64 = 4;
        const EACH: u64 = 20_000;
        let (sender, mailbox) = mailbox::<(u64, u64)>(64);
        let threads: Vec<_> = (0..SENDERS)
            .map(|name| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for number in 0..EACH {
                        let mut message = (name, number);
                        while let Err(back) = sender.push(message) {
                            message = back;
                            std::thread::yield_now();
                        }
                        if number % 1_000 == 0 {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let executor =
            glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).io_memory(65_536).make().unwrap();
        let seen = executor.run(async move {
            let mut next = [0; SENDERS as usize];
            for _ in 0..SENDERS * EACH {
                let (name, number) = poll_fn(|context| mailbox.poll_pop(context)).await;
                assert_eq!(next[name as usize], number, "sender {name} out of order");
                next[name as usize] += 1;
            }
            drop(mailbox.forget_waker());
            next
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(seen, [EACH; SENDERS as usize]);
    }

    #[test]
    fn reports_wake_the_control_thread() {
        let (sender, inbox) = inbox::<u64>(8, |number| number % 2 == 0);
        let thread = std::thread::spawn(move || {
            for number in 0..10_000 {
                let mut report = number;
                while let Err(back) = sender.push(report) {
                    report = back;
                    std::thread::yield_now();
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for number in 0..10_000 {
                assert_eq!(inbox.recv().await, number);
            }
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_report_that_is_not_urgent_comes_by_itself_too() {
        let (sender, inbox) = inbox::<u64>(8, |_| false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            for number in 0..3 {
                let (received, ()) = tokio::join!(inbox.recv(), async {
                    tokio::task::yield_now().await;
                    sender.push(number).unwrap();
                });
                assert_eq!(received, number);
            }
        });
    }
}
