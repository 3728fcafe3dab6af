//! Mail that came to be held because its sender's domain is not verified yet (src/policy/domain.rs): signed already, it is
//! released as soon as the domain's keys were seen in DNS.
//!
//! What waits is known from the envelopes, so also after a restart. What an operator has released or deleted meanwhile is
//! not touched. A domain that is taken away leaves its mail to the operator, also when it is added
//! again: its new keys have not signed that.

use crate::clock::Now;
use crate::envelope::Envelope;
use crate::id::MessageId;
use crate::limits::RELEASED_PER_TICK;
use crate::policy::domain::waits_for;
use crate::queue::Slot;
use crate::shard::core::Core;
use foldhash::HashMap;

/// The messages that wait, by tenant and domain.
pub type WaitingForDomain = HashMap<(Box<str>, Box<str>), Vec<MessageId>>;

impl Core {
    /// A message comes into the queue.
    pub(super) fn note_wait(&mut self, id: MessageId, envelope: &Envelope) {
        if let Some(domain) = envelope.held.as_deref().and_then(waits_for) {
            self.waiting_for_domain.entry((envelope.tenant.clone(), domain.into())).or_default().push(id);
        }
    }

    /// Releases what waits no more, some of it at a time.
    pub(super) fn release_verified(&mut self, now: Now) {
        let directory = self.directory.load_full();
        let is_verified = |key: &&(Box<str>, Box<str>)| {
            let (tenant, domain) = *key;
            directory.domain(tenant, domain).is_some_and(|domain| domain.is_verified())
        };
        let Some(key) = self.waiting_for_domain.keys().find(is_verified).cloned() else { return };
        let since = directory.domain(&key.0, &key.1).map_or(u64::MAX, |domain| domain.created_ms);
        let Some(waiting) = self.waiting_for_domain.get_mut(&key) else { return };
        let later = waiting.split_off(waiting.len().min(RELEASED_PER_TICK));
        let released = std::mem::replace(waiting, later);
        if waiting.is_empty() {
            self.waiting_for_domain.remove(&key);
        }
        for id in released {
            let slot = self.queue.find(id);
            let signed =
                |slot: &Slot| self.queue.message(*slot).is_some_and(|message| message.arrived().as_millis() >= since);
            if let Some(slot) = slot.filter(signed) {
                self.release_held(slot, now);
            }
        }
        self.route_unrouted(now);
    }
}
