//! How much a tenant or a credential may send: messages and recipients in each minute, hour and day of UTC. What was sent is
//! counted in src/policy/usage.rs.

use crate::clock::UnixTime;
use crate::reply::Reply;
use crate::smtp::transaction::Bounds;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A length of time that is counted in.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day of UTC.
    Day,
}

impl Window {
    /// The number of the present one, and the seconds that it has left.
    pub fn at(self, now: UnixTime) -> (u32, u64) {
        let length = match self {
            Window::Minute => 60,
            Window::Hour => 3_600,
            Window::Day => 86_400,
        };
        let seconds = now.as_millis() / 1000;
        ((seconds / length) as u32, length - seconds % length)
    }
}

/// What is counted.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    /// Messages.
    Messages,
    /// Recipients of messages.
    Recipients,
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Counted::Messages => "messages",
            Counted::Recipients => "recipients",
        })
    }
}

/// So many in a minute, an hour or a day; written as in `1000/hour`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Amount {
    /// How many.
    pub count: u32,
    /// In what time.
    pub window: Window,
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let window = match self.window {
            Window::Minute => "minute",
            Window::Hour => "hour",
            Window::Day => "day",
        };
        write!(f, "{}/{window}", self.count)
    }
}

impl std::str::FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Amount, String> {
        let wrong = || format!("`{text}` is no amount, as in 1000/hour (minute, hour, day)");
        let (count, window) = text.split_once('/').ok_or_else(wrong)?;
        let window = match window {
            "m" | "min" | "minute" => Window::Minute,
            "h" | "hour" => Window::Hour,
            "d" | "day" => Window::Day,
            _ => return Err(wrong()),
        };
        Ok(Amount { count: count.parse().map_err(|_| wrong())?, window })
    }
}

impl TryFrom<String> for Amount {
    type Error = String;

    fn try_from(text: String) -> Result<Amount, String> {
        text.parse()
    }
}

impl From<Amount> for String {
    fn from(amount: Amount) -> String {
        amount.to_string()
    }
}

/// What may be sent; everything where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Messages.
    pub messages: Vec<Amount>,
    /// Recipients of messages.
    pub recipients: Vec<Amount>,
    /// Recipients of one message.
    pub recipients_per_message: Option<u32>,
    /// Octets of one message.
    pub message_size: Option<u64>,
}

impl Quotas {
    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.recipients.is_empty()
    }

    /// What bounds one message.
    pub fn bounds(&self) -> Bounds {
        Bounds { message_size: self.message_size, recipients: self.recipients_per_message }
    }

    /// Whether each length of time is bounded once at most, for each kind.
    pub fn are_clear(&self) -> bool {
        [&self.messages, &self.recipients].into_iter().all(|amounts| {
            amounts.iter().enumerate().all(|(at, one)| amounts[..at].iter().all(|other| other.window != one.window))
        })
    }

    /// Those of one kind.
    pub fn of(&self, counted: Counted) -> &[Amount] {
        match counted {
            Counted::Messages => &self.messages,
            Counted::Recipients => &self.recipients,
        }
    }
}

impl fmt::Display for Quotas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        if let Some(count) = self.recipients_per_message {
            write!(f, "{count} recipients a message")?;
            comma = ", ";
        }
        if let Some(octets) = self.message_size {
            write!(f, "{comma}{octets} octets a message")?;
            comma = ", ";
        }
        for counted in [Counted::Messages, Counted::Recipients] {
            for amount in self.of(counted) {
                write!(f, "{comma}{counted} {amount}")?;
                comma = ", ";
            }
        }
        if comma.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// What a client is told whose quota is used up for so many seconds.
pub fn spent(counted: Counted, amount: &Amount, left_s: u64) -> Reply {
    let when = match left_s {
        0..120 => format!("{left_s} seconds"),
        120..7_200 => format!("{} minutes", left_s.div_ceil(60)),
        _ => format!("{} hours", left_s.div_ceil(3_600)),
    };
    let text = format!("The quota of {} {counted} is used up ({amount}): try again in {when}", amount.count);
    Reply::new(450, (4, 7, 1), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(messages: &[&str], recipients: &[&str]) -> Quotas {
        let amounts = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Quotas { messages: amounts(messages), recipients: amounts(recipients), ..Quotas::default() }
    }

    #[test]
    fn amounts_are_read_and_shown() {
        for (text, shown) in [("5/m", "5/minute"), ("0/hour", "0/hour"), ("7/d", "7/day")] {
            assert_eq!(text.parse::<Amount>().unwrap().to_string(), shown);
        }
        for text in ["", "5", "x/hour", "5/week", "-1/day", "5000000000/day"] {
            assert!(text.parse::<Amount>().unwrap_err().contains("as in 1000/hour"), "{text}");
        }
        assert_eq!(
            quotas(&["1/m"], &["2/d", "3/h"]).to_string(),
            "messages 1/minute, recipients 2/day, recipients 3/hour"
        );
        assert_eq!(Quotas::default().to_string(), "none");
        let one = Quotas { recipients_per_message: Some(5), message_size: Some(1_000), ..quotas(&["1/m"], &[]) };
        assert_eq!(one.to_string(), "5 recipients a message, 1000 octets a message, messages 1/minute");
        assert!(quotas(&["1/m", "2/d"], &["2/d"]).are_clear() && !quotas(&["1/m", "2/d", "3/m"], &[]).are_clear());
    }
}
