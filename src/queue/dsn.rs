//! Delivery reports (RFC 3461, RFC 3464, RFC 6533): what became of a message, for its sender to read and for programs.
//!
//! [`compose`] makes one multipart/report for some recipients of one message: words, fields, and the message or its
//! headers. Whether a report is due, and to whom none may go (the null reverse path), is decided by the caller.
//!
//! Nothing here fails. What comes from elsewhere (replies of peers, addresses, the message) cannot begin a line or a
//! part of its own: control characters are replaced, texts are indented or folded, and the boundary occurs in no
//! part. All line ends are CRLF and the content ends with one.

use crate::clock::UnixTime;
use crate::envelope::{Ret, decode_xtext};
use crate::id::MessageId;
use crate::limits::{DSN_DIAGNOSTIC_OCTETS_MAX, DSN_RETURNED_HEADERS_OCTETS_MAX, DSN_RETURNED_OCTETS_MAX};
use crate::policy::trace::Date;
use crate::queue::dsn_text::{advice, clean, copy_lines, field, fold, wrap};
use crate::reply::class::Meaning;
use crate::reply::{EnhancedCode, Reply};

/// What happened to a recipient (RFC 3464 2.3.3).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The message will not be delivered.
    Failed,
    /// Not yet: attempts go on.
    Delayed,
    /// The message went to a host that does not report on delivery.
    Relayed,
    /// The message is in the mailbox.
    Delivered,
}

impl Action {
    /// The order in which a report tells of them.
    const ALL: [Action; 4] = [Action::Failed, Action::Delayed, Action::Relayed, Action::Delivered];

    /// The value of the Action field.
    const fn name(self) -> &'static str {
        match self {
            Action::Failed => "failed",
            Action::Delayed => "delayed",
            Action::Relayed => "relayed",
            Action::Delivered => "delivered",
        }
    }

    /// The report's subject, if this is the gravest of its actions.
    const fn subject(self) -> &'static str {
        match self {
            Action::Failed => "Undelivered mail: your message could not be delivered",
            Action::Delayed => "Delayed mail: your message has not been delivered yet",
            Action::Relayed => "Your message was handed on",
            Action::Delivered => "Your message was delivered",
        }
    }

    /// What stands in front of the recipients it happened to.
    const fn heading(self) -> &'static str {
        match self {
            Action::Failed => "Your message could not be delivered to:",
            Action::Delayed => {
                "Your message has not been delivered yet, but the mail server goes on trying. \
                 You need not send it again. This concerns:"
            }
            Action::Relayed => {
                "Your message was handed on to the next mail server, which does not confirm delivery itself. \
                 There may be no further report about:"
            }
            Action::Delivered => "Your message was delivered to:",
        }
    }
}

/// One recipient in a report.
#[derive(Clone, Debug)]
pub struct ReportedRecipient<'a> {
    /// Its address.
    pub address: &'a str,
    /// ORCPT= as it was given: type, semicolon, xtext.
    pub orcpt: Option<&'a str>,
    /// What happened.
    pub action: Action,
    /// The enhanced status code: class, subject, detail.
    pub status: (u8, u16, u16),
    /// The peer of the last attempt, as "name [address]:port" or "[address]:port"; None if no peer had a part in it.
    pub remote: Option<&'a str>,
    /// The peer's reply, or our own words.
    pub reply: &'a Reply,
    /// What that means, if it was found out.
    pub meaning: Option<Meaning>,
    /// When it was last tried.
    pub last_attempt: UnixTime,
    /// For a delay: when the attempts end.
    pub will_retry_until: Option<UnixTime>,
}

