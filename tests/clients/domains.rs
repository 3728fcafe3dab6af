//! Tenants' domains: what is not verified does not get out, what is gets signed, and another implementation (dkimpy) finds
//! every signature good.

use super::dns::NameServer;
use super::filters::{milter_that_says, packet};
use super::programs::{program, run, skip};
use super::relay::{Relay, Setup};
use super::sink::{ALL, Sink};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

/// Sends one message; the first refusal, or the reply to its content.
pub fn submit(relay: &Relay, from: &str, to: &str, content: &[u8]) -> String {
    let mut socket = BufReader::new(TcpStream::connect(relay.address).expect("a connection"));
    let reply = |socket: &mut BufReader<TcpStream>| loop {
        let mut line = String::new();
        socket.read_line(&mut line).expect("a reply");
        if line.as_bytes().get(3) != Some(&b'-') {
            return line;
        }
    };
    reply(&mut socket);
    for command in ["EHLO app.test".into(), format!("MAIL FROM:<{from}>"), format!("RCPT TO:<{to}>"), "DATA".into()] {
        socket.get_mut().write_all(format!("{command}\r\n").as_bytes()).expect("a command is sent");
        let got = reply(&mut socket);
        if !got.starts_with(['2', '3']) {
            return got;
        }
    }
    let mut stuffed = Vec::with_capacity(content.len() + 16);
    for line in content.split_inclusive(|octet| *octet == b'\n') {
        if line.starts_with(b".") {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed.extend_from_slice(b".\r\n");
    socket.get_mut().write_all(&stuffed).expect("the content is sent");
    reply(&mut socket)
}

fn start(names: &NameServer, sink: &Sink) -> Relay {
    Setup::new().next_hop(sink.address).sections(&format!("[dns]\nservers = \"{}\"", names.address)).start()
}

/// Publishes the records of the keys in this state.
fn publish(relay: &Relay, names: &NameServer, state: &str) {
    let shown = relay.json(&["domain", "show", "origin.test"]);
    for key in shown["keys"].as_array().expect("keys").iter().filter(|key| key["state"] == state) {
        names.publish(key["record_name"].as_str().expect("a name"), key["record"].as_str().expect("a record"));
    }
}

/// The selectors of keys in this state.
fn selectors(relay: &Relay, state: &str) -> Vec<String> {
    let shown = relay.json(&["domain", "show", "origin.test"]);
    let keys = shown["keys"].as_array().expect("keys").iter().filter(|key| key["state"] == state);
    let mut selectors: Vec<String> = keys.map(|key| key["selector"].as_str().expect("one").to_owned()).collect();
    selectors.sort();
    selectors
}

fn records(relay: &Relay) -> Value {
    let shown = relay.json(&["domain", "show", "origin.test"]);
    let keys = shown["keys"].as_array().expect("keys").iter().filter(|key| !key["record"].is_null());
    keys.map(|key| (key["record_name"].as_str().expect("a name").to_owned(), key["record"].clone())).collect()
}

/// Contents that canonicalisation could get wrong.
fn odd_contents() -> Vec<Vec<u8>> {
    let header = "From: Ann <ann@origin.test>\r\nTo: bob@dest.test\r\nSubject: odd\r\n";
    let bodies = [
        "",
        "\r\n",
        "\r\n\r\n\r\n",
        "Hello.\r\n",
        "Hello.\r\n\r\n\r\n",
        " \r\n",
        " \r\n\t\r\n",
        "Hello. \t \r\n \r\n\r\n \r\n",
        "\r\nHello\r\n",
        ".\r\n..\r\n.hidden\r\n",
        "a\tb  c\r\n\td\r\n",
        "From here\r\n",
        "größer als ASCII\r\n",
    ];
    let mut contents: Vec<Vec<u8>> = bodies.iter().map(|body| format!("{header}\r\n{body}").into_bytes()).collect();
    let headers = [
        "From: ann@origin.test\r\nSubject: folded\r\n over\r\n\t  lines  \r\n".to_owned(),
        "From: ann@sub.origin.test\r\nTo: a@dest.test\r\nTo: b@dest.test\r\nCc: c@dest.test\r\n".to_owned(),
        "X-First: 1\r\nfrom:ann@origin.test\r\nSUBJECT:no space\r\nSubject:   many   \r\n".to_owned(),
        "From: \"Ann, the \\\"first\\\"\" (of many) <ann@origin.test>, x@origin.test\r\nSubject: =?utf-8?q?=C3=BC?=\r\n"
            .to_owned(),
        format!("From: ann@origin.test\r\nReferences: {}\r\n", "<some-id@origin.test>\r\n ".repeat(200) + "<last@x>"),
        "From: ann@origin.test\r\nContent-Type: text/plain; charset=utf-8\r\nMIME-Version: 1.0\r\nSubject: ü ö\r\n"
            .to_owned(),
        "From: ann@origin.test\r\nDKIM-Signature: v=1; a=rsa-sha256; d=other.test; s=x; h=from; bh=; b=\r\n".to_owned(),
        "From: ann@origin.test\r\nSubject:\r\nList-Unsubscribe: <https://x.test/u>\r\nList-ID: <a.origin.test>\r\n"
            .to_owned(),
    ];
    contents.extend(headers.iter().map(|header| format!("{header}\r\nBody.\r\n").into_bytes()));
    // Signatures are folded at other places where more headers are listed.
    contents.extend((0..16).map(|several| {
        let many = "To: bob@dest.test\r\n".repeat(several % 8) + &"References: <a@b>\r\n".repeat(several / 8);
        format!("From: ann@origin.test\r\n{many}\r\nBody.\r\n").into_bytes()
    }));
    // No empty line at all, and contents in a file of their own, one of them in whole pieces.
    contents.push(b"From: ann@origin.test\r\nSubject: header only\r\n".to_vec());
    for octets in [300_000, 600_000, 1 << 20] {
        let line = "0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijklmnopqrstuvwxyz 012\r\n";
        let mut content = format!("{header}\r\n").into_bytes();
        content.extend(line.bytes().cycle().take(octets / line.len() * line.len()));
        contents.push(content);
    }
    contents
}

/// Verifies what arrived for these recipients: the selectors of good and bad signatures.
fn verified(relay: &Relay, sink: &Sink, recipients: &[String], records: &Value) -> Option<Vec<(Vec<String>, Value)>> {
    // Debian's own, which has Debian's packages; another one may come first in the path.
    const PYTHON: &str = "/usr/bin/python3";
    let mut probe = Command::new(PYTHON);
    probe.args(["-c", "import dkim, nacl"]);
    if !Path::new(PYTHON).exists() || !run(probe, b"").status.success() {
        skip("dkimpy is not installed; apt-get install python3-dkim python3-nacl");
        return None;
    }
    let files: Vec<_> = recipients
        .iter()
        .map(|recipient| relay.directory().file(recipient, sink.wait_for(recipient).content))
        .collect();
    let mut python = Command::new(PYTHON);
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/verify.py"));
    let given = json!({ "records": records, "messages": files });
    let finished = run(python, given.to_string().as_bytes()).succeeded();
    let results: Vec<Value> = serde_json::from_str(&finished.stdout).expect("its answer");
    let one = |result: Value| {
        let good = result["good"].as_array().expect("a list").iter();
        let mut good: Vec<String> = good.map(|selector| selector.as_str().expect("one").to_owned()).collect();
        good.sort();
        (good, result["bad"].clone())
    };
    Some(results.into_iter().map(one).collect())
}

#[test]
fn a_domain_is_verified_then_signed_and_rotated() {
    let (names, sink) = (NameServer::new(), Sink::new());
    let relay = start(&names, &sink);
    relay.command(&["tenant", "add", "default"]).succeeded();
    let refused = |from: &str, header: &str, wrong: &str| {
        let reply = submit(&relay, from, "bob@dest.test", format!("{header}\r\nHello.\r\n").as_bytes());
        assert!(reply.starts_with("550 5.7.1 ") && reply.contains(wrong), "{from}, {header}: {reply}");
    };
    refused("ann@origin.test", "From: ann@origin.test\r\n", "not one of yours");
    let added = relay.command(&["domain", "add", "origin.test"]).succeeded();
    for part in ["._domainkey.origin.test. TXT \"v=DKIM1; k=rsa; p=", "k=ed25519", "v=spf1", "v=DMARC1"] {
        assert!(added.stdout.contains(part), "{part}: {}", added.stdout);
    }
    refused("ann@origin.test", "From: ann@origin.test\r\n", "not verified yet");
    let unseen = relay.command(&["domain", "verify", "origin.test"]);
    assert_eq!(unseen.status.code(), Some(1));
    assert!(unseen.stdout.contains("has no TXT record yet"), "{}", unseen.stdout);
    publish(&relay, &names, "pending");
    names.publish("_dmarc.origin.test", "v=DMARC1; p=none");
    let seen = relay.command(&["domain", "verify", "origin.test"]).succeeded();
    for part in ["verified since", "published", "SPF: none found", "DMARC: v=DMARC1; p=none"] {
        assert!(seen.stdout.contains(part), "{part}: {}", seen.stdout);
    }
    // The envelope, and each author, must be of a verified domain.
    refused("ann@other.test", "From: ann@origin.test\r\n", "of the sender");
    refused("ann@origin.test", "From: ann@other.test\r\n", "of the From header");
    refused("ann@origin.test", "From: ann@origin.test, x@other.test\r\n", "other.test of the From header");
    refused("ann@origin.test", "From: ann@origin.test\r\nFrom: x@other.test\r\n", "one From header");
    refused("ann@origin.test", "Subject: x\r\n", "one From header");

    let first = selectors(&relay, "active");
    let mut recipients = Vec::new();
    for (number, content) in odd_contents().iter().enumerate() {
        let recipient = format!("odd-{number}@dest.test");
        let reply = submit(&relay, "bounces@mail.origin.test", &recipient, content);
        assert!(reply.starts_with("250 "), "{number}: {reply}");
        let arrived = sink.wait_for(&recipient).content;
        assert!(arrived.ends_with(content), "{number}: the content has changed");
        recipients.push(recipient);
    }
    let Some(results) = verified(&relay, &sink, &recipients, &records(&relay)) else { return };
    for ((good, bad), recipient) in results.iter().zip(&recipients) {
        assert_eq!(good, &first, "{recipient}");
        // One of them brought a signature of its own, which nobody can verify.
        assert!(bad.as_array().expect("a list").iter().all(|selector| selector == "x"), "{recipient}: {bad}");
    }

    // A new key signs once it is seen, and until then the old one does.
    let before = records(&relay);
    relay.command(&["domain", "rotate", "origin.test"]).succeeded();
    let content = b"From: ann@origin.test\r\n\r\nHello.\r\n";
    assert!(submit(&relay, "ann@origin.test", "rotating@dest.test", content).starts_with("250 "));
    publish(&relay, &names, "pending");
    relay.command(&["domain", "verify", "origin.test"]).succeeded();
    assert!(submit(&relay, "ann@origin.test", "rotated@dest.test", content).starts_with("250 "));
    assert_eq!(selectors(&relay, "retired"), first);
    let second = selectors(&relay, "active");
    let old = verified(&relay, &sink, &["rotating@dest.test".into()], &before).expect("dkimpy");
    assert_eq!(old, [(first, json!([]))]);
    let new = verified(&relay, &sink, &["rotated@dest.test".into()], &records(&relay)).expect("dkimpy");
    assert_eq!(new, [(second.clone(), json!([]))]);

    // After another start the same keys sign.
    let directory = relay.stop();
    let relay = Setup::new().next_hop(sink.address).start_in(directory);
    assert!(submit(&relay, "ann@origin.test", "again@dest.test", content).starts_with("250 "));
    let again = verified(&relay, &sink, &["again@dest.test".into()], &records(&relay)).expect("dkimpy");
    assert_eq!(again, [(second, json!([]))]);
    relay.command(&["domain", "remove", "origin.test"]).succeeded();
    let reply = submit(&relay, "ann@origin.test", "bob@dest.test", content);
    assert!(reply.contains("not one of yours"), "{reply}");
    relay.stop();
}

#[test]
fn a_key_of_ones_own_and_one_for_some_recipients() {
    let (names, sink) = (NameServer::new(), Sink::new());
    let relay = start(&names, &sink);
    let Some(mut openssl) = program("openssl") else { return };
    let file = relay.directory().join("key.pem");
    openssl.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"]).arg(&file);
    run(openssl, b"").succeeded();
    relay.command(&["domain", "add", "origin.test", "--keys", "ed25519"]).fails("there is no tenant `default`");
    relay.command(&["tenant", "add", "default", "--unverified", "pass"]).succeeded();
    relay.command(&["domain", "add", "origin.test", "--keys", "ed25519"]).succeeded();
    let path = file.to_str().expect("a path");
    let usual = ["domain", "add-key", "origin.test", "--selector", "mine", "--file", path];
    relay.command(&[&usual[..], &["--kind", "ed25519"]].concat()).fails("no ed25519 key");
    relay.command(&usual).succeeded();
    let special =
        ["domain", "add-key", "origin.test", "--selector", "big", "--kind", "ed25519", "--recipients", "big.test"];
    relay.command(&special).succeeded();
    relay.command(&special).fails("there is a selector `big` already");
    let content = b"From: ann@origin.test\r\n\r\nHello.\r\n";
    // Who may pass goes out, unsigned until its domain is verified.
    assert!(submit(&relay, "ann@origin.test", "before@dest.test", content).starts_with("250 "));
    assert!(!sink.wait_for("before@dest.test").text().contains("DKIM-Signature"));
    publish(&relay, &names, "pending");
    relay.command(&["domain", "verify", "origin.test"]).succeeded();
    assert!(submit(&relay, "ann@origin.test", "after@dest.test", content).starts_with("250 "));
    assert!(submit(&relay, "ann@origin.test", "after@big.test", content).starts_with("250 "));
    let mut all = selectors(&relay, "active");
    all.retain(|selector| selector != "big");
    let recipients = ["after@dest.test".into(), "after@big.test".into()];
    let Some(results) = verified(&relay, &sink, &recipients, &records(&relay)) else { return };
    assert_eq!(results, [(all, json!([])), (vec!["big".into()], json!([]))]);
    assert!(submit(&relay, "x@else.test", "else@dest.test", b"From: x@else.test\r\n\r\n").starts_with("250 "));
    assert!(!sink.wait_for("else@dest.test").text().contains("DKIM-Signature"));
    relay.stop();
}

#[test]
fn a_long_bcc_leaves_a_signature_that_fits() {
    let (names, sink) = (NameServer::new(), Sink::new());
    let lines = "kind = \"submission\"\ntrusted = \"127.0.0.0/8\"";
    let dns = format!("[dns]\nservers = \"{}\"", names.address);
    let relay = Setup::new().next_hop(sink.address).listener(lines).sections(&dns).start();
    relay.command(&["tenant", "add", "default"]).succeeded();
    relay.command(&["domain", "add", "origin.test", "--keys", "ed25519"]).succeeded();
    publish(&relay, &names, "pending");
    relay.command(&["domain", "verify", "origin.test"]).succeeded();
    let bcc = format!("Bcc: x@dest.test{}\r\n", ",\r\n somebody@dest.test".repeat(5_000));
    let mut recipients = Vec::new();
    // Without Bcc: nothing for a file, less than a piece of one, and more.
    for lines in [1, 7_000, 10_000, 20_000, 40_000] {
        let recipient = format!("{lines}@dest.test");
        let content = format!("From: ann@origin.test\r\n{bcc}Subject: x\r\n\r\n{}", "line of a body\r\n".repeat(lines));
        assert!(submit(&relay, "ann@origin.test", &recipient, content.as_bytes()).starts_with("250 "), "{lines}");
        assert!(!sink.wait_for(&recipient).text().contains("somebody@"), "{lines}");
        recipients.push(recipient);
    }
    assert!(
        submit(&relay, "ann@origin.test", "bare@dest.test", b"From: ann@origin.test\r\nBcc: somebody@dest.test\r\n")
            .starts_with("250 ")
    );
    assert!(!sink.wait_for("bare@dest.test").text().contains("somebody@"), "no empty line");
    let Some(results) = verified(&relay, &sink, &recipients, &records(&relay)) else { return };
    let good = (selectors(&relay, "active"), json!([]));
    assert!(results.iter().all(|result| *result == good), "{results:?}");
    relay.stop();
}

#[test]
fn bcc_goes_no_further_than_submission() {
    let sink = Sink::new();
    let relay =
        Setup::new().next_hop(sink.address).listener("kind = \"submission\"\ntrusted = \"127.0.0.0/8\"").start();
    for (name, octets) in [("small", 0), ("large", 400_000)] {
        let (recipient, body) = (format!("{name}@dest.test"), "Bcc: in the body\r\n".repeat(1 + octets / 18));
        let content = format!("Bcc: secret@dest.test,\r\n other@dest.test\r\nTo: {recipient}\r\nbcc: x\r\n\r\n{body}");
        assert!(submit(&relay, "ann@origin.test", &recipient, content.as_bytes()).starts_with("250 "));
        let arrived = sink.wait_for(&recipient).text();
        let expected = format!("\r\nTo: {recipient}\r\n\r\n{body}");
        assert!(arrived.ends_with(&expected) && arrived.contains("\r\nDate: "), "{name}");
        assert!(!arrived.contains("secret@") && !arrived.contains("bcc: x"), "{name}");
    }
    relay.stop();
}

#[test]
fn reports_of_the_relay_itself_are_signed() {
    let names = NameServer::new();
    let sink = Sink::with(ALL, |line| line.contains("<no@dest.test>").then(|| "550 5.1.1 nobody here".into()));
    let relay = start(&names, &sink);
    let bounce = |back: &str| {
        let content = format!("From: {back}\r\nTo: no@dest.test\r\n\r\nHello.\r\n");
        assert!(submit(&relay, back, "no@dest.test", content.as_bytes()).starts_with("250 "));
        let report = sink.wait_for(back);
        assert!(
            report.from.starts_with("<>") && report.text().contains("From: Mail Delivery System"),
            "{}",
            report.text()
        );
        report.text()
    };
    assert!(!bounce("unsigned@else.test").contains("DKIM-Signature"), "its domain is not verified");
    // The relay is relay.test, and whoever verifies its domain lets it sign.
    relay.command(&["tenant", "add", "house", "--unverified", "pass"]).succeeded();
    relay.command(&["domain", "add", "relay.test", "--tenant", "house"]).succeeded();
    assert!(!bounce("early@else.test").contains("DKIM-Signature"), "nor is it yet");
    let shown = relay.json(&["domain", "show", "relay.test", "--tenant", "house"]);
    let keys = shown["keys"].as_array().expect("keys");
    let text = |key: &Value, of: &str| key[of].as_str().expect("a text").to_owned();
    let records = keys.iter().map(|key| (text(key, "record_name"), key["record"].clone())).collect();
    keys.iter().for_each(|key| names.publish(&text(key, "record_name"), &text(key, "record")));
    relay.command(&["domain", "verify", "relay.test", "--tenant", "house"]).succeeded();
    let backs: Vec<String> = (0..5).map(|number| format!("signed-{number}@else.test")).collect();
    for back in &backs {
        assert!(bounce(back).starts_with("DKIM-Signature: "), "{back}");
    }
    let mut selectors: Vec<String> = keys.iter().map(|key| text(key, "selector")).collect();
    selectors.sort();
    let Some(results) = verified(&relay, &sink, &backs, &records) else { return };
    assert!(results.iter().all(|result| *result == (selectors.clone(), json!([]))), "{results:?}");
    relay.stop();
}

#[test]
fn what_a_filter_adds_leaves_signatures_good() {
    let (names, sink) = (NameServer::new(), Sink::new());
    let adds = [packet(b'h', b"X-Verdict\0clean\0"), packet(b'h', b"From\0x@evil.test\0"), packet(b'c', b"")].concat();
    let filter = format!("[[filter]]\nname = \"adds\"\nmilter = \"{}\"", milter_that_says(adds));
    let dns = format!("[dns]\nservers = \"{}\"\n", names.address);
    let relay = Setup::new().next_hop(sink.address).sections(&(dns + &filter)).start();
    relay.command(&["tenant", "add", "default"]).succeeded();
    relay.command(&["domain", "add", "origin.test"]).succeeded();
    publish(&relay, &names, "pending");
    relay.command(&["domain", "verify", "origin.test"]).succeeded();
    let mut recipients = Vec::new();
    for lines in [1, 20_000] {
        let to = format!("lines-{lines}@dest.test");
        let content = format!("From: ann@origin.test\r\nTo: {to}\r\n\r\n{}", "Hello, hello, hello.\r\n".repeat(lines));
        assert!(submit(&relay, "ann@origin.test", &to, content.as_bytes()).starts_with("250 "));
        let mail = sink.wait_for(&to).text();
        assert!(mail.starts_with("DKIM-Signature: ") && mail.ends_with(&content), "{mail:.300}");
        let headers = mail.split("\r\n\r\n").next().expect("headers");
        assert!(headers.contains("\r\nX-Verdict: clean\r\nReceived: "), "{headers}");
        assert_eq!(headers.matches("\nFrom: ").count(), 1, "{headers}");
        recipients.push(to);
    }
    let active = selectors(&relay, "active");
    let Some(results) = verified(&relay, &sink, &recipients, &records(&relay)) else { return };
    assert_eq!(results, [(active.clone(), json!([])), (active, json!([]))]);
    relay.stop();
}

#[test]
fn mail_waits_until_its_domain_is_verified() {
    let (names, sink) = (NameServer::new(), Sink::new());
    let relay = start(&names, &sink);
    relay.command(&["tenant", "add", "default", "--unverified", "hold"]).succeeded();
    let content = |name: &str| format!("From: ann@origin.test\r\nTo: {name}@dest.test\r\n\r\nHello.\r\n").into_bytes();
    let refused = submit(&relay, "ann@origin.test", "early@dest.test", &content("early"));
    assert!(refused.contains("not one of yours"), "{refused}");
    relay.command(&["domain", "add", "origin.test"]).succeeded();
    // What the keys of a domain have signed that was taken away is not for the keys that come after them.
    assert!(submit(&relay, "ann@origin.test", "stale@dest.test", &content("stale")).starts_with("250 "));
    relay.command(&["domain", "remove", "origin.test"]).succeeded();
    relay.command(&["domain", "add", "origin.test"]).succeeded();
    let mut large = content("large");
    large.extend(b"Hello, hello, hello.\r\n".repeat(30_000));
    for (name, content) in [("small", content("small")), ("large", large), ("gone", content("gone"))] {
        let to = format!("{name}@dest.test");
        assert!(submit(&relay, "ann@origin.test", &to, &content).starts_with("250 "), "{name}");
    }
    let refused = submit(&relay, "ann@other.test", "x@dest.test", &content("x"));
    assert!(refused.contains("not one of yours"), "{refused}");
    let listed = relay.json(&["queue", "list"]);
    for message in listed.as_array().expect("a list") {
        let shown = relay.json(&["queue", "show", message["id"].as_str().expect("an id")]).to_string();
        assert!(shown.contains("it is held, since domain origin.test is not verified yet"), "{shown}");
    }
    relay.command(&["queue", "delete", "--recipient", "gone@dest.test"]).succeeded();
    // It waits on after a start, and then goes out with good signatures.
    publish(&relay, &names, "pending");
    let directory = relay.stop();
    let dns = format!("[dns]\nservers = \"{}\"", names.address);
    let relay = Setup::new().next_hop(sink.address).sections(&dns).start_in(directory);
    relay.command(&["domain", "verify", "origin.test"]).succeeded();
    let recipients = ["small@dest.test".to_owned(), "large@dest.test".to_owned()];
    recipients.iter().for_each(|recipient| drop(sink.wait_for(recipient)));
    let left = relay.wait_json(&["queue", "list"], |left| left.as_array().is_some_and(|left| left.len() == 1));
    assert_eq!(left[0]["recipients"][0]["address"], "stale@dest.test", "{left}");
    let active = selectors(&relay, "active");
    let Some(results) = verified(&relay, &sink, &recipients, &records(&relay)) else { return };
    assert_eq!(results, [(active.clone(), json!([])), (active, json!([]))]);
    relay.stop();
}

#[test]
fn keys_change_under_load_and_no_message_is_lost() {
    const SENDERS: usize = 3;
    const MESSAGES: usize = 300;
    const BETWEEN_ROTATIONS: usize = 60;
    let (names, sink) = (NameServer::new(), Sink::new());
    let relay = start(&names, &sink);
    relay.command(&["tenant", "add", "default"]).succeeded();
    relay.command(&["domain", "add", "origin.test"]).succeeded();
    publish(&relay, &names, "pending");
    relay.command(&["domain", "verify", "origin.test"]).succeeded();
    // What a verifier reads: the records of a key stay while mail that it has signed is under way.
    let mut published = records(&relay);
    let mut pairs = vec![selectors(&relay, "active")];
    // Some go on while keys change; more wait until they have, however fast the relay is.
    let (sent, each) = std::sync::mpsc::sync_channel(BETWEEN_ROTATIONS / 4);
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (sent, relay) = (sent.clone(), &relay);
            scope.spawn(move || {
                for number in (sender..MESSAGES).step_by(SENDERS) {
                    let to = format!("load-{number}@dest.test");
                    let content = format!("From: ann@origin.test\r\nTo: {to}\r\n\r\nHello, {number}.\r\n");
                    let reply = submit(relay, "ann@origin.test", &to, content.as_bytes());
                    assert!(reply.starts_with("250 "), "{number}: {reply}");
                    sent.send(()).expect("somebody counts");
                }
            });
        }
        drop(sent);
        while each.iter().take(BETWEEN_ROTATIONS).count() == BETWEEN_ROTATIONS {
            relay.command(&["domain", "rotate", "origin.test"]).succeeded();
            publish(&relay, &names, "pending");
            relay.command(&["domain", "verify", "origin.test"]).succeeded();
            pairs.push(selectors(&relay, "active"));
            for (name, record) in records(&relay).as_object().expect("records") {
                published[name] = record.clone();
            }
        }
    });
    let recipients: Vec<String> = (0..MESSAGES).map(|number| format!("load-{number}@dest.test")).collect();
    recipients.iter().for_each(|recipient| drop(sink.wait_for(recipient)));
    relay.wait_empty();
    assert_eq!(sink.mails().len(), MESSAGES, "each arrives once");
    let Some(results) = verified(&relay, &sink, &recipients, &published) else { return };
    for ((good, bad), recipient) in results.iter().zip(&recipients) {
        assert!(pairs.contains(good) && *bad == json!([]), "{recipient}: {good:?} {bad}, of {pairs:?}");
    }
    let used = pairs.iter().filter(|pair| results.iter().any(|(good, _)| good == *pair)).count();
    assert!(used > MESSAGES / BETWEEN_ROTATIONS / 2, "{used} pairs of keys have signed, of {}", pairs.len());
    relay.stop();
}
