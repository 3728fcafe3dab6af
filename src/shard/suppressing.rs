//! Recipients to whom nothing is sent any more (src/policy/suppression.rs): refused at RCPT or taken and ended as suppressed, when
//! their message comes into the queue and again before each attempt.

use crate::limits::SUPPRESSED_PER_PICK;
use crate::policy::suppression::{Bounce, SUPPRESSED};
use crate::queue::{Pick, SiteId, Slot};
use crate::reply::Reply;
use crate::shard::attempt::{AttemptOutcome, Verdict};
use crate::shard::core::Core;
use crate::shard::ingress::InboundState;
use crate::shard::message::Report;

impl Core {
    /// Whether a client is told now that nothing is sent to this recipient.
    ///
    /// # Errors
    /// When it is told so.
    pub(super) fn check_suppressed(&self, state: &InboundState, tenant: &str, address: &str) -> Result<(), Reply> {
        let told = self.settings.refuse_suppressed && !self.is_named_later(state);
        if told && self.suppression.is_suppressed(tenant, address, self.now.unix) {
            return Err(SUPPRESSED);
        }
        Ok(())
    }

    /// Whether nothing is sent to this recipient.
    pub(super) fn is_suppressed(&self, slot: Slot, recipient: u16) -> bool {
        if self.suppression.is_empty() {
            return false;
        }
        self.queue.message(slot).is_some_and(|message| {
            let tenant = self.tenants.name(message.tenant());
            self.suppression.is_suppressed(tenant, message.address(recipient), self.now.unix)
        })
    }

    /// Ends these recipients of a message: nothing is sent to them.
    pub(super) fn suppress(&mut self, slot: Slot, recipients: &[u16]) {
        let outcome = AttemptOutcome::local(Verdict::Suppressed, SUPPRESSED);
        let outcomes = recipients.iter().map(|&recipient| (recipient, outcome.clone())).collect();
        self.conclude(slot, outcomes, None, self.now);
    }

    /// What goes to a site next, without those to whom nothing is sent.
    pub(super) fn pick(&mut self, site: SiteId, most: usize) -> Option<Pick> {
        for _ in 0..SUPPRESSED_PER_PICK {
            let Pick { slot, recipients } = self.queue.pick(site, most)?;
            let (suppressed, sent): (Vec<u16>, Vec<u16>) = match self.suppression.is_empty() {
                true => (Vec::new(), recipients),
                false => recipients.into_iter().partition(|&recipient| self.is_suppressed(slot, recipient)),
            };
            if !suppressed.is_empty() {
                self.suppress(slot, &suppressed);
            }
            if !sent.is_empty() {
                return Some(Pick { slot, recipients: sent });
            }
        }
        // There may be more of them: the next turn goes on.
        self.touch(site);
        None
    }

    /// A recipient failed for good: what that says of its address is noted.
    pub(super) fn note_bounce(&mut self, tenant: &str, address: &str, outcome: &AttemptOutcome) {
        if !self.settings.bounces_suppress || !outcome.from_peer {
            return;
        }
        if let Some(bounce) = outcome.meaning.and_then(|meaning| Bounce::of(meaning, outcome.stage)) {
            let reply = outcome.reply.to_string().into();
            self.report(Report::Bounced { tenant: tenant.into(), address: address.into(), bounce, reply });
        }
    }
}
