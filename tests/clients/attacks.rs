//! The known attacks, each tried on the real program: none of them gets anywhere.

use super::PATIENCE;
use super::auth::add;
use super::relay::{Setup, free_address};
use super::sink::{ALL, Sink};
use super::talk::{Talk, plain};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ringpost_load::siege::{self, SiegeConfig};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const STARTTLS: &str = "kind = \"submission\"";
const IMPLICIT: &str = "kind = \"submission\"\ntls = \"implicit\"";

/// The value of a metric.
fn metric(metrics: SocketAddr, name: &str) -> u64 {
    let mut socket = TcpStream::connect(metrics).expect("the port for metrics");
    socket.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("a question");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("an answer");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} in {text}")).parse().expect("a number")
}

#[test]
fn commands_before_the_handshake_are_never_obeyed_behind_it() {
    let relay = Setup::new().listener(&format!("{STARTTLS}\ntrusted = [\"127.0.0.0/8\"]")).hold().start();
    let all = "STARTTLS\r\nEHLO evil.test\r\nMAIL FROM:<evil@origin.test>\r\nRCPT TO:<victim@dest.test>\r\nDATA\r\n";
    // In one piece with STARTTLS, the start of a line behind it, and with what came before it.
    for injected in [all, "STARTTLS\r\nNO", "RSET\r\nSTARTTLS\r\nNOOP\r\nNOOP\r\n"] {
        let mut talk = Talk::clear(relay.address);
        talk.reply();
        talk.expect("EHLO client.test", "250");
        talk.send(injected.as_bytes());
        let mut reply = talk.reply();
        if injected.starts_with("RSET") {
            assert!(reply.starts_with("250 "), "{reply}");
            reply = talk.reply();
        }
        assert_eq!(reply, "220 2.0.0 Ready to start TLS\r\n");
        talk.start_tls();
        // Each reply is that of the command just sent, and nothing that was said before counts.
        talk.expect("XYZZY", "500 5.5.1 ");
        talk.expect("MAIL FROM:<ann@origin.test>", "503 5.5.1 Send EHLO or HELO first");
        talk.expect("EHLO client.test", "250-");
        talk.expect("MAIL FROM:<ann@origin.test>", "250 ");
        talk.expect("RCPT TO:<bob@dest.test>", "250 ");
        talk.expect("RSET", "250 ");
        talk.expect("QUIT", "221 ");
    }
    // A login that was begun in the clear is not ended under TLS.
    let mut talk = Talk::clear(relay.address);
    talk.reply();
    talk.expect("EHLO client.test", "250");
    talk.expect("AUTH PLAIN", "538 ");
    talk.expect("STARTTLS", "220 ");
    talk.start_tls();
    talk.expect("AHVzZXIAc2VjcmV0", "500 ");
    relay.stop();
}

/// What ends a message for some servers and not for others: the sequences of December 2023 (SEC Consult, "SMTP smuggling")
/// and their kin.
const SMUGGLING: &[&[u8]] = &[
    b"\n.\n",
    b"\n.\r\n",
    b"\n.\r",
    b"\r.\r",
    b"\r.\n",
    b"\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\r.\r\n",
    b"\n\n.\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n\0.\0\r\n",
    b"\0\r\n.\r\0\n",
];

/// What comes behind such a sequence.
const SMUGGLED: &str =
    "MAIL FROM:<evil@origin.test>\r\nRCPT TO:<victim@dest.test>\r\nDATA\r\nSubject: smuggled\r\n\r\ntwo\r\n.\r\n";

fn begin(talk: &mut Talk, recipient: &str) {
    talk.expect("MAIL FROM:<ann@origin.test>", "250 ");
    talk.expect(&format!("RCPT TO:<{recipient}>"), "250 ");
}