/// What a report is about.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// The name of this host.
    pub reporting_host: &'a str,
    /// The reverse path, to which the report goes; never empty.
    pub sender: &'a str,
    /// ENVID= as it was given, in xtext.
    pub envid: Option<&'a str>,
    /// When the message was accepted.
    pub arrived: UnixTime,
    /// The message reported on.
    pub about: MessageId,
    /// At least one.
    pub recipients: Vec<ReportedRecipient<'a>>,
    /// The message's content from its beginning, whole or in part.
    pub original: &'a [u8],
    /// `original` is the whole content.
    pub original_complete: bool,
    /// RET= of the message.
    pub ret: Option<Ret>,
    /// The message was accepted with SMTPUTF8.
    pub smtputf8: bool,
    /// When the report is made.
    pub now: UnixTime,
    /// Names the report itself: no other message of this host has it.
    pub serial: MessageId,
}

/// A composed report.
#[derive(Clone, Debug)]
pub struct Dsn {
    /// The whole message.
    pub content: Vec<u8>,
    /// It holds octets above 127: to be sent with BODY=8BITMIME.
    pub eight_bit: bool,
    /// Its own header section is not ASCII: to be sent with SMTPUTF8.
    pub smtputf8: bool,
}

/// Makes the report.
pub fn compose(report: &Report<'_>) -> Dsn {
    let returned = Returned::choose(report);
    let fields = status_fields(report);
    let words = words(report, &returned);
    let boundary = boundary(report, [words.as_bytes(), fields.as_bytes(), returned.bytes]);
    let global = is_global(report);
    let host = clean(report.reporting_host, false);
    let subject = gravest(report).subject();

    let mut text = String::with_capacity(1024 + words.len() + fields.len());
    let report_type = if global { "global-delivery-status" } else { "delivery-status" };
    for line in [
        &format!("From: Mail Delivery System <MAILER-DAEMON@{host}>"),
        &format!("To: <{}>", clean(report.sender, true)),
        &format!("Subject: {subject}"),
        &format!("Date: {}", Date(report.now)),
        &format!("Message-ID: <{}@{host}>", report.serial),
        // RFC 3834 5; keeps vacation programs and the like from answering.
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        &format!("Content-Type: multipart/report; report-type={report_type};"),
        &format!("\tboundary=\"{boundary}\""),
        "",
        "This is a delivery report in MIME format.",
        "",
    ] {
        text.push_str(line);
        text.push_str("\r\n");
    }
    part(&mut text, &boundary, "text/plain; charset=utf-8", words.is_ascii());
    text.push_str(&words);
    part(&mut text, &boundary, &format!("message/{report_type}"), fields.is_ascii());
    text.push_str(&fields);
    part(&mut text, &boundary, returned.media_type, returned.bytes.is_ascii());

    let mut content = text.into_bytes();
    content.reserve(returned.bytes.len() + boundary.len() + 64);
    copy_lines(returned.bytes, &mut content);
    content.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    Dsn { eight_bit: !content.is_ascii(), smtputf8: !report.sender.is_ascii(), content }
}

/// Begins a part.
fn part(text: &mut String, boundary: &str, media_type: &str, ascii: bool) {
    let encoding = if ascii { "7bit" } else { "8bit" };
    for line in [
        &format!("\r\n--{boundary}"),
        &format!("Content-Type: {media_type}"),
        &format!("Content-Transfer-Encoding: {encoding}"),
        "",
    ] {
        text.push_str(line);
        text.push_str("\r\n");
    }
}

/// The fields must be in UTF-8, as an address cannot be written without it (RFC 6533 3).
fn is_global(report: &Report<'_>) -> bool {
    !report.recipients.iter().all(|recipient| recipient.address.is_ascii())
}

/// The action that gives the report its subject.
fn gravest(report: &Report<'_>) -> Action {
    let has = |action: &Action| report.recipients.iter().any(|recipient| recipient.action == *action);
    Action::ALL.into_iter().find(has).unwrap_or(Action::Failed)
}

