//! How many sessions may be open: in all, per client, and per network, so that neither can take all places.
//!
//! Counters only: the owner tells when a session begins and ends, and says the reply when one is refused. A client is
//! an IPv4 address or an IPv6 network of [`limits::CLIENT_IPV6_PREFIX`] bits, a network one of
//! [`limits::NETWORK_IPV4_PREFIX`] or [`limits::NETWORK_IPV6_PREFIX`]. The table has twice as many places as clients and
//! networks can be in it; it never grows, cannot be full, and forgets a client with its last session.

use crate::limits;
use crate::policy::admission::Refusal;
use foldhash::quality::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;

/// Counts open sessions of one shard.
#[derive(Debug)]
pub struct SessionLimits {
    sessions_max: usize,
    per_client_max: usize,
    per_network_max: usize,
    loopback_exempt: bool,
    open: usize,
    clients: Clients,
}

impl SessionLimits {
    /// Nobody yet. At most [`limits::SESSIONS_MAX`] in all are allowed, whatever is asked. With `loopback_exempt`,
    /// clients on loopback count towards the whole but have no limit of their own: all programs of a machine share
    /// that address.
    pub fn new(
        sessions_max: usize,
        per_client_max: usize,
        per_network_max: usize,
        loopback_exempt: bool,
    ) -> SessionLimits {
        let sessions_max = sessions_max.min(limits::SESSIONS_MAX);
        let clients = Clients::new(2 * sessions_max);
        SessionLimits { sessions_max, per_client_max, per_network_max, loopback_exempt, open: 0, clients }
    }

    /// A connection came. Counts it, or says why not; one that was refused is not counted. The network of a `trusted`
    /// client has no limit: there may be many such clients in it.
    pub fn admit(&mut self, client: IpAddr, trusted: bool) -> Result<(), Refusal> {
        if self.open >= self.sessions_max {
            return Err(Refusal::Sessions);
        }
        if !self.is_exempt(client) {
            if self.open_of(client) >= self.per_client_max {
                return Err(Refusal::ClientSessions);
            }
            if !trusted && self.open_of_network(client) >= self.per_network_max {
                return Err(Refusal::NetworkSessions);
            }
        }
        self.count(client);
        Ok(())
    }

    /// A connection came whose client is not known yet (PROXY protocol): counts it for this address, which is that of many.
    pub fn admit_unknown(&mut self, proxy: IpAddr) -> Result<(), Refusal> {
        if self.open >= self.sessions_max {
            return Err(Refusal::Sessions);
        }
        self.count(proxy);
        Ok(())
    }

    /// Such a connection's client is known: it counts for that one from now on, or is refused and stays with the proxy
    /// until it is released.
    pub fn identify(&mut self, proxy: IpAddr, client: IpAddr, trusted: bool) -> Result<(), Refusal> {
        self.release(proxy);
        let admitted = self.admit(client, trusted);
        if admitted.is_err() {
            self.count(proxy);
        }
        admitted
    }

    fn count(&mut self, client: IpAddr) {
        self.open += 1;
        for key in [client_key(client), network_key(client)] {
            *self.clients.entry(key) += 1;
        }
    }

    /// A session that was counted for this client has ended.
    pub fn release(&mut self, client: IpAddr) {
        if self.open_of(client) == 0 {
            return;
        }
        self.open -= 1;
        for key in [client_key(client), network_key(client)] {
            self.clients.leave(key);
        }
    }

    /// Open sessions.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Open sessions of a client.
    pub fn open_of(&self, client: IpAddr) -> usize {
        self.clients.count(client_key(client))
    }

    /// Open sessions of a client's network.
    pub fn open_of_network(&self, client: IpAddr) -> usize {
        self.clients.count(network_key(client))
    }

    /// Whether this client has no limits of its own.
    pub fn is_exempt(&self, client: IpAddr) -> bool {
        self.loopback_exempt && client.to_canonical().is_loopback()
    }
}

/// The first 16 bits of an IPv6 network's key, and the first 32 of the keys of IPv4: no unicast address begins so, since
/// `ff00::/8` is multicast. So one table holds clients and networks of both kinds.
const NETWORK_OF_IPV6: u64 = 0xfffd << 48;
const NETWORK_OF_IPV4: u64 = 0xffff_fffe << 32;
const CLIENT_OF_IPV4: u64 = 0xffff_ffff << 32;

