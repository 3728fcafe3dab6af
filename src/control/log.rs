//! The event log: one line for each [`Event`], for people or as JSON, with the same keys in both.
//!
//! Shards send values; formatting is done here, on the control thread, and writing in log_output.rs. What a peer said
//! is text of a stranger: characters that control a terminal, split a line or hide a part of it are shown as escapes,
//! in both forms, so that a line is what it seems to be.

use super::log_output::LogOutput;
use crate::clock::UnixTime;
use crate::event::{AttemptFacts, Event, Severity};
use crate::id::MessageId;
use serde::Deserialize;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// Characters of one value; the rest is cut. A reply of a peer can have 8 KiB.
pub const VALUE_CHARS_MAX: usize = 1_000;

/// The form of log lines.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of key=value for people.
    #[default]
    Human,
    /// One JSON object in each line.
    Json,
}

/// Which events are logged.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// All.
    #[default]
    Info,
    /// Warnings and errors.
    Warning,
    /// Errors.
    Error,
}

/// One value of a line.
#[derive(Copy, Clone, Debug, PartialEq)]
enum Value<'a> {
    Text(&'a str),
    /// An address: in angle brackets for people.
    Path(&'a str),
    Number(u64),
    Flag(bool),
}

/// Formats events and hands the lines on. Cloning shares it.
#[derive(Clone, Debug)]
pub struct EventLog {
    format: LogFormat,
    least: Severity,
    output: Arc<Mutex<LogOutput>>,
}

impl EventLog {
    /// A log in this form; the level says what is left out.
    pub fn new(format: LogFormat, level: LogLevel, output: LogOutput) -> EventLog {
        let least = match level {
            LogLevel::Info => Severity::Info,
            LogLevel::Warning => Severity::Warning,
            LogLevel::Error => Severity::Error,
        };
        EventLog { format, least, output: Arc::new(Mutex::new(output)) }
    }

    /// Adds an event; it is written at the next [`flush`](EventLog::flush).
    pub fn event(&self, at: UnixTime, shard: Option<u8>, event: &Event) {
        if event.severity() < self.least {
            return;
        }
        let line = format_line(self.format, at, shard, event);
        self.output.lock().unwrap_or_else(PoisonError::into_inner).push(&line);
    }

    /// Adds a notice about the program itself, and writes it.
    pub fn notice(&self, severity: Severity, text: &str) {
        self.event(crate::io::clock::now().unix, None, &Event::Notice { severity, text: text.into() });
        self.flush();
    }

    /// Has the lines so far written. Never waits.
    pub fn flush(&self) {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).flush();
    }

    /// Writes what is left; waits for it at most two seconds.
    pub fn finish(&self) {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).finish();
    }
}

/// One line, with its newline.
pub fn format_line(format: LogFormat, at: UnixTime, shard: Option<u8>, event: &Event) -> String {
    let mut line = String::with_capacity(256);
    match format {
        LogFormat::Human => {
            let _ = write!(line, "{at} {} {}", level_name(event.severity()), event_name(event));
            let mut field = |key: &str, value: Value<'_>| human_field(&mut line, key, value);
            fields(event, &mut field);
        }
        LogFormat::Json => {
            let level = level_name(event.severity()).to_ascii_lowercase();
            let _ = write!(line, "{{\"time\":\"{at}\",\"level\":\"{level}\",\"event\":\"{}\"", event_name(event));
            if let Some(shard) = shard {
                let _ = write!(line, ",\"shard\":{shard}");
            }
            let mut field = |key: &str, value: Value<'_>| json_field(&mut line, key, value);
            fields(event, &mut field);
            line.push('}');
        }
    }
    line.push('\n');
    line
}

fn level_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "INFO",
        Severity::Warning => "WARN",
        Severity::Error => "ERROR",
    }
}

/// The name of an event in logs; documented in docs/CONFIGURATION.md.
fn event_name(event: &Event) -> &'static str {
    match event {
        Event::Received { .. } => "received",
        Event::Rejected { .. } => "rejected",
        Event::LoginFailed { .. } => "login_failed",
        Event::LargeMessage { .. } => "large_message",
        Event::CameHeld { .. } => "held",
        Event::Delivered(_) => "delivered",
        Event::Deferred { .. } => "deferred",
        Event::Bounced(_) => "bounced",
        Event::Expired(_) => "expired",
        Event::Suppressed(_) => "suppressed",
        Event::DsnQueued { .. } => "dsn",
        Event::DoubleBounce { .. } => "double_bounce",
        Event::OperatorAct { .. } => "operator",
        Event::SiteState { .. } => "site",
        Event::SessionTrouble { .. } => "session",
        Event::Notice { .. } => "notice",
    }
}

