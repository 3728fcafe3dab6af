//! How often clients may connect: each client, and each network. Exact over all shards, which share the tables: a place is
//! one atomic word, so that nothing is locked and two shards never let the same connection through.
//!
//! The generic cell rate algorithm (ITU-T I.371): so many at once, then evenly spaced. Nobody is remembered longer than it
//! takes until its whole burst is free again, since then it is as if it had never come. The tables are bounded and never
//! grow. Where the part of a table in which a client belongs is full, whoever of it has the least to wait for is forgotten: an
//! attacker with very many addresses can make the rates of those who hardly used them begin anew, and not free itself.

use crate::clock::Instant;
use crate::limits::CONNECTION_RATE_PLACES;
use crate::policy::admission::Refusal;
use crate::policy::session_limits::{client_key, network_key};
use foldhash::quality::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often one may connect.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ConnectionRate {
    /// One connection in this time.
    pub every: Duration,
    /// So many at once.
    pub burst: u32,
}

/// The connections of all clients of late.
#[derive(Debug, Default)]
pub struct ConnectionRates {
    clients: Option<Arrivals>,
    networks: Option<Arrivals>,
}

impl ConnectionRates {
    /// Nobody has come yet. None: as often as anybody likes.
    pub fn new(per_client: Option<ConnectionRate>, per_network: Option<ConnectionRate>) -> ConnectionRates {
        ConnectionRates { clients: per_client.map(Arrivals::new), networks: per_network.map(Arrivals::new) }
    }

    /// A connection came. Counts it; one that is refused is not counted for whom refuses it.
    pub fn admit(&self, client: IpAddr, now: Instant) -> Result<(), Refusal> {
        if let Some(clients) = &self.clients {
            clients.take(client_key(client), now).map_err(Refusal::ClientRate)?;
        }
        match &self.networks {
            Some(networks) => networks.take(network_key(client), now).map_err(Refusal::NetworkRate),
            None => Ok(()),
        }
    }

    /// A connection that was counted counts no more: its client has proven who it is.
    pub fn give_back(&self, client: IpAddr, now: Instant) {
        if let Some(clients) = &self.clients {
            clients.give_back(client_key(client), now);
        }
        if let Some(networks) = &self.networks {
            networks.give_back(network_key(client), now);
        }
    }
}

/// Places that a key may have: those of one cache line.
const WAYS: usize = 8;

/// A time's unit is 2^16 nanoseconds, 66 microseconds.
const TIME_SHIFT: u32 = 16;

/// A time has so many bits, 36 years; those above it tell whose place it is. Two clients that share place and bits (one in a
/// hundred thousand at the most) share their rate.
const TIME_BITS: u32 = 44;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// When each key's next connection would be due if all came evenly; a place is free once that is past.
#[derive(Debug)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

/// The connections of clients, or of networks.
#[derive(Debug)]
struct Arrivals {
    /// In units of time.
    step: u64,
    tolerance: u64,
    sets: Box<[Set]>,
    /// Seeded at random: clients choose their addresses.
    hasher: RandomState,
}

fn units(nanos: u64) -> u64 {
    (nanos >> TIME_SHIFT) & TIME_MASK
}

impl Arrivals {
    fn new(rate: ConnectionRate) -> Arrivals {
        let nanos = u64::try_from(rate.every.as_nanos()).unwrap_or(u64::MAX);
        let step = units(nanos).max(1);
        Arrivals {
            step,
            tolerance: step.saturating_mul(u64::from(rate.burst.saturating_sub(1))).min(TIME_MASK / 4),
            sets: (0..CONNECTION_RATE_PLACES / WAYS).map(|_| Set(Default::default())).collect(),
            hasher: RandomState::default(),
        }
    }

