//! Who may send mail through this host to others: trusted networks and those who have logged in; nobody else.
//!
//! A value made from the configuration, one per listener, never changed. It decides; the session answers. Which
//! recipients are refused later for their own sake, and who may log in, is not decided here.

use crate::reply::Reply;
use ipnet::{IpNet, Ipv4Net};
use std::net::IpAddr;

/// What a listener is for.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum ListenerKind {
    /// Servers and applications of ours (port 25 and the like): by network, or logged in.
    #[default]
    Relay,
    /// People and programs with credentials (ports 587 and 465, RFC 6409 section 4.3): logged in, from anywhere; by network
    /// only where some are named.
    Submission,
}

/// What was decided, and by which rule.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RelayDecision {
    /// It has logged in.
    Authenticated,
    /// It comes from this trusted network.
    Trusted(IpNet),
    /// It comes from elsewhere and has not logged in.
    Stranger,
    /// It must log in first.
    AuthenticationNeeded,
    /// It must start TLS first.
    TlsNeeded,
}

/// The rules of one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayPolicy {
    kind: ListenerKind,
    trusted: Box<[IpNet]>,
    tls_needed: bool,
}

impl RelayPolicy {
    /// Trusts these networks. With `tls_needed` nobody relays in the
    /// clear.
    pub fn new(kind: ListenerKind, trusted: Vec<IpNet>, tls_needed: bool) -> RelayPolicy {
        let trusted: Vec<IpNet> = trusted.into_iter().map(canonical).collect();
        RelayPolicy { kind, trusted: IpNet::aggregate(&trusted).into(), tls_needed }
    }

    /// The trusted networks, joined where they touch.
    pub fn trusted(&self) -> &[IpNet] {
        &self.trusted
    }

    /// Whether this client is of a trusted network.
    pub fn trusts(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.trusted.iter().any(|network| network.contains(&client))
    }

    /// Decides for a client. An IPv4 client on an IPv6 socket (`::ffff:192.0.2.1`) counts as what it is.
    pub fn decide(&self, client: IpAddr, tls: bool, authenticated: bool) -> RelayDecision {
        if self.tls_needed && !tls {
            return RelayDecision::TlsNeeded;
        }
        if authenticated {
            return RelayDecision::Authenticated;
        }
        let client = client.to_canonical();
        match self.trusted.iter().find(|network| network.contains(&client)) {
            Some(&network) => RelayDecision::Trusted(network),
            None if self.kind == ListenerKind::Submission => RelayDecision::AuthenticationNeeded,
            None => RelayDecision::Stranger,
        }
    }

    /// As [`RelayPolicy::decide`], in the form of the answer to RCPT.
    pub fn may_relay(&self, client: IpAddr, tls: bool, authenticated: bool) -> Result<(), Reply> {
        match self.decide(client, tls, authenticated) {
            RelayDecision::Authenticated | RelayDecision::Trusted(_) => Ok(()),
            RelayDecision::Stranger => Err(Reply::fixed(
                554,
                5,
                7,
                1,
                "Relaying denied: send from a network that this server trusts; its operator can add yours",
            )),
            // RFC 4954 section 6.
            RelayDecision::AuthenticationNeeded => {
                Err(Reply::fixed(530, 5, 7, 0, "Authentication required: log in with AUTH first, under TLS"))
            }
            // RFC 3207 section 4.
            RelayDecision::TlsNeeded => Err(Reply::fixed(530, 5, 7, 0, "Encryption required: issue STARTTLS first")),
        }
    }
}

/// A network of IPv4 addresses written in IPv6 (`::ffff:10.0.0.0/104`) as the IPv4 network that it is.
fn canonical(network: IpNet) -> IpNet {
    if let IpNet::V6(six) = network
        && let Some(four) = six.addr().to_ipv4_mapped()
        && let Some(Ok(four)) = six.prefix_len().checked_sub(96).map(|prefix| Ipv4Net::new(four, prefix))
    {
        return IpNet::V4(four);
    }
    network
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(kind: ListenerKind, networks: &[&str], tls_needed: bool) -> RelayPolicy {
        RelayPolicy::new(kind, networks.iter().map(|network| network.parse().unwrap()).collect(), tls_needed)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn trusted_networks_relay_and_strangers_are_told_what_to_do() {
        let policy = policy(ListenerKind::Relay, &["127.0.0.0/8", "::1/128", "2001:db8:5::/48"], false);
        for client in ["127.0.0.1", "127.9.9.9", "::1", "2001:db8:5:1::7"] {
            assert_eq!(policy.may_relay(ip(client), false, false), Ok(()), "{client}");
        }
        for client in ["192.0.2.1", "2001:db8:6::1", "::", "0.0.0.0"] {
            let reply = policy.may_relay(ip(client), true, false).unwrap_err();
            assert!(reply.to_string().starts_with("554 5.7.1 ") && reply.text.contains("its operator"), "{client}");
        }
        assert_eq!(policy.decide(ip("192.0.2.1"), false, true), RelayDecision::Authenticated);
    }

    #[test]
    fn mapped_addresses_count_as_ipv4_on_both_sides() {
        let written_as_six = policy(ListenerKind::Relay, &["::ffff:10.0.0.0/104"], false);
        let network: IpNet = "10.0.0.0/8".parse().unwrap();
        assert_eq!(written_as_six.trusted(), [network]);
        for client in ["10.1.2.3", "::ffff:10.1.2.3"] {
            assert_eq!(written_as_six.decide(ip(client), false, false), RelayDecision::Trusted(network));
        }
        assert_eq!(written_as_six.decide(ip("::ffff:11.0.0.1"), false, false), RelayDecision::Stranger);
        // All of IPv6 is not all of IPv4: a mapped client is an IPv4 client.
        let all_six = policy(ListenerKind::Relay, &["::/0"], false);
        assert_eq!(all_six.decide(ip("::ffff:192.0.2.1"), false, false), RelayDecision::Stranger);
    }

    #[test]
    fn submission_goes_by_login_and_by_networks_that_are_named() {
        let named = policy(ListenerKind::Submission, &["192.0.2.0/24"], false);
        assert_eq!(named.may_relay(ip("192.0.2.1"), false, false), Ok(()));
        assert_eq!(named.decide(ip("127.0.0.1"), true, false), RelayDecision::AuthenticationNeeded);
        let policy = policy(ListenerKind::Submission, &[], false);
        let reply = policy.may_relay(ip("127.0.0.1"), true, false).unwrap_err();
        assert!(reply.to_string().starts_with("530 5.7.0 "));
        assert_eq!(policy.may_relay(ip("127.0.0.1"), true, true), Ok(()));
    }

    #[test]
    fn tls_comes_first_where_it_is_needed() {
        let policy = policy(ListenerKind::Relay, &["127.0.0.0/8"], true);
        assert_eq!(policy.decide(ip("127.0.0.1"), false, true), RelayDecision::TlsNeeded);
        assert_eq!(policy.may_relay(ip("127.0.0.1"), true, false), Ok(()));
    }

    #[test]
    fn nobody_is_trusted_by_default() {
        assert_eq!(RelayPolicy::default().decide(ip("127.0.0.1"), true, false), RelayDecision::Stranger);
    }
}
