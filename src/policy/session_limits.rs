//! How many sessions may be open: in all, and per client, so that one client cannot take all places.
//!
//! Counters only: the owner tells when a session begins and ends, and says the reply when one is refused. A client is
//! an IPv4 address or an IPv6 network of [`limits::CLIENT_IPV6_PREFIX`] bits. The table has twice as many places as
//! sessions may be open; it never grows, cannot be full, and forgets a client with its last session.

use crate::limits;
use crate::reply::Reply;
use foldhash::quality::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;

/// Counts open sessions of one shard.
#[derive(Debug)]
pub struct SessionLimits {
    sessions_max: usize,
    per_client_max: usize,
    loopback_exempt: bool,
    open: usize,
    clients: Clients,
}

impl SessionLimits {
    /// Nobody yet. At most [`limits::SESSIONS_MAX`] in all are allowed, whatever is asked. With `loopback_exempt`,
    /// clients on loopback count towards the whole but have no limit of their own: all programs of a machine share
    /// that address.
    pub fn new(sessions_max: usize, per_client_max: usize, loopback_exempt: bool) -> SessionLimits {
        let sessions_max = sessions_max.min(limits::SESSIONS_MAX);
        let clients = Clients::new(sessions_max);
        SessionLimits { sessions_max, per_client_max, loopback_exempt, open: 0, clients }
    }

    /// A connection came. Counts it, or says with which reply to close it; one that was refused is not counted.
    pub fn admit(&mut self, client: IpAddr) -> Result<(), Reply> {
        if self.open >= self.sessions_max {
            return Err(Reply::fixed(421, 4, 3, 2, "Too many sessions are open here; try again in a minute"));
        }
        if !self.is_exempt(client) && self.open_of(client) >= self.per_client_max {
            return Err(Reply::fixed(
                421,
                4,
                7,
                0,
                "Too many sessions are open from your address; close some, or send more messages in each",
            ));
        }
        self.count(client);
        Ok(())
    }

    /// Counts a session without asking: its real client became known after it was admitted (PROXY protocol), and the
    /// one before it was released.
    pub fn count(&mut self, client: IpAddr) {
        if self.open < self.sessions_max {
            self.open += 1;
            *self.clients.entry(key(client)) += 1;
        }
    }

    /// A session that was counted for this client has ended.
    pub fn release(&mut self, client: IpAddr) {
        let place = self.clients.find(key(client));
        if self.clients.places[place].sessions == 0 {
            return;
        }
        self.open -= 1;
        self.clients.places[place].sessions -= 1;
        if self.clients.places[place].sessions == 0 {
            self.clients.close_gap(place);
        }
    }

    /// Open sessions.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Open sessions of a client.
    pub fn open_of(&self, client: IpAddr) -> usize {
        self.clients.places[self.clients.find(key(client))].sessions as usize
    }

    fn is_exempt(&self, client: IpAddr) -> bool {
        self.loopback_exempt && client.to_canonical().is_loopback()
    }
}

/// A client in 64 bits: the network of an IPv6 address; an IPv4 address behind 32 ones, where no IPv6 client can be
/// since `ffff::` is multicast.
fn key(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(four) => 0xffff_ffff_0000_0000 | u64::from(four.to_bits()),
        IpAddr::V6(six) => (six.to_bits() >> (128 - u32::from(limits::CLIENT_IPV6_PREFIX))) as u64,
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
        let mut limits = SessionLimits::new(3, 2, false);
        assert_eq!(limits.admit(ip("192.0.2.1")), Ok(()));
        assert_eq!(limits.admit(ip("::ffff:192.0.2.1")), Ok(()), "the same client");
        let reply = limits.admit(ip("192.0.2.1")).unwrap_err();
        assert!(reply.to_string().starts_with("421 4.7.0 "));
        assert_eq!(limits.admit(ip("192.0.2.2")), Ok(()));
        let reply = limits.admit(ip("192.0.2.3")).unwrap_err();
        assert!(reply.to_string().starts_with("421 4.3.2 "));
        limits.release(ip("192.0.2.1"));
        assert_eq!(limits.admit(ip("192.0.2.1")), Ok(()));
        assert_eq!((limits.open(), limits.open_of(ip("192.0.2.1"))), (3, 2));
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let mut limits = SessionLimits::new(10, 1, false);
        assert_eq!(limits.admit(ip("2001:db8::1")), Ok(()));
        assert!(limits.admit(ip("2001:db8::ffff:2")).is_err());
        assert_eq!(limits.admit(ip("2001:db8:0:1::1")), Ok(()));
        // The zero network is not that of the mapped addresses.
        assert_eq!(limits.admit(ip("::1")), Ok(()));
        assert_eq!(limits.admit(ip("0.0.0.1")), Ok(()));
    }

    #[test]
    fn loopback_can_be_exempt_from_the_clients_limit_only() {
        let mut limits = SessionLimits::new(3, 1, true);
        for client in ["127.0.0.1", "127.0.0.1", "::1"] {
            assert_eq!(limits.admit(ip(client)), Ok(()));
        }
        assert!(limits.admit(ip("127.0.0.1")).is_err());
        let mut strict = SessionLimits::new(3, 1, false);
        assert_eq!(strict.admit(ip("127.0.0.1")), Ok(()));
        assert!(strict.admit(ip("127.0.0.1")).is_err());
    }

    #[test]
    fn a_proxied_session_moves_to_its_client() {
        let mut limits = SessionLimits::new(2, 1, false);
        assert_eq!(limits.admit(ip("10.0.0.1")), Ok(()));
        limits.release(ip("10.0.0.1"));
        limits.count(ip("192.0.2.9"));
        assert_eq!((limits.open_of(ip("10.0.0.1")), limits.open_of(ip("192.0.2.9"))), (0, 1));
        limits.release(ip("198.51.100.1"));
        assert_eq!(limits.open(), 1, "a client that is not counted releases nothing");
    }

    #[test]
    fn no_sessions_at_all_is_a_limit_too() {
        assert!(SessionLimits::new(0, 0, true).admit(ip("127.0.0.1")).is_err());
    }

    proptest! {
        /// Clients come and go in a small table, so that places collide and gaps close.
        #[test]
        fn counts_as_a_map_does(acts in prop::collection::vec((0..12u32, any::<bool>()), 0..300)) {
            let mut limits = SessionLimits::new(8, 3, false);
            let mut shadow: BTreeMap<u32, usize> = BTreeMap::new();
            for (client, comes) in acts {
                let address = IpAddr::V4(client.into());
                let (open, of) = (shadow.values().sum::<usize>(), shadow.get(&client).copied().unwrap_or(0));
                if comes {
                    prop_assert_eq!(limits.admit(address).is_ok(), open < 8 && of < 3);
                    if open < 8 && of < 3 {
                        shadow.insert(client, of + 1);
                    }
                } else {
                    limits.release(address);
                    shadow.insert(client, of.saturating_sub(1));
                }
                for client in 0..12 {
                    let of = shadow.get(&client).copied().unwrap_or(0);
                    prop_assert_eq!(limits.open_of(IpAddr::V4(client.into())), of);
                }
                prop_assert_eq!(limits.open(), shadow.values().sum::<usize>());
            }
        }
    }
}
