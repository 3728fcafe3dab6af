//! Operators' requests, as one shard answers them for its own messages.
//!
//! Acts on many messages go through the queue in pages; a request that would take long is answered with what was done
//! so far and its caller asks again (src/control/ does).

use crate::clock::Now;
use crate::event::Event;
use crate::id::MessageId;
use crate::limits::{ADMIN_BUDGET, ADMIN_PAGE_MAX};
use crate::queue::{self, Slot, State};
use crate::shard::core::Core;
use crate::shard::message::{AdminReply, AdminRequest, Filter, MessageSummary, RecipientSummary, Report, SiteSummary};
use ringpost_spool::OutcomeKind;

/// What an operator does to messages.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Act {
    Retry,
    Hold,
    Release,
    Delete,
}

impl Act {
    fn past(self) -> &'static str {
        match self {
            Act::Retry => "retried",
            Act::Hold => "held",
            Act::Release => "released",
            Act::Delete => "deleted",
        }
    }
}

impl Core {
    pub(super) fn admin(&mut self, ticket: u64, request: AdminRequest, now: Now) {
        let reply = match request {
            AdminRequest::List { filter, after, limit } => self.list(&filter, after.map(MessageId), limit, now),
            AdminRequest::Show { id } => {
                let slot = self.queue.find(MessageId(id));
                AdminReply::Message(slot.and_then(|slot| self.summary(slot, now)).map(Box::new))
            }
            AdminRequest::Retry { filter, after } => self.act(&filter, after, Act::Retry, now),
            AdminRequest::Hold { filter, after } => self.act(&filter, after, Act::Hold, now),
            AdminRequest::Release { filter, after } => self.act(&filter, after, Act::Release, now),
            AdminRequest::Delete { filter, after } => self.act(&filter, after, Act::Delete, now),
            AdminRequest::Sites => AdminReply::Sites(self.site_summaries(now)),
            AdminRequest::Metrics => AdminReply::Metrics(Box::new(self.gather_metrics())),
        };
        let shard = self.shard;
        self.report(Report::Admin { shard, ticket, reply });
    }

    /// The queue's form of a filter; none when it can fit nothing.
    fn filter(&mut self, filter: &Filter) -> Option<queue::Filter> {
        let state = match filter.state.as_deref() {
            None | Some("waiting") => None,
            Some(name) => Some(*State::ALL.iter().find(|state| state.name() == name && !state.is_done())?),
        };
        Some(queue::Filter {
            site: None,
            domain: filter.domain.as_deref().map(Into::into),
            recipient: filter.recipient.as_deref().map(Into::into),
            tenant: filter.tenant.as_deref().map(|name| self.tenants.id_of(name)),
            sender: filter.sender.as_deref().map(Into::into),
            state,
        })
    }

    fn list(&mut self, filter: &Filter, after: Option<MessageId>, limit: usize, now: Now) -> AdminReply {
        let Some(wanted) = self.filter(filter) else {
            return AdminReply::Messages { messages: Vec::new(), next: None };
        };
        let page = self.queue.page(&wanted, after, limit.min(ADMIN_PAGE_MAX), ADMIN_BUDGET);
        let messages = page
            .messages
            .into_iter()
            .filter(|(id, _)| filter.id.is_none_or(|only| only == id.0))
            .filter_map(|(_, slot)| self.summary(slot, now))
            .collect();
        AdminReply::Messages { messages, next: page.next.map(|id| id.0) }
    }

    fn names_something(filter: &Filter) -> bool {
        filter.all || *filter != Filter::default()
    }

    fn act(&mut self, filter: &Filter, after: Option<u64>, act: Act, now: Now) -> AdminReply {
        let wanted = if Core::names_something(filter) { self.filter(filter) } else { None };
        let Some(wanted) = wanted else { return AdminReply::Changed { recipients: 0, next: None } };
        let (slots, next) = match filter.id {
            Some(id) => (self.queue.find(MessageId(id)).into_iter().collect(), None),
            None => {
                let page = self.queue.page(&wanted, after.map(MessageId), ADMIN_PAGE_MAX, ADMIN_BUDGET);
                (page.messages.into_iter().map(|(_, slot)| slot).collect::<Vec<_>>(), page.next)
            }
        };
        let mut recipients = 0;
        for slot in slots {
            recipients += self.act_on(slot, &wanted, act, now);
        }
        self.route_unrouted(now);
        AdminReply::Changed { recipients, next: next.map(|id| id.0) }
    }

