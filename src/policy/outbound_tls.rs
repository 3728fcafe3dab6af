//! Which TLS a delivery needs: what the operator asks of a route, what the destination asks of everybody (MTA-STS, DANE), and
//! what follows from both for one connection.
//!
//! Not here: how a policy is found (src/control/mta_sts.rs, src/io/dns.rs) and how a peer is proven (src/io/peer_proof.rs). A
//! destination's own policy makes a delivery stricter, never less so; it is the stronger of two that counts (RFC 8461 2: DANE
//! before MTA-STS).

use crate::policy::dane::Tlsa;
use crate::smtp::client::TlsUse;
use std::fmt;
use std::sync::Arc;

/// How far an operator trusts a route's hosts without proof.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TlsLevel {
    /// In clear, always.
    Never,
    /// Encrypted where it is offered and works; else in clear.
    Opportunistic,
    /// Encrypted or not at all.
    Required,
    /// Encrypted, to a host that proves its name, or not at all.
    Verified,
}

/// What the operator asks of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsRule {
    /// How far hosts are trusted.
    pub level: TlsLevel,
    /// The names of which a verified host must prove one; its own name when there are none.
    pub names: Arc<[Box<str>]>,
    /// Which of the machine's set-ups is used: it decides the least version and our own certificate.
    pub setup: u16,
    /// Whether policies of MTA-STS are looked for and obeyed.
    pub mta_sts: bool,
    /// Whether TLSA records are looked for and obeyed.
    pub dane: bool,
}

impl TlsRule {
    /// Nothing but a level.
    pub fn of(level: TlsLevel) -> TlsRule {
        TlsRule { level, names: Arc::default(), setup: 0, mta_sts: false, dane: false }
    }

    /// As the protocol sees it.
    pub fn tls_use(&self) -> TlsUse {
        match self.level {
            TlsLevel::Never => TlsUse::Never,
            TlsLevel::Opportunistic => TlsUse::Opportunistic,
            TlsLevel::Required | TlsLevel::Verified => TlsUse::Required,
        }
    }

    /// Whether destinations' own policies are looked for.
    pub fn asks_destinations(&self) -> bool {
        self.level != TlsLevel::Never && (self.mta_sts || self.dane)
    }
}

/// What a destination asks of a connection to one of its hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostTls {
    /// Nothing.
    #[default]
    None,
    /// A policy of MTA-STS in mode `testing` names the host: what would fail is told, and fails not.
    Tested,
    /// A policy of MTA-STS in mode `enforce` names the host: it must prove its name.
    Named,
    /// It has TLSA records, none of which can be used: encrypted, without proof (RFC 7672 2.2).
    Encrypted,
    /// It must prove itself by one of these.
    Dane(Arc<[Tlsa]>),
}

impl HostTls {
    /// A word that tells sites apart; "" where nothing is asked.
    pub fn kind(&self) -> &'static str {
        match self {
            HostTls::None => "",
            HostTls::Tested => "MTA-STS in testing",
            HostTls::Named => "MTA-STS",
            HostTls::Encrypted | HostTls::Dane(_) => "DANE",
        }
    }
}

/// Whose policy it is that decides; words for logs and operators.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// The route's level.
    Route(TlsLevel),
    /// The destination's policy of MTA-STS.
    MtaSts,
    /// The host's TLSA records.
    Dane,
}

impl DecidedBy {
    /// One word for events.
    pub fn word(self) -> &'static str {
        match self {
            DecidedBy::Route(TlsLevel::Never) => "never",
            DecidedBy::Route(TlsLevel::Opportunistic) => "opportunistic",
            DecidedBy::Route(TlsLevel::Required) => "required",
            DecidedBy::Route(TlsLevel::Verified) => "verified",
            DecidedBy::MtaSts => "mta-sts",
            DecidedBy::Dane => "dane",
        }
    }
}

impl DecidedBy {
    /// The word, where it is more than to take what is offered.
    pub fn policy(self) -> Option<&'static str> {
        match self {
            DecidedBy::Route(TlsLevel::Never | TlsLevel::Opportunistic) => None,
            other => Some(other.word()),
        }
    }
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecidedBy::Route(_) => write!(f, "the route's tls = {:?}", self.word()),
            DecidedBy::MtaSts => f.write_str("the domain's MTA-STS policy"),
            DecidedBy::Dane => f.write_str("DANE (the host's TLSA records)"),
        }
    }
}

/// By what a peer must prove itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// By nothing.
    #[default]
    None,
    /// By a certificate of a public authority for one of these names.
    Names(Arc<[Box<str>]>),
    /// By what these records mean; where an authority is meant, for this name.
    Dane {
        /// At least one usable.
        records: Arc<[Tlsa]>,
        /// The host.
        name: Box<str>,
    },
}

/// What one connection is told about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionTls {
    /// When STARTTLS is used.
    pub tls_use: TlsUse,
    /// What is looked at once it is.
    pub proof: Proof,
    /// Whether a peer without proof gets nothing.
    pub enforced: bool,
    /// Which of the machine's set-ups is used.
    pub setup: u16,
    /// Who wants it so.
    pub by: DecidedBy,
}