/// A delimiter that occurs in none of the parts. The serial makes it one that nobody could foresee; the loop is for
/// a report within a report.
fn boundary(report: &Report<'_>, parts: [&[u8]; 3]) -> String {
    let mut boundary = format!("=_{}", report.serial);
    while parts.iter().any(|part| memchr::memmem::find(part, boundary.as_bytes()).is_some()) {
        boundary.push('_');
    }
    boundary
}

/// What goes back of the message.
struct Returned<'a> {
    bytes: &'a [u8],
    media_type: &'static str,
    whole: bool,
}

impl Returned<'_> {
    /// The whole message only with a failure (RFC 3461 4.3), unless the sender asked for headers or it is big.
    fn choose<'a>(report: &Report<'a>) -> Returned<'a> {
        let (headers, all_headers) = header_section(report.original);
        let whole = report.original_complete
            && report.original.len() <= DSN_RETURNED_OCTETS_MAX
            && report.ret != Some(Ret::Headers)
            && gravest(report) == Action::Failed;
        // Headers in UTF-8 may stand only in the types of RFC 6533 4 and 5.
        let global = report.smtputf8 && !all_headers.is_ascii();
        let media_type = match (whole, global) {
            (true, false) => "message/rfc822",
            (true, true) => "message/global",
            (false, false) => "text/rfc822-headers",
            (false, true) => "message/global-headers",
        };
        Returned { bytes: if whole { report.original } else { headers }, media_type, whole }
    }
}

/// The header section with the end of its last line, first cut at a line's end to what is returned, then whole.
fn header_section(content: &[u8]) -> (&[u8], &[u8]) {
    let end = match memchr::memmem::find(content, b"\r\n\r\n") {
        _ if content.starts_with(b"\r\n") => 0,
        Some(end) => end + 2,
        None => content.len(),
    };
    let all = &content[..end];
    let complete = end < content.len() || all.ends_with(b"\r\n");
    if complete && all.len() <= DSN_RETURNED_HEADERS_OCTETS_MAX {
        return (all, all);
    }
    let cut = &all[..all.len().min(DSN_RETURNED_HEADERS_OCTETS_MAX)];
    (&cut[..memchr::memrchr(b'\n', cut).map_or(0, |end| end + 1)], all)
}

/// The part for people.
fn words(report: &Report<'_>, returned: &Returned<'_>) -> String {
    let mut out = String::with_capacity(1024);
    let host = clean(report.reporting_host, true);
    let (arrived, about) = (Date(report.arrived), report.about);
    let intro = format!(
        "This is the mail server {host}. It tells you about a message from you that it accepted on {arrived} under \
         the id {about}."
    );
    wrap(&mut out, "", &intro);
    for action in Action::ALL {
        let mut concerned = report.recipients.iter().filter(|recipient| recipient.action == action).peekable();
        if concerned.peek().is_none() {
            continue;
        }
        out.push_str("\r\n");
        wrap(&mut out, "", action.heading());
        concerned.for_each(|recipient| recipient_words(recipient, &mut out));
    }
    out.push_str("\r\n");
    let behind = if returned.whole { "your message" } else { "the headers of your message" };
    wrap(&mut out, "", &format!("The next part of this report is for programs; behind it stands {behind}."));
    out
}

/// The part for people, of one recipient.
fn recipient_words(recipient: &ReportedRecipient<'_>, out: &mut String) {
    out.push_str("\r\n");
    out.push_str(&format!("  <{}>\r\n", clean(recipient.address, true)));
    match recipient.remote {
        Some(remote) => {
            let (remote, at) = (clean(remote, true), Date(recipient.last_attempt));
            wrap(out, "    ", &format!("The last attempt was made on {at} with {remote}. Its result:"));
            wrap(out, "      ", &diagnostic(recipient.reply, true));
        }
        // Our own words: people have no use for the codes before them.
        None => wrap(out, "    ", &clean(bounded(&recipient.reply.text), true)),
    }
    if let Some(until) = recipient.will_retry_until.filter(|_| recipient.action == Action::Delayed) {
        wrap(out, "    ", &format!("Attempts go on until {}.", Date(until)));
    }
    if recipient.action == Action::Failed {
        wrap(out, "    ", &format!("What you can do: {}", advice(recipient.status)));
    }
}