/// A client in 64 bits: the network of an IPv6 address; an IPv4 address behind 32 ones.
pub(super) fn client_key(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(four) => CLIENT_OF_IPV4 | u64::from(four.to_bits()),
        IpAddr::V6(six) => (six.to_bits() >> (128 - u32::from(limits::CLIENT_IPV6_PREFIX))) as u64,
    }
}

/// A client's network in 64 bits.
pub(super) fn network_key(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(four) => {
            NETWORK_OF_IPV4 | u64::from(four.to_bits() >> (32 - u32::from(limits::NETWORK_IPV4_PREFIX)))
        }
        IpAddr::V6(six) => NETWORK_OF_IPV6 | (six.to_bits() >> (128 - u32::from(limits::NETWORK_IPV6_PREFIX))) as u64,
    }
}

/// A place is free when its count is zero.
#[derive(Copy, Clone, Debug, Default)]
struct Client {
    key: u64,
    sessions: u32,
}

/// Open addressing with linear probing; a removal moves later ones up, so that no gap breaks a search.
#[derive(Debug)]
struct Clients {
    places: Box<[Client]>,
    /// Seeded at random: clients choose their addresses.
    hasher: RandomState,
}

impl Clients {
    fn new(clients_max: usize) -> Clients {
        let places = (2 * clients_max.max(1)).next_power_of_two();
        Clients { places: vec![Client::default(); places].into(), hasher: RandomState::default() }
    }

    fn home(&self, key: u64) -> usize {
        self.hasher.hash_one(key) as usize & (self.places.len() - 1)
    }

    /// The place of this key, or the free one where it would go. Half of all places are free, so there is one.
    fn find(&self, key: u64) -> usize {
        let mut place = self.home(key);
        while self.places[place].sessions != 0 && self.places[place].key != key {
            place = (place + 1) & (self.places.len() - 1);
        }
        place
    }

    fn count(&self, key: u64) -> usize {
        self.places[self.find(key)].sessions as usize
    }

    /// One session less for this key, if it has any.
    fn leave(&mut self, key: u64) {
        let place = self.find(key);
        let sessions = &mut self.places[place].sessions;
        *sessions = sessions.saturating_sub(1);
        if *sessions == 0 {
            self.close_gap(place);
        }
    }

    fn entry(&mut self, key: u64) -> &mut u32 {
        let place = self.find(key);
        self.places[place].key = key;
        &mut self.places[place].sessions
    }

