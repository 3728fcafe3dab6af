//! What a destination does to its clients, as rules: `SUBJECT ACTION[=ARGUMENT] [N/1000]`.
//!
//! The subject is `*`, a domain of recipients, or a port or address that is listened on. Rules are few and are walked in
//! order; all that fit apply. A rule that cannot be read is refused with what was expected.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// Rules of one destination, at most.
pub const RULES_MAX: usize = 1024;

/// To whom a rule applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// To all.
    Any,
    /// To recipients of this domain, in lower case.
    Domain(String),
    /// To connections to this port.
    Port(u16),
    /// To connections to this address.
    Address(SocketAddr),
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing out of the ordinary; also ends the search, so that exceptions can stand before a rule for all.
    Accept,
    /// RCPT is answered with 450.
    Defer,
    /// The content is answered with 451.
    DeferContent,
    /// RCPT is answered with 550.
    Reject,
    /// The content is answered with 554.
    RejectContent,
    /// A sender, recipient pair is answered with 451 until this long after it was first seen.
    Greylist(Duration),
    /// After so many messages of a connection the next MAIL is answered with 421.
    CloseAfter(u32),
    /// The answer to the content comes so much later.
    Slow(Duration),
    /// The content is never answered.
    Stall,
    /// The connection is broken off instead of an answer to the content, which is not taken.
    DropBefore,
    /// The content is taken, and the connection broken off instead of an answer.
    DropUnanswered,
    /// The connection is broken off after the answer.
    DropAfter,
    /// The connection is reset as soon as it stands.
    Refuse,
    /// STARTTLS is agreed to, and answered with bytes that are no TLS.
    BrokenTls,
    /// Connections at a time; more are answered with 421 and counted as violations.
    Connections(u32),
    /// Messages in any such span of time; more are answered with 450 and counted as violations.
    Rate(u32, Duration),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// To whom it applies.
    pub subject: Subject,
    /// What is done.
    pub action: Action,
    /// In how many of a thousand cases.
    pub per_thousand: u16,
}

/// The rule cannot be read; says what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRule(String);

impl fmt::Display for BadRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadRule {}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Rule, BadRule> {
        let mut words = text.split_ascii_whitespace();
        let (Some(subject), Some(action)) = (words.next(), words.next()) else {
            return Err(BadRule("a rule is SUBJECT ACTION[=ARGUMENT] [N/1000]".to_owned()));
        };
        let per_thousand = match words.next() {
            None => 1000,
            Some(share) => share
                .strip_suffix("/1000")
                .and_then(|count| count.parse().ok())
                .filter(|count| *count <= 1000)
                .ok_or_else(|| BadRule(format!("{share}: a share is N/1000")))?,
        };
        if let Some(more) = words.next() {
            return Err(BadRule(format!("{more}: there is nothing after the share")));
        }
        Ok(Rule { subject: parse_subject(subject), action: parse_action(action)?, per_thousand })
    }
}

fn parse_subject(text: &str) -> Subject {
    if text == "*" {
        return Subject::Any;
    }
    if let Ok(address) = text.parse() {
        return Subject::Address(address);
    }
    match text.strip_prefix(':').and_then(|port| port.parse().ok()) {
        Some(port) => Subject::Port(port),
        None => Subject::Domain(text.to_ascii_lowercase()),
    }
}

fn parse_action(text: &str) -> Result<Action, BadRule> {
    let (name, argument) = text.split_once('=').map_or((text, None), |(name, argument)| (name, Some(argument)));
    let bad = || BadRule(format!("{text}: not an action; see `ringpost-load sink --help` for all of them"));
    let span = || argument.and_then(parse_span).ok_or_else(|| BadRule(format!("{name}=TIME, as in {name}=30s")));
    let count =
        || argument.and_then(|text| text.parse().ok()).ok_or_else(|| BadRule(format!("{name}=N, as in {name}=20")));
    match name {
        "greylist" => return span().map(Action::Greylist),
        "slow" => return span().map(Action::Slow),
        "close-after" => return count().map(Action::CloseAfter),
        "connections" => return count().map(Action::Connections),
        "rate" => {
            return parse_rate(argument).ok_or_else(|| BadRule("rate=N or rate=N/TIME, as in rate=100/60s".into()));
        }
        _ => {}
    }
    if argument.is_some() {
        return Err(bad());
    }
    Ok(match name {
        "accept" => Action::Accept,
        "defer" => Action::Defer,
        "defer-content" => Action::DeferContent,
        "reject" => Action::Reject,
        "reject-content" => Action::RejectContent,
        "stall" => Action::Stall,
        "drop-before" => Action::DropBefore,
        "drop-unanswered" => Action::DropUnanswered,
        "drop-after" => Action::DropAfter,
        "refuse" => Action::Refuse,
        "broken-tls" => Action::BrokenTls,
        _ => return Err(bad()),
    })
}