#[test]
fn smuggled_messages_do_not_come_in() {
    let relay = Setup::new().hold().sections("errors = 1000").start();
    let mut talk = Talk::clear(relay.address);
    talk.reply();
    talk.expect("EHLO client.test", "250");
    for sequence in SMUGGLING {
        begin(&mut talk, "bob@dest.test");
        talk.expect("DATA", "354 ");
        talk.send(&[b"Subject: one\r\n\r\none", *sequence, SMUGGLED.as_bytes()].concat());
        let reply = talk.reply();
        assert!(reply.starts_with("550 5.6.11 "), "{}: {reply}", sequence.escape_ascii());
        // The one reply was to everything: what comes next is this command's.
        talk.expect("VRFY x", "252 ");
        // As a chunk, its length says where it ends; what it holds is refused all the same.
        begin(&mut talk, "bob@dest.test");
        let chunk = [b"Subject: one\r\n\r\none", *sequence, SMUGGLED.as_bytes()].concat();
        talk.send(&[format!("BDAT {} LAST\r\n", chunk.len()).as_bytes(), &chunk].concat());
        let reply = talk.reply();
        assert!(reply.starts_with("550 5.6.11 "), "BDAT with {}: {reply}", sequence.escape_ascii());
        talk.expect("VRFY x", "252 ");
    }
    assert_eq!(relay.json(&["queue", "list"]), serde_json::json!([]));
    relay.stop();
}

/// How a content with line ends of any kind goes out: each is CRLF, and that of the last line is there.
fn converted(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut before = 0;
    for &octet in content {
        match octet {
            b'\n' if before == b'\r' => out.push(b'\n'),
            b'\n' => out.extend_from_slice(b"\r\n"),
            _ if before == b'\r' => out.extend_from_slice(&[b'\n', octet]),
            _ => out.push(octet),
        }
        before = octet;
    }
    out
}

#[test]
fn smuggling_sequences_do_not_go_out() {
    // Destinations with and without CHUNKING; what comes in has bare line ends, or none but a lone dot in a chunk.
    for offered in [ALL, &["PIPELINING", "8BITMIME"][..]] {
        let sink = Sink::offering(offered);
        let relay = Setup::new().listener("bare_newlines = \"convert\"").next_hop(sink.address).start();
        let mut talk = Talk::clear(relay.address);
        talk.reply();
        talk.expect("EHLO client.test", "250");
        let mut expected = Vec::new();
        let sequences = SMUGGLING.iter().filter(|sequence| !sequence.contains(&0));
        for (number, sequence) in sequences.copied().chain([&b"\r\n.\r\n"[..]]).enumerate() {
            let recipient = format!("r{number}@dest.test");
            let content = [b"Subject: one\r\n\r\none", sequence, SMUGGLED.as_bytes()].concat();
            begin(&mut talk, &recipient);
            // A true end of a message can come in a chunk alone.
            let whole = sequence == b"\r\n.\r\n";
            let kept = if whole {
                talk.send(&[format!("BDAT {} LAST\r\n", content.len()).as_bytes(), &content].concat());
                content.clone()
            } else {
                talk.expect("DATA", "354 ");
                talk.send(&content);
                // Behind a true line end a dot is taken off, as of each line (RFC 5321 4.5.2).
                let at = content.windows(3).position(|three| three == b"\r\n.").expect("the end has one");
                let unstuffed = [&content[..at + 2], &content[at + 3..]].concat();
                if at + 5 == content.len() {
                    content[..at + 2].to_vec()
                } else {
                    unstuffed[..unstuffed.len() - 3].to_vec()
                }
            };
            let reply = talk.reply();
            assert!(reply.starts_with("250 2.0.0 OK: queued as "), "{}: {reply}", sequence.escape_ascii());
            expected.push((recipient, converted(&kept)));
        }
        let mails = sink.wait(expected.len());
        for (recipient, content) in expected {
            let mail = sink.wait_for(&recipient);
            assert!(mail.content.ends_with(&content), "{recipient}: {}", mail.content.escape_ascii());
            let bare = mail.content.windows(2).any(|pair| (pair[0] == b'\r') != (pair[1] == b'\n'));
            assert!(!bare && !mail.content.contains(&0), "{}", mail.content.escape_ascii());
        }
        // Read by lines that end in CRLF, each message was one: nobody has got what was smuggled.
        assert!(mails.iter().all(|mail| !mail.is_for("victim@dest.test") && mail.to.len() == 1));
        relay.wait_empty();
        assert!(sink.mails().len() == mails.len());
        relay.stop();
    }
}

