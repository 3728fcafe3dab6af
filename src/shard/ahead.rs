//! The next message's commands behind a content, before its final reply: one round trip less for each message to a host
//! without CHUNKING.
//!
//! RFC 2920 3.1 allows it, and not every server gets it right. So a host is tried first, with one message, when it has
//! served some on ordinary terms; only one that passes is sent more. What goes wrong has no effect on the message, of which
//! nothing but its envelope has gone out, and is remembered against the host.

use crate::clock::Now;
use crate::event::Event;
use crate::limits::AHEAD_TRIAL;
use crate::shard::attempt::Verdict;
use crate::shard::core::Core;
use crate::shard::egress::{Outbound, Phase};
use crate::shard::limit_queue::Wait;
use crate::shard::work::Work;
use crate::smtp::client::{ClientFailure, FailureKind};
use bytes::Bytes;
use ringpost_spool::OpId;
use std::sync::Arc;

/// Whether a host takes commands behind a content.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum AheadHabit {
    /// Not tried yet; so many messages were delivered on ordinary terms.
    Unknown {
        /// How many.
        served: u8,
    },
    /// One connection tries it.
    Trying,
    /// It does.
    Works,
    /// It does not.
    Broken,
}

/// Work chosen for a connection that still has other work.
#[derive(Debug)]
pub(super) struct Ahead {
    work: Box<Work>,
    /// Its content is being read from the spool.
    pub(super) fetching: Option<OpId>,
    /// Its commands have gone out.
    begun: bool,
}

impl Core {
    /// Begins the next message behind the content of the one under way, where there is plenty of work.
    pub(super) fn begin_ahead(&mut self, outbound: &mut Outbound, now: Now) {
        let site = outbound.site;
        let Some(known) = self.sites.get_mut(site) else { return };
        let permits = Arc::clone(&known.permits);
        let wanted = permits.shape.client.pipelined_messages;
        // A message that stands behind another waits for it: none does that another connection could take now.
        let plenty = known.idle.is_empty() && self.queue.ready_count(site) > known.open as usize;
        if !wanted || !plenty || outbound.ahead.is_some() || outbound.phase != Phase::Busy || self.stopping.is_some() {
            return;
        }
        let Some(host) = known.host_mut(outbound.address) else { return };
        let trial = match host.ahead {
            AheadHabit::Works => false,
            AheadHabit::Unknown { served } if served >= AHEAD_TRIAL => true,
            _ => return,
        };
        if self.is_spent(outbound) || self.poorer_shard(site).is_some() || !self.log.accepts_outcomes() {
            return;
        }
        if self.stands_behind(site, Wait::Transaction).is_some() || permits.begin_transaction(now.instant).is_err() {
            return;
        }
        let most = permits.shape.limits.recipients_per_transaction;
        let Some((mut work, held)) = self.next_work(site, most, now) else { return permits.return_transaction() };
        let fetching = match held {
            Some(chunks) => {
                work.set_content(chunks);
                None
            }
            // What is read piece by piece is big, and its commands are little beside it.
            None if work.content.spilled => {
                outbound.ahead = Some(Ahead { work, fetching: None, begun: false });
                return self.return_ahead(outbound, now);
            }
            None => Some(self.fetch_content(&work, outbound.conn)),
        };
        outbound.ahead = Some(Ahead { work, fetching, begun: false });
        if fetching.is_none() {
            self.send_ahead(outbound, trial);
        }
    }

    /// The content of what was chosen has been read, or cannot be.
    pub(super) fn ahead_read(&mut self, outbound: &mut Outbound, content: Option<Bytes>, now: Now) {
        let Some(ahead) = &mut outbound.ahead else { return };
        ahead.fetching = None;
        let Some(bytes) = content else {
            // Chosen again, it is told in the ordinary way.
            return self.return_ahead(outbound, now);
        };
        ahead.work.set_content(vec![bytes]);
        let host = self.sites.get_mut(outbound.site).and_then(|known| known.host_mut(outbound.address));
        match host.map(|host| host.ahead) {
            Some(AheadHabit::Works) => self.send_ahead(outbound, false),
            Some(AheadHabit::Unknown { served }) if served >= AHEAD_TRIAL => self.send_ahead(outbound, true),
            // It is begun when the one before is decided.
            _ => {}
        }
    }

