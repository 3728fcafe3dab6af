//! Content filters: the real rspamd, by HTTP and as a milter, and filters that fail in each way.

use super::domains::submit;
use super::relay::{Relay, Setup, free_address};
use super::rspamd::Rspamd;
use super::sink::Sink;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;

const GTUBE: &str = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n";

/// A relay with this filter, which asks for the identity of nobody.
fn start(sink: &Sink, filter: &str) -> Relay {
    Setup::new().next_hop(sink.address).sections(&format!("[[filter]]\nname = \"spam\"\n{filter}")).start()
}

fn with_subject(relay: &Relay, to: &str, subject: &str, body: &str) -> String {
    let content = format!("From: ann@origin.test\r\nTo: {to}\r\nSubject: {subject}\r\n\r\n{body}");
    submit(relay, "ann@origin.test", to, content.as_bytes())
}

/// What both ways of asking rspamd have in common.
fn rspamd_judges(sink: &Sink, relay: &Relay, large: usize) {
    assert!(with_subject(relay, "a@dest.test", "hello", "Hello.\r\n").starts_with("250 "));
    let clean = sink.wait_for("a@dest.test").text();
    assert!(clean.starts_with("Received: ") && !clean.contains("X-Spam"), "{clean}");

    assert_eq!(with_subject(relay, "b@dest.test", "hello", GTUBE), "554 5.7.1 Gtube pattern\r\n");
    let reply = with_subject(relay, "b@dest.test", "action: soft reject", "Hello.\r\n");
    assert!(reply.starts_with("451 4.7.1 "), "{reply}");

    // In memory, and in a file of its own; the last line is there to the last octet.
    for octets in [100, large] {
        let to = format!("marked-{octets}@dest.test");
        let body = "0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijklmnopqrstuvwxyz 0123\r\n"
            .repeat(octets / 83)
            + "The end.\r\n";
        assert!(with_subject(relay, &to, "action: add header", &body).starts_with("250 "));
        let marked = sink.wait_for(&to).text();
        let (headers, received) = marked.split_once("\r\n\r\n").expect("headers");
        assert!(headers.contains("X-Spam: Yes\r\n"), "{headers}");
        assert!(headers.contains("X-Told: nobody 127.0.0.1 app.test ann@origin.test 1 "), "{headers}");
        // What the filter was shown is what the client sent.
        let sent =
            format!("From: ann@origin.test\r\nTo: {to}\r\nSubject: action: add header\r\n\r\n").len() + body.len();
        assert!(headers.contains(&format!(" {sent}\r\n")), "{sent}: {headers}");
        // A header that signatures cover is not added.
        assert_eq!(headers.matches("Subject:").count(), 1, "{headers}");
        assert!(received == body, "the body has changed");
        assert!(headers.find("X-Spam") < headers.find("Received:"));
    }
    relay.wait_log(|event| {
        event["event"] == "notice" && event["text"].as_str().is_some_and(|text| text.contains("Subject"))
    });

    for (octets, to) in [(10, "held-small@dest.test"), (large, "held-large@dest.test")] {
        let body = "Hello.\r\n".repeat(octets / 8);
        assert!(with_subject(relay, to, "action: quarantine", &body).starts_with("250 "), "{to}");
    }
    let held = relay.wait_log(|event| event["event"] == "held");
    assert!(held["reason"].as_str().is_some_and(|reason| reason.starts_with("filter spam: ")), "{held}");
}

fn held(relay: &Relay, count: usize) {
    let list = relay.wait_json(&["queue", "list"], |list| list.as_array().is_some_and(|list| list.len() == count));
    for message in list.as_array().expect("a list") {
        let shown = relay.json(&["queue", "show", message["id"].as_str().expect("an id")]);
        let text = shown.to_string();
        assert!(text.contains("it is held, since filter spam: "), "{text}");
    }
}

#[test]
fn rspamd_is_asked_by_http() {
    let Some(rspamd) = Rspamd::start() else { return };
    let sink = Sink::new();
    let relay = start(&sink, &format!("rspamd = \"http://{}\"", rspamd.http));
    rspamd_judges(&sink, &relay, 700_000);
    let reply = with_subject(&relay, "b@dest.test", "action: discard", "Hello.\r\n");
    assert_eq!(reply, "554 5.7.1 the rule says discard\r\n");
    held(&relay, 2);
    // They stay held over a start, and go when they are released, headers and all.
    let directory = relay.stop();
    let relay = Setup::new().next_hop(sink.address).start_in(directory);
    held(&relay, 2);
    relay.command(&["queue", "release", "--all"]).succeeded();
    for (to, octets) in [("held-small@dest.test", 8), ("held-large@dest.test", 700_000)] {
        let mail = sink.wait_for(to).text();
        assert!(mail.starts_with("X-Told: nobody "), "{mail:.200}");
        assert!(mail.ends_with(&format!("\r\n\r\n{}", "Hello.\r\n".repeat(octets / 8))), "{to}");
    }
    relay.wait_empty();
    relay.stop();
}

