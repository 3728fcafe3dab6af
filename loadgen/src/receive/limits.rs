//! What all connections of a destination share where rules need a memory: greylists, refusals that were promised a number
//! of times, limits of connections and of rates.
//!
//! Behind one lock, which is taken only when a rule or an address asks for it. Bounded: what has no room any more is
//! treated as if it had been known before, so that mail goes through.

use crate::destination::{Behaviour, Destination};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Pairs of a greylist and recipients with refusals, at most.
const KNOWN_MAX: usize = 2_000_000;

/// The memory of the rules.
#[derive(Debug, Default)]
pub struct Limits {
    greylist: HashMap<u64, Instant>,
    refusals: HashMap<Destination, u32>,
    connections: HashMap<usize, u32>,
    rates: HashMap<usize, VecDeque<Instant>>,
}

impl Limits {
    /// Whether RCPT, or the content, of a recipient is to be refused now as its address asks; counts it if so.
    pub fn refuses(&mut self, destination: &Destination, at_content: bool) -> bool {
        let times = match (destination.behaviour, at_content) {
            (Behaviour::RefuseFirst(times), false) | (Behaviour::RefuseContentFirst(times), true) => times,
            _ => return false,
        };
        if self.refusals.len() >= KNOWN_MAX && !self.refusals.contains_key(destination) {
            return false;
        }
        let refused = self.refusals.entry(*destination).or_default();
        *refused += 1;
        *refused <= times
    }

    /// Whether a pair, by its hash, has to come back later.
    pub fn is_greylisted(&mut self, pair: u64, span: Duration, now: Instant) -> bool {
        if self.greylist.len() >= KNOWN_MAX && !self.greylist.contains_key(&pair) {
            return false;
        }
        now < *self.greylist.entry(pair).or_insert(now) + span
    }

    /// Counts a connection under a rule. False, and not counted, when there are `max` of them.
    pub fn enter(&mut self, rule: usize, max: u32) -> bool {
        let count = self.connections.entry(rule).or_default();
        let room = *count < max;
        *count += u32::from(room);
        room
    }

    /// A connection that was counted is over.
    pub fn leave(&mut self, rule: usize) {
        if let Some(count) = self.connections.get_mut(&rule) {
            *count = count.saturating_sub(1);
        }
    }

    /// Counts a message under a rule. False, and not counted, when `max` came within the span before it.
    pub fn admit(&mut self, rule: usize, max: u32, span: Duration, now: Instant) -> bool {
        let times = self.rates.entry(rule).or_default();
        while times.front().is_some_and(|at| now.saturating_duration_since(*at) >= span) {
            times.pop_front();
        }
        let room = times.len() < max as usize;
        if room {
            times.push_back(now);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::Token;

    #[test]
    fn a_rate_holds_in_every_span() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let span = Duration::from_secs(1);
        let at = |ms| start + Duration::from_millis(ms);
        let admitted: Vec<bool> =
            [0, 900, 950, 1000, 1800, 1900].map(|ms| limits.admit(3, 2, span, at(ms))).into_iter().collect();
        assert_eq!(admitted, [true, true, false, true, false, true]);
        assert!(limits.admit(4, 1, span, at(950)), "rules have nothing to do with each other");
    }

    #[test]
    fn connections_are_counted_while_they_last() {
        let mut limits = Limits::default();
        assert!(limits.enter(0, 2) && limits.enter(0, 2) && !limits.enter(0, 2));
        limits.leave(0);
        assert!(limits.enter(0, 2));
    }

    #[test]
    fn greylists_and_promised_refusals_end() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        let span = Duration::from_secs(60);
        assert!(limits.is_greylisted(1, span, now) && limits.is_greylisted(1, span, now + span / 2));
        assert!(!limits.is_greylisted(1, span, now + span));
        let one = Destination { behaviour: Behaviour::RefuseFirst(1), token: Token(9), index: 0 };
        assert!(limits.refuses(&one, false) && !limits.refuses(&one, false) && !limits.refuses(&one, true));
    }
}