impl ConnectionTls {
    /// What follows from a route's rule and a host's wish.
    pub fn new(rule: &TlsRule, host: &str, wish: &HostTls) -> ConnectionTls {
        let own = |name: &str| -> Arc<[Box<str>]> { Arc::from([Box::from(name)]) };
        let by_route = ConnectionTls {
            tls_use: rule.tls_use(),
            proof: match rule.level {
                TlsLevel::Verified if rule.names.is_empty() => Proof::Names(own(host)),
                TlsLevel::Verified => Proof::Names(Arc::clone(&rule.names)),
                _ => Proof::None,
            },
            enforced: rule.level == TlsLevel::Verified,
            setup: rule.setup,
            by: DecidedBy::Route(rule.level),
        };
        let stricter =
            |proof, by| ConnectionTls { tls_use: TlsUse::Required, proof, enforced: true, by, ..by_route.clone() };
        match (rule.level, wish) {
            (TlsLevel::Never, _) | (_, HostTls::None) => by_route,
            (_, HostTls::Dane(records)) => {
                stricter(Proof::Dane { records: Arc::clone(records), name: host.into() }, DecidedBy::Dane)
            }
            // What the operator asks is as strict as these, or stricter.
            (TlsLevel::Verified, HostTls::Encrypted | HostTls::Named | HostTls::Tested) => by_route,
            (_, HostTls::Named) => stricter(Proof::Names(own(host)), DecidedBy::MtaSts),
            (_, HostTls::Encrypted) => stricter(Proof::None, DecidedBy::Dane),
            (_, HostTls::Tested) => ConnectionTls { proof: Proof::Names(own(host)), ..by_route },
        }
    }

    /// Whether a peer whose STARTTLS is broken gets its mail in clear.
    pub fn may_do_without(&self) -> bool {
        self.tls_use == TlsUse::Opportunistic
    }
}

/// Why a session is not protected as it should be, in the words of RFC 8460 4.3.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsFailure {
    /// The host offers no STARTTLS, or refuses it.
    StarttlsNotSupported,
    /// The certificate is for other names.
    HostMismatch,
    /// The certificate is past its end, or before its beginning.
    Expired,
    /// No authority that is trusted has issued it.
    NotTrusted,
    /// No TLSA record means it.
    TlsaMismatch,
    /// Anything else.
    Validation,
}

impl TlsFailure {
    /// The report's word for it.
    pub fn word(self) -> &'static str {
        match self {
            TlsFailure::StarttlsNotSupported => "starttls-not-supported",
            TlsFailure::HostMismatch => "certificate-host-mismatch",
            TlsFailure::Expired => "certificate-expired",
            TlsFailure::NotTrusted => "certificate-not-trusted",
            TlsFailure::TlsaMismatch | TlsFailure::Validation => "validation-failure",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: [TlsLevel; 4] = [TlsLevel::Never, TlsLevel::Opportunistic, TlsLevel::Required, TlsLevel::Verified];

    fn records() -> Arc<[Tlsa]> {
        Arc::from([Tlsa { usage: 3, selector: 1, matching: 1, data: [7; 32].into() }])
    }

    #[test]
    fn the_stricter_of_route_and_destination_decides() {
        let wishes = [HostTls::None, HostTls::Tested, HostTls::Named, HostTls::Encrypted, HostTls::Dane(records())];
        let mut table = Vec::new();
        for level in LEVELS {
            for wish in &wishes {
                let tls = ConnectionTls::new(&TlsRule::of(level), "mx.test", wish);
                let proof = match &tls.proof {
                    Proof::None => "-",
                    Proof::Names(names) if **names == [Box::from("mx.test")] => "name",
                    Proof::Names(_) => "other",
                    Proof::Dane { .. } => "dane",
                };
                assert!(!tls.enforced || tls.tls_use == TlsUse::Required, "what is enforced never goes in clear");
                let used = match tls.tls_use {
                    TlsUse::Never => "never",
                    TlsUse::Opportunistic => "may",
                    TlsUse::Required => "must",
                };
                table.push(format!("{used} {proof} {} {}", tls.enforced, tls.by.word()));
            }
        }
        let wanted = [
            ["never - false never"; 5],
            [
                "may - false opportunistic",
                "may name false opportunistic",
                "must name true mta-sts",
                "must - true dane",
                "must dane true dane",
            ],
            [
                "must - false required",
                "must name false required",
                "must name true mta-sts",
                "must - true dane",
                "must dane true dane",
            ],
            [
                "must name true verified",
                "must name true verified",
                "must name true verified",
                "must name true verified",
                "must dane true dane",
            ],
        ];
        assert_eq!(table, wanted.concat());
    }

    #[test]
    fn an_operator_may_name_what_is_proven() {
        let rule = TlsRule { names: Arc::from([Box::from("mail.example")]), ..TlsRule::of(TlsLevel::Verified) };
        let tls = ConnectionTls::new(&rule, "mx.test", &HostTls::Named);
        assert_eq!(tls.proof, Proof::Names(Arc::from([Box::from("mail.example")])));
    }
}
