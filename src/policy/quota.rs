//! How much a tenant or a credential may send: messages and recipients in each minute, hour and day of UTC.
//!
//! Exact over all shards: the counts are atomics that every snapshot of the identities shares. They begin anew with the process.
//! A message counts when its content begins; should it be refused after that, it has counted all the same.

use crate::clock::UnixTime;
use crate::reply::Reply;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The lengths of time that are counted in, in seconds.
const WINDOWS: [(Window, u64); 3] = [(Window::Minute, 60), (Window::Hour, 3_600), (Window::Day, 86_400)];

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

/// What may be sent; everything when empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Messages.
    pub messages: Vec<Amount>,
    /// Recipients of messages.
    pub recipients: Vec<Amount>,
}

impl Quotas {
    /// Whether nothing is bounded.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.recipients.is_empty()
    }

    fn of(&self, counted: Counted) -> &[Amount] {
        match counted {
            Counted::Messages => &self.messages,
            Counted::Recipients => &self.recipients,
        }
    }
}

impl fmt::Display for Quotas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for counted in [Counted::Messages, Counted::Recipients] {
            for amount in self.of(counted) {
                write!(f, "{comma}{counted} {amount}")?;
                comma = ", ";
            }
        }
        if comma.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// What was sent in the present minute, hour and day. Each count has the number of its window above it, so that both change
/// as one.
#[derive(Debug, Default)]
pub struct Usage {
    messages: [AtomicU64; WINDOWS.len()],
    recipients: [AtomicU64; WINDOWS.len()],
}

impl Usage {
    fn of(&self, counted: Counted) -> &[AtomicU64; WINDOWS.len()] {
        match counted {
            Counted::Messages => &self.messages,
            Counted::Recipients => &self.recipients,
        }
    }

    /// Whether so many more would be within the quotas now.
    ///
    /// # Errors
    /// 450 4.7.1 with the time to try again, when they would not.
    pub fn check(&self, quotas: &Quotas, counted: Counted, more: u32, now: UnixTime) -> Result<(), Reply> {
        for amount in quotas.of(counted) {
            let (place, number, left) = window(amount.window, now);
            let used = used(self.of(counted)[place].load(Ordering::Relaxed), number);
            if used.saturating_add(more) > amount.count {
                return Err(spent(counted, amount, left));
            }
        }
        Ok(())
    }

    /// Counts so many, or nothing at all.
    ///
    /// # Errors
    /// As [`Usage::check`].
    pub fn take(&self, quotas: &Quotas, counted: Counted, more: u32, now: UnixTime) -> Result<(), Reply> {
        for (done, amount) in quotas.of(counted).iter().enumerate() {
            let (place, number, left) = window(amount.window, now);
            let taken = self.of(counted)[place].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| {
                let sum = used(value, number).checked_add(more).filter(|sum| *sum <= amount.count)?;
                Some(u64::from(number) << 32 | u64::from(sum))
            });
            if taken.is_err() {
                quotas.of(counted)[..done].iter().for_each(|amount| self.give_back(*amount, counted, more, now));
                return Err(spent(counted, amount, left));
            }
        }
        Ok(())
    }

    /// What was taken and not used after all.
    pub fn undo(&self, quotas: &Quotas, counted: Counted, more: u32, now: UnixTime) {
        quotas.of(counted).iter().for_each(|amount| self.give_back(*amount, counted, more, now));
    }

    fn give_back(&self, amount: Amount, counted: Counted, more: u32, now: UnixTime) {
        let (place, number, _) = window(amount.window, now);
        let _ = self.of(counted)[place].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| {
            let rest = used(value, number).saturating_sub(more);
            Some(u64::from(number) << 32 | u64::from(rest))
        });
    }
}

/// The usage of a tenant or credential, which each snapshot of it shares; as values they are equal whatever was sent.
#[derive(Clone, Debug, Default)]
pub struct SharedUsage(pub Arc<Usage>);

impl PartialEq for SharedUsage {
    fn eq(&self, _other: &SharedUsage) -> bool {
        true
    }
}

impl Eq for SharedUsage {}

/// Whose quotas a message counts for: its tenant's and its credential's.
pub type Accounts<'a> = [Option<(&'a Quotas, &'a Usage)>; 2];

/// Whether so many more would be within all of them now.
///
/// # Errors
/// As [`Usage::check`].
pub fn check(accounts: &Accounts<'_>, counted: Counted, more: u32, now: UnixTime) -> Result<(), Reply> {
    accounts.iter().flatten().try_for_each(|(quotas, usage)| usage.check(quotas, counted, more, now))
}

