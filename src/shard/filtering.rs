//! Content filters see each complete message of their listeners before it is signed and stored; they are asked by the
//! control thread (src/control/filters.rs), within a time, and the message's session waits as it does for the commit.
//!
//! Not here: how they are asked. Each question has one answer. A session that ends meanwhile takes content that lies in a
//! file of its own with it; what is in memory is stored all the same.

use crate::clock::Now;
use crate::envelope::Envelope;
use crate::event::Event;
use crate::id::MessageId;
use crate::io::handler::ConnId;
use crate::policy::domain::Domain;
use crate::reply::Reply;
use crate::shard::connections::Conn;
use crate::shard::core::Core;
use crate::shard::ingress::{InboundState, Incoming};
use crate::shard::message::{FilterContent, FilterQuestion, FilterVerdict, Passed, Rejected, Report};
use crate::shard::storing::Origin;
use bytes::Bytes;
use foldhash::HashMap;
use std::sync::Arc;

/// A complete message in memory that waits for its filters.
#[derive(Debug)]
pub struct Unfiltered {
    origin: Origin,
    /// All but its content.
    incoming: Incoming,
    content: Bytes,
    signer: Option<Arc<Domain>>,
}

/// All such messages. Bounded by the memory for content, beyond which no content is begun; in time, by that of the filters.
pub type Filtering = HashMap<MessageId, Box<Unfiltered>>;

impl Core {
    /// What the filters are told of a message; its content is put in by who has it.
    pub(super) fn filter_question(&self, state: &InboundState, envelope: &Envelope, id: MessageId) -> FilterQuestion {
        let listener = &self.settings.listeners[usize::from(state.listener)];
        FilterQuestion {
            id,
            conn: state.conn,
            filters: Arc::clone(&listener.filters),
            client: state.client,
            helo: state.helo.clone(),
            tls: state.tls.as_ref().map(|tls| (tls.version, tls.cipher)),
            login: state.credential.as_ref().map(|credential| credential.login.clone()),
            tenant: envelope.tenant.clone(),
            sender: envelope.reverse_path.as_ref().map_or_else(Box::default, |path| path.as_str().into()),
            recipients: envelope.recipients.iter().map(|recipient| recipient.address.as_str().into()).collect(),
            content: FilterContent::Memory(Bytes::new()),
        }
    }

    /// A complete message in memory: its filters are asked.
    pub(super) fn await_filters(
        &mut self,
        origin: Origin,
        mut incoming: Incoming,
        signer: Option<Arc<Domain>>,
        question: FilterQuestion,
    ) {
        let content = Bytes::from(std::mem::take(&mut incoming.content));
        let received = FilterContent::Memory(content.slice(incoming.trace_len..));
        self.filtering.insert(incoming.id, Box::new(Unfiltered { origin, incoming, content, signer }));
        self.ask_filters(FilterQuestion { content: received, ..question });
    }

    /// The same for a message all of which lies in its own file, where the filters read it.
    pub(super) fn ask_filters_of_file(&mut self, state: &InboundState) {
        let Some(incoming) = state.incoming.as_deref() else { return };
        let Some(spill) = &incoming.spill else { return };
        let offset = spill.front.as_ref().map_or(0, |front| front.room) + incoming.trace_len;
        let content = FilterContent::File { offset: offset as u64, len: incoming.len - offset as u64 };
        let question = self.filter_question(state, &incoming.envelope, incoming.id);
        self.ask_filters(FilterQuestion { content, ..question });
    }

    fn ask_filters(&mut self, question: FilterQuestion) {
        let shard = self.shard;
        self.report(Report::Filter { shard, question: Box::new(question) });
    }

