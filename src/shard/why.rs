//! Why a recipient waits, in words that name the reply, the limit or the state that holds it.
//!
//! Not here: what decides it (src/queue, src/shard/site.rs); this only reads what those decided. Of a message that is
//! gone nothing can be said.

use crate::clock::{Instant, Now};
use crate::queue::{MessageView, SiteId, Slot, State};
use crate::shard::core::Core;
use crate::shard::site::Site;

const HOLDS: &str = "the relay was started to hold all mail";

impl Core {
    /// The reason, as an operator reads it. Empty when the message has ended.
    pub(super) fn why_waiting(&self, slot: Slot, recipient: u16, now: Now) -> String {
        let Some(message) = self.queue.message(slot) else { return String::new() };
        let last = last_attempt(&message, recipient);
        let with_last = |text: String| match &last {
            Some(last) => format!("{text}; {last}"),
            None => text,
        };
        match message.state(recipient) {
            State::Done(_) => String::new(),
            State::Held => with_last(match message.came_held() {
                Some(reason) => format!("it is held, since {reason}; `ringpost queue release` lets it go"),
                None => "an operator holds it".into(),
            }),
            State::Unrouted if self.settings.hold => HOLDS.into(),
            State::Unrouted => "its destination is about to be looked up".into(),
            State::Parked => format!("DNS is being asked for {}", message.domain(recipient)),
            State::InFlight if message.is_leased(recipient) => "another shard is attempting it now".into(),
            State::InFlight => "an attempt is under way".into(),
            State::Scheduled => {
                let trouble = message.site(recipient).and_then(|site| self.site_trouble(site, now));
                match (last, trouble) {
                    (Some(last), Some(trouble)) => format!("{last}; {trouble}"),
                    (Some(text), None) | (None, Some(text)) => text,
                    (None, None) => "it waits for the time of its next attempt".into(),
                }
            }
            State::Ready => with_last(self.why_ready(message.site(recipient), now)),
        }
    }

    /// Why a recipient that could go now does not.
    fn why_ready(&self, site: Option<SiteId>, now: Now) -> String {
        if self.stopping.is_some() {
            return "the relay is stopping".into();
        }
        if self.settings.hold {
            return HOLDS.into();
        }
        if !self.log.accepts_outcomes() {
            return "the spool has no room to record what comes of it: make space on its disk".into();
        }
        let Some(site) = site else { return "it is about to be routed".into() };
        if let Some(trouble) = self.site_trouble(site, now) {
            return trouble;
        }
        let Some(known) = self.sites.get(site) else { return "it is about to be routed".into() };
        let name = &known.permits.name;
        let ready = self.queue.ready_count(site);
        if let Some(at) = known.permits.next_transaction(now.instant) {
            let wait = at.since(now.instant).as_millis();
            let slower =
                if known.permits.adaptive().is_cut() { ", slowed down after complaints of its own," } else { "" };
            return format!("site {name}: its rate{slower} allows the next message in {wait} ms; {ready} are ready");
        }
        match known.permits.is_narrow(self.shards).then(|| known.permits.owner(self.shards)) {
            Some(owner) if owner != self.shard => {
                format!("site {name}: shard {owner} sends all mail there; {ready} are ready to go to it")
            }
            _ if known.opening > 0 && known.working == 0 => format!("site {name}: a connection is being opened"),
            _ => format!("site {name}: next in its turn; {ready} are ready"),
        }
    }

    /// What keeps all mail of a site.
    fn site_trouble(&self, site: SiteId, now: Now) -> Option<String> {
        let known = self.sites.get(site)?;
        let name = &known.permits.name;
        if let Some(down) = &known.down {
            let wait = down.until.since(now.instant).as_secs();
            return Some(format!("site {name} is down ({}); next probe in {wait} s", down.reason));
        }
        let ready = self.queue.ready_count(site);
        if known.waits_for_room && ready > 0 {
            let most = self.settings.max_outgoing;
            return Some(format!(
                "site {name} waits for its turn: all {most} connections to destinations that a shard may have are in use"
            ));
        }
        if ready > 0
            && let Some(limit) = self.shared_limit_of(known, now)
        {
            return Some(format!("site {name}: {limit}; {ready} are ready"));
        }
        if let Some(at) = known.permits.next_opening(now.instant)
            && ready > 0
            && known.open == 0
        {
            let wait = at.since(now.instant).as_millis();
            return Some(format!("site {name}: its rate allows the next connection in {wait} ms; {ready} are ready"));
        }
        let limit = known.permits.allowed();
        (known.permits.connections() >= limit && ready > 0)
            .then(|| format!("site {name}: all {limit} connections are in use, {ready} ready"))
    }
}

impl Core {
    /// The limit over several sites that a site waits for, if it does.
    fn shared_limit_of(&self, known: &Site, now: Now) -> Option<String> {
        let find = |place: u32| known.permits.shared.iter().find(|limit| limit.place == place);
        let millis = |at: Instant| at.since(now.instant).as_millis();
        if let Some(limit) = known.waits_for_transaction.and_then(find) {
            let at = limit.next_transaction(now.instant).map_or(0, millis);
            return Some(format!(
                "the rate of the limit \"{}\" allows the next message in {at} ms, to it or to others",
                limit.name
            ));
        }
        let limit = known.waits_for_connection.and_then(find).filter(|_| known.working == 0)?;
        if let Some(at) = limit.next_opening(now.instant) {
            let at = millis(at);
            return Some(format!("the rate of the limit \"{}\" allows the next connection in {at} ms", limit.name));
        }
        let (name, open) = (&limit.name, limit.open());
        Some(format!("all {open} connections of the limit \"{name}\" are in use, and sites take turns"))
    }
}

/// The outcome of the last attempt, as far as it is kept.
fn last_attempt(message: &MessageView<'_>, recipient: u16) -> Option<String> {
    let last = message.last_reply(recipient);
    let code = last.code()?;
    Some(match last.enhanced() {
        None => format!("the last attempt ended with a {code} reply"),
        Some((class, subject, detail)) => {
            let meaning = meaning(subject, detail).map_or(String::new(), |words| format!(": {words}"));
            format!("the last attempt ended with {code} {class}.{subject}.{detail}{meaning}")
        }
    })
}

/// What the later numbers of a status mean (RFC 3463 3.4, 3.5) where the number alone tells an operator nothing. The
/// words of the reply itself are in the log only.
fn meaning(subject: u16, detail: u16) -> Option<&'static str> {
    Some(match (subject, detail) {
        (2, 2) => "the mailbox is full",
        (3, 1) => "the host has no room for mail",
        (3, 2) => "the host takes no mail at this time",
        (4, 1) => "no answer from the host",
        (4, 2) => "the connection broke",
        (4, 3) => "DNS could not be asked",
        (4, 4) => "there is no way to the host",
        (4, 5) => "the host is congested",
        (7, 5) => "what the destination's TLS policy asks for is not met",
        _ => return None,
    })
}
