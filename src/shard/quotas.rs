//! The quotas of whoever sends (src/policy/quota.rs), asked as a transaction goes on and counted when its content begins. Where a
//! header may name the tenant, they are asked and counted when that has come.

use crate::clock::Now;
use crate::policy::quota::{self, Counted};
use crate::reply::Reply;
use crate::shard::core::Core;
use crate::shard::ingress::InboundState;

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
        quota::check(&directory.accounts(tenant, state.credential.as_deref()), counted, more, now.unix)
    }

    /// Counts the message under way, once: when its content begins, or when its headers have come.
    pub(super) fn count_message(&self, state: &InboundState, headers_came: bool, now: Now) -> Result<(), Reply> {
        let Some(incoming) = state.incoming.as_ref().filter(|_| self.is_named_later(state) == headers_came) else {
            return Ok(());
        };
        let directory = self.directory.load();
        let accounts = directory.accounts(&incoming.envelope.tenant, state.credential.as_deref());
        quota::take(&accounts, incoming.envelope.recipients.len() as u32, now.unix)
    }

    /// Whether a header may name the tenant.
    fn is_named_later(&self, state: &InboundState) -> bool {
        state.credential.is_none() && self.settings.listeners[usize::from(state.listener)].tenant_header.is_some()
    }
}