type Field<'f> = &'f mut dyn FnMut(&str, Value<'_>);

fn id_field(field: Field<'_>, key: &str, id: MessageId) {
    field(key, Value::Text(&id.to_string()));
}

/// The keys and values of an event, in their fixed order.
fn fields(event: &Event, field: Field<'_>) {
    match event {
        Event::Received { id, client, helo, sender, recipients, first_recipient, size, tenant, tls, commit_us } => {
            id_field(field, "id", *id);
            field("from", Value::Path(sender));
            field("to", Value::Path(first_recipient));
            field("recipients", Value::Number(u64::from(*recipients)));
            field("size", Value::Number(*size));
            field("client", Value::Text(&client.to_string()));
            field("helo", Value::Text(helo));
            field("tenant", Value::Text(tenant));
            field("tls", Value::Flag(*tls));
            field("commit_us", Value::Number(*commit_us));
        }
        Event::Rejected { client, sender, recipient, reply, filter } => {
            field("client", Value::Text(&client.to_string()));
            field("from", Value::Path(sender));
            if let Some(recipient) = recipient {
                field("to", Value::Path(recipient));
            }
            field("reply", Value::Text(reply));
            if let Some(filter) = filter {
                field("filter", Value::Text(filter));
            }
        }
        Event::LoginFailed { client, login, reason } => {
            field("client", Value::Text(&client.to_string()));
            field("login", Value::Text(login));
            field("reason", Value::Text(reason));
        }
        Event::LargeMessage { id, size } => {
            id_field(field, "id", *id);
            field("size", Value::Number(*size));
            field("advice", Value::Text("many providers refuse messages of this size; send a link instead"));
        }
        Event::CameHeld { id, reason } => {
            id_field(field, "id", *id);
            field("reason", Value::Text(reason));
        }
        Event::Delivered(facts) | Event::Bounced(facts) | Event::Expired(facts) | Event::Suppressed(facts) => {
            attempt_fields(facts, field)
        }
        Event::Deferred { facts, next } => {
            attempt_fields(facts, field);
            field("next", Value::Text(&next.to_string()));
        }
        Event::DsnQueued { id, about, recipient } => {
            id_field(field, "id", *id);
            id_field(field, "about", *about);
            field("to", Value::Path(recipient));
        }
        Event::DoubleBounce { id, reply } => {
            id_field(field, "id", *id);
            field("reply", Value::Text(reply));
        }
        Event::OperatorAct { id, act } => {
            id_field(field, "id", *id);
            field("act", Value::Text(act));
        }
        Event::SiteState { site, state } => {
            field("site", Value::Text(site));
            field("state", Value::Text(state));
        }
        Event::SessionTrouble { client, what } => {
            field("client", Value::Text(&client.to_string()));
            field("what", Value::Text(what));
        }
        Event::Notice { text, .. } => field("text", Value::Text(text)),
    }
}

fn attempt_fields(facts: &AttemptFacts, field: Field<'_>) {
    id_field(field, "id", facts.id);
    field("to", Value::Path(&facts.recipient));
    field("tenant", Value::Text(&facts.tenant));
    field("site", Value::Text(&facts.site));
    if let Some(remote) = &facts.remote {
        field("remote", Value::Text(remote));
    }
    field("attempt", Value::Number(u64::from(facts.attempt)));
    field("age_ms", Value::Number(facts.age_ms));
    field("took_ms", Value::Number(facts.took_ms));
    if let Some(tls) = facts.tls {
        field("tls", Value::Text(tls));
    }
    if let Some(policy) = facts.tls_policy {
        field("tls_policy", Value::Text(policy));
    }
    if let Some(meaning) = facts.meaning {
        field("class", Value::Text(meaning.class.name()));
        field("kind", Value::Text(meaning.kind.name()));
    }
    field("reply", Value::Text(&facts.reply));
}

fn human_field(line: &mut String, key: &str, value: Value<'_>) {
    line.push(' ');
    line.push_str(key);
    line.push('=');
    match value {
        Value::Number(number) => {
            let _ = write!(line, "{number}");
        }
        Value::Flag(flag) => line.push_str(if flag { "yes" } else { "no" }),
        Value::Text(text) => human_text(line, "", text, ""),
        Value::Path(text) => human_text(line, "<", text, ">"),
    }
}

/// A value as it is when it is one plain word, else in quotes.
fn human_text(line: &mut String, before: &str, text: &str, after: &str) {
    let plain = |c: char| !c.is_whitespace() && !matches!(c, '"' | '\\') && !is_hostile(c);
    let bare = text.chars().all(plain) && !(text.is_empty() && before.is_empty());
    let quote = if bare { "" } else { "\"" };
    line.push_str(quote);
    line.push_str(before);
    for c in shortened(text) {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if is_hostile(c) => {
                let _ = write!(line, "\\u{{{:x}}}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line.push_str(after);
    line.push_str(quote);
}

fn json_field(line: &mut String, key: &str, value: Value<'_>) {
    let _ = write!(line, ",\"{key}\":");
    match value {
        Value::Number(number) => {
            let _ = write!(line, "{number}");
        }
        Value::Flag(flag) => line.push_str(if flag { "true" } else { "false" }),
        Value::Text(text) | Value::Path(text) => json_text(line, text),
    }
}

fn json_text(line: &mut String, text: &str) {
    line.push('"');
    for c in shortened(text) {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            // All of these lie in the basic plane, so that four digits do.
            c if is_hostile(c) => {
                let _ = write!(line, "\\u{:04x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line.push('"');
}

fn shortened(text: &str) -> impl Iterator<Item = char> {
    let cut = text.chars().nth(VALUE_CHARS_MAX).is_some();
    text.chars().take(VALUE_CHARS_MAX).chain(cut.then_some('…'))
}

/// Characters that do something else than stand for themselves: controls (C0, DEL, C1), line and paragraph
/// separators, and those that reorder or hide text (Unicode Standard Annex 9 and the zero-width ones).
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// A peer's text made safe to show on a terminal, line ends and tabs included as escapes.
pub fn sanitised(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) {
            let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::class::{BounceKind, Meaning, ReplyClass};

    fn facts(reply: &str) -> AttemptFacts {
        AttemptFacts {
            id: MessageId(1 << 40),
            recipient: "ann@dest.test".into(),
            tenant: "default".into(),
            site: "mx.dest.test".into(),
            remote: Some("mx.dest.test [192.0.2.1]:25".into()),
            reply: reply.into(),
            meaning: None,
            attempt: 1,
            age_ms: 120,
            took_ms: 30,
            tls: Some("TLSv1.3"),
            tls_policy: Some("dane"),
        }
    }

    const AT: UnixTime = UnixTime::from_millis(1_795_544_400_123);

    #[test]
    fn a_line_for_people() {
        let line = format_line(LogFormat::Human, AT, Some(1), &Event::Delivered(facts("250 2.0.0 OK")));
        assert_eq!(
            line,
            "2026-11-24T18:20:00.123Z INFO delivered id=00000100000000 to=<ann@dest.test> tenant=default \
             site=mx.dest.test remote=\"mx.dest.test [192.0.2.1]:25\" attempt=1 age_ms=120 took_ms=30 tls=TLSv1.3 \
             tls_policy=dane \
             reply=\"250 2.0.0 OK\"\n"
                .replace("00000100000000", &MessageId(1 << 40).to_string())
        );
    }

    #[test]
    fn a_line_of_json_has_the_same_keys() {
        let meaning = Some(Meaning { class: ReplyClass::Greylisted, kind: BounceKind::Soft });
        let event = Event::Deferred { facts: AttemptFacts { meaning, ..facts("451 later") }, next: AT };
        let line = format_line(LogFormat::Json, AT, Some(1), &event);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["event"], "deferred");
        assert_eq!(json["level"], "warn");
        assert_eq!(json["shard"], 1);
        assert_eq!(json["to"], "ann@dest.test");
        assert_eq!((&json["class"], &json["kind"]), (&"greylisted".into(), &"soft".into()));
        assert_eq!(json["next"], "2026-11-24T18:20:00.123Z");
        let human = format_line(LogFormat::Human, AT, Some(1), &event);
        for key in json.as_object().unwrap().keys() {
            let stated = ["time", "level", "event", "shard"].contains(&key.as_str());
            assert!(stated || human.contains(&format!(" {key}=")), "{key}");
        }
    }

    #[test]
    fn a_peer_cannot_forge_lines_or_keys_or_steer_a_terminal() {
        let evil =
            "550 no\r\n2026 INFO delivered id=FAKE \u{1b}[2J\u{9b}31m \u{202e}txt\u{2028}\u{0} \"x\" \\ to=<a@b>";
        for format in [LogFormat::Human, LogFormat::Json] {
            let line = format_line(format, AT, None, &Event::Bounced(facts(evil)));
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(line.trim_end().chars().all(|c| !is_hostile(c)), "{line}");
        }
        let line = format_line(LogFormat::Json, AT, None, &Event::Bounced(facts(evil)));
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["reply"], evil);
        let mut odd = facts("x");
        odd.recipient = "\"a to=<b@c>\"@dest.test".into();
        let line = format_line(LogFormat::Human, AT, None, &Event::Bounced(odd));
        assert!(line.contains(r#"to="<\"a to=<b@c>\"@dest.test>""#), "{line}");
    }

    #[test]
    fn long_values_are_cut_and_empty_ones_shown() {
        let line = format_line(LogFormat::Human, AT, None, &Event::Bounced(facts(&"x".repeat(9_000))));
        assert!(line.len() < 2_000 && line.contains('…'));
        let (sender, reply) = Default::default();
        let event = Event::Rejected { client: [192, 0, 2, 7].into(), sender, recipient: None, reply, filter: None };
        let line = format_line(LogFormat::Human, AT, None, &event);
        assert!(line.ends_with("client=192.0.2.7 from=<> reply=\"\"\n"), "{line}");
    }

    #[test]
    fn the_level_leaves_out_what_is_less() {
        let (reader, sink) = super::super::log_output::tests::pipe();
        let log = EventLog::new(LogFormat::Human, LogLevel::Warning, LogOutput::new(sink));
        log.event(AT, None, &Event::Delivered(facts("250 OK")));
        log.event(AT, None, &Event::Bounced(facts("550 no")));
        log.finish();
        let text = reader.text();
        assert!(text.contains(" WARN bounced ") && !text.contains("delivered"), "{text}");
    }
}
