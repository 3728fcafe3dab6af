//! What the rules of a destination make of a transaction: gathered recipient by recipient, carried out at its end.

use super::Shared;
use super::rules::Action;
use super::session::Session;
use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// What awaits the content of a transaction.
#[derive(Clone, Debug, Default)]
pub(super) struct Effects {
    pub(super) content_refusal: Option<&'static [u8]>,
    pub(super) slow: Duration,
    pub(super) stall: bool,
    pub(super) drop_before: bool,
    pub(super) drop_unanswered: bool,
    pub(super) drop_after: bool,
    /// The rules whose rate this transaction has been counted under.
    rated: Vec<usize>,
}

impl Effects {
    /// Asks the rules about one recipient: why it is refused, if it is; what concerns the content is kept.
    pub(super) fn of_recipient(&mut self, session: &mut Session, path: &str, shared: &Shared) -> Option<&'static [u8]> {
        let domain = path.rsplit_once('@').map_or("", |(_, domain)| domain);
        for (number, rule) in shared.rules().iter().enumerate() {
            if !rule.fits(domain, session.listener) || !session.draws(rule.per_thousand) {
                continue;
            }
            match rule.action {
                Action::Accept => break,
                Action::Defer => return Some(b"450 4.2.1 come back later\r\n"),
                Action::Reject => return Some(b"550 5.1.1 no such recipient here\r\n"),
                Action::Greylist(span) => {
                    let pair = pair(session.sender(), path);
                    if shared.limits().is_greylisted(pair, span, Instant::now()) {
                        return Some(b"451 4.7.1 greylisted, come back later\r\n");
                    }
                }
                Action::Rate(max, span) if !self.rated.contains(&number) => {
                    if !shared.limits().admit(number, max, span, Instant::now()) {
                        shared.figures.violations.fetch_add(1, Relaxed);
                        return Some(b"450 4.7.1 too many messages, come back later\r\n");
                    }
                    self.rated.push(number);
                }
                Action::Connections(max) if !session.counted.contains(&number) => {
                    if !shared.limits().enter(number, max) {
                        shared.figures.violations.fetch_add(1, Relaxed);
                        return Some(b"450 4.7.1 too many connections, come back later\r\n");
                    }
                    session.counted.push(number);
                }
                Action::CloseAfter(most) => {
                    session.close_after = Some(session.close_after.unwrap_or(most).min(most));
                }
                Action::DeferContent => self.content_refusal = Some(b"451 4.7.1 not this content, not now\r\n"),
                Action::RejectContent => self.content_refusal = Some(b"554 5.7.1 not this content\r\n"),
                Action::Slow(span) => self.slow = self.slow.max(span),
                Action::Stall => self.stall = true,
                Action::DropBefore => self.drop_before = true,
                Action::DropUnanswered => self.drop_unanswered = true,
                Action::DropAfter => self.drop_after = true,
                Action::Rate(..) | Action::Connections(_) | Action::Refuse | Action::BrokenTls => {}
            }
        }
        None
    }
}

/// A sender and a recipient as a number.
fn pair(sender: &[u8], recipient: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    (sender, recipient).hash(&mut hasher);
    hasher.finish()
}
