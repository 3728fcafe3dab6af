//! Destinations that refuse, fail, encrypt and vanish, as the queue meets them on the way through a pool of next hops.

use super::bodies::{assert_same, message};
use super::relay::{Setup, free_address, text};
use super::sink::{ALL, Sink};
use super::smtplib::{mail, queued_as, send, send_one};
use serde_json::json;
use std::collections::HashSet;

#[test]
fn a_deferral_is_tried_again() {
    // Once at each place where a destination may say later.
    for place in ["MAIL", "RCPT", "DATA", "."] {
        let extensions = ["PIPELINING", "8BITMIME"];
        let refused = std::sync::atomic::AtomicBool::new(false);
        let sink = Sink::with(&extensions, move |line| {
            let here = line.starts_with(place);
            (here && !refused.swap(true, std::sync::atomic::Ordering::SeqCst))
                .then(|| format!("451 4.7.1 later, says {place}"))
        });
        let relay = Setup::new().next_hop(sink.address).flag("--retry", 1).start();
        let content = message("later", "Now or later.\r\n");
        let Some(id) = send_one(&relay, "ann@origin.test", &["bob@dest.test"], &content) else { return };
        let deferred = relay.wait_event("deferred", &id, "bob@dest.test");
        assert_eq!(text(&deferred, "reply"), format!("451 4.7.1 later, says {place}"));
        assert_same(&sink.wait_for("bob@dest.test").content, &content, place);
        let delivered = relay.wait_event("delivered", &id, "bob@dest.test");
        assert_eq!(delivered["attempt"], 2, "{delivered}");
        relay.wait_empty();
        assert_eq!(sink.mails().len(), 1);
    }
}

#[test]
fn a_refusal_is_reported_to_the_sender_by_the_same_route() {
    let sink = Sink::with(ALL, |line| {
        let refused = line.starts_with("RCPT TO:<nobody@");
        refused.then(|| "550-5.1.1 nobody of this name\r\n550 5.1.1 lives here".into())
    });
    let relay = Setup::new().next_hop(sink.address).start();
    let content = message("refused", "For two.\r\n");
    let to = ["bob@dest.test", "nobody@dest.test"];
    let Some(id) = send_one(&relay, "ann@origin.test", &to, &content) else { return };
    assert_same(&sink.wait_for("bob@dest.test").content, &content, "the other recipient");
    let report = sink.wait_for("ann@origin.test");
    assert!(report.from.starts_with("<>"), "{}", report.from);
    let report = report.text();
    for part in [
        "Auto-Submitted: auto-replied",
        "report-type=delivery-status",
        "To: <ann@origin.test>",
        "Reporting-MTA: dns; relay.test",
        "Final-Recipient: rfc822; nobody@dest.test",
        "Action: failed",
        "Status: 5.1.1",
        "X-Ringpost-Class: invalid-recipient",
        "X-Ringpost-Kind: hard",
        "lives here",
        "Subject: refused",
    ] {
        assert!(report.contains(part), "{part}:\n{report}");
    }
    assert!(!report.contains("Final-Recipient: rfc822; bob@"), "{report}");
    let bounced = relay.wait_event("bounced", &id, "nobody@dest.test");
    assert_eq!((text(&bounced, "class"), text(&bounced, "kind")), ("invalid-recipient", "hard"));
    relay.wait_log(|event| event["event"] == "dsn" && event["about"] == id.as_str());
    relay.wait_empty();
    assert_eq!(sink.mails().len(), 2);
}

#[test]
fn a_report_that_is_refused_is_dropped_and_logged() {
    let sink = Sink::with(ALL, |line| line.starts_with("RCPT").then(|| "550 5.1.1 nobody".into()));
    let relay = Setup::new().next_hop(sink.address).start();
    if send_one(&relay, "ann@origin.test", &["bob@dest.test"], b"x\r\n").is_none() {
        return;
    }
    relay.wait_log(|event| event["event"] == "double_bounce");
    relay.wait_empty();
    assert!(sink.mails().is_empty());
}

#[test]
fn what_the_sender_asked_to_be_told() {
    let old = Sink::with(&["PIPELINING"], |line| line.contains("nobody").then(|| "550 5.1.1 no".into()));
    let relay = Setup::new().next_hop(old.address).start();
    let mut success = mail("ann@origin.test", &["bob@dest.test"], b"Subject: s\r\n\r\nsecret\r\n");
    success["mail_options"] = json!(["RET=HDRS", "ENVID=QQ314"]);
    success["rcpt_options"] = json!(["NOTIFY=SUCCESS", "ORCPT=rfc822;bob+2Bx@origin.test"]);
    let mut never = mail("ann@origin.test", &["nobody@dest.test"], b"x\r\n");
    never["rcpt_options"] = json!(["NOTIFY=NEVER"]);
    let Some(answer) = send(&relay, vec![success.clone(), never], json!({})) else { return };
    let id = queued_as(answer["results"][1][2][1].as_str().expect("a text"));
    // The destination knows no DSN, so it is we who tell: relayed (RFC 3461 4.2).
    let report = old.wait_for("ann@origin.test").text();
    for part in ["Action: relayed", "Original-Recipient: rfc822; bob+x@origin.test", "Original-Envelope-Id: QQ314"] {
        assert!(report.contains(part), "{part}:\n{report}");
    }
    assert!(!report.contains("secret"), "headers only: {report}");
    relay.wait_event("bounced", &id, "nobody@dest.test");
    relay.wait_empty();
    assert_eq!(old.mails().len(), 2, "the message and one report");

    // A destination that knows DSN gets all of it passed on.
    let new = Sink::new();
    let relay = Setup::new().next_hop(new.address).start();
    send(&relay, vec![success], json!({}));
    let passed = new.wait_for("bob@dest.test");
    assert!(passed.from.contains(" RET=HDRS") && passed.from.contains(" ENVID=QQ314"), "{}", passed.from);
    assert!(passed.to[0].contains(" NOTIFY=SUCCESS ORCPT=rfc822;bob+2Bx@origin.test"), "{}", passed.to[0]);
    relay.wait_empty();
    assert_eq!(new.mails().len(), 1);
}

