//! Addresses to which nothing is sent any more: entered by bounces, commands and files; in force at RCPT and before each attempt.

use super::relay::{Relay, Setup, text};
use super::sink::{ALL, Sink};
use super::talk::Talk;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn session(relay: &Relay) -> Talk {
    let mut talk = Talk::clear(relay.address);
    assert!(talk.reply().starts_with("220 "));
    talk.expect("EHLO client.test", "250");
    talk
}

/// Sends a message and gives its id.
fn send(talk: &mut Talk, from: &str, to: &[&str]) -> String {
    talk.expect(&format!("MAIL FROM:<{from}>"), "250 ");
    for to in to {
        talk.expect(&format!("RCPT TO:<{to}>"), "250 ");
    }
    talk.expect("DATA", "354 ");
    let taken = talk.say("From: ann@origin.test\r\n\r\nHello.\r\n.");
    taken.trim_end().rsplit(' ').next().expect("an id").to_owned()
}

fn shown(relay: &Relay, address: &str) -> Value {
    relay.wait_json(&["suppression", "list"], |list| {
        list.as_array().is_some_and(|list| list.iter().any(|entry| entry["address"] == address))
    });
    relay.json(&["suppression", "show", address, "--tenant", "default"])
}

#[test]
fn a_hard_bounce_suppresses_its_address_over_a_kill() {
    let gone = Arc::new(AtomicBool::new(true));
    let says = Arc::clone(&gone);
    let sink = Sink::with(ALL, move |line| {
        let gone = says.load(Ordering::SeqCst) && line.contains("<Gone@dest.test>");
        let policy = line.contains("<policy@dest.test>");
        gone.then(|| "550 5.1.1 nobody here".into()).or(policy.then(|| "550 5.7.1 not you".into()))
    });
    let mut relay = Setup::new().next_hop(sink.address).start();
    let mut talk = session(&relay);
    let first = send(&mut talk, "ann@origin.test", &["Gone@dest.test", "policy@dest.test", "bob@dest.test"]);
    relay.wait_event("bounced", &first, "Gone@dest.test");
    relay.wait_event("bounced", &first, "policy@dest.test");
    let entry = shown(&relay, "Gone@dest.test");
    assert_eq!((&entry[0]["source"], &entry[0]["tenant"]), (&json!("hard_bounce"), &json!("default")), "{entry}");
    assert!(text(&entry[0], "reason").contains("nobody here") && entry[0]["until_ms"].is_u64(), "{entry}");
    // Whatever its case, and after the process was killed.
    relay.signal(libc::SIGKILL);
    relay.wait_end();
    gone.store(false, Ordering::SeqCst);
    let relay = Setup::new().next_hop(sink.address).start_in(relay.take_directory());
    let mut talk = session(&relay);
    let second = send(&mut talk, "eve@origin.test", &["gone@DEST.test", "policy@dest.test", "also@dest.test"]);
    let event = relay.wait_event("suppressed", &second, "gone@DEST.test");
    assert!(text(&event, "reply").starts_with("550 5.1.1 This address is suppressed"), "{event}");
    relay.wait_event("bounced", &second, "policy@dest.test");
    sink.wait_for("also@dest.test");
    let report = sink.wait_for("eve@origin.test").text();
    assert!(
        report.contains("Final-Recipient: rfc822; gone@DEST.test") || report.contains("policy@dest.test"),
        "{report}"
    );
    relay.wait_empty();
    assert!(sink.mails().iter().all(|mail| !mail.is_for("gone@DEST.test")), "nothing was sent");
    // Its sender may have asked for no report.
    relay.command(&["suppression", "remove", "gone@dest.test"]).fails("is not suppressed");
    relay.command(&["suppression", "remove", "gone@dest.test", "--tenant", "default"]).succeeded();
    let third = send(&mut talk, "ann@origin.test", &["Gone@dest.test"]);
    relay.wait_event("delivered", &third, "Gone@dest.test");
    relay.stop();
}

#[test]
fn what_waits_is_suppressed_before_its_next_attempt() {
    let sink = Sink::with(ALL, |line| line.contains("later@dest.test").then(|| "450 4.2.1 later".into()));
    let relay = Setup::new().next_hop(sink.address).flag("--retry", 1).start();
    let mut talk = session(&relay);
    let id = send(&mut talk, "ann@origin.test", &["later@dest.test", "bob@dest.test"]);
    relay.wait_event("deferred", &id, "later@dest.test");
    sink.wait_for("bob@dest.test");
    relay.command(&["suppression", "add", "LATER@dest.test", "--reason", "left the list"]).succeeded();
    relay.wait_event("suppressed", &id, "later@dest.test");
    relay.wait_empty();
    let metrics = relay.command(&["status"]).succeeded().stdout;
    assert!(metrics.contains("1 suppressed"), "{metrics}");
    relay.stop();
}

#[test]
fn lists_are_imported_refused_at_rcpt_and_exported() {
    let relay = Setup::new().hold().sections("[suppression]\nat_rcpt = \"refuse\"").start();
    let mut lines = String::from("# from elsewhere\n");
    (0..12_000).for_each(|number| lines.push_str(&format!("user-{number}@dest.test\n")));
    let file = relay.directory().file("lines", lines);
    let path = file.to_str().expect("a path");
    let imported = relay.command(&["suppression", "import", path, "--reason", "complained"]).succeeded();
    assert_eq!(imported.stdout, "12000 suppressions added\n");
    let columns = relay.directory().file(
        "columns.csv",
        "address,tenant,until\none@dest.test,default,\nold@dest.test,,2001-01-01T00:00:00Z\nno address,,\n",
    );
    let columns = columns.to_str().expect("a path");
    let partly = relay.command(&["suppression", "import", columns]);
    assert!(
        partly.stdout.starts_with("2 suppressions added") && partly.stderr.contains("line 4: `no address`"),
        "{partly:?}"
    );
    let mut talk = session(&relay);
    talk.expect("MAIL FROM:<ann@origin.test>", "250 ");
    for (to, reply) in [
        ("user-0@dest.test", "550 5.1.1 This address is suppressed"),
        ("USER-11999@dest.test", "550 5.1.1 "),
        ("one@dest.test", "550 5.1.1 "),
        ("old@dest.test", "250 "),
        ("user-12000@dest.test", "250 "),
    ] {
        talk.expect(&format!("RCPT TO:<{to}>"), reply);
    }
    talk.expect("RSET", "250 ");
    let exported = relay.command(&["suppression", "export"]).succeeded().stdout;
    assert!(
        exported.starts_with("address,tenant,reason,source,since,until\nuser-0@dest.test,,complained,import,20"),
        "{exported:.200}"
    );
    assert_eq!(exported.lines().count(), 12_002, "and none that has expired");
    // What was exported is what an import takes.
    let directory = relay.stop();
    std::fs::remove_file(directory.join("spool").join("suppression.log")).expect("the list");
    let relay = Setup::new().hold().start_in(directory);
    let again = relay.directory().file("again.csv", &exported);
    relay.command(&["suppression", "import", again.to_str().expect("a path")]).succeeded();
    let one = relay.json(&["suppression", "show", "ONE@dest.test", "--tenant", "default"]);
    assert_eq!((&one[0]["address"], &one[0]["tenant"]), (&json!("one@dest.test"), &json!("default")), "{one}");
    let listed = relay.command(&["suppression", "list", "--limit", "2"]).succeeded().stdout;
    assert!(listed.contains("2 of 12001 suppressions in all lists"), "{listed}");
    relay.command(&["suppression", "add", "no address"]).fails("is no address");
    relay.stop();
}
