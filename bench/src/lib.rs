//! What the benchmarks have in common: the allocator that the program has, a clock that stands still, content, the
//! bytes of a transaction, and the configuration of a session.
//!
//! Each target measures one part and says in its header to which bound it is held and why. The bounds are shares of
//! what a whole message may cost (docs/PERFORMANCE.md, "Parts"); nothing here fails when one is passed, because a
//! criterion run on a busy machine says nothing. It is for people who compare.

use ringpost::address::Address;
use ringpost::clock::{Instant, Now, UnixTime};
use ringpost::envelope::{Body, Envelope, Notify, Recipient};
use ringpost::smtp::server::{BareNewlines, SessionConfig};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Octets of the contents that are measured, with their names.
pub const CONTENTS: [(&str, usize); 2] = [("1 KB", 1024), ("10 KB", 10 * 1024)];

/// Both clocks, so many milliseconds after the beginning.
pub fn now(millis: u64) -> Now {
    Now {
        instant: Instant::ZERO.after(Duration::from_millis(1_000_000 + millis)),
        unix: UnixTime::from_millis(1_790_000_000_000 + millis),
    }
}

/// A message of about so many octets, never more: six header fields, then lines of 76 octets. It ends with CRLF and no
/// line begins with a dot.
pub fn content(octets: usize) -> Vec<u8> {
    let mut content = b"From: News <bounces@news.example.com>\r\nTo: Someone <someone@example.net>\r\n\
        Subject: Your order has been sent\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\n\
        Message-ID: <20261124100000.1@news.example.com>\r\nMIME-Version: 1.0\r\n\r\n"
        .to_vec();
    let line = "The quick brown fox jumps over the lazy dog, and then it does so once again.\r\n";
    while content.len() + line.len() <= octets {
        content.extend_from_slice(line.as_bytes());
    }
    content
}

/// The content as DATA carries it: dots doubled, and the final dot. `dotted`: every line of the body begins with a dot,
/// which is the worst that a message can do to the scanner.
pub fn data(octets: usize, dotted: bool) -> Vec<u8> {
    let content = String::from_utf8(content(octets)).expect("it is ASCII");
    let content = if dotted { content.replace("\r\nThe", "\r\n..e") } else { content };
    [content.as_bytes(), b".\r\n"].concat()
}

/// MAIL and RCPT of one transaction, as bulk senders write them.
pub fn envelope_commands(recipients: usize) -> Vec<u8> {
    let mut commands = b"MAIL FROM:<bounces-0000001@news.example.com> SIZE=1024 BODY=8BITMIME\r\n".to_vec();
    for number in 0..recipients {
        commands.extend_from_slice(format!("RCPT TO:<someone.{number:07}@example.net>\r\n").as_bytes());
    }
    commands
}

/// A whole transaction in one flight, by DATA or by BDAT.
pub fn transaction(recipients: usize, octets: usize, chunking: bool) -> Vec<u8> {
    let commands = envelope_commands(recipients);
    if chunking {
        let content = content(octets);
        [&commands[..], format!("BDAT {} LAST\r\n", content.len()).as_bytes(), &content].concat()
    } else {
        [&commands[..], b"DATA\r\n", &data(octets, false)].concat()
    }
}

/// A session without limits on what one session may do, so that it can be measured for as long as it takes.
pub fn session_config() -> SessionConfig {
    SessionConfig {
        hostname: "mx.example.org".into(),
        max_message_size: 50 << 20,
        starttls: true,
        auth: false,
        mechanisms: Default::default(),
        auth_in_clear: false,
        bare_newlines: BareNewlines::Refuse,
        proxy: false,
        strangers: Default::default(),
        max_recipients: 1000,
        max_commands: u32::MAX,
        max_errors: u32::MAX,
        max_transactions: u32::MAX,
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(180),
        message_timeout: Duration::from_secs(600),
        chunking: true,
        dsn: true,
        smtputf8: true,
        pipelining: true,
    }
}

/// The envelope of a message to one recipient; numbers make addresses of equal length.
pub fn envelope(number: u64) -> Envelope {
    let address = |text: String| Address::parse(text.as_bytes(), false).expect("it is an address");
    Envelope {
        reverse_path: Some(address(format!("bounces-{number:07}@news.example.com"))),
        body: Body::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        recipients: vec![Recipient {
            address: address(format!("someone.{number:07}@example.net")),
            notify: Notify::DEFAULT,
            orcpt: None,
        }],
        tenant: "default".into(),
        arrived: now(0).unix,
        client: "".into(),
        require_tls: false,
        is_dsn: false,
        held: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_what_they_are_said_to_be() {
        for (_, octets) in CONTENTS {
            let content = content(octets);
            assert!(content.len() <= octets && content.len() > octets - 78);
            assert!(content.ends_with(b"\r\n"));
            let lines = |bytes: &[u8]| bytes.windows(3).filter(|window| *window == b"\r\n.").count();
            assert_eq!(lines(&content), 0);
            assert_eq!(lines(&data(octets, false)), 1);
            assert!(lines(&data(octets, true)) > octets / 160);
        }
    }
}