#[test]
fn strangers_cannot_relay_by_any_trick() {
    let probes: &[&str] = &[
        "user@target.test",
        "user%target.test@relay.test",
        "user%target.test@[127.0.0.1]",
        "user%target.test",
        "\"user@target.test\"@relay.test",
        "\"user@target.test\"@[127.0.0.1]",
        "\"user%target.test\"@relay.test",
        "\"user@target.test\"",
        "@relay.test:user@target.test",
        "@[127.0.0.1]:user@target.test",
        "@relay.test,@other.test:user@target.test",
        "target.test!user@relay.test",
        "target.test!user@[127.0.0.1]",
        "target.test!user",
        "@target.test:user@relay.test",
        "user@target.test@relay.test",
        "user@relay.test@target.test",
        "user@[127.0.0.1]@target.test",
        "user@[127.0.0.1]",
        "user@[IPv6:::1]",
        "user@[192.0.2.1]",
        "user@localhost",
        "user@relay.test",
        "user@RELAY.TEST.",
        " user@target.test",
        "user@target.test ",
        "user @target.test",
        "\\user@target.test",
        "\"\"@target.test",
        "user@target.test%relay.test",
        "user;@target.test",
        "user@target.test,other@target.test",
        "user@target.test\0",
        "user\0@target.test",
        "user@target.test\0@relay.test",
        "user@target.test\u{1}@relay.test",
        "user@target.test\n",
        "user@target.test\r",
        "postmaster",
        "",
    ];
    let senders = ["", "spam@target.test", "spam@relay.test", "spam@[127.0.0.1]", "root@localhost"];
    let sink = Sink::new();
    for (listener, refusal) in [("trusted = [\"192.0.2.0/24\"]", "554 5.7.1 "), (STARTTLS, "530 5.7.0 ")] {
        let relay = Setup::new().listener(listener).next_hop(sink.address).sections("errors = 10000").start();
        let mut talk = Talk::clear(relay.address);
        talk.reply();
        talk.expect("EHLO relay.test", "250");
        for sender in senders {
            let mut refused = 0;
            for probe in probes {
                talk.expect(&format!("MAIL FROM:<{sender}>"), "250 ");
                for form in [format!("RCPT TO:<{probe}>"), format!("RCPT TO:{probe}"), format!("RCPT TO:<<{probe}>>")] {
                    let reply = talk.say(&form);
                    assert!(reply.starts_with('5'), "{}: {reply}", form.escape_debug());
                    refused += usize::from(reply.starts_with(refusal));
                }
                let reply = talk.say("DATA");
                assert!(
                    reply.starts_with("554 5.5.1 ") || reply.starts_with("503 "),
                    "{}: {reply}",
                    probe.escape_debug()
                );
                talk.expect("RSET", "250 ");
            }
            assert!(refused > probes.len() / 3, "most of them are addresses");
        }
        // Two commands in one: neither a NUL nor a bare line end begins another one.
        talk.expect("MAIL FROM:<a@b.test>\nRCPT TO:<user@target.test>", "500 ");
        talk.expect("MAIL FROM:<a@b.test>\0\rRCPT TO:<user@target.test>", "500 ");
        talk.expect("DATA", "503 ");
        assert_eq!(relay.json(&["queue", "list"]), serde_json::json!([]));
        relay.stop();
    }
    assert_eq!(sink.connections(), 0);
}

#[test]
fn guessing_ends_in_a_lock_and_costs_no_hash_then() {
    let metrics = free_address();
    let relay = Setup::new().listener(IMPLICIT).hold().flag("--metrics", metrics).start();
    let password = add(&relay, "app", &[]);
    let hashes = || metric(metrics, "ringpost_password_hashes_total");
    let before = hashes();
    // Eleven sessions guess at once; after ten failures the account is locked, and what is asked then costs nothing.
    let replies: Vec<String> = std::thread::scope(|scope| {
        let guess = |number: usize| {
            let address = relay.address;
            scope.spawn(move || Talk::tls(address).say(&plain("app", &format!("guess {number}"))))
        };
        let guesses: Vec<_> = (0..10).map(guess).collect();
        guesses.into_iter().map(|guess| guess.join().expect("a reply")).collect()
    });
    assert!(replies.iter().all(|reply| reply == "535 5.7.8 Authentication credentials invalid\r\n"), "{replies:?}");
    assert_eq!(hashes() - before, 20, "two for each");
    // The answer is the same for the right password and for a wrong one, and comes as late as to the last failure.
    std::thread::scope(|scope| {
        for tried in [&*password, "guess"] {
            let address = relay.address;
            scope.spawn(move || {
                let reply = Talk::tls(address).say(&plain("app", tried));
                assert!(reply.starts_with("454 4.7.0 Too many failed logins; try again in "), "{reply}");
            });
        }
    });
    assert_eq!(hashes() - before, 20, "none for a locked account");
    let failed = relay.log.all().iter().filter(|line| line.contains("\"login_failed\"")).count();
    assert_eq!(failed, 10, "each failure is told");
    relay.wait_log(|event| event.to_string().contains("locked"));
    relay.stop();
}