    /// The filters have answered.
    pub(super) fn filtered(&mut self, verdict: FilterVerdict, now: Now) {
        let FilterVerdict { id, conn, result, failures } = verdict;
        self.metrics.filter_failures += u64::from(failures);
        match &result {
            Ok(passed) if passed.held.is_some() => self.metrics.filtered_held += 1,
            Ok(_) => self.metrics.filtered_passed += 1,
            Err(rejected) if rejected.reply.code < 500 => self.metrics.filtered_deferred += 1,
            Err(_) => self.metrics.filtered_rejected += 1,
        }
        let passed = match result {
            Ok(passed) => passed,
            Err(rejected) => return self.rejected_by_filter(id, conn, rejected, now),
        };
        match self.filtering.remove(&id) {
            Some(unfiltered) => self.filtered_in_memory(*unfiltered, passed, now),
            None => {
                let Some(mut inbound) = self.connections.take_inbound(conn) else { return };
                let finished = self.filtered_in_file(&mut inbound.state, id, passed, now);
                self.connections.put(conn, Conn::Inbound(inbound));
                if let Err(reply) = finished {
                    self.answer_stored(conn, Err(reply), now);
                }
            }
        }
    }

    /// A filter does not let a message in: it ends, and counts for nobody's quota.
    fn rejected_by_filter(&mut self, id: MessageId, conn: ConnId, rejected: Rejected, now: Now) {
        let path =
            |envelope: &Envelope| envelope.reverse_path.as_ref().map_or_else(Box::default, |path| path.as_str().into());
        let (client, sender) = match self.filtering.remove(&id) {
            Some(unfiltered) => {
                self.content_octets -= unfiltered.incoming.counted;
                (unfiltered.origin.client, path(&unfiltered.incoming.envelope))
            }
            None => {
                let Some(mut inbound) = self.connections.take_inbound(conn) else { return };
                let state = &mut inbound.state;
                let facts = waiting(state, id).map(|one| path(&one.envelope)).map(|path| (state.client.ip(), path));
                if facts.is_some() {
                    self.spilling.remove(&id);
                    self.drop_incoming(state);
                }
                self.connections.put(conn, Conn::Inbound(inbound));
                let Some(facts) = facts else { return };
                facts
            }
        };
        self.metrics.rejected += 1;
        let Rejected { filter, reply } = rejected;
        let told = reply.to_string().into();
        self.event(Event::Rejected { client, sender, recipient: None, reply: told, filter: Some(filter) });
        self.tell_stored(conn, Err(reply), now);
    }

    fn filtered_in_memory(&mut self, unfiltered: Unfiltered, passed: Passed, now: Now) {
        let Unfiltered { origin, mut incoming, content, signer } = unfiltered;
        let conn = origin.conn;
        self.content_octets -= incoming.counted;
        let Passed { headers, held } = passed;
        incoming.content = if headers.is_empty() { content.into() } else { [&headers, &content[..]].concat() };
        incoming.trace_len += headers.len();
        incoming.len += headers.len() as u64;
        incoming.counted += headers.len();
        incoming.envelope.held = held.or(incoming.envelope.held);
        let stored = match signer {
            Some(domain) => {
                self.content_octets += incoming.counted;
                self.await_signature(origin, incoming, domain);
                Ok(())
            }
            None => self.store_inline(origin, incoming, now),
        };
        if let Err(reply) = stored {
            self.answer_stored(conn, Err(reply), now);
        }
    }

    fn filtered_in_file(
        &mut self,
        state: &mut InboundState,
        id: MessageId,
        passed: Passed,
        now: Now,
    ) -> Result<(), Reply> {
        let Some(incoming) = waiting(state, id) else { return Ok(()) };
        incoming.envelope.held = passed.held.or(incoming.envelope.held.take());
        let finished = self.finish_spill(incoming, &passed.headers, now);
        if finished.is_err() {
            self.spilling.remove(&id);
            self.drop_incoming(state);
        }
        finished
    }
}

/// The message of this session that waits for its filters, when it is this one: the session may be another one's by now, or at its
/// next message, when the disk refused this one meanwhile.
fn waiting(state: &mut InboundState, id: MessageId) -> Option<&mut Incoming> {
    let waits = |incoming: &Incoming| incoming.spill.as_ref().is_some_and(|spill| spill.for_filters);
    state.incoming.as_deref_mut().filter(|one| one.id == id && waits(one))
}