    /// Gives back what was taken for one connection; of whoever is not known any more there is nothing to give back.
    fn give_back(&self, key: u64, now: Instant) {
        let hash = self.hasher.hash_one(key);
        let Set(places) = &self.sets[hash as usize & (self.sets.len() - 1)];
        let owner = hash & !TIME_MASK;
        let now = units(now.as_nanos());
        loop {
            let (place, word) = find(places, owner, now);
            if word & !TIME_MASK != owner || word & TIME_MASK <= now {
                return;
            }
            let given = owner | (word & TIME_MASK).saturating_sub(self.step);
            if place.compare_exchange_weak(word, given, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return;
            }
        }
    }

    /// Takes the right to one connection, or says how long there is none.
    fn take(&self, key: u64, now: Instant) -> Result<(), Duration> {
        let hash = self.hasher.hash_one(key);
        let Set(places) = &self.sets[hash as usize & (self.sets.len() - 1)];
        let owner = hash & !TIME_MASK;
        let now = units(now.as_nanos());
        // Each time that this fails another shard has taken a connection.
        loop {
            let (place, word) = find(places, owner, now);
            let due = if word & !TIME_MASK == owner { (word & TIME_MASK).max(now) } else { now };
            if due - now > self.tolerance {
                return Err(Duration::from_nanos((due - now - self.tolerance) << TIME_SHIFT));
            }
            let taken = owner | (due + self.step).min(TIME_MASK);
            if place.compare_exchange_weak(word, taken, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Ok(());
            }
        }
    }
}

/// The place of this key; else the one that is due the soonest, which is a free one if there is any.
fn find(places: &[AtomicU64; WAYS], owner: u64, now: u64) -> (&AtomicU64, u64) {
    let mut soonest = (&places[0], places[0].load(Ordering::Acquire));
    for place in places {
        let word = place.load(Ordering::Acquire);
        if word & !TIME_MASK == owner && word & TIME_MASK > now {
            return (place, word);
        }
        if word & TIME_MASK < soonest.1 & TIME_MASK {
            soonest = (place, word);
        }
    }
    soonest
}

