//! How single values are read by serde: each with its own words for what is expected, so that an error helps.

use super::text;
use crate::control::oauth::ALGORITHMS;
use crate::shard::settings::{NextHop, Rate};
use crate::smtp::sasl::Mechanism;
use ipnet::IpNet;
use jsonwebtoken::Algorithm;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A value that is written as text.
pub trait FromText: Sized {
    /// What is expected, with an example.
    const EXPECTED: &'static str;
    /// Reads it.
    fn from_text(text: &str) -> Result<Self, String>;
    /// Reads it from a bare number, where that means something.
    fn from_number(_number: u64) -> Option<Self> {
        None
    }
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: FromText> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number)
            .ok()
            .and_then(T::from_number)
            .ok_or_else(|| E::custom(format!("`{number}`: expected {}", T::EXPECTED)))
    }
}

/// One value written as text.
pub fn one<'de, D: Deserializer<'de>, T: FromText>(reader: D) -> Result<T, D::Error> {
    reader.deserialize_any(TextVisitor(PhantomData))
}

/// One value written as text, for a key that may be left out.
pub fn some<'de, D: Deserializer<'de>, T: FromText>(reader: D) -> Result<Option<T>, D::Error> {
    one(reader).map(Some)
}

struct ManyVisitor<T>(PhantomData<T>);

impl<'de, T: FromText> Visitor<'de> for ManyVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or a list of such", T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
        T::from_text(text).map(|value| vec![value]).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(Element(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values)
    }
}

struct Element<T>(T);

impl<'de, T: FromText> serde::Deserialize<'de> for Element<T> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Element<T>, D::Error> {
        one(reader).map(Element)
    }
}

/// A list of values written as text, or a single one.
pub fn many<'de, D: Deserializer<'de>, T: FromText>(reader: D) -> Result<Vec<T>, D::Error> {
    reader.deserialize_any(ManyVisitor(PhantomData))
}

/// The same, for a key that may be left out.
pub fn some_many<'de, D: Deserializer<'de>, T: FromText>(reader: D) -> Result<Option<Vec<T>>, D::Error> {
    many(reader).map(Some)
}

impl FromText for Mechanism {
    const EXPECTED: &'static str = "a mechanism of SASL, as in \"PLAIN\"";
    fn from_text(text: &str) -> Result<Mechanism, String> {
        text.parse()
    }
}

/// What a name of HELO or EHLO must be.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum HelloCheck {
    /// A name of several labels, or an address literal.
    Qualified,
    /// Not our own.
    Foreign,
}

impl FromText for HelloCheck {
    const EXPECTED: &'static str = "a check of names, \"qualified\" or \"foreign\"";
    fn from_text(text: &str) -> Result<HelloCheck, String> {
        match text {
            "qualified" => Ok(HelloCheck::Qualified),
            "foreign" => Ok(HelloCheck::Foreign),
            _ => Err(format!("`{text}`: expected {}", HelloCheck::EXPECTED)),
        }
    }
}

impl FromText for String {
    const EXPECTED: &'static str = "a text";
    fn from_text(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }
}

impl FromText for Algorithm {
    const EXPECTED: &'static str = "an algorithm of signatures, as in \"ES256\"";
    fn from_text(text: &str) -> Result<Algorithm, String> {
        let known = || ALGORITHMS.map(|one| format!("{one:?}")).join(", ");
        let one = ALGORITHMS.into_iter().find(|one| format!("{one:?}") == text);
        one.ok_or_else(|| format!("`{text}` is no algorithm that tokens may be signed with; those are {}", known()))
    }
}

impl FromText for Duration {
    const EXPECTED: &'static str = "a duration, as in \"20m\"";
    fn from_text(text: &str) -> Result<Duration, String> {
        text::parse_duration(text)
    }
}

/// A duration, or "never".
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MaybeNever(pub Option<Duration>);

impl FromText for MaybeNever {
    const EXPECTED: &'static str = "a duration, as in \"4h\", or \"never\"";
    fn from_text(text: &str) -> Result<MaybeNever, String> {
        if text == "never" { Ok(MaybeNever(None)) } else { text::parse_duration(text).map(|d| MaybeNever(Some(d))) }
    }
}

/// A duration, or "never", as an option.
pub fn or_never<'de, D: Deserializer<'de>>(reader: D) -> Result<Option<Duration>, D::Error> {
    one::<D, MaybeNever>(reader).map(|value| value.0)
}

/// Octets.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromText for Size {
    const EXPECTED: &'static str = "a size, as in \"50MB\"";
    fn from_text(text: &str) -> Result<Size, String> {
        text::parse_size(text).map(Size)
    }
    fn from_number(number: u64) -> Option<Size> {
        Some(Size(number))
    }
}

/// A size as a plain number of octets.
pub fn size<'de, D: Deserializer<'de>>(reader: D) -> Result<u64, D::Error> {
    one::<D, Size>(reader).map(|size| size.0)
}

/// A size that may be left out.
pub fn some_size<'de, D: Deserializer<'de>>(reader: D) -> Result<Option<u64>, D::Error> {
    size(reader).map(Some)
}

impl FromText for Rate {
    const EXPECTED: &'static str = "a rate, as in \"100/1m\"";
    fn from_text(text: &str) -> Result<Rate, String> {
        text::parse_rate(text)
    }
}

/// How often somebody may connect, or "unlimited".
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MaybeRate(pub Option<Rate>);