    /// Sends its commands if it is the time; otherwise it is begun when the one before is decided.
    fn send_ahead(&mut self, outbound: &mut Outbound, trial: bool) {
        let Some(ahead) = &mut outbound.ahead else { return };
        let Some(transaction) = ahead.work.transaction.take() else { return };
        if let Err(transaction) = outbound.client.begin_ahead(transaction, trial) {
            ahead.work.transaction = Some(*transaction);
            return;
        }
        ahead.begun = true;
        if trial
            && let Some(host) = self.sites.get_mut(outbound.site).and_then(|known| known.host_mut(outbound.address))
        {
            host.ahead = AheadHabit::Trying;
        }
    }

    /// The message before is decided: the one that went ahead is under way.
    pub(super) fn next_in_place(&mut self, outbound: &mut Outbound, now: Now) {
        let Some(Ahead { mut work, .. }) = outbound.ahead.take() else { return };
        work.began = now.instant;
        outbound.work = Some(work);
        outbound.began_ahead = true;
        outbound.carried += 1;
    }

    /// The message before is decided, and of the chosen one nothing was sent yet: it has its turn now.
    pub(super) fn begin_chosen(&mut self, outbound: &mut Outbound, now: Now) {
        let Some(Ahead { mut work, fetching, .. }) = outbound.ahead.take() else { return };
        work.began = now.instant;
        outbound.work = Some(work);
        outbound.began_ahead = false;
        outbound.carried += 1;
        match fetching {
            Some(op) => outbound.phase = Phase::Fetching(op),
            None => self.begin_whole(outbound, now),
        }
    }

    /// Nothing of its content was sent: it is as if it had never been chosen.
    pub(super) fn return_ahead(&mut self, outbound: &mut Outbound, now: Now) {
        let Some(Ahead { work, fetching, begun }) = outbound.ahead.take() else { return };
        if let Some(op) = fetching {
            self.fetching.remove(&op);
        }
        let site = outbound.site;
        if let Some(known) = self.sites.get_mut(site) {
            known.permits.return_transaction();
            if let Some(host) = known.host_mut(outbound.address)
                && begun
                && host.ahead == AheadHabit::Trying
            {
                host.ahead = AheadHabit::Unknown { served: 0 };
            }
        }
        self.hand_over(*work, site, now);
    }

    /// A message is decided: what does that say of its host?
    pub(super) fn judge_ahead(&mut self, outbound: &Outbound) {
        let delivered =
            |work: &Work| work.outcomes.iter().flatten().any(|outcome| outcome.verdict == Verdict::Delivered);
        let delivered = outbound.work.as_deref().is_some_and(delivered);
        let Some(host) = self.sites.get_mut(outbound.site).and_then(|known| known.host_mut(outbound.address)) else {
            return;
        };
        host.ahead = match host.ahead {
            AheadHabit::Unknown { served } if delivered => AheadHabit::Unknown { served: served.saturating_add(1) },
            AheadHabit::Trying if outbound.began_ahead && delivered => AheadHabit::Works,
            AheadHabit::Trying if outbound.began_ahead => AheadHabit::Unknown { served: 0 },
            habit => habit,
        };
    }

    /// A connection broke at the commands that went ahead.
    pub(super) fn ahead_failed(&mut self, outbound: &Outbound, failure: &ClientFailure) {
        let Some(known) = self.sites.get_mut(outbound.site) else { return };
        let site = known.permits.name.clone();
        let Some(host) = known.host_mut(outbound.address) else { return };
        let trying = host.ahead == AheadHabit::Trying;
        let to_blame = match failure.kind {
            FailureKind::Protocol(_) | FailureKind::Timeout => true,
            FailureKind::Closed(_) => trying,
            // A host may have had enough for other reasons, and says so by 421.
            _ => false,
        };
        if to_blame && host.ahead != AheadHabit::Broken {
            host.ahead = AheadHabit::Broken;
            let address = outbound.address;
            let state = format!("{address} does not take a message's commands behind another's content: {failure}");
            self.event(Event::SiteState { site, state: state.into() });
        } else if trying {
            host.ahead = AheadHabit::Unknown { served: 0 };
        }
    }
}
