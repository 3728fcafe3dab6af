//! Whose message it is, and what bounds it: that of the login's tenant or the listener's, unless a header or a subaddress of the
//! sender names another one where the client may name one. What the addresses say otherwise is left alone.

use crate::address::Address;
use crate::policy::identity::Tenant;
use crate::reply::Reply;
use crate::shard::core::Core;
use crate::shard::ingress::InboundState;
use crate::shard::settings::ListenerSettings;
use crate::smtp::replies::TOO_BIG;
use crate::smtp::server::Bounds;

impl Core {
    fn listener_of(&self, state: &InboundState) -> &ListenerSettings {
        &self.settings.listeners[usize::from(state.listener)]
    }

    /// Whether the client may name a tenant: credentials that are meant for that, and clients of trusted networks.
    fn may_name_tenants(&self, state: &InboundState) -> bool {
        state.credential.as_ref().is_none_or(|credential| credential.any_tenant)
    }

    /// Whether a header may name the tenant.
    pub(super) fn is_named_later(&self, state: &InboundState) -> bool {
        self.listener_of(state).tenant_header.is_some() && self.may_name_tenants(state)
    }

    /// The tenant of a message from this sender, as far as that is known before its headers.
    ///
    /// # Errors
    /// When the sender's subaddress names one that may not submit.
    pub(super) fn tenant_of<'a>(
        &'a self,
        state: &'a InboundState,
        sender: Option<&'a Address>,
    ) -> Result<&'a str, Reply> {
        let listener = self.listener_of(state);
        let own = state.credential.as_ref().map_or(&listener.tenant, |credential| &credential.tenant);
        if listener.tenant_subaddress
            && self.may_name_tenants(state)
            && let Some(name) = sender.and_then(subaddress)
            && let Some(tenant) = self.directory.load().tenant(name)
        {
            return if tenant.enabled { Ok(name) } else { Err(disabled(name)) };
        }
        Ok(own)
    }

    /// Whether a message that a header gives to this tenant may be its.
    ///
    /// # Errors
    /// When it may not submit, or a login names one that is not there.
    pub(super) fn may_be_of(&self, state: &InboundState, name: &str) -> Result<(), Reply> {
        match self.directory.load().tenant(name) {
            Some(tenant) if !tenant.enabled => Err(disabled(name)),
            // Those of trusted networks may use names that nobody has added.
            None if state.credential.is_some() => {
                Err(Reply::new(550, (5, 7, 1), format!("There is no tenant {name}: correct the header that names it")))
            }
            _ => Ok(()),
        }
    }

    /// What bounds a message of this client, as far as its tenant is known by now.
    pub(super) fn bounds(&self, state: &InboundState, sender: Option<&Address>) -> Bounds {
        let directory = self.directory.load();
        let listener = self.listener_of(state);
        let own = match &state.credential {
            Some(credential) => directory.credential(&credential.login).filter(|one| one.id == credential.id),
            // Strangers are told what holds for all.
            None if !listener.relay.trusts(state.client.ip()) => return Bounds::default(),
            None => None,
        };
        let of_credential = own.map(|one| one.quotas.bounds()).unwrap_or_default();
        let Ok(tenant) = self.tenant_of(state, sender) else { return of_credential };
        let tenant = directory.tenant(tenant).filter(|_| !self.is_named_later(state));
        of_credential.and(tenant.map(|tenant| tenant.quotas.bounds()).unwrap_or_default())
    }

    /// Whether a message is within the bounds of the tenant that a header may have named, as far as it has come.
    ///
    /// # Errors
    /// When it is not.
    pub(super) fn check_named_bounds(&self, state: &InboundState) -> Result<(), Reply> {
        let Some(incoming) = state.incoming.as_deref().filter(|_| self.is_named_later(state)) else { return Ok(()) };
        let bounds = self.directory.load().tenant(&incoming.envelope.tenant).map(bounds_of).unwrap_or_default();
        let front = incoming.spill.as_ref().and_then(|spill| spill.front.as_ref()).map_or(0, |front| front.room);
        let octets = incoming.len.saturating_sub((front + incoming.trace_len) as u64);
        if bounds.message_size.is_some_and(|size| octets > size) {
            return Err(TOO_BIG);
        }
        match bounds.recipients {
            Some(most) if incoming.envelope.recipients.len() > most as usize => {
                let text = format!("This tenant's messages have at most {most} recipients: send several messages");
                Err(Reply::new(550, (5, 5, 3), text))
            }
            _ => Ok(()),
        }
    }
}

fn bounds_of(tenant: &std::sync::Arc<Tenant>) -> Bounds {
    tenant.quotas.bounds()
}

fn disabled(name: &str) -> Reply {
    Reply::new(550, (5, 7, 1), format!("Tenant {name} may not submit mail: its operator has disabled it"))
}

/// What stands between the first `+` of the local part and the next one (RFC 5233 1).
fn subaddress(address: &Address) -> Option<&str> {
    let (_, detail) = address.local_part().split_once('+')?;
    let name = detail.split('+').next().unwrap_or(detail);
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_subaddress_names_the_tenant() {
        for (text, name) in [
            ("a+acme@x.test", Some("acme")),
            ("a+acme+bob=dest.test@x.test", Some("acme")),
            ("a@x.test", None),
            ("a+@x.test", None),
            ("+acme@x.test", Some("acme")),
        ] {
            let address = Address::parse(text.as_bytes(), false).unwrap();
            assert_eq!(subaddress(&address), name, "{text}");
        }
    }
}
