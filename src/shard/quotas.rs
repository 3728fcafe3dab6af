//! The quotas of whoever sends (src/policy/quota.rs), asked as a transaction goes on and counted when its content begins. Where a
//! header may name the tenant, they are asked and counted when that has come.
//!
//! What counts in hours and days is on disk before it counts. Where too little is reserved there the control thread is asked for
//! more, and the message waits for it at the last moment, before it is stored; its session waits as it does for the commit.

use crate::clock::{Instant, Now};
use crate::limits::RESERVATION_TIME;
use crate::policy::charge::{self, Charge};
use crate::policy::quota::Counted;
use crate::policy::usage::Taken;
use crate::reply::Reply;
use crate::shard::core::Core;
use crate::shard::ingress::InboundState;
use crate::shard::message::Report;
use crate::shard::storing::Unstored;
use std::collections::VecDeque;

/// A complete message whose count is not on disk yet.
#[derive(Debug)]
pub struct Uncounted {
    message: Box<Unstored>,
    since: Instant,
}

/// All such messages, the oldest first. Bounded by the memory for content, beyond which no content is begun; in time, by
/// [`RESERVATION_TIME`].
pub type AwaitingCount = VecDeque<Uncounted>;

/// What the client is told when the disk does not get round to it.
const NOT_COUNTED: Reply =
    Reply::fixed(451, 4, 3, 0, "The use of your quota could not be recorded in time; try again later");

impl Core {
    /// Whether the quotas have room for so many more.
    pub(super) fn may_send(
        &self,
        state: &InboundState,
        tenant: &str,
        counted: Counted,
        more: u32,
        now: Now,
    ) -> Result<(), Reply> {
        if self.is_named_later(state) {
            return Ok(());
        }
        let directory = self.directory.load();
        let tenant = directory.tenant(tenant).map(|tenant| &**tenant);
        charge::check(tenant, state.credential.as_deref(), counted, more, now.unix)
    }

    /// Counts the message under way, once: when its content begins, or when its headers have come.
    pub(super) fn count_message(
        &mut self,
        state: &mut InboundState,
        headers_came: bool,
        now: Now,
    ) -> Result<(), Reply> {
        if self.is_named_later(state) != headers_came {
            return Ok(());
        }
        let Some(incoming) = state.incoming.as_mut() else { return Ok(()) };
        let directory = self.directory.load();
        let tenant = directory.tenant(&incoming.envelope.tenant);
        let recipients = incoming.envelope.recipients.len() as u32;
        let Some(mut charge) = Charge::of(tenant, state.credential.as_ref(), recipients) else { return Ok(()) };
        drop(directory);
        self.take_charge(&mut charge, now)?;
        incoming.charge = Some(charge);
        Ok(())
    }

    /// Whether it counts now; asks for more to be reserved when there is too little.
    fn take_charge(&mut self, charge: &mut Charge, now: Now) -> Result<bool, Reply> {
        let taken = charge.take(now.unix)?;
        if taken != Taken::Yes && charge.should_ask() {
            self.ask_to_reserve(charge);
        }
        Ok(taken != Taken::Unreserved)
    }

    fn ask_to_reserve(&mut self, charge: &Charge) {
        let (tenant, login) = charge.names();
        let (tenant, login) = (tenant.map(Into::into), login.map(Into::into));
        self.report(Report::Reserve { tenant, login });
    }

    /// Whether a message that is about to be stored counts; else it comes back in `message`, is kept, and stored when it does.
    pub(super) fn await_count(&mut self, mut message: Unstored, now: Now) -> Result<Option<Unstored>, Reply> {
        let counts = match message.charge() {
            Some(charge) if !charge.is_taken() => self.take_charge(charge, now)?,
            _ => true,
        };
        if counts {
            return Ok(Some(message));
        }
        self.content_octets += message.counted();
        self.awaiting_count.push_back(Uncounted { message: Box::new(message), since: now.instant });
        Ok(None)
    }

    /// More may be reserved by now: stores what counts, and ends what has waited too long.
    pub(super) fn store_counted(&mut self, now: Now) {
        for _ in 0..self.awaiting_count.len() {
            let Some(Uncounted { mut message, since }) = self.awaiting_count.pop_front() else { return };
            let counts = match message.charge() {
                Some(charge) => self.take_charge(charge, now),
                None => Ok(true),
            };
            match counts {
                Ok(false) if now.instant.since(since) < RESERVATION_TIME => {
                    self.awaiting_count.push_back(Uncounted { message, since });
                    continue;
                }
                Ok(true) => {
                    self.content_octets -= message.counted();
                    self.store_waiting(*message, now);
                }
                Ok(false) => self.end_uncounted(*message, NOT_COUNTED, now),
                Err(reply) => self.end_uncounted(*message, reply, now),
            }
        }
    }

    fn end_uncounted(&mut self, message: Unstored, reply: Reply, now: Now) {
        self.content_octets -= message.counted();
        self.refuse_waiting(message, reply, now);
    }

    /// Asks again for those that still wait: a question may have been lost, or its answer come when the disk was full.
    pub(super) fn ask_to_reserve_again(&mut self) {
        let waiting = std::mem::take(&mut self.awaiting_count);
        waiting
            .iter()
            .for_each(|one| one.message.charge_ref().into_iter().for_each(|charge| self.ask_to_reserve(charge)));
        self.awaiting_count = waiting;
    }
}