impl FromText for MaybeRate {
    const EXPECTED: &'static str = "a rate, as in \"600/1m\", or \"unlimited\"";
    fn from_text(text: &str) -> Result<MaybeRate, String> {
        if text == "unlimited" {
            return Ok(MaybeRate(None));
        }
        let rate = text::parse_rate(text)?;
        // Clients do not come evenly: the whole count may come at once unless something else is said.
        let burst = if text.contains("burst") { rate.burst } else { rate.count };
        Ok(MaybeRate(Some(Rate { burst, ..rate })))
    }
}

/// How often somebody may connect, or "unlimited", as an option.
pub fn connection_rate<'de, D: Deserializer<'de>>(reader: D) -> Result<Option<Rate>, D::Error> {
    one::<D, MaybeRate>(reader).map(|value| value.0)
}

/// A rate of our own doing, evenly spaced, or "unlimited".
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Pace(pub Option<Rate>);

impl FromText for Pace {
    const EXPECTED: &'static str = "a rate, as in \"100/1m\", or \"unlimited\"";
    fn from_text(text: &str) -> Result<Pace, String> {
        if text == "unlimited" { Ok(Pace(None)) } else { text::parse_rate(text).map(|rate| Pace(Some(rate))) }
    }
}

/// A number of at least 1, or "unlimited".
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MaybeCount(pub Option<u32>);

impl FromText for MaybeCount {
    const EXPECTED: &'static str = "a number of at least 1, or \"unlimited\"";
    fn from_text(text: &str) -> Result<MaybeCount, String> {
        if text == "unlimited" {
            Ok(MaybeCount(None))
        } else {
            Err(format!("`{text}`: expected {}", MaybeCount::EXPECTED))
        }
    }
    fn from_number(number: u64) -> Option<MaybeCount> {
        u32::try_from(number).ok().filter(|count| *count > 0).map(|count| MaybeCount(Some(count)))
    }
}

impl FromText for SocketAddr {
    const EXPECTED: &'static str = "an address with a port, as in \"127.0.0.1:2525\" or \"[::1]:2525\"";
    fn from_text(text: &str) -> Result<SocketAddr, String> {
        text.parse().map_err(|_| format!("`{text}`: expected {}", SocketAddr::EXPECTED))
    }
}

impl FromText for IpAddr {
    const EXPECTED: &'static str = "an IP address, as in \"192.0.2.1\" or \"2001:db8::1\"";
    fn from_text(text: &str) -> Result<IpAddr, String> {
        text.parse().map_err(|_| format!("`{text}`: expected {}", IpAddr::EXPECTED))
    }
}

impl FromText for IpNet {
    const EXPECTED: &'static str = "a network, as in \"192.0.2.0/24\" or \"2001:db8::/32\"";
    fn from_text(text: &str) -> Result<IpNet, String> {
        let network = match text.parse::<IpAddr>() {
            Ok(address) => Ok(IpNet::from(address)),
            Err(_) => text.parse::<IpNet>(),
        };
        network.map(|network| network.trunc()).map_err(|_| format!("`{text}`: expected {}", IpNet::EXPECTED))
    }
}

/// A next hop whose port, when not given, is 25.
impl FromText for NextHop {
    const EXPECTED: &'static str = "a host, as in \"smtp.example.net:25\"";
    fn from_text(text: &str) -> Result<NextHop, String> {
        text::parse_next_hop(text, 25)
    }
}

/// A domain name in lower case and A-labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain(pub Box<str>);

impl FromText for Domain {
    const EXPECTED: &'static str = "a domain name, as in \"mx.example.net\"";
    fn from_text(text: &str) -> Result<Domain, String> {
        text::parse_domain(text).map(Domain)
    }
}

/// A domain name that may be left out.
pub fn some_domain<'de, D: Deserializer<'de>>(reader: D) -> Result<Option<Box<str>>, D::Error> {
    one::<D, Domain>(reader).map(|domain| Some(domain.0))
}

/// Domain names: a text or a list.
pub fn domains<'de, D: Deserializer<'de>>(reader: D) -> Result<Vec<Box<str>>, D::Error> {
    let domains: Vec<Domain> = many(reader)?;
    Ok(domains.into_iter().map(|domain| domain.0).collect())
}

/// What a route says about domains: "*", "example.com", or ".example.com" for all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainRule {
    /// Every domain.
    Any,
    /// This one.
    Exactly(Box<str>),
    /// All below it.
    Below(Box<str>),
}

impl FromText for DomainRule {
    const EXPECTED: &'static str = "a domain: \"*\", \"example.com\", or \".example.com\" for those below it";
    fn from_text(text: &str) -> Result<DomainRule, String> {
        let wrong = |_| format!("`{text}`: expected {}", DomainRule::EXPECTED);
        match text.strip_prefix("*.").or_else(|| text.strip_prefix('.')) {
            _ if text == "*" => Ok(DomainRule::Any),
            Some(parent) => text::parse_domain(parent).map(DomainRule::Below).map_err(wrong),
            None => text::parse_domain(text).map(DomainRule::Exactly).map_err(wrong),
        }
    }
}

/// A name server: an address, with a port or without.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// Its address.
    pub address: IpAddr,
    /// Its port, when given.
    pub port: Option<u16>,
}

impl FromText for NameServer {
    const EXPECTED: &'static str = "a name server's address, as in \"127.0.0.1\" or \"127.0.0.1:5353\"";
    fn from_text(text: &str) -> Result<NameServer, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(NameServer { address: address.ip(), port: Some(address.port()) });
        }
        let plain = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        match plain.parse::<IpAddr>() {
            Ok(address) => Ok(NameServer { address, port: None }),
            Err(_) => Err(format!("`{text}`: expected {}", NameServer::EXPECTED)),
        }
    }
}