#[test]
fn a_closed_port_is_passed_over() {
    let sink = Sink::new();
    let relay = Setup::new().next_hop(free_address()).next_hop(sink.address).start();
    let content = message("second", "By the second hop.\r\n");
    let Some(id) = send_one(&relay, "ann@origin.test", &["bob@dest.test"], &content) else { return };
    assert_same(&sink.wait_for("bob@dest.test").content, &content, "the second hop");
    let delivered = relay.wait_event("delivered", &id, "bob@dest.test");
    assert_eq!(delivered["attempt"], 1, "no retry was needed: {delivered}");
}

#[test]
fn hosts_that_say_421_or_nothing_sensible_are_passed_over() {
    let busy = Sink::with(ALL, |line| (line == "greeting").then(|| "421 4.3.2 busy".into()));
    let rude = Sink::with(ALL, |line| (line == "greeting").then(String::new));
    let late = Sink::with(ALL, |line| line.starts_with("MAIL").then(|| "421 4.3.2 closing".into()));
    let sink = Sink::new();
    let setup = Setup::new().next_hop(busy.address).next_hop(rude.address).next_hop(late.address);
    let relay = setup.next_hop(sink.address).start();
    let Some(id) = send_one(&relay, "ann@origin.test", &["bob@dest.test"], b"x\r\n") else { return };
    sink.wait_for("bob@dest.test");
    relay.wait_event("delivered", &id, "bob@dest.test");
    assert!(busy.connections() > 0 && rude.connections() > 0 && late.connections() > 0);
}

#[test]
fn a_hop_that_dies_is_replaced_by_the_next() {
    let (first, second) = (Sink::new(), Sink::new());
    let relay = Setup::new().next_hop(first.address).next_hop(second.address).flag("--retry", 1).start();
    let batch = |from: usize| {
        let mails = (from..from + 30).map(|n| mail("ann@origin.test", &[&format!("r{n}@dest.test")], b"x\r\n"));
        send(&relay, mails.collect(), json!({})).is_some()
    };
    if !batch(0) {
        return;
    }
    first.wait(5);
    first.close();
    assert!(batch(30));
    relay.wait_empty();
    let (before, after) = (first.mails(), second.mails());
    assert!(after.len() >= 30, "{} went to the second", after.len());
    let arrived: HashSet<String> = before.iter().chain(&after).flat_map(|mail| mail.to.clone()).collect();
    assert_eq!(arrived.len(), 60, "nothing is lost");
    // What was in flight when the first one died may have arrived at both: its answer was never seen.
    assert!(before.len() + after.len() <= 60 + 20, "{} and {}", before.len(), after.len());
}

#[test]
fn a_connection_that_breaks_before_the_answer_is_tried_again() {
    let broken = std::sync::atomic::AtomicBool::new(false);
    let sink = Sink::with(&["PIPELINING"], move |line| {
        (line == "." && !broken.swap(true, std::sync::atomic::Ordering::SeqCst)).then(String::new)
    });
    let relay = Setup::new().next_hop(sink.address).flag("--retry", 1).start();
    let content = message("broken", "Twice sent.\r\n");
    if send_one(&relay, "ann@origin.test", &["bob@dest.test"], &content).is_none() {
        return;
    }
    assert_same(&sink.wait_for("bob@dest.test").content, &content, "the second time");
    relay.wait_empty();
    assert_eq!(sink.mails().len(), 1);
}

#[test]
fn encrypted_when_offered_whoever_signed_it() {
    let extensions = [ALL, &["STARTTLS"]].concat();
    let sink = Sink::offering(&extensions);
    let relay = Setup::new().next_hop(sink.address).start();
    let content = message("secret", &"Encrypted.\r\n".repeat(30_000));
    let Some(id) = send_one(&relay, "ann@origin.test", &["bob@dest.test"], &content) else { return };
    let arrived = sink.wait_for("bob@dest.test");
    assert!(arrived.tls, "it came under TLS");
    assert_same(&arrived.content, &content, "under TLS");
    assert_eq!(relay.wait_event("delivered", &id, "bob@dest.test")["tls"], "TLSv1.3");
}

#[test]
fn in_the_clear_when_tls_is_offered_but_does_not_work() {
    let extensions = [ALL, &["STARTTLS"]].concat();
    for answer in ["454 4.7.0 not now", "220 2.0.0 go on\r\nand no handshake"] {
        let sink = Sink::with(&extensions, move |line| (line == "STARTTLS").then(|| answer.into()));
        let relay = Setup::new().next_hop(sink.address).flag("--retry", 1).start();
        let Some(id) = send_one(&relay, "ann@origin.test", &["bob@dest.test"], b"x\r\n") else { return };
        assert!(!sink.wait_for("bob@dest.test").tls);
        assert_eq!(relay.wait_event("delivered", &id, "bob@dest.test").get("tls"), None);
    }
}

#[test]
fn connections_are_reused() {
    let sink = Sink::new();
    let relay = Setup::new().next_hop(sink.address).flag("--connections", 1).start();
    let mails = (0..40).map(|n| mail("ann@origin.test", &[&format!("r{n}@dest.test")], b"x\r\n")).collect();
    if send(&relay, mails, json!({})).is_none() {
        return;
    }
    sink.wait(40);
    assert!(sink.connections() <= 3, "{} connections for 40 messages", sink.connections());
}
