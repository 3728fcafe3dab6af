//! Failed logins: counted per account and per network, answered later and later, and at last not looked at for a while.
//!
//! Pure, and one for the whole program. A network is an IPv4 /24 or an IPv6 /64. Nobody locks out a sender at work by failing in
//! its name: a client that a shard recognises (logins.rs) never comes here, and an account's lock does not hold for networks
//! from which it has logged in before. The tables are bounded: where one is full the oldest entries are forgotten first.

use crate::clock::Instant;
use crate::limits::{
    LOCKOUT_ACCOUNT_FAILURES, LOCKOUT_ENTRIES_MAX, LOCKOUT_NETWORK_FAILURES, LOCKOUT_TIME, LOGIN_DELAY_FIRST,
    LOGIN_DELAY_MAX,
};
use foldhash::HashMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::IpAddr;
use std::time::Duration;

/// Whose failures are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Account(Box<str>),
    Network(IpNet),
}

#[derive(Copy, Clone, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

/// What a failure leads to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The answer is to wait for so long.
    pub delay: Duration,
    /// This failure locked the account.
    pub account_locked: bool,
    /// This failure locked the network.
    pub network_locked: bool,
}

/// All failures of late.
#[derive(Debug, Default)]
pub struct Lockout {
    failures: HashMap<Who, Failures>,
    /// From where accounts have logged in, and when last.
    homes: HashMap<(Box<str>, IpNet), Instant>,
}

/// The network that a client counts with.
pub fn network_of(client: IpAddr) -> IpNet {
    match client.to_canonical() {
        IpAddr::V4(v4) => Ipv4Net::new(v4, 24).map_or_else(|_| client.into(), |network| IpNet::V4(network.trunc())),
        IpAddr::V6(v6) => Ipv6Net::new(v6, 64).map_or_else(|_| client.into(), |network| IpNet::V6(network.trunc())),
    }
}

impl Lockout {
    /// How long nobody from there may try this account; None: it may be tried.
    pub fn locked_for(&self, account: &str, client: IpAddr, now: Instant) -> Option<Duration> {
        let of = |who: &Who, most: u32| {
            let failures = self.failures.get(who)?;
            let end = failures.last.after(LOCKOUT_TIME);
            (failures.count >= most && end > now).then(|| end.since(now))
        };
        let network = network_of(client);
        let by_network = of(&Who::Network(network), LOCKOUT_NETWORK_FAILURES);
        if self.homes.contains_key(&(account.into(), network)) {
            return by_network;
        }
        if account.is_empty() {
            return by_network;
        }
        by_network.max(of(&Who::Account(account.into()), LOCKOUT_ACCOUNT_FAILURES))
    }

    /// A login failed.
    pub fn failed(&mut self, account: &str, client: IpAddr, now: Instant) -> Failed {
        // Nobody's name, where a token was to say it: all of those are not one account.
        let by_account = if account.is_empty() { 0 } else { self.count(Who::Account(account.into()), now) };
        let by_network = self.count(Who::Network(network_of(client)), now);
        let doublings = by_account.max(by_network).saturating_sub(1).min(16);
        Failed {
            delay: LOGIN_DELAY_FIRST.saturating_mul(1 << doublings).min(LOGIN_DELAY_MAX),
            account_locked: by_account == LOCKOUT_ACCOUNT_FAILURES,
            network_locked: by_network == LOCKOUT_NETWORK_FAILURES,
        }
    }

    /// A login succeeded: its account's failures are forgotten; its network's are not, since one good account must not
    /// pay for guesses at others.
    pub fn succeeded(&mut self, account: &str, client: IpAddr, now: Instant) {
        self.failures.remove(&Who::Account(account.into()));
        if self.homes.len() >= LOCKOUT_ENTRIES_MAX {
            forget_older_half(&mut self.homes, |last| *last);
        }
        self.homes.insert((account.into(), network_of(client)), now);
    }

    fn count(&mut self, who: Who, now: Instant) -> u32 {
        if self.failures.len() >= LOCKOUT_ENTRIES_MAX && !self.failures.contains_key(&who) {
            self.make_room(now);
        }
        let failures = self.failures.entry(who).or_insert(Failures { count: 0, last: now });
        if now.since(failures.last) >= LOCKOUT_TIME {
            failures.count = 0;
        }
        failures.count += 1;
        failures.last = now;
        failures.count
    }

    /// Forgets what is over, or else half of all: those that failed the longest ago.
    fn make_room(&mut self, now: Instant) {
        self.failures.retain(|_, failures| now.since(failures.last) < LOCKOUT_TIME);
        if self.failures.len() >= LOCKOUT_ENTRIES_MAX {
            forget_older_half(&mut self.failures, |failures| failures.last);
        }
    }
}

