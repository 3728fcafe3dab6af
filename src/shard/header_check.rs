//! What the header section of a message on its way in decides, once it is complete: whether it goes round in a loop, whose message
//! it is, whether it has what it must have, who signs it; and what is added to it and taken away.

use crate::clock::Now;
use crate::envelope::Envelope;
use crate::policy::domain::Domain;
use crate::policy::headers::{fields, section_len, without};
use crate::policy::identity::Passage;
use crate::policy::trace;
use crate::reply::Reply;
use crate::shard::ingress::Receiving;
use std::borrow::Cow;
use std::sync::Arc;

const LOOP: Reply = Reply::fixed(
    554,
    5,
    4,
    6,
    "Too many Received headers: this message goes round in a loop; check the routes of the hosts it passed",
);

impl Receiving<'_> {
    /// The header section's checks, made once: when it is complete or content first leaves memory. Gives the domain that
    /// signs.
    pub(super) fn check_headers(&mut self, now: Now) -> Result<Option<Arc<Domain>>, Reply> {
        let Some(incoming) = self.state.incoming.as_deref() else { return Ok(None) };
        let received = &incoming.content[incoming.trace_len..];
        let headers = trace::Headers::scan(received);
        if headers.received_count > self.core.settings.max_received_headers {
            return Err(LOOP);
        }
        let (section, _) = received.split_at(section_len(received).unwrap_or(received.len()));
        check_required(section, &self.listener().required_headers)?;
        if self.core.is_named_later(self.state)
            && let Some(name) = self.listener().tenant_header.as_ref()
            && let Some(tenant) = trace::header_value(received, name)
        {
            self.core.may_be_of(self.state, &tenant)?;
            if let Some(incoming) = self.state.incoming.as_mut() {
                incoming.envelope.tenant = tenant;
            }
        }
        self.core.check_named_bounds(self.state)?;
        self.core.count_message(self.state, true, now)?;
        let listener = &self.core.settings.listeners[usize::from(self.state.listener)];
        let Some(incoming) = self.state.incoming.as_mut() else { return Ok(None) };
        let (trace, received) = incoming.content.split_at(incoming.trace_len);
        let directory = self.core.directory.load();
        let Envelope { tenant, reverse_path, .. } = &incoming.envelope;
        let Passage { signer, held } = directory.passage(tenant, reverse_path.as_ref(), received)?;
        incoming.envelope.held = held;
        let (section, rest) = received.split_at(section_len(received).unwrap_or(received.len()));
        let mut cleaned = Cow::Borrowed(section);
        let mut added = Vec::new();
        if listener.submission {
            added = trace::submission_headers(&headers, incoming.id, &self.core.settings.hostname, now.unix);
            // Whom else a message went to is nobody's business (RFC 5322 3.6.3).
            leave_out(&mut cleaned, "Bcc");
        }
        // Nor is what we call our tenants.
        if let Some(name) = &listener.tenant_header {
            leave_out(&mut cleaned, name);
        }
        if !added.is_empty() || matches!(cleaned, Cow::Owned(_)) {
            let whole = [trace, &added, &cleaned, rest].concat();
            let before = std::mem::replace(&mut incoming.content, whole).len();
            incoming.len = incoming.len - before as u64 + incoming.content.len() as u64;
            incoming.counted = incoming.counted - before + incoming.content.len();
            self.core.content_octets = self.core.content_octets - before + incoming.content.len();
        }
        Ok(signer)
    }
}

fn leave_out(section: &mut Cow<'_, [u8]>, name: &str) {
    if let Some(kept) = without(section, name) {
        *section = Cow::Owned(kept);
    }
}

fn check_required(section: &[u8], names: &[Box<str>]) -> Result<(), Reply> {
    let is_there = |name: &str| fields(section).any(|field| field.name.eq_ignore_ascii_case(name.as_bytes()));
    match names.iter().find(|name| !is_there(name)) {
        Some(name) => {
            let text = format!("The message has no {name} header, which must be there: add it and send again");
            Err(Reply::new(550, (5, 6, 0), text))
        }
        None => Ok(()),
    }
}