fn parse_rate(argument: Option<&str>) -> Option<Action> {
    let (count, span) = match argument?.split_once('/') {
        Some((count, span)) => (count, parse_span(span)?),
        None => (argument?, Duration::from_secs(1)),
    };
    let count = count.parse().ok().filter(|count| (1..=1_000_000).contains(count))?;
    Some(Action::Rate(count, span))
}

/// A span of time as in 250ms, 30s, 5m, 2h or 50us; None for anything else, and for more than a day.
pub fn parse_span(text: &str) -> Option<Duration> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|span| *span <= Duration::from_secs(86_400))
}

impl Rule {
    /// Whether it is about connections as such, and so to be asked when one is accepted.
    pub fn is_of_connection(&self) -> bool {
        !matches!(self.subject, Subject::Domain(_))
            && matches!(
                self.action,
                Action::Refuse | Action::BrokenTls | Action::Connections(_) | Action::CloseAfter(_)
            )
    }

    /// Whether it applies to a connection to this address.
    pub fn fits_address(&self, listener: SocketAddr) -> bool {
        match &self.subject {
            Subject::Any => true,
            Subject::Port(port) => *port == listener.port(),
            Subject::Address(address) => *address == listener,
            Subject::Domain(_) => false,
        }
    }

    /// Whether it applies to a recipient of this domain, over a connection to this address.
    pub fn fits(&self, domain: &str, listener: SocketAddr) -> bool {
        match &self.subject {
            Subject::Domain(own) => own.eq_ignore_ascii_case(domain),
            _ => self.fits_address(listener),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn rules_are_read() {
        let greylist = rule("Slow.Example greylist=90s 250/1000");
        assert_eq!(greylist.subject, Subject::Domain("slow.example".to_owned()));
        assert_eq!((greylist.action.clone(), greylist.per_thousand), (Action::Greylist(Duration::from_secs(90)), 250));
        assert_eq!(rule("* rate=5/60s").action, Action::Rate(5, Duration::from_secs(60)));
        assert_eq!(rule("* rate=5").action, Action::Rate(5, Duration::from_secs(1)));
        assert_eq!(rule(":2525 refuse").subject, Subject::Port(2525));
        assert_eq!(rule("127.0.0.2:25 stall").subject, Subject::Address("127.0.0.2:25".parse().unwrap()));
    }

    #[test]
    fn what_is_no_rule_is_refused_in_words() {
        for text in
            ["", "*", "* dance", "* slow", "* slow=3", "* defer=3", "* rate=0", "* defer 2000/1000", "* defer 1/1000 x"]
        {
            assert!(text.parse::<Rule>().is_err_and(|error| !error.to_string().is_empty()), "{text}");
        }
        assert_eq!(parse_span("1.5ms"), Some(Duration::from_micros(1500)));
        assert_eq!((parse_span("99h"), parse_span("5"), parse_span("-1s")), (None, None, None));
    }

    #[test]
    fn a_rule_knows_its_subject() {
        let listener = "127.0.0.1:25".parse().unwrap();
        assert!(
            rule("a.example defer").fits("A.Example", listener)
                && !rule("a.example defer").fits("b.a.example", listener)
        );
        assert!(rule("* refuse").is_of_connection() && !rule("a.example refuse").is_of_connection());
        assert!(rule(":25 refuse").fits_address(listener) && !rule(":26 refuse").fits_address(listener));
    }
}
