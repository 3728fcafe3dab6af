//! Python's smtplib, driven by a small program of ours (smtplib.py): it speaks plainly what it is told to, so that
//! each part of the protocol can be asked for.

use super::bodies::{assert_same, eight_bit, message, odd_messages};
use super::programs::{program, run};
use super::relay::{Relay, Setup};
use super::sink::{ALL, Sink};
use base64::Engine;
use serde_json::{Value, json};

/// One mail as smtplib.py wants it.
pub fn mail(from: &str, to: &[&str], content: &[u8]) -> Value {
    json!({ "from": from, "to": to, "content": base64::engine::general_purpose::STANDARD.encode(content) })
}

/// Sends mails over one connection. None: there is no Python.
pub fn send(relay: &Relay, mails: Vec<Value>, options: Value) -> Option<Value> {
    let mut order = json!({ "host": "127.0.0.1", "port": relay.address.port(), "mails": mails });
    for (key, value) in options.as_object().expect("an object of options") {
        order[key] = value.clone();
    }
    let mut command = program("python3")?;
    command.arg("-c").arg(include_str!("smtplib.py"));
    let finished = run(command, order.to_string().as_bytes()).succeeded();
    Some(serde_json::from_str(&finished.stdout).expect("the script prints JSON"))
}

/// Sends one mail that is taken, and says under which id.
pub fn send_one(relay: &Relay, from: &str, to: &[&str], content: &[u8]) -> Option<String> {
    let answer = send(relay, vec![mail(from, to, content)], json!({}))?;
    let last = answer["results"][0].as_array()?.last()?;
    Some(queued_as(last[1].as_str().expect("a text")))
}

/// The id in a reply of success.
pub fn queued_as(reply: &str) -> String {
    let id = reply.split("queued as ").nth(1).unwrap_or_else(|| panic!("no id in {reply:?}"));
    id.split_whitespace().next().expect("an id").to_owned()
}

fn all_taken(answer: &Value) {
    for replies in answer["results"].as_array().expect("results") {
        for reply in replies.as_array().expect("replies") {
            assert_eq!(reply[0], 250, "{answer:#}");
        }
    }
}

/// Odd contents in, in this way, and out to a destination with these extensions.
fn odd_contents(extensions: &[&str], way: &str, options: &Value, chunks: Option<usize>) {
    let sink = Sink::offering(extensions);
    let relay = Setup::new().next_hop(sink.address).start();
    let messages = odd_messages();
    let mails = messages.iter().map(|(name, content)| {
        let mut mail = mail("ann@origin.test", &[&format!("{name}@dest.test")], content);
        if let Some(octets) = chunks {
            mail["chunks"] = octets.into();
        }
        mail
    });
    let Some(answer) = send(&relay, mails.collect(), options.clone()) else { return };
    all_taken(&answer);
    for (name, content) in &messages {
        let arrived = sink.wait_for(&format!("{name}@dest.test"));
        assert_eq!(arrived.from.split(' ').next(), Some("<ann@origin.test>"));
        assert_eq!(arrived.chunked, extensions.contains(&"CHUNKING"));
        let trace = assert_same(&arrived.content, content, &format!("{name}, {way}"));
        assert!(trace.contains("from smtplib.test ([127.0.0.1])"), "{trace}");
        assert!(trace.contains(if options["starttls"] == true { "with ESMTPS" } else { "with ESMTP id" }), "{trace}");
    }
    relay.wait_empty();
    assert_eq!(sink.mails().len(), messages.len(), "each arrives once");
}

#[test]
fn smtplib_data_to_data() {
    odd_contents(&["PIPELINING", "8BITMIME"], "DATA to DATA", &json!({}), None);
}

#[test]
fn smtplib_data_to_chunking() {
    odd_contents(ALL, "DATA to BDAT", &json!({}), None);
}

#[test]
fn smtplib_starttls_to_a_plain_old_server() {
    odd_contents(&[], "STARTTLS, to a server without extensions", &json!({ "starttls": true }), None);
}

#[test]
fn smtplib_chunks_to_data() {
    odd_contents(&["8BITMIME"], "BDAT to DATA", &json!({}), Some(1000));
}

#[test]
fn smtplib_starttls_with_chunks_to_chunking() {
    odd_contents(ALL, "BDAT under TLS to BDAT", &json!({ "starttls": true }), Some(700));
}

#[test]
fn without_a_final_newline() {
    let unfinished = message("unfinished", "no newline at the end");
    let finished = [unfinished.as_slice(), b"\r\n"].concat();
    // However it goes out, the last line is ended.
    for extensions in [ALL, &["PIPELINING"] as &[&str]] {
        let sink = Sink::offering(extensions);
        let relay = Setup::new().next_hop(sink.address).start();
        let mut empty = mail("ann@origin.test", &["empty@dest.test"], b"");
        let mut chunked = mail("ann@origin.test", &["chunked@dest.test"], &unfinished);
        (empty["chunks"], chunked["chunks"]) = (1.into(), 11.into());
        // smtplib itself ends the line.
        let dots = mail("ann@origin.test", &["data@dest.test"], &unfinished);
        let Some(answer) = send(&relay, vec![empty, chunked, dots], json!({})) else { return };
        all_taken(&answer);
        assert_same(&sink.wait_for("chunked@dest.test").content, &finished, "BDAT without a final newline");
        assert_same(&sink.wait_for("data@dest.test").content, &finished, "DATA without a final newline");
        assert_same(&sink.wait_for("empty@dest.test").content, b"", "nothing at all");
    }
}

