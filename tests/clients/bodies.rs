//! Contents that are easily damaged, and the judgement that nothing but trace headers was added in front.

/// Headers that a server puts in front (RFC 5321 4.4), and those of Postfix's delivery to a mailbox.
const TRACE: &[&str] = &["received:", "return-path:", "delivered-to:", "x-original-to:"];

/// A complete message, CRLF at the end of each line, with this text.
pub fn message(subject: &str, body: &str) -> Vec<u8> {
    format!(
        "Date: Tue, 24 Nov 2026 18:20:00 +0000\r\nFrom: Ann <ann@origin.test>\r\nTo: bob@dest.test\r\n\
         Message-ID: <{subject}@origin.test>\r\nSubject: {subject}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Contents that are easily damaged: name and message, each with CRLF at its end. ASCII only.
pub fn odd_messages() -> Vec<(&'static str, Vec<u8>)> {
    let long = "x".repeat(998);
    let longer = "y".repeat(70_000);
    let many: String = (0..20_000).map(|n| format!("line {n} of many\r\n")).collect();
    let folded =
        format!("Received-SPF: none\r\nX-Fold: a\r\n\tb\r\n  c\r\nX-Long: {}\r\n\r\nbody\r\n", "h".repeat(900));
    vec![
        ("plain", message("plain", "Hello.\r\n")),
        ("dots", message("dots", ".\r\n..\r\n...\r\n.a\r\n..b\r\n \r\n.\r\n")),
        ("dot-first", b".X: not a header\r\n.\r\n\r\n.\r\n".to_vec()),
        ("smuggled-words", message("smuggled-words", "MAIL FROM:<x@x>\r\nDATA\r\n.QUIT\r\nRSET\r\n")),
        ("no-body", message("no-body", "")),
        ("no-headers", b"\r\nonly a body\r\n".to_vec()),
        ("empty-lines", message("empty-lines", "\r\n\r\n\r\n\r\n")),
        ("blanks", message("blanks", "trailing  \r\n\ttabs\t\r\n   \r\n")),
        ("long-line", message("long-line", &format!("{long}\r\n.{long}\r\n"))),
        ("very-long-line", message("very-long-line", &format!("{longer}\r\nend\r\n"))),
        ("controls", message("controls", "bell \x07 escape \x1b[1m form \x0c\r\nfrom here\r\nFrom there\r\n")),
        ("folded", folded.into_bytes()),
        ("large", message("large", &many)),
    ]
}

/// Content with every octet from 128 up, and UTF-8.
pub fn eight_bit() -> Vec<u8> {
    let mut content = message("eight-bit", "Grüße, 你好\r\n");
    content.extend(128..=255u8);
    content.extend_from_slice(b"\r\n");
    content
}

/// What arrived is what was sent, with nothing but trace headers in front; those are returned.
#[track_caller]
pub fn assert_same(arrived: &[u8], sent: &[u8], what: &str) -> String {
    let front = arrived.len().checked_sub(sent.len()).filter(|front| arrived[*front..] == *sent);
    let Some(front) = front else {
        panic!("{what}: it was changed.\n--- sent\n{}\n--- arrived\n{}", shown(sent), shown(arrived));
    };
    let trace = String::from_utf8(arrived[..front].to_vec()).expect("trace headers are text");
    for line in trace.split_inclusive('\n') {
        let known = line.starts_with([' ', '\t']) || TRACE.iter().any(|name| line.to_lowercase().starts_with(name));
        assert!(known && line.ends_with('\n'), "{what}: added in front: {line:?}");
    }
    assert!(trace.to_lowercase().contains("received:"), "{what}: no trace header was added");
    trace
}

fn shown(content: &[u8]) -> String {
    content[..content.len().min(3000)].escape_ascii().to_string().replace("\\r\\n", "\\r\\n\n")
}
