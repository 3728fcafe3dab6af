//! What a failed reply means: its class, and whether it speaks against the recipient, the moment or the sender.
//!
//! The names are stable: they stand in events, records, reports, metrics and the operator's rules. Not here: how a
//! reply gets its class (src/policy/classify.rs). docs/CLASSIFICATION.md describes each class for operators.

/// What a reply that is no success means, in the terms of the field.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ReplyClass {
    /// There is no such mailbox.
    InvalidRecipient,
    /// The mailbox is there, but closed, suspended or no longer used.
    InactiveMailbox,
    /// The mailbox has no room.
    MailboxFull,
    /// The recipient's domain does not exist or takes no mail.
    InvalidDomain,
    /// DNS gave no answer, to us or to the peer.
    DnsFailure,
    /// The way to the mailbox is wrong: a loop, another region.
    Routing,
    /// The peer does not relay for us, or wants a login first.
    RelayDenied,
    /// The sender's address or domain is wrong or cannot be verified.
    InvalidSender,
    /// SPF, DKIM or DMARC do not pass.
    Authentication,
    /// Reverse DNS of our address, or the name given with EHLO, does not satisfy.
    ReverseDns,
    /// The peer wants TLS, or a better kind of it.
    TlsRequired,
    /// A rule of the receiver refuses it; which one is not said.
    Policy,
    /// The content is held for spam.
    SpamContent,
    /// A virus, or an attachment of a kind that is not taken.
    Virus,
    /// The content is not in order: headers, MIME, line ends.
    ContentError,
    /// Our address is on a block list, a public one or the receiver's.
    BlockIp,
    /// The sender's domain or address is on a block list.
    BlockDomain,
    /// The reputation of our address or domain is too low.
    Reputation,
    /// Put off for the first time only.
    Greylisted,
    /// Too much in too short a time, for us or for the recipient.
    Throttled,
    /// Too many connections at a time, or messages on one.
    ConnectionsExceeded,
    /// The quota of the account that we send by is used up.
    Quota,
    /// Too many recipients in one transaction.
    TooManyRecipients,
    /// The message is larger than the peer takes.
    MessageTooLarge,
    /// Trouble of the peer's own that passes.
    TemporaryFailure,
    /// No connection was made, or it broke.
    BadConnection,
    /// One side does not keep to the protocol.
    ProtocolError,
    /// Neither text nor codes tell.
    Unknown,
}

/// For whom a class is bad news: what suppression and the operator go by.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BounceKind {
    /// The recipient cannot be reached, now or later.
    Hard,
    /// It passes, or concerns this message alone.
    Soft,
    /// The sender, its source or its content is refused, whoever the recipient is.
    Block,
}

/// What a reply was found to mean.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// Its class.
    pub class: ReplyClass,
    /// For whom it is bad news.
    pub kind: BounceKind,
}

impl BounceKind {
    /// The word for events, records and reports.
    pub const fn name(self) -> &'static str {
        match self {
            BounceKind::Hard => "hard",
            BounceKind::Soft => "soft",
            BounceKind::Block => "block",
        }
    }

    /// The kind of this name.
    pub fn of_name(name: &str) -> Option<BounceKind> {
        [BounceKind::Hard, BounceKind::Soft, BounceKind::Block].into_iter().find(|kind| kind.name() == name)
    }
}

impl ReplyClass {
    /// How many there are.
    pub const COUNT: usize = 28;

    /// All, in the order of their numbers.
    pub const ALL: [ReplyClass; ReplyClass::COUNT] = [
        ReplyClass::InvalidRecipient,
        ReplyClass::InactiveMailbox,
        ReplyClass::MailboxFull,
        ReplyClass::InvalidDomain,
        ReplyClass::DnsFailure,
        ReplyClass::Routing,
        ReplyClass::RelayDenied,
        ReplyClass::InvalidSender,
        ReplyClass::Authentication,
        ReplyClass::ReverseDns,
        ReplyClass::TlsRequired,
        ReplyClass::Policy,
        ReplyClass::SpamContent,
        ReplyClass::Virus,
        ReplyClass::ContentError,
        ReplyClass::BlockIp,
        ReplyClass::BlockDomain,
        ReplyClass::Reputation,
        ReplyClass::Greylisted,
        ReplyClass::Throttled,
        ReplyClass::ConnectionsExceeded,
        ReplyClass::Quota,
        ReplyClass::TooManyRecipients,
        ReplyClass::MessageTooLarge,
        ReplyClass::TemporaryFailure,
        ReplyClass::BadConnection,
        ReplyClass::ProtocolError,
        ReplyClass::Unknown,
    ];