/// The part for programs (RFC 3464 2).
fn status_fields(report: &Report<'_>) -> String {
    let utf8 = is_global(report);
    let mut out = String::with_capacity(256 + report.recipients.len() * 512);
    fold(&mut out, "Reporting-MTA", &format!("dns; {}", clean(report.reporting_host, utf8)));
    if let Some(envid) = report.envid.and_then(decode_xtext) {
        field(&mut out, "Original-Envelope-Id", &clean(&envid, utf8));
    }
    fold(&mut out, "Arrival-Date", &Date(report.arrived).to_string());
    for recipient in &report.recipients {
        out.push_str("\r\n");
        recipient_fields(recipient, utf8, &mut out);
    }
    out
}

/// The fields of one recipient (RFC 3464 2.3).
fn recipient_fields(recipient: &ReportedRecipient<'_>, utf8: bool, out: &mut String) {
    if let Some((kind, address)) = recipient.orcpt.and_then(|orcpt| orcpt.split_once(';')) {
        // Type utf-8 has an encoding of its own, which may stand in the field as it is (RFC 6533 3).
        let address = if kind.eq_ignore_ascii_case("utf-8") { Some(address.to_owned()) } else { decode_xtext(address) };
        if let Some(address) = address {
            field(out, "Original-Recipient", &format!("{}; {}", clean(kind, utf8), clean(&address, utf8)));
        }
    }
    let kind = if recipient.address.is_ascii() { "rfc822" } else { "utf-8" };
    field(out, "Final-Recipient", &format!("{kind}; {}", clean(recipient.address, utf8)));
    fold(out, "Action", recipient.action.name());
    let (class, subject, detail) = recipient.status;
    fold(out, "Status", &EnhancedCode::new(class, subject, detail).to_string());
    // Only a reply that came by SMTP is one of type smtp (RFC 3464 2.3.6).
    let kind = match recipient.remote {
        Some(remote) => {
            fold(out, "Remote-MTA", &format!("dns; {}", clean(host_of(remote), utf8)));
            "smtp"
        }
        None => "x-ringpost",
    };
    fold(out, "Diagnostic-Code", &format!("{kind}; {}", diagnostic(recipient.reply, utf8)));
    // Fields of our own may follow those of the standard (RFC 3464 2.4, 2.3.10).
    if let Some(Meaning { class, kind }) = recipient.meaning {
        field(out, "X-Ringpost-Class", class.name());
        field(out, "X-Ringpost-Kind", kind.name());
    }
    fold(out, "Last-Attempt-Date", &Date(recipient.last_attempt).to_string());
    if let Some(until) = recipient.will_retry_until.filter(|_| recipient.action == Action::Delayed) {
        fold(out, "Will-Retry-Until", &Date(until).to_string());
    }
}

/// The name in "name [address]:port", or the literal where there is no name.
fn host_of(remote: &str) -> &str {
    match remote.split_once(' ') {
        Some((name, _)) => name,
        None => remote.rsplit_once("]:").map_or(remote, |(literal, _)| &remote[..literal.len() + 1]),
    }
}

/// A reply on one line.
fn diagnostic(reply: &Reply, utf8: bool) -> String {
    let reply = reply.to_string();
    clean(bounded(&reply), utf8)
}