    /// Fills a place that became free with the next one that may stand there, and so on.
    fn close_gap(&mut self, mut gap: usize) {
        let mask = self.places.len() - 1;
        let mut place = gap;
        loop {
            place = (place + 1) & mask;
            if self.places[place].sessions == 0 {
                return;
            }
            let from_home = place.wrapping_sub(self.home(self.places[place].key)) & mask;
            let from_gap = place.wrapping_sub(gap) & mask;
            if from_home >= from_gap {
                self.places[gap] = std::mem::take(&mut self.places[place]);
                gap = place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_has_its_limit_and_all_have_one() {
        let mut limits = SessionLimits::new(3, 2, 9, false);
        assert_eq!(limits.admit(ip("192.0.2.1"), false), Ok(()));
        assert_eq!(limits.admit(ip("::ffff:192.0.2.1"), false), Ok(()), "the same client");
        assert_eq!(limits.admit(ip("192.0.2.1"), false), Err(Refusal::ClientSessions));
        assert_eq!(limits.admit(ip("192.0.2.2"), false), Ok(()));
        assert_eq!(limits.admit(ip("192.0.2.3"), false), Err(Refusal::Sessions));
        limits.release(ip("192.0.2.1"));
        assert_eq!(limits.admit(ip("192.0.2.1"), false), Ok(()));
        assert_eq!((limits.open(), limits.open_of(ip("192.0.2.1"))), (3, 2));
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let mut limits = SessionLimits::new(10, 1, 9, false);
        assert_eq!(limits.admit(ip("2001:db8::1"), false), Ok(()));
        assert!(limits.admit(ip("2001:db8::ffff:2"), false).is_err());
        assert_eq!(limits.admit(ip("2001:db8:0:1::1"), false), Ok(()));
        // The zero network is not that of the mapped addresses.
        assert_eq!(limits.admit(ip("::1"), false), Ok(()));
        assert_eq!(limits.admit(ip("0.0.0.1"), false), Ok(()));
    }

    #[test]
    fn loopback_can_be_exempt_from_the_clients_limit_only() {
        let mut limits = SessionLimits::new(3, 1, 1, true);
        for client in ["127.0.0.1", "127.0.0.1", "::1"] {
            assert_eq!(limits.admit(ip(client), false), Ok(()));
        }
        assert!(limits.admit(ip("127.0.0.1"), false).is_err());
        let mut strict = SessionLimits::new(3, 1, 9, false);
        assert_eq!(strict.admit(ip("127.0.0.1"), false), Ok(()));
        assert!(strict.admit(ip("127.0.0.1"), false).is_err());
    }

    #[test]
    fn a_network_has_a_limit_but_for_those_who_are_trusted() {
        let mut limits = SessionLimits::new(20, 2, 3, false);
        for client in ["192.0.2.1", "192.0.2.1", "192.0.2.77"] {
            assert_eq!(limits.admit(ip(client), false), Ok(()));
        }
        assert_eq!(limits.admit(ip("192.0.2.200"), false), Err(Refusal::NetworkSessions));
        assert_eq!(limits.admit(ip("192.0.2.200"), true), Ok(()));
        assert_eq!(
            limits.admit(ip("192.0.2.1"), true),
            Err(Refusal::ClientSessions),
            "a client has its own all the same"
        );
        assert_eq!(limits.admit(ip("192.0.3.1"), false), Ok(()));
        assert_eq!((limits.open_of_network(ip("192.0.2.9")), limits.open_of_network(ip("192.0.3.9"))), (4, 1));
        for last in 1..=2 {
            assert_eq!(limits.admit(ip(&format!("2001:db8:0:{last}::1")), false), Ok(()));
        }
        assert_eq!(limits.admit(ip("2001:db8::1"), false), Ok(()), "the first /64 is not its /48");
        assert_eq!(limits.admit(ip("2001:db8:0:3::1"), false), Err(Refusal::NetworkSessions));
        limits.release(ip("2001:db8::1"));
        assert_eq!(limits.admit(ip("2001:db8:0:3::1"), false), Ok(()));
    }

    #[test]
    fn a_proxied_session_moves_to_its_client() {
        let (proxy, client) = (ip("10.0.0.1"), ip("192.0.2.9"));
        let mut limits = SessionLimits::new(3, 1, 9, false);
        assert!((0..3).all(|_| limits.admit_unknown(proxy).is_ok()), "a proxy has no limit of its own");
        assert_eq!(limits.admit_unknown(proxy), Err(Refusal::Sessions));
        assert_eq!(limits.identify(proxy, client, false), Ok(()));
        assert_eq!((limits.open_of(proxy), limits.open_of(client)), (2, 1));
        assert_eq!(limits.identify(proxy, client, false), Err(Refusal::ClientSessions));
        assert_eq!((limits.open_of(proxy), limits.open_of(client), limits.open()), (2, 1, 3));
        limits.release(ip("198.51.100.1"));
        assert_eq!(limits.open(), 3, "a client that is not counted releases nothing");
    }

    #[test]
    fn no_sessions_at_all_is_a_limit_too() {
        assert!(SessionLimits::new(0, 0, 0, true).admit(ip("127.0.0.1"), false).is_err());
    }

    proptest! {
        /// Clients of two networks come and go in a small table, so that places collide and gaps close.
        #[test]
        fn counts_as_a_map_does(acts in prop::collection::vec((0..12u32, any::<bool>()), 0..300)) {
            let mut limits = SessionLimits::new(8, 3, 5, false);
            let mut shadow: BTreeMap<u32, usize> = BTreeMap::new();
            let address = |client: u32| IpAddr::V4((client % 2 * 256 + client).into());
            let of = |shadow: &BTreeMap<u32, usize>, client: u32| shadow.get(&client).copied().unwrap_or(0);
            let network = |shadow: &BTreeMap<u32, usize>, client: u32| -> usize {
                shadow.iter().filter(|(other, _)| *other % 2 == client % 2).map(|(_, open)| open).sum()
            };
            for (client, comes) in acts {
                let open = shadow.values().sum::<usize>();
                if comes {
                    let fits = open < 8 && of(&shadow, client) < 3 && network(&shadow, client) < 5;
                    prop_assert_eq!(limits.admit(address(client), false).is_ok(), fits);
                    *shadow.entry(client).or_default() += usize::from(fits);
                } else {
                    limits.release(address(client));
                    shadow.insert(client, of(&shadow, client).saturating_sub(1));
                }
                for client in 0..12 {
                    prop_assert_eq!(limits.open_of(address(client)), of(&shadow, client));
                    prop_assert_eq!(limits.open_of_network(address(client)), network(&shadow, client));
                }
                prop_assert_eq!(limits.open(), shadow.values().sum::<usize>());
            }
        }
    }
}
