//! The small languages inside of configuration values: durations "20m", sizes "50MB", rates "100/1m", host:port.
//!
//! Each parser says in its error what it expects, with an example. Nothing is guessed: a number without a unit is
//! refused where a unit is needed, because "30" has meant seconds, minutes and milliseconds to different people.

use crate::shard::settings::{HostSpec, NextHop, Rate};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The longest duration that is accepted: a year. Longer ones are typing errors.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Splits "20m" into its number and its unit.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start()))
}

/// A time as in "250ms", "30s", "20m", "4h", "5d", or several joined as in "1h30m". At most a year.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; write a number and a unit, as in \"20m\" (ms, s, m, h, d)");
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let (number, after) = number_and_unit(rest).ok_or_else(wrong)?;
        let end = after.find(|c: char| c.is_ascii_digit() || c.is_whitespace()).unwrap_or(after.len());
        let unit_ms: u64 = match &after[..end] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = after[end..].trim_start();
    }
    if total > DURATION_MAX {
        return Err(format!("`{text}` is longer than a year"));
    }
    Ok(total)
}

/// The shortest way to write a duration, which [`parse_duration`] reads back (to the millisecond).
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, unit_ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if ms >= unit_ms && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}

/// A number of octets as in "512", "64KiB", "50MB". KB, MB, GB are powers of 1000; KiB, MiB, GiB powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("`{text}` is not a size; write a number and a unit, as in \"50MB\" (B, KB, MB, GB, or KiB, MiB, GiB)")
    };
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let unit: u64 = match unit {
        "" | "B" => 1,
        "KB" | "kB" | "K" | "k" => 1_000,
        "MB" | "M" => 1_000_000,
        "GB" | "G" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// A number of octets in the largest unit that gives a whole number.
pub fn format_size(octets: u64) -> String {
    for (unit, size) in [
        ("GiB", 1u64 << 30),
        ("GB", 1_000_000_000),
        ("MiB", 1 << 20),
        ("MB", 1_000_000),
        ("KiB", 1 << 10),
        ("KB", 1_000),
    ] {
        if octets >= size && octets.is_multiple_of(size) {
            return format!("{}{unit}", octets / size);
        }
    }
    format!("{octets}B")
}

/// So many in a time, as in "100/1m" or "30/s"; with "burst 10" after it, so many may come at once (else 1).
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("`{text}` is not a rate; write a count and a time, as in \"100/1m\" or \"100/1m burst 10\"");
    let (main, burst) = match text.split_once("burst") {
        Some((main, burst)) => (main.trim(), burst.trim().parse::<u32>().map_err(|_| wrong())?),
        None => (text.trim(), 1),
    };
    let (count, period) = main.split_once('/').ok_or_else(wrong)?;
    let count: u32 = count.trim().parse().map_err(|_| wrong())?;
    let period = period.trim();
    let period = if period.starts_with(|c: char| c.is_ascii_digit()) {
        parse_duration(period)
    } else {
        parse_duration(&format!("1{period}"))
    }
    .map_err(|_| wrong())?;
    if count == 0 || burst == 0 || period.is_zero() {
        return Err(format!("`{text}`: count, time and burst of a rate are at least 1; to send nothing, use hold"));
    }
    Ok(Rate { count, period, burst: burst.min(count) })
}

/// A rate as [`parse_rate`] reads it.
pub fn format_rate(rate: Rate) -> String {
    let main = format!("{}/{}", rate.count, format_duration(rate.period));
    if rate.burst > 1 { format!("{main} burst {}", rate.burst) } else { main }
}

/// A host as in "mx.example.net:25", "192.0.2.1:25", "[2001:db8::1]:25"; the port may be left out.
pub fn parse_next_hop(text: &str, default_port: u16) -> Result<NextHop, String> {
    let wrong = |why: &str| {
        format!(
            "`{text}` is not a host: {why}; write as in \"smtp.example.net:25\", \"192.0.2.1:25\" or \"[2001:db8::1]:25\""
        )
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(NextHop { host: HostSpec::Address(address.ip()), port: non_zero(address.port(), text)? });
    }
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(NextHop { host: HostSpec::Address(address), port: default_port });
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => {
            let port = port.parse::<u16>().map_err(|_| wrong("the port is no number from 1 to 65535"))?;
            (name, non_zero(port, text)?)
        }
        None => (text, default_port),
    };
    Ok(NextHop { host: HostSpec::Name(parse_domain(name).map_err(|why| wrong(&why))?), port })
}

