//! Operators' requests, as one shard answers them for its own messages.

use crate::clock::Now;
use crate::event::Event;
use crate::limits::ADMIN_PAGE_MAX;
use crate::queue::{MessageView, Slot, StateKind};
use crate::shard::core::Core;
use crate::shard::message::{AdminReply, AdminRequest, Filter, MessageSummary, RecipientSummary, Report, SiteSummary};

impl Core {
    pub(super) fn admin(&mut self, ticket: u64, request: AdminRequest, now: Now) {
        let reply = match request {
            AdminRequest::List { filter, after, limit } => {
                let slots = self.queue.page(after.map(crate::id::MessageId), |view| self.fits(&filter, view), limit.min(ADMIN_PAGE_MAX));
                AdminReply::Messages(slots.into_iter().filter_map(|slot| self.summary(slot, now)).collect())
            }
            AdminRequest::Show { id } => {
                let slot = self.queue.find(crate::id::MessageId(id));
                AdminReply::Message(slot.and_then(|slot| self.summary(slot, now)).map(Box::new))
            }
            AdminRequest::Retry(filter) => self.act(&filter, "retried", now),
            AdminRequest::Hold(filter) => self.act(&filter, "held", now),
            AdminRequest::Release(filter) => self.act(&filter, "released", now),
            AdminRequest::Delete(filter) => self.act(&filter, "deleted", now),
            AdminRequest::Sites => AdminReply::Sites(self.site_summaries(now)),
            AdminRequest::Metrics => AdminReply::Metrics(Box::new(self.gather_metrics())),
        };
        let shard = self.shard;
        self.report(Report::Admin { shard, ticket, reply });
    }

    fn fits(&self, filter: &Filter, message: &MessageView<'_>) -> bool {
        let recipients = 0..message.recipients();
        filter.id.is_none_or(|id| message.id().0 == id)
            && filter.sender.as_ref().is_none_or(|sender| message.reverse_path().unwrap_or("").eq_ignore_ascii_case(sender))
            && filter.tenant.as_ref().is_none_or(|tenant| self.tenants.name(message.tenant()) == tenant)
            && filter.domain.as_ref().is_none_or(|domain| {
                recipients.clone().any(|r| {
                    message.address(r).rsplit_once('@').is_some_and(|(_, name)| name.eq_ignore_ascii_case(domain))
                })
            })
            && filter
                .recipient
                .as_ref()
                .is_none_or(|address| recipients.clone().any(|r| message.address(r).eq_ignore_ascii_case(address)))
            && filter.state.as_ref().is_none_or(|state| {
                recipients.clone().any(|r| {
                    let now = state_name(message.state(r));
                    now == state || (state == "waiting" && now != "done")
                })
            })
    }

    fn names_something(filter: &Filter) -> bool {
        filter.all
            || filter.id.is_some()
            || filter.sender.is_some()
            || filter.recipient.is_some()
            || filter.domain.is_some()
            || filter.tenant.is_some()
            || filter.state.is_some()
    }

    fn act(&mut self, filter: &Filter, act: &'static str, now: Now) -> AdminReply {
        if !Core::names_something(filter) {
            return AdminReply::Changed(0);
        }
        let slots = match filter.id {
            Some(id) => self
                .queue
                .find(crate::id::MessageId(id))
                .filter(|&slot| self.queue.message(slot).is_some_and(|view| self.fits(filter, &view)))
                .into_iter()
                .collect(),
            None => self.queue.page(None, |view| self.fits(filter, view), usize::MAX),
        };
        let mut changed = 0;
        for slot in slots {
            changed += u64::from(self.act_on(slot, act, now));
        }
        self.route_unrouted(now);
        AdminReply::Changed(changed)
    }

    fn act_on(&mut self, slot: Slot, act: &'static str, now: Now) -> bool {
        let Some(id) = self.queue.message(slot).map(|message| message.id()) else { return false };
        let changed = match act {
            "held" => self.queue.hold(slot),
            "released" => self.queue.release(slot, now),
            "retried" => self.queue.retry_now(slot, now),
            _ => {
                let deleted = self.queue.delete(slot, now);
                for &recipient in &deleted {
                    self.record_deleted(slot, recipient, now);
                }
                self.end_if_finished(slot);
                !deleted.is_empty()
            }
        };
        if changed {
            self.event(Event::OperatorAct { id, act });
        }
        changed
    }

    fn summary(&self, slot: Slot, now: Now) -> Option<MessageSummary> {
        let message = self.queue.message(slot)?;
        let mut recipients = Vec::new();
        let mut done = 0;
        for recipient in 0..message.recipients() {
            let state = message.state(recipient);
            if state == StateKind::Done {
                done += 1;
                continue;
            }
            recipients.push(RecipientSummary {
                address: message.address(recipient).into(),
                state: state_name(state).into(),
                attempts: message.attempts(recipient),
                next: (state == StateKind::Scheduled).then(|| message.due(recipient).to_string()),
                site: message.site(recipient).and_then(|site| self.sites.get(site)).map(|site| site.permits.name.to_string()),
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
                max_connections: known.permits.limits.connections,
                state: match &known.down {
                    None => "up".into(),
                    Some(down) => format!("down for {} s: {}", down.until.since(now.instant).as_secs(), down.reason),
                },
            })
            .collect()
    }
}

fn state_name(state: StateKind) -> &'static str {
    match state {
        StateKind::Unrouted => "unrouted",
        StateKind::Parked => "resolving",
        StateKind::Scheduled => "scheduled",
        StateKind::Ready => "ready",
        StateKind::InFlight => "in_flight",
        StateKind::Held => "held",
        StateKind::Done => "done",
    }
}