#[test]
fn eight_bit_content_and_who_takes_it() {
    let sink = Sink::new();
    let relay = Setup::new().next_hop(sink.address).start();
    let mut eight = mail("ann@origin.test", &["bob@dest.test"], &eight_bit());
    eight["mail_options"] = json!(["BODY=8BITMIME"]);
    let Some(answer) = send(&relay, vec![eight.clone()], json!({})) else { return };
    all_taken(&answer);
    let arrived = sink.wait_for("bob@dest.test");
    assert!(arrived.from.contains(" BODY=8BITMIME"), "{}", arrived.from);
    assert_same(&arrived.content, &eight_bit(), "8BITMIME");

    // A destination that lacks it: no rewriting, since that breaks signatures, but a report.
    let old = Sink::with(&["PIPELINING"], |_| None);
    let relay = Setup::new().next_hop(old.address).start();
    let answer = send(&relay, vec![eight], json!({})).expect("Python is there");
    all_taken(&answer);
    let report = old.wait_for("ann@origin.test");
    assert!(report.from.starts_with("<>"), "{}", report.from);
    assert!(report.text().contains("Status: 5.6.3"), "{}", report.text());
    relay.wait_empty();
    assert_eq!(old.mails().len(), 1, "the message itself was not sent");
}

#[test]
fn international_addresses_and_who_takes_them() {
    let sink = Sink::new();
    let relay = Setup::new().next_hop(sink.address).start();
    let content = "Subject: Grüße\r\nFrom: <jürgen@grün.test>\r\n\r\nさようなら\r\n".as_bytes();
    let mut mail = mail("jürgen@grün.test", &["用户@例子.test"], content);
    mail["mail_options"] = json!(["SMTPUTF8", "BODY=8BITMIME"]);
    let Some(answer) = send(&relay, vec![mail.clone()], json!({})) else { return };
    all_taken(&answer);
    let arrived = sink.wait_for("用户@例子.test");
    assert!(arrived.from.starts_with("<jürgen@grün.test>"), "{}", arrived.from);
    assert!(arrived.from.contains(" SMTPUTF8"), "{}", arrived.from);
    let trace = assert_same(&arrived.content, content, "SMTPUTF8");
    assert!(trace.contains("with UTF8SMTP "), "{trace}");

    let old = Sink::offering(&["8BITMIME", "PIPELINING"]);
    let relay = Setup::new().next_hop(old.address).start();
    mail["from"] = "ann@origin.test".into();
    let answer = send(&relay, vec![mail], json!({})).expect("Python is there");
    all_taken(&answer);
    let report = old.wait_for("ann@origin.test");
    assert!(report.text().contains("Status: 5.6.7"), "{}", report.text());
}

#[test]
fn what_the_greeting_offers() {
    let relay = Setup::new().flag("--next-hop", "127.0.0.1:9").start();
    let Some(answer) = send(&relay, Vec::new(), json!({})) else { return };
    let features = answer["features"].as_object().expect("features");
    for name in
        ["pipelining", "size", "8bitmime", "smtputf8", "enhancedstatuscodes", "chunking", "dsn", "starttls", "limits"]
    {
        assert!(features.contains_key(name), "{name}: {features:?}");
    }
    assert_eq!(features["size"], "52428800");
    assert!(!features.contains_key("binarymime"));
    let answer = send(&relay, Vec::new(), json!({ "starttls": true })).expect("Python is there");
    assert_eq!(answer["tls"], "TLSv1.3");
    assert!(!answer["features"].as_object().expect("features").contains_key("starttls"));
}

#[test]
fn nothing_is_relayed_for_strangers() {
    let sink = Sink::new();
    let relay = Setup::new().listener("trusted = [\"127.0.0.1/32\"]").next_hop(sink.address).start();
    let mails = || vec![mail("ann@origin.test", &["bob@dest.test", "eve@dest.test"], b"x\r\n")];
    for starttls in [false, true] {
        let stranger = json!({ "source": "127.0.0.2", "starttls": starttls });
        let Some(answer) = send(&relay, mails(), stranger) else { return };
        assert_eq!(answer["results"][0][0][0], 250, "{answer}");
        for recipient in [1, 2] {
            assert_eq!(answer["results"][0][recipient][0], 554, "{answer}");
            let text = answer["results"][0][recipient][1].as_str().expect("a text");
            assert!(text.starts_with("5.7.1 Relaying denied"), "{text}");
        }
    }
    relay.wait_log(|event| event["event"] == "rejected" && event["client"] == "127.0.0.2");
    // A friend's mail comes last, and is all there is.
    all_taken(&send(&relay, mails(), json!({})).expect("Python is there"));
    sink.wait_for("bob@dest.test");
    relay.wait_empty();
    assert_eq!(sink.mails().len(), 1);
    assert_eq!(relay.json(&["status"])["status"]["received"], 1);
}