fn non_zero(port: u16, text: &str) -> Result<u16, String> {
    if port == 0 { Err(format!("`{text}`: there is no port 0 to connect to")) } else { Ok(port) }
}

/// A domain name, in lower case and A-labels.
pub fn parse_domain(text: &str) -> Result<Box<str>, String> {
    let plain = text.trim_end_matches('.');
    let ascii = idna::domain_to_ascii(plain).map_err(|_| format!("`{text}` is not a domain name"))?;
    let good_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if ascii.is_empty() || ascii.len() > 253 || !ascii.split('.').all(good_label) {
        return Err(format!("`{text}` is not a domain name"));
    }
    Ok(ascii.into_boxed_str())
}

/// The one of `known` that a person most likely meant by `word`, if any is near.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1) + 1;
    known
        .into_iter()
        .map(|candidate| (distance(&word.to_lowercase(), candidate), candidate))
        .filter(|(far, candidate)| *far <= limit && *far < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many letters must be inserted, removed, replaced or swapped with their neighbour to turn one into the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let same = from[i - 1] == to[j - 1];
            let mut best = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + usize::from(!same));
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in
            [("250ms", 250), ("30s", 30_000), ("20m", 1_200_000), ("4h", 14_400_000), ("1h30m", 5_400_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(parse_duration(&format_duration(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)));
        }
        assert_eq!(parse_duration("5d"), Ok(Duration::from_secs(432_000)));
        for text in
            ["", "20", "m", "20 minutes", "-1s", "1.5h", "99999999999999999999s", "400d", "18446744073709551615d"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, octets) in
            [("512", 512), ("64KiB", 65_536), ("50MB", 50_000_000), ("50 MiB", 52_428_800), ("2G", 2_000_000_000)]
        {
            assert_eq!(parse_size(text), Ok(octets), "{text}");
            assert_eq!(parse_size(&format_size(octets)), Ok(octets));
        }
        for text in ["", "MB", "1.5MB", "-1", "10 bytes", "99999999999GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        let rate = Rate { count: 100, period: Duration::from_secs(60), burst: 1 };
        assert_eq!(parse_rate(&format_rate(Rate { burst: 7, ..rate })), Ok(Rate { burst: 7, ..rate }));
        assert_eq!(parse_rate("100/1m"), Ok(rate));
        assert_eq!(parse_rate("100/m"), Ok(rate));
        assert_eq!(parse_rate(" 100 / 1m burst 10"), Ok(Rate { burst: 10, ..rate }));
        for text in ["", "100", "0/1m", "100/0s", "100/1m burst 0", "100/1m burst", "x/1m", "100/fortnight"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts() {
        let address = |text: &str, port| NextHop { host: HostSpec::Address(text.parse().unwrap()), port };
        assert_eq!(parse_next_hop("192.0.2.1:2525", 25), Ok(address("192.0.2.1", 2525)));
        assert_eq!(parse_next_hop("192.0.2.1", 25), Ok(address("192.0.2.1", 25)));
        assert_eq!(parse_next_hop("[2001:db8::1]:26", 25), Ok(address("2001:db8::1", 26)));
        assert_eq!(parse_next_hop("[2001:db8::1]", 25), Ok(address("2001:db8::1", 25)));
        let named = NextHop { host: HostSpec::Name("xn--mller-kva.example".into()), port: 25 };
        assert_eq!(parse_next_hop("Müller.example", 25), Ok(named));
        for text in ["", "a b:25", "host:0", "host:99999", "host:", "-x.example", "192.0.2.1:0"] {
            assert!(parse_next_hop(text, 25).is_err(), "{text}");
        }
    }

    #[test]
    fn nearest_names() {
        assert_eq!(nearest("lisener", ["listener", "limits"]), Some("listener"));
        assert_eq!(nearest("hsotname", ["hostname", "hold"]), Some("hostname"));
        assert_eq!(nearest("colour", ["listener", "limits"]), None);
    }
}