/// Counts a message with so many recipients for all of them, or for none.
///
/// # Errors
/// As [`Usage::check`].
pub fn take(accounts: &Accounts<'_>, recipients: u32, now: UnixTime) -> Result<(), Reply> {
    let steps = accounts
        .iter()
        .flatten()
        .flat_map(|account| [(account, Counted::Messages, 1), (account, Counted::Recipients, recipients)]);
    for (done, ((quotas, usage), counted, more)) in steps.clone().enumerate() {
        if let Err(reply) = usage.take(quotas, counted, more, now) {
            for ((quotas, usage), counted, more) in steps.take(done) {
                usage.undo(quotas, counted, more, now);
            }
            return Err(reply);
        }
    }
    Ok(())
}

/// The window's place, the number of the present one, and the seconds that it has left.
fn window(window: Window, now: UnixTime) -> (usize, u32, u64) {
    let seconds = now.as_millis() / 1000;
    let place = WINDOWS.iter().position(|(known, _)| *known == window).unwrap_or_default();
    let length = WINDOWS[place].1;
    (place, (seconds / length) as u32, length - seconds % length)
}

fn used(value: u64, number: u32) -> u32 {
    if (value >> 32) as u32 == number { value as u32 } else { 0 }
}

fn spent(counted: Counted, amount: &Amount, left_s: u64) -> Reply {
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
        Quotas { messages: amounts(messages), recipients: amounts(recipients) }
    }

    const fn at(seconds: u64) -> UnixTime {
        UnixTime::from_millis(seconds * 1_000)
    }

    #[test]
    fn counts_end_with_their_window() {
        let quotas = quotas(&["2/minute", "3/hour"], &[]);
        let usage = Usage::default();
        let take = |seconds| usage.take(&quotas, Counted::Messages, 1, at(seconds)).map_err(|reply| reply.to_string());
        assert_eq!((take(3_600), take(3_659)), (Ok(()), Ok(())));
        let refused = take(3_659).unwrap_err();
        assert!(
            refused.starts_with("450 4.7.1 ") && refused.ends_with("(2/minute): try again in 1 seconds"),
            "{refused}"
        );
        // What the minute refused did not count for the hour.
        assert_eq!(take(3_660), Ok(()));
        let refused = take(3_661).unwrap_err();
        assert!(refused.ends_with("(3/hour): try again in 59 minutes"), "{refused}");
        assert_eq!(take(7_200), Ok(()));
        // A clock that goes back begins a window of its own; nobody is refused for ever.
        assert_eq!(take(3_600), Ok(()));
    }

    #[test]
    fn all_or_nothing() {
        let quotas = quotas(&[], &["10/day", "5/minute"]);
        let usage = Usage::default();
        let take = |count, seconds| usage.take(&quotas, Counted::Recipients, count, at(seconds)).is_ok();
        assert!(usage.check(&quotas, Counted::Recipients, 5, at(0)).is_ok());
        assert!(usage.check(&quotas, Counted::Recipients, 6, at(0)).is_err());
        assert!(take(5, 0) && !take(1, 1) && take(4, 60));
        usage.undo(&quotas, Counted::Recipients, 4, at(60));
        assert!(take(5, 60) && !take(1, 120));
        assert!(usage.take(&quotas, Counted::Messages, u32::MAX, at(0)).is_ok(), "what has no quota is not counted");
    }

    #[test]
    fn a_message_counts_for_all_or_for_none() {
        let (tenants, credentials) = (quotas(&["2/day"], &["10/day"]), quotas(&["5/day"], &["3/day"]));
        let (tenant, credential) = (Usage::default(), Usage::default());
        let accounts = [Some((&tenants, &tenant)), Some((&credentials, &credential))];
        assert!(take(&accounts, 4, at(0)).is_err(), "the credential's recipients");
        assert!(check(&accounts, Counted::Recipients, 3, at(0)).is_ok());
        assert!(take(&accounts, 2, at(0)).is_ok() && take(&accounts, 1, at(0)).is_ok());
        let refused = take(&accounts, 0, at(0)).unwrap_err().to_string();
        assert!(refused.contains("2 messages"), "{refused}");
        assert!(take(&[None, None], u32::MAX, at(0)).is_ok());
    }

    #[test]
    fn shards_together_never_pass_a_quota() {
        let quotas = quotas(&["1000/day"], &[]);
        let usage = Usage::default();
        let taken: u32 = std::thread::scope(|scope| {
            let take = || (0..600).filter(|_| usage.take(&quotas, Counted::Messages, 1, at(5)).is_ok()).count() as u32;
            let shards: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            shards.into_iter().map(|shard| shard.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
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
    }
}
