//! What a site's replies do to its limits: each reply is looked at once, and a change is told.

use crate::clock::Now;
use crate::event::Event;
use crate::policy::classify::Question;
use crate::queue::SiteId;
use crate::reply::Reply;
use crate::reply::class::ReplyClass;
use crate::shard::adaptive::{Change, Complaint};
use crate::shard::core::Core;
use crate::smtp::client::Stage;
use std::sync::Arc;

impl Core {
    /// A transaction was taken at a site.
    pub(super) fn site_took(&mut self, site: SiteId, now: Now) {
        let Some(known) = self.sites.get(site).filter(|known| known.permits.shape.adapt) else { return };
        let permits = &known.permits;
        if permits.adaptive().took(permits.shape.limits.connections, now.instant).is_some() {
            let (site, state) = (permits.name.clone(), "back to the limits that are configured".into());
            self.event(Event::SiteState { site, state });
        }
    }

    /// A reply of this class was given at a site.
    pub(super) fn site_replied(&mut self, site: SiteId, class: ReplyClass, reply: &Reply, now: Now) {
        let Some(about) = Complaint::of(class) else { return };
        let Some(known) = self.sites.get(site).filter(|known| known.permits.shape.adapt) else { return };
        let permits = Arc::clone(&known.permits);
        let Some(change) = permits.adaptive().complained(about, permits.connections(), now.instant) else { return };
        let what = match change {
            Change::Connections(count) => format!("to {count} of {} connections", permits.shape.limits.connections),
            Change::Pace(step) => format!("to {:.2} messages a second", 1.0 / step.as_secs_f64()),
            Change::Free => return,
        };
        let state = format!("slowed down {what}, since it answered: {reply}").into();
        self.event(Event::SiteState { site: permits.name.clone(), state });
        self.touch(site);
    }

    /// A reply ended a connection, whatever becomes of the message that it carried.
    pub(super) fn connection_refused(&mut self, site: SiteId, remote: &str, stage: Stage, reply: &Reply, now: Now) {
        let host = remote.split_once(' ').map_or("", |(name, _)| name);
        let question = Question { reply, from_peer: true, stage: Some(stage), host };
        let class = self.classifier.classify(&question).meaning().class;
        self.site_replied(site, class, reply, now);
    }
}
