//! The content of simulated messages: made from a token, so that it need not be kept, and compared octet by octet with
//! what arrives.

use crate::world::random::Random;

/// Octets that a line of a body may have; beyond 998 on purpose, since content lines of any length are kept.
const LONGEST_LINE: u64 = 1_500;

/// The content of message `token`, about `size` octets, ending in CRLF. `eight_bit` puts UTF-8 into it.
pub fn make(token: u32, size: usize, eight_bit: bool) -> Vec<u8> {
    let mut random = Random::new(u64::from(token) ^ 0x5151_5151);
    let mut out = Vec::with_capacity(size + 256);
    let header = format!(
        "From: Somebody <somebody@client.test>\r\nTo: many\r\nSubject: message {token}\r\nX-Token: t{token}\r\n\r\n"
    );
    out.extend_from_slice(header.as_bytes());
    while out.len() < size {
        match random.below(8) {
            0 => out.extend_from_slice(b"."),
            1 => out.extend_from_slice(b"..dots"),
            2 if eight_bit => out.extend_from_slice("Grüße aus Köln, 北京".as_bytes()),
            3 => {
                let len = random.range(1, LONGEST_LINE) as usize;
                let letter = b'a' + random.below(26) as u8;
                out.resize(out.len() + len, letter);
            }
            _ => out.extend_from_slice(format!("line {:x} of {token}", random.next()).as_bytes()),
        }
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// The token in the content's own header section, if it has one.
pub fn token_of(content: &[u8]) -> Option<u32> {
    let end = find(content, b"\r\n\r\n").unwrap_or(content.len());
    let at = find(&content[..end], b"\r\nX-Token: t")? + 12;
    let digits = content[at..end].iter().take_while(|byte| byte.is_ascii_digit());
    digits.map(|digit| u32::from(digit - b'0')).reduce(|number, digit| number * 10 + digit)
}

/// Whether `arrived` is `sent` with nothing but trace headers before it, and before these the signature of one that is
/// signed and the header of one that is filtered.
pub fn same_but_for_trace(arrived: &[u8], sent: &[u8], signed: bool, filtered: bool) -> Result<(), String> {
    let Some(trace) = arrived.strip_suffix(sent) else {
        let differ = arrived.iter().rev().zip(sent.iter().rev()).take_while(|(a, b)| a == b).count();
        return Err(format!(
            "the content differs: {} octets arrived, {} were sent, the last {differ} are equal",
            arrived.len(),
            sent.len()
        ));
    };
    let begin = b"DKIM-Signature: v=1; a=ed25519-sha256; s=s; d=client.test;";
    if trace.starts_with(begin) != signed {
        return Err(format!("it should {}be signed", if signed { "" } else { "not " }));
    }
    if find(trace, b"X-Filter: ").is_some() != filtered {
        return Err(format!("it should {}have a filter's header", if filtered { "" } else { "not " }));
    }
    for line in String::from_utf8_lossy(trace).split_terminator("\r\n").skip(usize::from(signed)) {
        if !(line.starts_with("Received: ")
            || line.starts_with("X-Filter: ")
            || line.starts_with(' ')
            || line.starts_with('\t'))
        {
            return Err(format!("a line that is no trace header stands before the content: {line}"));
        }
    }
    if trace.is_empty() || !trace.ends_with(b"\r\n") {
        return Err("no Received header was added".into());
    }
    Ok(())
}

/// What a delivery report says: its own id, and the fate of each recipient by the local part of its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportSaid {
    /// The report's Message-ID.
    pub id: String,
    /// Local part of the recipient and action.
    pub fates: Vec<(String, String)>,
}

/// Reads a delivery report; none when it is not one.
pub fn read_report(content: &[u8]) -> Option<ReportSaid> {
    let text = String::from_utf8_lossy(content);
    let (header, body) = text.split_once("\r\n\r\n")?;
    if !header.contains("multipart/report") {
        return None;
    }
    let mut said = ReportSaid::default();
    for line in header.split("\r\n") {
        if let Some(id) = line.strip_prefix("Message-ID: ") {
            said.id = id.into();
        }
    }
    let mut recipient = None;
    for line in body.split("\r\n") {
        if let Some((_, address)) = line.strip_prefix("Final-Recipient: ").and_then(|value| value.split_once("; ")) {
            recipient = address.split('@').next().map(str::to_owned);
        } else if let Some(action) = line.strip_prefix("Action: ")
            && let Some(recipient) = recipient.take()
        {
            said.fates.push((recipient, action.to_owned()));
        } else if line.starts_with("Content-Type: message/rfc822") || line.starts_with("Content-Type: message/global\r")
        {
            // What follows is the sender's own.
            break;
        }
    }
    Some(said)
}

/// Where `what` first stands in `bytes`.
pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_known_by_its_token_and_compared_whole() {
        let sent = make(42, 3_000, true);
        assert_eq!(token_of(&sent), Some(42));
        let mut arrived = b"Received: from x\r\n\tby y; now\r\n".to_vec();
        arrived.extend_from_slice(&sent);
        assert_eq!(same_but_for_trace(&arrived, &sent, false, false), Ok(()));
        assert!(same_but_for_trace(&arrived, &sent, true, false).is_err());
        assert!(same_but_for_trace(&sent, &sent, false, false).is_err());
        assert!(same_but_for_trace(&arrived, &sent, false, true).is_err());
        let last = arrived.len() - 3;
        arrived[last] ^= 1;
        assert!(same_but_for_trace(&arrived, &sent, false, false).is_err());
    }
}
