//! What a destination reads in envelopes and in the reports that senders get: whose message it was, which recipients
//! failed.
//!
//! Reads what servers write, leniently; what cannot be read is not there.

use crate::destination::{Destination, Token};

/// What stands between the angle brackets.
pub(crate) fn path(line: &str) -> Option<&str> {
    let start = line.find('<')? + 1;
    let end = start + line[start..].find('>')?;
    Some(&line[start..end])
}

/// Whose message it was, by the address that reports on it go to.
pub(crate) fn sender_token(address: &str) -> Option<Token> {
    Token::parse(address.strip_prefix("from-")?.split('@').next()?)
}

/// The recipients that a report (RFC 3464 2.3) calls failed.
pub(crate) fn failed_recipients(content: &[u8]) -> Vec<Destination> {
    let text = String::from_utf8_lossy(content);
    let mut failed = Vec::new();
    let mut group: (Option<Destination>, bool) = (None, false);
    for line in text.lines().chain([""]) {
        let lower = line.to_ascii_lowercase();
        if line.is_empty() {
            if let (Some(destination), true) = group {
                failed.push(destination);
            }
            group = (None, false);
        } else if lower.starts_with("final-recipient:") {
            group.0 = line.split(';').nth(1).and_then(|address| Destination::parse(address.trim()));
        } else if let Some(action) = lower.strip_prefix("action:") {
            group.1 = action.trim() == "failed";
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::Behaviour;

    #[test]
    fn reads_the_failed_recipients_of_a_report() {
        let never = |index| Destination { behaviour: Behaviour::RefuseAlways, token: Token::new(1, 2), index };
        let report = format!(
            "Subject: x\r\n\r\nReporting-MTA: dns; a\r\n\r\nFinal-Recipient: rfc822; {}\r\nAction: failed\r\n\r\n\
             Final-Recipient: rfc822;{}\r\nAction: delayed\r\n\r\nAction: FAILED\r\nFinal-recipient: rfc822; {}\r\n",
            never(0).address("x.example"),
            never(1).address("x.example"),
            never(2).address("x.example")
        );
        assert_eq!(failed_recipients(report.as_bytes()), [never(0), never(2)]);
        assert_eq!(sender_token("from-0000000100000002@x.example"), Some(Token::new(1, 2)));
    }
}