/// Forgets the older half of a table, and all that are as old as the middle.
fn forget_older_half<K, V>(table: &mut HashMap<K, V>, last: impl Fn(&V) -> Instant) {
    let mut times: Vec<Instant> = table.values().map(&last).collect();
    let middle = times.len() / 2;
    let middle = *times.select_nth_unstable(middle).1;
    table.retain(|_, value| last(value) > middle);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn failures_delay_then_lock_and_are_forgotten() {
        let mut lockout = Lockout::default();
        let client = ip("192.0.2.1");
        let first = lockout.failed("app", client, Instant::ZERO);
        assert_eq!(first, Failed { delay: LOGIN_DELAY_FIRST, account_locked: false, network_locked: false });
        assert_eq!(lockout.failed("app", client, Instant::ZERO).delay, LOGIN_DELAY_FIRST * 2);
        let mut locked = 0;
        for _ in 2..LOCKOUT_ACCOUNT_FAILURES {
            assert_eq!(lockout.locked_for("app", client, Instant::ZERO), None);
            locked += u32::from(lockout.failed("app", ip("198.51.100.9"), Instant::ZERO).account_locked);
        }
        assert_eq!(locked, 1);
        assert_eq!(lockout.locked_for("app", ip("203.0.113.1"), Instant::ZERO), Some(LOCKOUT_TIME));
        assert_eq!(lockout.locked_for("other", ip("203.0.113.1"), Instant::ZERO), None);
        let later = Instant::ZERO.after(LOCKOUT_TIME);
        assert_eq!(lockout.locked_for("app", client, later), None);
        assert_eq!(lockout.failed("app", ip("203.0.113.1"), later).delay, LOGIN_DELAY_FIRST);
        lockout.succeeded("app", client, later);
        assert_eq!(lockout.failed("app", ip("203.0.114.1"), later).delay, LOGIN_DELAY_FIRST);
    }

    #[test]
    fn failures_from_elsewhere_do_not_lock_out_who_has_logged_in_before() {
        let mut lockout = Lockout::default();
        let home = ip("192.0.2.1");
        lockout.succeeded("app", home, Instant::ZERO);
        for number in 0..LOCKOUT_ACCOUNT_FAILURES {
            lockout.failed("app", IpAddr::from([198, 51, number as u8, 1]), Instant::ZERO);
        }
        assert_eq!(lockout.locked_for("app", ip("192.0.2.99"), Instant::ZERO), None);
        assert_eq!(lockout.locked_for("app", ip("203.0.113.1"), Instant::ZERO), Some(LOCKOUT_TIME));
        for _ in 0..LOCKOUT_NETWORK_FAILURES {
            lockout.failed("app", home, Instant::ZERO);
        }
        assert_eq!(lockout.locked_for("app", home, Instant::ZERO), Some(LOCKOUT_TIME));
    }

    #[test]
    fn logins_without_a_name_are_no_account() {
        let mut lockout = Lockout::default();
        for number in 0..=LOCKOUT_ACCOUNT_FAILURES {
            assert!(!lockout.failed("", IpAddr::from([198, 51, number as u8, 1]), Instant::ZERO).account_locked);
        }
        assert_eq!(lockout.locked_for("", ip("203.0.113.1"), Instant::ZERO), None);
    }

    #[test]
    fn a_network_that_guesses_is_locked_for_all_accounts() {
        let mut lockout = Lockout::default();
        for number in 0..LOCKOUT_NETWORK_FAILURES {
            lockout.failed(&number.to_string(), ip("192.0.2.1"), Instant::ZERO);
        }
        assert!(lockout.locked_for("app", ip("192.0.2.200"), Instant::ZERO).is_some());
        assert!(lockout.locked_for("app", ip("::ffff:192.0.2.9"), Instant::ZERO).is_some());
        assert_eq!(lockout.locked_for("app", ip("192.0.3.1"), Instant::ZERO), None);
        assert_eq!(network_of(ip("2001:db8::1:2:3:4")).to_string(), "2001:db8::/64");
    }

    #[test]
    fn the_table_is_bounded() {
        let mut lockout = Lockout::default();
        for number in 0..LOCKOUT_ENTRIES_MAX as u64 {
            lockout.failed(&number.to_string(), ip("192.0.2.1"), Instant::from_nanos(number));
        }
        lockout.failed("last", ip("192.0.2.1"), Instant::from_nanos(u64::from(u32::MAX)));
        assert!(lockout.failures.len() <= LOCKOUT_ENTRIES_MAX);
        for number in 0..=LOCKOUT_ENTRIES_MAX as u64 {
            lockout.succeeded(&number.to_string(), ip("192.0.2.1"), Instant::from_nanos(number));
        }
        assert!(lockout.homes.len() <= LOCKOUT_ENTRIES_MAX);
    }
}
