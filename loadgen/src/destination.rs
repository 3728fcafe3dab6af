//! Addresses that say to whom a message belongs and what the destination is to do with it.
//!
//! A recipient is `BEHAVIOUR-TOKEN-INDEX@DOMAIN`, so that sink and ledger need no table of who is who: the sink
//! reads what to answer, the ledger which message of which run it is.

use std::fmt;

/// A message's number, unique in all runs that share a destination: the run in the upper half, a count in the lower.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

impl Token {
    /// The token of a message of a run.
    pub fn new(run: u32, number: u32) -> Token {
        Token(u64::from(run) << 32 | u64::from(number))
    }

    /// Reads what `Display` writes; None for anything else.
    pub fn parse(text: &str) -> Option<Token> {
        let hexadecimal = text.len() == 16 && text.bytes().all(|octet| octet.is_ascii_hexdigit());
        if hexadecimal { u64::from_str_radix(text, 16).ok().map(Token) } else { None }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a destination does with a recipient.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Behaviour {
    /// Takes it.
    Accept,
    /// Refuses RCPT for now so many times, then takes it.
    RefuseFirst(u32),
    /// Accepts RCPT, but refuses the content for now so many times, then takes it.
    RefuseContentFirst(u32),
    /// Refuses RCPT for good: the sender has to be notified.
    RefuseAlways,
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Behaviour::Accept => f.write_str("ok"),
            Behaviour::RefuseFirst(times) => write!(f, "later{times}"),
            Behaviour::RefuseContentFirst(times) => write!(f, "content{times}"),
            Behaviour::RefuseAlways => f.write_str("never"),
        }
    }
}

impl Behaviour {
    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<Behaviour> {
        match text {
            "ok" => Some(Behaviour::Accept),
            "never" => Some(Behaviour::RefuseAlways),
            _ => {
                let times = |prefix: &str| text.strip_prefix(prefix)?.parse().ok();
                times("later")
                    .map(Behaviour::RefuseFirst)
                    .or_else(|| times("content").map(Behaviour::RefuseContentFirst))
            }
        }
    }
}

/// One recipient of one message.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// What to do with it.
    pub behaviour: Behaviour,
    /// The message it was first named for.
    pub token: Token,
    /// Its place in that message.
    pub index: u16,
}

impl Destination {
    /// The address at a domain.
    pub fn address(&self, domain: &str) -> String {
        format!("{}-{}-{}@{domain}", self.behaviour, self.token, self.index)
    }

    /// Reads an address; None for one that is not of this kind.
    pub fn parse(address: &str) -> Option<Destination> {
        let (local_part, _domain) = address.rsplit_once('@')?;
        Destination::parse_local(local_part)
    }

    /// Reads what stands before the `@`; None for one that is not of this kind.
    pub fn parse_local(local_part: &str) -> Option<Destination> {
        let mut parts = local_part.split('-');
        let behaviour = Behaviour::parse(parts.next()?)?;
        let token = Token::parse(parts.next()?)?;
        let index = parts.next()?.parse().ok()?;
        if parts.next().is_none() { Some(Destination { behaviour, token, index }) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let behaviours =
            [Behaviour::Accept, Behaviour::RefuseFirst(2), Behaviour::RefuseContentFirst(1), Behaviour::RefuseAlways];
        for (index, behaviour) in behaviours.into_iter().enumerate() {
            let destination = Destination { behaviour, token: Token::new(7, 8), index: index as u16 };
            assert_eq!(Destination::parse(&destination.address("load.example")), Some(destination));
        }
        assert_eq!(Destination::parse("from-0000000700000008@load.example"), None);
        assert_eq!(Destination::parse("ok-0000000700000008-1-2@load.example"), None);
    }
}