/// The beginning of a text, as much as a report holds of it.
fn bounded(text: &str) -> &str {
    let mut end = text.len().min(DSN_DIAGNOSTIC_OCTETS_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::class::{BounceKind, ReplyClass};
    use proptest::prelude::*;

    const ORIGINAL: &[u8] = b"From: a@example.org\r\nSubject: hello\r\n\r\nbody\r\n.dots\r\nend";
    const NOW: UnixTime = UnixTime::from_millis(1_790_000_000_123);

    fn reply() -> Reply {
        Reply::new(550, (5, 1, 1), "No such user\nhere")
    }

    fn recipient<'a>(address: &'a str, action: Action, reply: &'a Reply) -> ReportedRecipient<'a> {
        ReportedRecipient {
            address,
            orcpt: None,
            action,
            status: (5, 1, 1),
            remote: Some("mx.example.net [192.0.2.1]:25"),
            reply,
            meaning: None,
            last_attempt: NOW,
            will_retry_until: None,
        }
    }

    fn report<'a>(recipients: Vec<ReportedRecipient<'a>>) -> Report<'a> {
        Report {
            reporting_host: "relay.example.org",
            sender: "a@example.org",
            envid: None,
            arrived: UnixTime::from_millis(1_789_000_000_000),
            about: MessageId(6),
            recipients,
            original: ORIGINAL,
            original_complete: true,
            ret: None,
            smtputf8: false,
            now: NOW,
            serial: MessageId(7),
        }
    }

    /// Names (in lower case) and unfolded values, and what follows the empty line.
    fn headers(text: &str) -> (Vec<(String, String)>, &str) {
        let (head, rest) = match text.strip_prefix("\r\n") {
            Some(rest) => ("", rest),
            None => text.split_once("\r\n\r\n").unwrap_or((text.trim_end_matches("\r\n"), "")),
        };
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in head.split("\r\n").filter(|line| !line.is_empty()) {
            if line.starts_with([' ', '\t']) {
                fields.last_mut().expect("a header begins the section").1.push_str(line);
            } else {
                let (name, value) = line.split_once(':').expect("a header has a name");
                fields.push((name.to_lowercase(), value.trim().to_owned()));
            }
        }
        (fields, rest)
    }

    fn value<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
        let mut all = fields.iter().filter(|(found, _)| found == name);
        let value = all.next().map(|(_, value)| value.as_str());
        assert!(all.next().is_none(), "{name} stands twice");
        value
    }

    /// A report, read back.
    struct Parsed {
        headers: Vec<(String, String)>,
        words: String,
        status_type: String,
        /// Fields of the message, then of each recipient.
        groups: Vec<Vec<(String, String)>>,
        returned_type: String,
        returned_encoding: String,
        returned: String,
    }

    fn parse(dsn: &Dsn) -> Parsed {
        assert!(dsn.content.ends_with(b"\r\n"));
        let text = String::from_utf8_lossy(&dsn.content).into_owned();
        assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']));
        assert!(text.split("\r\n").all(|line| line.len() <= 998));
        assert_eq!(dsn.eight_bit, !dsn.content.is_ascii());
        let (head, body) = headers(&text);
        let content_type = value(&head, "content-type").unwrap();
        let boundary = content_type.split_once("boundary=\"").unwrap().1.trim_end_matches('"').to_owned();
        let parts: Vec<&str> = body.split(&format!("--{boundary}")).collect();
        assert_eq!(parts.len(), 5, "{text}");
        assert_eq!(parts[4], "--\r\n");
        let part = |index: usize| {
            let part: &str = parts[index];
            let (fields, rest) = headers(part.strip_prefix("\r\n").unwrap());
            let of = |name| value(&fields, name).unwrap().to_owned();
            let (kind, encoding) = (of("content-type"), of("content-transfer-encoding"));
            let rest = rest.strip_suffix("\r\n").unwrap().to_owned();
            assert!(encoding == "8bit" || (encoding == "7bit" && rest.is_ascii()));
            (kind, encoding, rest)
        };
        let (kind, _, words) = part(1);
        assert_eq!(kind, "text/plain; charset=utf-8");
        let (status_type, _, status) = part(2);
        let report_type = status_type.strip_prefix("message/").unwrap();
        assert!(content_type.starts_with(&format!("multipart/report; report-type={report_type};")));
        let groups = status.split("\r\n\r\n").map(|group| headers(group).0).collect();
        let (returned_type, returned_encoding, returned) = part(3);
        Parsed { headers: head, words, status_type, groups, returned_type, returned_encoding, returned }
    }

    #[test]
    fn a_failure_is_told_to_people_and_programs() {
        let reply = reply();
        let mut bob = recipient("bob@example.net", Action::Failed, &reply);
        bob.orcpt = Some("rfc822;robert+2Bx@example.com");
        bob.meaning = Some(Meaning { class: ReplyClass::InvalidRecipient, kind: BounceKind::Hard });
        let report = Report { envid: Some("QQ+2B314"), ..report(vec![bob]) };
        let dsn = compose(&report);
        assert!(!dsn.eight_bit && !dsn.smtputf8);
        let parsed = parse(&dsn);
        for (name, expected) in [
            ("from", "Mail Delivery System <MAILER-DAEMON@relay.example.org>"),
            ("to", "<a@example.org>"),
            ("subject", "Undelivered mail: your message could not be delivered"),
            ("date", "Mon, 21 Sep 2026 14:13:20 +0000"),
            ("message-id", "<0000000000007@relay.example.org>"),
            ("auto-submitted", "auto-replied"),
            ("mime-version", "1.0"),
        ] {
            assert_eq!(value(&parsed.headers, name), Some(expected));
        }
        assert_eq!(parsed.status_type, "message/delivery-status");
        let [message, bob] = &parsed.groups[..] else { panic!() };
        for (name, expected) in [
            ("reporting-mta", "dns; relay.example.org"),
            ("original-envelope-id", "QQ+314"),
            ("arrival-date", "Thu, 10 Sep 2026 00:26:40 +0000"),
        ] {
            assert_eq!(value(message, name), Some(expected));
        }
        let fields = [
            ("original-recipient", "rfc822; robert+x@example.com"),
            ("final-recipient", "rfc822; bob@example.net"),
            ("action", "failed"),
            ("status", "5.1.1"),
            ("remote-mta", "dns; mx.example.net"),
            ("diagnostic-code", "smtp; 550 5.1.1 No such user / here"),
            ("x-ringpost-class", "invalid-recipient"),
            ("x-ringpost-kind", "hard"),
            ("last-attempt-date", "Mon, 21 Sep 2026 14:13:20 +0000"),
        ];
        for (name, expected) in fields {
            assert_eq!(value(bob, name), Some(expected));
        }
        assert_eq!(bob.len(), fields.len());
        for words in ["<bob@example.net>", "mx.example.net [192.0.2.1]:25", "550 5.1.1 No such user", "typing errors"] {
            assert!(parsed.words.contains(words), "{words} not in {}", parsed.words);
        }
        assert_eq!(parsed.returned_type, "message/rfc822");
        assert_eq!(parsed.returned.as_bytes(), [ORIGINAL, b"\r\n"].concat());
    }

    #[test]
    fn several_recipients_share_a_report() {
        let (no, wait) = (reply(), Reply::new(451, (4, 4, 1), "Connection timed out"));
        let mut delayed = recipient("c@example.net", Action::Delayed, &wait);
        (delayed.status, delayed.remote) = ((4, 4, 1), None);
        delayed.will_retry_until = Some(UnixTime::from_millis(1_790_100_000_000));
        let mut relayed = recipient("d@example.net", Action::Relayed, &no);
        relayed.remote = Some("[IPv6:2001:db8::1]:2525");
        let parsed = parse(&compose(&report(vec![recipient("b@example.net", Action::Failed, &no), delayed, relayed])));
        assert_eq!(parsed.groups.len(), 4);
        let actions: Vec<_> = parsed.groups[1..].iter().map(|group| value(group, "action").unwrap()).collect();
        assert_eq!(actions, ["failed", "delayed", "relayed"]);
        let delayed = &parsed.groups[2];
        assert_eq!(value(delayed, "will-retry-until"), Some("Tue, 22 Sep 2026 18:00:00 +0000"));
        assert_eq!(value(delayed, "remote-mta"), None);
        assert_eq!(value(delayed, "diagnostic-code"), Some("x-ringpost; 451 4.4.1 Connection timed out"));
        assert_eq!(value(&parsed.groups[3], "remote-mta"), Some("dns; [IPv6:2001:db8::1]"));
        for heading in ["could not be delivered to", "goes on trying", "handed on", "until Tue, 22 Sep 2026 18:00:00"] {
            assert!(parsed.words.replace("\r\n", " ").contains(heading), "{heading}");
        }
        assert_eq!(parsed.returned_type, "message/rfc822");
    }

    #[test]
    fn headers_alone_are_returned_where_that_is_due() {
        let reply = reply();
        let headers = "From: a@example.org\r\nSubject: hello\r\n";
        let failed = || report(vec![recipient("b@example.net", Action::Failed, &reply)]);
        let delayed = || report(vec![recipient("b@example.net", Action::Delayed, &reply)]);
        let mut big = ORIGINAL.to_vec();
        big.resize(DSN_RETURNED_OCTETS_MAX + 1, b'x');
        for report in [
            Report { ret: Some(Ret::Headers), ..failed() },
            Report { original_complete: false, ..failed() },
            Report { original: &big, ..failed() },
            Report { ret: Some(Ret::Full), ..delayed() },
        ] {
            let parsed = parse(&compose(&report));
            assert_eq!((parsed.returned_type.as_str(), parsed.returned.as_str()), ("text/rfc822-headers", headers));
        }
        // Headers that are cut end with a line; there may be none at all.
        let long = format!("X: {}\r\n", "y".repeat(100)).repeat(1_000);
        let parsed = parse(&compose(&Report { original: long.as_bytes(), original_complete: false, ..failed() }));
        assert!(parsed.returned.ends_with("y\r\n") && parsed.returned.len() <= DSN_RETURNED_HEADERS_OCTETS_MAX);
        assert!(parsed.returned.len() > DSN_RETURNED_HEADERS_OCTETS_MAX - 200);
        for original in [&b""[..], b"\r\nbody", b"X: cut sho"] {
            let parsed = parse(&compose(&Report { original, original_complete: false, ..failed() }));
            assert_eq!(parsed.returned, "");
        }
    }

    #[test]
    fn internationalized_addresses_use_the_types_of_rfc_6533() {
        let reply = Reply::new(550, (5, 1, 1), "Benutzer jörg unbekannt");
        let mut joerg = recipient("jörg@example.net", Action::Failed, &reply);
        joerg.orcpt = Some("utf-8;j\\x{F6}rg@example.net");
        let original = "Subject: Grüße\r\n\r\nbody\r\n".as_bytes();
        let international = Report { smtputf8: true, original, ..report(vec![joerg]) };
        let dsn = compose(&international);
        assert!(dsn.eight_bit && !dsn.smtputf8);
        let parsed = parse(&dsn);
        assert_eq!(parsed.status_type, "message/global-delivery-status");
        let fields = &parsed.groups[1];
        assert_eq!(value(fields, "final-recipient"), Some("utf-8; jörg@example.net"));
        assert_eq!(value(fields, "original-recipient"), Some("utf-8; j\\x{F6}rg@example.net"));
        assert_eq!(value(fields, "diagnostic-code"), Some("smtp; 550 5.1.1 Benutzer jörg unbekannt"));
        assert_eq!(parsed.returned_type, "message/global");
        let parsed = parse(&compose(&Report { ret: Some(Ret::Headers), ..international.clone() }));
        assert_eq!(parsed.returned_type, "message/global-headers");
        assert!(compose(&Report { sender: "ä@example.org", ..international }).smtputf8);
        // With ASCII addresses the fields stay ASCII, whatever a peer says.
        let parsed = parse(&compose(&report(vec![recipient("b@example.net", Action::Failed, &reply)])));
        assert_eq!(parsed.status_type, "message/delivery-status");
        assert_eq!(value(&parsed.groups[1], "diagnostic-code"), Some("smtp; 550 5.1.1 Benutzer j\\x{F6}rg unbekannt"));
        assert!(parsed.words.contains("jörg"));
    }

    #[test]
    fn odd_messages_are_returned_with_whole_lines() {
        let reply = reply();
        let mut report = report(vec![recipient("b@example.net", Action::Failed, &reply)]);
        report.original = b"X: y\n\rZ: \x00\xff\r";
        let parsed = parse(&compose(&report));
        assert_eq!(
            (parsed.returned.as_str(), parsed.returned_encoding.as_str()),
            ("X: y\r\n\r\nZ: ?\u{fffd}\r\n", "8bit")
        );
        // A message that holds the delimiter gets another one.
        report.original = b"X: y\r\n\r\n--=_0000000000007\r\n--=_0000000000007_--\r\n";
        let parsed = parse(&compose(&report));
        assert_eq!(parsed.returned.as_bytes(), report.original);
    }

    #[test]
    fn hostile_texts_stay_where_they_are() {
        let long = "x".repeat(5_000);
        for text in [
            "a\r\nBcc: evil@example.com\r\n\r\n--=_0000000000007\r\n",
            "\0\x1b[2J\u{7f}\u{85}\u{2028}",
            "",
            "   ",
            &long,
            &"é ".repeat(3_000),
        ] {
            let reply = Reply { code: 550, enhanced: None, text: text.to_owned().into() };
            let mut bob = recipient(text, Action::Failed, &reply);
            (bob.orcpt, bob.remote) = (Some(text), Some(text));
            if text.len() > 1_000 {
                (bob.address, bob.orcpt) = ("b@example.net", None);
            }
            let sender = if text.len() > 1_000 { "a@example.org" } else { text };
            let report = Report { sender, reporting_host: sender, envid: Some(text), ..report(vec![bob]) };
            let parsed = parse(&compose(&report));
            assert_eq!(parsed.headers.len(), 8);
            assert_eq!(parsed.groups.len(), 2);
            assert!(parsed.groups[1].iter().all(|(name, _)| !name.contains("bcc")));
        }
    }

    #[test]
    fn every_kind_of_status_has_an_advice() {
        let reply = reply();
        for subject in 0..9 {
            for detail in 0..12 {
                let mut bob = recipient("b@example.net", Action::Failed, &reply);
                bob.status = (5, subject, detail);
                assert!(parse(&compose(&report(vec![bob]))).words.contains("What you can do:"));
            }
        }
    }

    proptest! {
        #[test]
        fn any_report_can_be_read_back(
            text in "(.|\r|\n|\\PC){0,300}",
            original in proptest::collection::vec(any::<u8>(), 0..300),
            address in ".{0,60}",
            action in prop_oneof![Just(Action::Failed), Just(Action::Delayed), Just(Action::Delivered)],
            smtputf8: bool,
        ) {
            let reply = Reply { code: 450, enhanced: None, text: text.clone().into() };
            let mut one = recipient(&address, action, &reply);
            one.remote = (!text.is_empty()).then_some(&text);
            let lines = String::from_utf8_lossy(&original).into_owned();
            let report = Report { original: &original, smtputf8, ..report(vec![one.clone(), one]) };
            let parsed = parse(&compose(&report));
            prop_assert_eq!(parsed.groups.len(), 3);
            if action == Action::Failed && !lines.contains(['\r', '\n', '\0']) && !lines.is_empty() {
                prop_assert_eq!(parsed.returned, lines + "\r\n");
            }
        }
    }
}