#[test]
fn rspamd_is_asked_as_a_milter() {
    let Some(rspamd) = Rspamd::start() else { return };
    let sink = Sink::new();
    let relay = start(&sink, &format!("milter = \"{}\"", rspamd.milter));
    rspamd_judges(&sink, &relay, 700_000);
    held(&relay, 2);
    relay.stop();
}

/// A filter that takes one connection after the other and treats each like this.
fn filter(treat: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || listener.incoming().flatten().for_each(treat));
    address
}

pub fn packet(letter: u8, body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 1).to_be_bytes(), &[letter][..], body].concat()
}

/// The letter of the next packet.
fn next(stream: &mut TcpStream) -> Option<u8> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).ok()?;
    let mut body = vec![0; u32::from_be_bytes(len) as usize];
    stream.read_exact(&mut body).ok()?;
    body.first().copied()
}

/// A milter that wants nothing to be told but the end, and answers that with these packets.
pub fn milter_that_says(answer: Vec<u8>) -> SocketAddr {
    filter(move |mut stream| {
        while let Some(letter) = next(&mut stream) {
            let written = match letter {
                // Nothing before the end is wanted.
                b'O' => stream.write_all(&packet(b'O', &[0, 0, 0, 6, 0, 0, 0, 0xff, 0, 0, 3, 0x7f])),
                b'E' => stream.write_all(&answer),
                _ => Ok(()),
            };
            if written.is_err() {
                return;
            }
        }
    })
}

#[test]
fn milters_decide() {
    for (answer, expected) in [
        (packet(b'c', b""), "250 2.0.0 OK"),
        (packet(b'a', b""), "250 2.0.0 OK"),
        ([packet(b'p', b""), packet(b'h', b"X-A\0b\0"), packet(b'c', b"")].concat(), "250 2.0.0 OK"),
        ([packet(b'm', b"\0\0\0\x01X-A\0b\0"), packet(b'm', b"\0\0\0\x01To\0\0"), packet(b'c', b"")].concat(), "250"),
        (packet(b'r', b""), "554 5.7.1 Message rejected by a content filter"),
        (packet(b'd', b""), "554 5.7.1 Message rejected by a content filter"),
        (packet(b't', b""), "451 4.7.1 Try again later"),
        (packet(b'y', b"550 5.7.509 Not\tfrom you\0"), "550 5.7.509 Not?from you"),
        (packet(b'y', b"421 Slow down\0"), "421 4.7.1 Slow down"),
        // What does not refuse, or wants what is not done, is no answer.
        (packet(b'y', b"250 2.0.0 Fine\0"), "451 4.7.1 The content filter gives no answer"),
        ([packet(b'+', b"<x@y.test>\0"), packet(b'c', b"")].concat(), "451 4.7.1 The content filter gives no answer"),
        ([packet(b'b', b"body"), packet(b'c', b"")].concat(), "451 4.7.1 The content filter gives no answer"),
        (vec![0xff; 8], "451 4.7.1 The content filter gives no answer"),
        (vec![0; 8], "451 4.7.1 The content filter gives no answer"),
    ] {
        let sink = Sink::new();
        let relay = start(&sink, &format!("milter = \"{}\"", milter_that_says(answer.clone())));
        let reply = with_subject(&relay, "a@dest.test", "hello", "Hello.\r\n");
        assert!(reply.starts_with(expected), "{}: {reply}", answer.escape_ascii());
        if answer.windows(3).any(|three| three == b"X-A") {
            let mail = sink.wait_for("a@dest.test").text();
            assert!(mail.starts_with("X-A: b\r\nReceived: ") && mail.contains("To: a@dest.test"), "{mail}");
        }
        relay.stop();
    }
}