    fn act_on(&mut self, slot: Slot, filter: &queue::Filter, act: Act, now: Now) -> u64 {
        let Some(id) = self.queue.message(slot).map(|message| message.id()) else { return 0 };
        let changed = match act {
            Act::Retry => {
                let sites: Vec<_> = self.queue.message(slot).map_or_else(Vec::new, |message| {
                    (0..message.recipients()).filter_map(|recipient| message.site(recipient)).collect()
                });
                for site in sites {
                    self.probe_now(site, now);
                }
                self.queue.retry_now(slot, filter)
            }
            Act::Hold => {
                let changed = self.queue.hold(slot, filter);
                self.record_acts(slot, OutcomeKind::Held, now);
                changed
            }
            Act::Release => {
                let changed = self.queue.release(slot, filter);
                self.record_acts(slot, OutcomeKind::Released, now);
                changed
            }
            Act::Delete => {
                let deleted = self.queue.delete(slot, filter, now);
                for &recipient in &deleted {
                    self.record_deleted(slot, recipient, now);
                }
                self.end_if_finished(slot);
                deleted.len()
            }
        };
        if changed > 0 {
            self.event(Event::OperatorAct { id, act: act.past() });
        }
        changed as u64
    }

    /// Releases a message that waits for nothing any more.
    pub(super) fn release_held(&mut self, slot: Slot, now: Now) {
        self.act_on(slot, &queue::Filter::default(), Act::Release, now);
    }

    /// Writes down which recipients are on hold, or no longer, so that a restart knows.
    fn record_acts(&mut self, slot: Slot, kind: OutcomeKind, now: Now) {
        let held = kind == OutcomeKind::Held;
        let chosen: Vec<u16> = self
            .queue
            .message(slot)
            .map(|message| {
                let meant = |&r: &u16| !message.state(r).is_done() && message.is_held(r) == held;
                (0..message.recipients()).filter(meant).collect()
            })
            .unwrap_or_default();
        for recipient in chosen {
            self.record_act(slot, recipient, kind, now);
        }
    }

    fn summary(&self, slot: Slot, now: Now) -> Option<MessageSummary> {
        let message = self.queue.message(slot)?;
        let mut recipients = Vec::new();
        let mut done = 0;
        for recipient in 0..message.recipients() {
            let state = message.state(recipient);
            if state.is_done() {
                done += 1;
                continue;
            }
            let site = message.site(recipient).and_then(|site| self.sites.get(site));
            recipients.push(RecipientSummary {
                address: message.address(recipient).into(),
                state: state.name().into(),
                attempts: message.attempts(recipient),
                next: (state == State::Scheduled).then(|| message.due(recipient).to_string()),
                site: site.map(|site| site.permits.name.to_string()),
                class: message.last_class(recipient).map(|class| class.name().into()),
                why: self.why_waiting(slot, recipient, now),
            });
        }
        Some(MessageSummary {
            id: message.id().to_string(),
            arrived: message.arrived().to_string(),
            sender: message.reverse_path().unwrap_or("").into(),
            size: u64::from(message.content().len),
            tenant: self.tenants.name(message.tenant()).into(),
            shard: self.shard,
            recipients,
            done,
        })
    }

    fn site_summaries(&self, now: Now) -> Vec<SiteSummary> {
        self.sites
            .iter()
            .map(|(site, known)| SiteSummary {
                name: known.permits.name.to_string(),
                ready: self.queue.ready_count(site),
                connections: known.permits.connections(),
                max_connections: known.permits.shape.limits.connections,
                state: match &known.down {
                    None => "up".into(),
                    Some(down) => format!("down for {} s: {}", down.until.since(now.instant).as_secs(), down.reason),
                },
            })
            .collect()
    }
}