const _: () = assert!((CONNECTION_RATE_PLACES / WAYS).is_power_of_two());
const _: () = assert!(CONNECTION_RATE_PLACES / WAYS <= 1 << (64 - 20), "the place and the owner are of different bits");

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn rate(every_ms: u64, burst: u32) -> Option<ConnectionRate> {
        Some(ConnectionRate { every: Duration::from_millis(every_ms), burst })
    }

    fn wait(refusal: Result<(), Refusal>) -> Duration {
        match refusal {
            Err(Refusal::ClientRate(wait) | Refusal::NetworkRate(wait)) => wait,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_client_has_its_burst_and_then_comes_evenly() {
        let rates = ConnectionRates::new(rate(1000, 3), None);
        let client = ip("192.0.2.1");
        let start = at(50_000);
        assert!((0..3).all(|_| rates.admit(client, start).is_ok()));
        let refused = rates.admit(client, start);
        assert!(matches!(refused, Err(Refusal::ClientRate(_))));
        // What is told is true, and not much later than need be.
        let told = wait(refused);
        assert!(told <= Duration::from_secs(1) && told > Duration::from_millis(990), "{told:?}");
        assert!(rates.admit(ip("::ffff:192.0.2.1"), start).is_err(), "the same client");
        assert!(rates.admit(ip("192.0.2.2"), start).is_ok(), "another one");
        assert_eq!(rates.admit(client, start.after(told)), Ok(()));
        assert!(rates.admit(client, start.after(told)).is_err());
        // Refusals are not counted: a minute later the whole burst is free again, and no more than that.
        let later = start.after(Duration::from_secs(60));
        assert_eq!((0..9).filter(|_| rates.admit(client, later).is_ok()).count(), 3);
    }

    #[test]
    fn networks_have_a_rate_of_their_own() {
        let rates = ConnectionRates::new(rate(1000, 2), rate(1000, 3));
        for last in 1..=3 {
            assert_eq!(rates.admit(IpAddr::from([192, 0, 2, last]), at(1)), Ok(()));
        }
        assert!(matches!(rates.admit(ip("192.0.2.4"), at(1)), Err(Refusal::NetworkRate(_))));
        assert_eq!(rates.admit(ip("192.0.3.1"), at(1)), Ok(()));
        // Of IPv6 a client is a /64, and a network a /48.
        let rates = ConnectionRates::new(rate(1000, 1), rate(1000, 2));
        assert_eq!(rates.admit(ip("2001:db8::1"), at(1)), Ok(()));
        assert!(matches!(rates.admit(ip("2001:db8::2"), at(1)), Err(Refusal::ClientRate(_))));
        assert_eq!(rates.admit(ip("2001:db8:0:1::1"), at(1)), Ok(()));
        assert!(matches!(rates.admit(ip("2001:db8:0:2::1"), at(1)), Err(Refusal::NetworkRate(_))));
        assert_eq!(rates.admit(ip("2001:db8:1::1"), at(1)), Ok(()));
    }

    #[test]
    fn a_connection_that_is_given_back_does_not_count() {
        let rates = ConnectionRates::new(rate(1000, 3), rate(1000, 4));
        let client = ip("192.0.2.1");
        for _ in 0..100 {
            assert_eq!(rates.admit(client, at(1)), Ok(()));
            rates.give_back(client, at(1));
        }
        assert_eq!((0..9).filter(|_| rates.admit(client, at(1)).is_ok()).count(), 3);
        rates.give_back(client, at(1));
        assert_eq!((0..9).filter(|_| rates.admit(client, at(1)).is_ok()).count(), 1);
        // Nothing is saved up: who is not known any more, or was never, gets no more than its burst.
        (0..50).for_each(|_| rates.give_back(client, at(90_000)));
        (0..50).for_each(|_| rates.give_back(ip("192.0.2.9"), at(90_000)));
        assert_eq!((0..9).filter(|_| rates.admit(client, at(90_000)).is_ok()).count(), 3);
        assert_eq!((0..9).filter(|_| rates.admit(ip("192.0.2.9"), at(90_000)).is_ok()).count(), 1, "of its network");
    }

    #[test]
    fn without_rates_nobody_is_refused() {
        let rates = ConnectionRates::default();
        assert!((0..1000).all(|_| rates.admit(ip("192.0.2.1"), at(1)).is_ok()));
    }

    #[test]
    fn shards_together_let_no_more_through_than_one() {
        let rates = ConnectionRates::new(rate(1000, 500), None);
        let taken = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let own = (0..5_000).filter(|_| rates.admit(ip("192.0.2.1"), at(7_000)).is_ok()).count();
                    taken.fetch_add(own, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(taken.into_inner(), 500);
    }

    #[test]
    fn a_full_table_forgets_those_who_have_the_least_to_wait_for() {
        let rates = ConnectionRates::new(rate(1000, 10), None);
        let greedy = ip("192.0.2.1");
        while rates.admit(greedy, at(1)).is_ok() {}
        // Each of very many comes once, so that every part of the table is full many times over.
        let mut refused = 0;
        for number in 0..4 * CONNECTION_RATE_PLACES as u32 {
            let client = IpAddr::V4((0x0a00_0000 + number).into());
            refused += u32::from(rates.admit(client, at(2)).is_err());
        }
        // Some share a place's bits with another one; that is rare.
        assert!(refused < 8, "{refused} were refused who came once");
        assert!(rates.admit(greedy, at(2)).is_err(), "it must not free itself so");
    }

    #[test]
    fn extreme_rates_do_no_harm() {
        for (every, burst) in [(Duration::ZERO, 0), (Duration::MAX, u32::MAX), (Duration::from_nanos(1), 1)] {
            let rates = ConnectionRates::new(Some(ConnectionRate { every, burst }), None);
            for now in [Instant::ZERO, at(1), Instant::MAX] {
                let _ = rates.admit(ip("192.0.2.1"), now);
            }
        }
    }
}