    /// Its place in [`ReplyClass::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its name wherever it is written.
    pub const fn name(self) -> &'static str {
        match self {
            ReplyClass::InvalidRecipient => "invalid-recipient",
            ReplyClass::InactiveMailbox => "inactive-mailbox",
            ReplyClass::MailboxFull => "mailbox-full",
            ReplyClass::InvalidDomain => "invalid-domain",
            ReplyClass::DnsFailure => "dns-failure",
            ReplyClass::Routing => "routing",
            ReplyClass::RelayDenied => "relay-denied",
            ReplyClass::InvalidSender => "invalid-sender",
            ReplyClass::Authentication => "authentication",
            ReplyClass::ReverseDns => "reverse-dns",
            ReplyClass::TlsRequired => "tls-required",
            ReplyClass::Policy => "policy",
            ReplyClass::SpamContent => "spam-content",
            ReplyClass::Virus => "virus",
            ReplyClass::ContentError => "content-error",
            ReplyClass::BlockIp => "block-ip",
            ReplyClass::BlockDomain => "block-domain",
            ReplyClass::Reputation => "reputation",
            ReplyClass::Greylisted => "greylisted",
            ReplyClass::Throttled => "throttled",
            ReplyClass::ConnectionsExceeded => "connections-exceeded",
            ReplyClass::Quota => "quota",
            ReplyClass::TooManyRecipients => "too-many-recipients",
            ReplyClass::MessageTooLarge => "message-too-large",
            ReplyClass::TemporaryFailure => "temporary-failure",
            ReplyClass::BadConnection => "bad-connection",
            ReplyClass::ProtocolError => "protocol-error",
            ReplyClass::Unknown => "unknown",
        }
    }

    /// The class of this name.
    pub fn of_name(name: &str) -> Option<ReplyClass> {
        ReplyClass::ALL.into_iter().find(|class| class.name() == name)
    }

    /// For whom it is bad news, when the peer says it for good (5xx) or for now (4xx). Only what is said of the
    /// recipient for good is hard: what may pass is soft even where the peer gives up on this message.
    pub const fn kind(self, permanent: bool) -> BounceKind {
        match self {
            ReplyClass::InvalidRecipient | ReplyClass::InactiveMailbox | ReplyClass::InvalidDomain if permanent => {
                BounceKind::Hard
            }
            ReplyClass::RelayDenied
            | ReplyClass::InvalidSender
            | ReplyClass::Authentication
            | ReplyClass::ReverseDns
            | ReplyClass::TlsRequired
            | ReplyClass::Policy
            | ReplyClass::SpamContent
            | ReplyClass::Virus
            | ReplyClass::ContentError
            | ReplyClass::BlockIp
            | ReplyClass::BlockDomain
            | ReplyClass::Reputation => BounceKind::Block,
            _ => BounceKind::Soft,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places_lead_back() {
        for (place, class) in ReplyClass::ALL.into_iter().enumerate() {
            assert_eq!(class.index(), place);
            assert_eq!(ReplyClass::of_name(class.name()), Some(class));
        }
        for kind in [BounceKind::Hard, BounceKind::Soft, BounceKind::Block] {
            assert_eq!(BounceKind::of_name(kind.name()), Some(kind));
        }
        assert_eq!(ReplyClass::of_name("Unknown"), None);
    }

    #[test]
    fn only_what_is_said_of_the_recipient_for_good_is_hard() {
        let hard = ReplyClass::ALL.into_iter().filter(|class| class.kind(true) == BounceKind::Hard);
        let names: Vec<&str> = hard.map(ReplyClass::name).collect();
        assert_eq!(names, ["invalid-recipient", "inactive-mailbox", "invalid-domain"]);
        assert!(ReplyClass::ALL.into_iter().all(|class| class.kind(false) != BounceKind::Hard));
        assert_eq!(ReplyClass::MailboxFull.kind(true), BounceKind::Soft);
        assert_eq!(ReplyClass::BlockIp.kind(false), BounceKind::Block);
    }
}