#[test]
fn neither_text_nor_hashes_tell_which_logins_exist() {
    let metrics = free_address();
    let relay = Setup::new().listener(IMPLICIT).hold().flag("--metrics", metrics).start();
    let password = add(&relay, "app", &[]);
    add(&relay, "rotated", &[]);
    relay.json(&["credential", "rotate", "rotated", "--overlap", "1h"]);
    let mut said = Vec::new();
    for (login, tried) in [("app", "wrong"), ("nobody", &*password), ("rotated", "wrong")] {
        let before = metric(metrics, "ringpost_password_hashes_total");
        let mut talk = Talk::tls(relay.address);
        let reply = talk.say(&plain(login, tried));
        said.push((reply, metric(metrics, "ringpost_password_hashes_total") - before));
    }
    assert!(said.iter().all(|one| *one == said[0]) && said[0].1 == 2, "{said:?}");
    // LOGIN asks for a password whoever is named; SCRAM tells a salt, always the same for a name.
    let challenge = |login: &str| {
        let mut talk = Talk::tls(relay.address);
        talk.expect("AUTH LOGIN", "334 VXNlcm5hbWU6\r\n");
        talk.expect(&STANDARD.encode(login), "334 UGFzc3dvcmQ6\r\n");
        talk.expect("*", "501 ");
        let first = talk.say(&format!("AUTH SCRAM-SHA-256 {}", STANDARD.encode(format!("n,,n={login},r=client"))));
        let first = STANDARD.decode(first.trim_end().strip_prefix("334 ").expect("a challenge")).expect("base64");
        String::from_utf8(first).expect("text").split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    let (known, unknown) = (challenge("app"), challenge("nobody"));
    for _ in 0..4 {
        for (name, told) in [("app", &known), ("nobody", &unknown)] {
            let again = challenge(name);
            assert_eq!(again[1..], told[1..], "salt and iterations of {name}, by whichever shard");
            assert_ne!(again[0], told[0], "a nonce is new each time");
        }
    }
    assert_eq!(known[2], unknown[2], "iterations");
    assert_eq!(known.iter().map(String::len).collect::<Vec<_>>(), unknown.iter().map(String::len).collect::<Vec<_>>());
    relay.stop();
}

#[test]
fn oversize_logins_are_refused_and_cost_nothing() {
    let metrics = free_address();
    let relay = Setup::new().listener(IMPLICIT).hold().flag("--metrics", metrics).sections("errors = 1000").start();
    add(&relay, "app", &[]);
    let before = metric(metrics, "ringpost_password_hashes_total");
    let mut talk = Talk::tls(relay.address);
    let long = |octets: usize| "A".repeat(octets);
    // The whole line is skipped to its end, in the first answer and in those that are asked for.
    for line in [format!("AUTH PLAIN {}", long(12_300)), format!("AUTH LOGIN {}", long(3 << 20))] {
        talk.expect(&line, "500 5.5.2 Line too long");
        talk.expect("NOOP", "250 ");
    }
    for mechanism in ["PLAIN", "LOGIN", "SCRAM-SHA-256"] {
        talk.expect(&format!("AUTH {mechanism}"), "334 ");
        talk.expect(&long(1 << 20), "500 5.5.2 Line too long");
        // The login is over, so that this is a command again.
        talk.expect("NOOP", "250 ");
    }
    talk.expect("AUTH LOGIN", "334 ");
    talk.expect(&STANDARD.encode("app"), "334 ");
    talk.expect(&long(20_000), "500 5.5.2 Line too long");
    talk.expect("NOOP", "250 ");
    // Within the bound of the line, and beyond that of a name, a password or a nonce.
    for answer in [
        format!("\0app\0{}", "x".repeat(256)),
        format!("\0app\0{}", "x".repeat(8_000)),
        format!("\0{}\0secret", "x".repeat(256)),
        format!("{}\0app\0secret", "x".repeat(4_000)),
        "\0app\0".to_owned(),
        "\0\0secret".to_owned(),
        "\0app\0a\0b".to_owned(),
        "app".to_owned(),
        "\0a\r\nb\0secret".to_owned(),
    ] {
        let reply = talk.say(&format!("AUTH PLAIN {}", STANDARD.encode(&answer)));
        assert!(reply.starts_with("501 5.5.2 ") || reply.starts_with("535 5.7.8 "), "{answer:.20}: {reply}");
    }
    talk.expect(&format!("AUTH SCRAM-SHA-256 {}", STANDARD.encode(format!("n,,n=app,r={}", long(129)))), "501 5.5.2 ");
    assert_eq!(metric(metrics, "ringpost_password_hashes_total"), before);
    // In the clear nothing longer than a command is read at all.
    let clear = Setup::new().listener(STARTTLS).hold().start();
    let mut talk = Talk::clear(clear.address);
    talk.reply();
    talk.expect("EHLO client.test", "250");
    talk.expect(&format!("AUTH PLAIN {}", long(1_200)), "500 5.5.2 Line too long");
    talk.expect(&format!("AUTH PLAIN {}", long(600)), "538 5.7.11 ");
    clear.stop();
    relay.stop();
}

/// The header section of a message, a line each, unfolded.
fn headers(content: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(content).into_owned();
    let section = text.split("\r\n\r\n").next().expect("a header section").replace("\r\n\t", " ").replace("\r\n ", " ");
    section.split("\r\n").map(str::to_owned).collect()
}

#[test]
fn what_clients_and_destinations_say_begins_no_header() {
    let sink = Sink::with(ALL, |line| {
        let refused = line.starts_with("RCPT") && line.contains("refused");
        refused.then(|| "550-5.1.1 nobody\r\n550 5.1.1 X-Evil: here\rX-Evil: there\t\u{b}X-Evil: too".into())
    });
    let relay = Setup::new().next_hop(sink.address).sections("errors = 1000").start();
    let mut talk = Talk::clear(relay.address);
    talk.reply();
    for (command, reply) in [
        ("EHLO evil.test\rX-Evil: 1", "500 "),
        ("EHLO evil.test\nX-Evil: 1", "500 "),
        ("EHLO evil.test X-Evil: 1", "501 "),
        ("EHLO evil.test\tX-Evil:1", "50"),
        ("EHLO evil;(X-Evil:1)<a@b>\",\\", "250"),
        ("MAIL FROM:<ann@origin.test> ENVID=x+0D+0AX-Evil:+201", "501 5.5.4 "),
        ("MAIL FROM:<ann@origin.test> ENVID=x\u{b}", "501 5.5.4 "),
    ] {
        talk.expect(command, reply);
    }
    talk.expect("MAIL FROM:<ann@origin.test> RET=FULL ENVID=x+3D+2BX-Evil:+3B+28", "250 ");
    for (parameters, reply) in [
        ("ORCPT=rfc822;a+0D+0AX-Evil:+201", "501 5.5.4 "),
        ("ORCPT=rfc822;a+0aX-Evil", "501 5.5.4 "),
        ("ORCPT=utf-8;a\\x{0A}X-Evil", "501 5.5.4 "),
        ("ORCPT=rfc822;X-Evil:+3B+28+3Ca@b+3E NOTIFY=FAILURE", "250 "),
    ] {
        talk.expect(&format!("RCPT TO:<refused@dest.test> {parameters}"), reply);
    }
    talk.expect("RCPT TO:<\"refused X-Evil: \\\"q\"@dest.test> NOTIFY=FAILURE", "250 ");
    talk.expect("RCPT TO:<bob@dest.test>", "250 ");
    talk.expect("DATA", "354 ");
    talk.send(b"Subject: hello\r\n\r\nX-Evil: is content here\r\n.\r\n");
    assert!(talk.reply().starts_with("250 "));
    let names = |content: &[u8]| -> Vec<String> {
        let lines = headers(content);
        lines.iter().map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect()
    };
    let mail = sink.wait_for("bob@dest.test");
    assert_eq!(names(&mail.content), ["Received", "Subject"], "{}", mail.text());
    assert!(mail.text().starts_with("Received: from evil??X-Evil:1??a@b???? ([127.0.0.1])"), "{}", mail.text());
    let report = sink.wait_for("ann@origin.test");
    let own = ["Received", "Date", "From", "To", "Subject", "Message-ID", "Auto-Submitted", "MIME-Version"];
    let evil: Vec<String> = names(&report.content).into_iter().filter(|name| name.contains("Evil")).collect();
    assert!(evil.is_empty() && names(&report.content).len() <= own.len() + 2, "{}", report.text());
    // Nowhere in the report but in the message that it returns does a line begin so, whatever ends a line for its reader.
    let before_returned = report.text().split("Subject: hello").next().expect("the report").to_owned();
    let begins = |line: &str| line.trim_start().starts_with("X-Evil");
    let lines = before_returned.split(['\r', '\n', '\u{b}', '\u{c}', '\u{85}', '\u{2028}']);
    let found: Vec<&str> = lines.filter(|line| begins(line)).collect();
    assert!(found.is_empty(), "{found:?} in {}", report.text());
    relay.stop();
}

/// A message of a client that does nothing wrong.
fn send_well(mut talk: Talk, password: &str) {
    talk.expect(&plain("app", password), "235 ");
    begin(&mut talk, "bob@dest.test");
    talk.expect("DATA", "354 ");
    talk.send(b"From: ann@origin.test\r\n\r\nHello.\r\n.\r\n");
    let reply = talk.reply();
    assert!(reply.starts_with("250 2.0.0 OK: queued as "), "{reply}");
    talk.expect("QUIT", "221 ");
}

/// Says that it is over when it is dropped, so that a test that fails ends, too.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn mail_is_taken_while_others_dawdle_and_guess() {
    let relay = Setup::new().listener(IMPLICIT).hold().sections("tarpit_after = 1").start();
    let password = add(&relay, "app", &[]);
    // Logged in once, it is known to all shards.
    send_well(Talk::tls(relay.address), &password);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&over);
        let mut slow: Vec<TcpStream> =
            (0..200).map(|_| TcpStream::connect(relay.address).expect("a connection")).collect();
        for socket in &mut slow {
            socket.write_all(&[0x16]).expect("the first octet of a handshake");
        }
        let mut inside: Vec<Talk> = (0..50).map(|_| Talk::tls(relay.address)).collect();
        for talk in &mut inside {
            talk.send(b"MAIL FR");
        }
        for guesser in 0..20 {
            let (address, over) = (relay.address, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut talk = Talk::tls(address);
                    for _ in 0..3 {
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                        talk.say(&plain(&format!("login {guesser}"), "guess"));
                    }
                }
            });
        }
        // They get their whole network locked, which is ours, too: we are known all the same.
        relay.wait_log(|event| event.to_string().contains("logins from 127.0.0.0/24 are locked"));
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..20 {
            send_well(Talk::tls(relay.address), &password);
            for (socket, talk) in slow.iter_mut().zip(&mut inside) {
                socket.write_all(&[3]).expect("another octet");
                talk.send(b"O");
            }
            assert!(Instant::now() < deadline, "that is no service");
        }
    });
    let received = relay.log.all().iter().filter(|line| line.contains("\"received\"")).count();
    assert_eq!(received, 21);
    relay.stop();
}

#[test]
fn a_siege_is_endured() {
    let relay = Setup::new().listener(STARTTLS).hold().start();
    let password = add(&relay, "app", &[]);
    let config = SiegeConfig {
        to: relay.address,
        slow: 200,
        guessing: 20,
        networks: 5,
        implicit: false,
        tls: ringpost_load::send::tls_client(true).expect("TLS"),
    };
    let over = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let besieging = scope.spawn(|| siege::run(config, &over).expect("an engine"));
        let ending = Ending(&over);
        relay.wait_log(|event| event["event"] == "login_failed");
        for _ in 0..20 {
            let mut talk = Talk::clear(relay.address);
            talk.reply();
            talk.expect("EHLO client.test", "250");
            talk.expect("STARTTLS", "220 ");
            talk.start_tls();
            talk.expect("EHLO client.test", "250");
            send_well(talk, &password);
        }
        drop(ending);
        besieging.join().expect("a report")
    });
    assert!(report.refused == 0 && report.connections >= 20 && report.open > 0, "{report:?}");
    relay.stop();
}