#[test]
fn without_an_answer_mail_is_put_off_or_goes_on_or_is_held() {
    let closed = free_address();
    let silent = filter(std::mem::forget);
    for filter in [
        format!("milter = \"{closed}\""),
        "milter = \"unix:/nonexistent/filter.sock\"".to_owned(),
        format!("milter = \"{silent}\"\ntimeout = \"500ms\""),
        format!("rspamd = \"http://{closed}\""),
        format!("rspamd = \"http://{silent}\"\ntimeout = \"500ms\""),
    ] {
        let sink = Sink::new();
        let relay = start(&sink, &filter);
        let reply = with_subject(&relay, "a@dest.test", "hello", "Hello.\r\n");
        assert_eq!(reply, "451 4.7.1 The content filter gives no answer; try again later\r\n", "{filter}");
        let told = relay.wait_log(|event| {
            event["event"] == "notice" && event["text"].as_str().is_some_and(|text| text.starts_with("filter spam: "))
        });
        assert!(told["text"].as_str().is_some_and(|text| text.contains("senders are asked to try again")), "{told}");
        relay.stop();
    }
    let sink = Sink::new();
    let relay = start(&sink, &format!("milter = \"{closed}\"\non_failure = \"pass\""));
    assert!(with_subject(&relay, "a@dest.test", "hello", "Hello.\r\n").starts_with("250 "));
    sink.wait_for("a@dest.test");
    relay.stop();
    let relay = start(&sink, &format!("milter = \"{closed}\"\non_failure = \"hold\""));
    assert!(with_subject(&relay, "h@dest.test", "hello", "Hello.\r\n").starts_with("250 "));
    held(&relay, 1);
    relay.stop();
}

#[test]
fn what_a_filter_rejects_is_told_with_its_name_and_counts_for_no_quota() {
    let filters = format!(
        "[[filter]]\nname = \"fine\"\nmilter = \"{}\"\n[[filter]]\nname = \"strict\"\nmilter = \"{}\"",
        milter_that_says(packet(b'c', b"")),
        milter_that_says(packet(b'r', b""))
    );
    let relay = Setup::new().hold().sections(&filters).start();
    relay.command(&["tenant", "add", "default", "--unverified", "pass"]).succeeded();
    relay.command(&["tenant", "limit", "default", "--messages", "1/day"]).succeeded();
    // In memory, and in a file of its own.
    for lines in [1, 60_000, 1, 60_000] {
        let reply = with_subject(&relay, "a@dest.test", "hello", &"Hello.\r\n".repeat(lines));
        assert!(reply.starts_with("554 5.7.1 "), "{reply}");
    }
    let rejected = |event: &serde_json::Value| event["event"] == "rejected";
    let event = relay.wait_log(rejected);
    assert_eq!((&event["filter"], &event["from"]), (&"strict".into(), &"ann@origin.test".into()), "{event}");
    let log = relay.log.clone();
    relay.stop();
    let stopped = log.wait(|lines| lines.iter().any(|line| line.contains("\"stopped\"")).then(|| lines.to_vec()));
    let events = stopped.expect("it says so").iter().filter(|line| line.contains("\"rejected\"")).count();
    assert_eq!(events, 4, "each is told once");
}

#[test]
fn secrets_that_others_may_read_are_refused() {
    let sink = Sink::new();
    for (mode, starts) in [(0o644, false), (0o660, false), (0o640, true)] {
        let directory = super::relay::Directory::new();
        let file = directory.file("password", "secret\n");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("its mode");
        let file = file.to_str().expect("a path").to_owned();
        for section in [
            format!("[[filter]]\nname = \"spam\"\nrspamd = \"http://127.0.0.1:9\"\npassword_file = \"{file}\""),
            format!(
                "[oauth]\nissuers = \"x\"\naudiences = \"y\"\nintrospection = \"https://127.0.0.1:9/\"\nclient_id = \"z\"\n\
                 client_secret_file = \"{file}\""
            ),
        ] {
            let setup = Setup::new().next_hop(sink.address).sections(&section);
            if starts {
                setup.start().stop();
            } else {
                let told = setup.fails();
                assert!(told.contains(&format!("(mode {mode:o}): chmod 600 {file}")), "{told}");
            }
        }
    }
}

#[test]
fn listeners_choose_their_filters() {
    let sink = Sink::new();
    let says_no = milter_that_says(packet(b'r', b""));
    let relay = Setup::new()
        .next_hop(sink.address)
        .listener("filters = []")
        .sections(&format!("[[filter]]\nname = \"no\"\nmilter = \"{says_no}\""))
        .start();
    assert!(with_subject(&relay, "a@dest.test", "hello", "Hello.\r\n").starts_with("250 "));
    relay.stop();
}
