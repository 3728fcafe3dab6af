//! Nothing that is secret is told: everything that the real program writes, while it is given every kind of secret, is
//! searched for each of them in each of its forms.

use super::auth::add;
use super::oauth::{Key, claims, section};
use super::relay::{Directory, Relay, Setup, free_address};
use super::talk::{Talk, plain};
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU32;

/// What must not be found, with a name for each.
#[derive(Default)]
struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// A secret as text, and what it looks like in base64 and in hexadecimal, as far as that tells it.
    fn add(&mut self, what: &str, secret: impl AsRef<[u8]>) {
        let secret = secret.as_ref();
        if let Ok(text) = std::str::from_utf8(secret) {
            self.0.push((what.to_owned(), text.to_owned()));
        }
        // At each place within three octets base64 looks otherwise; its ends depend on what stands around.
        for place in 0..3 {
            let padded = [&b"\0\0"[..place], secret].concat();
            let encoded = STANDARD.encode(&padded);
            let inner = &encoded[4.min(encoded.len())..encoded.len().saturating_sub(4)];
            if inner.len() >= 12 {
                self.0.push((format!("{what} in base64"), inner.to_owned()));
            }
        }
        if secret.len() >= 8 {
            let hexadecimal: String = secret.iter().map(|octet| format!("{octet:02x}")).collect();
            self.0.push((format!("{what} in hexadecimal"), hexadecimal));
        }
    }

    /// A private key in PEM: each of its lines.
    fn add_pem(&mut self, what: &str, pem: &str) {
        for line in pem.lines().filter(|line| !line.starts_with("-----") && line.len() > 16) {
            self.0.push((what.to_owned(), line.to_owned()));
        }
    }

    #[track_caller]
    fn must_not_be_in(&self, place: &str, text: &str) {
        let lower = text.to_lowercase();
        for (what, secret) in &self.0 {
            let found = text.contains(secret.as_str()) || lower.contains(&secret.to_lowercase());
            assert!(!found, "{place} tells {what}");
        }
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).expect("a connection");
    socket.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).expect("a question");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("an answer");
    text
}

/// Logs in by SCRAM-SHA-256; gives the proof that the client sent and the last reply.
fn scram(relay: &Relay, login: &str, password: &str) -> (String, String) {
    let mut talk = Talk::tls(relay.address);
    let bare = format!("n={login},r=client");
    let challenge = talk.say(&format!("AUTH SCRAM-SHA-256 {}", STANDARD.encode(format!("n,,{bare}"))));
    let challenge = STANDARD.decode(challenge.trim_end().strip_prefix("334 ").expect("a challenge")).expect("base64");
    let challenge = String::from_utf8(challenge).expect("text");
    let part = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)).expect("a part").to_owned();
    let (nonce, salt, iterations) = (part("r="), STANDARD.decode(part("s=")).expect("base64"), part("i="));
    let iterations: NonZeroU32 = iterations.parse().expect("a number");
    let mac = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    let mut salted = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password.as_bytes(), &mut salted);
    let client = mac(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, client.as_ref());
    let without = format!("c=biws,r={nonce}");
    let signature = mac(stored.as_ref(), format!("{bare},{challenge},{without}").as_bytes());
    let proof: Vec<u8> = client.as_ref().iter().zip(signature.as_ref()).map(|(one, other)| one ^ other).collect();
    let proof = STANDARD.encode(proof);
    let reply = talk.say(&STANDARD.encode(format!("{without},p={proof}")));
    let last = if reply.starts_with("334 ") { talk.say("") } else { reply };
    (proof, last)
}

/// One that nobody has made, and that is found wherever it is told.
const WRONG: &str = "wr0ng-passw0rd-that-nobody-has";
const BURIED: &str = "passw0rd-where-no-password-belongs";

fn search(setup: Setup) {
    let (key, directory, metrics) = (Key::new("one"), Directory::new(), free_address());
    let keys = directory.file("keys.json", key.set());
    let relay = setup
        .listener("kind = \"submission\"\ntls = \"implicit\"")
        .hold()
        .flag("--metrics", metrics)
        .sections("errors = 1000")
        .sections("[log]\nlevel = \"info\"")
        .sections(&section(&format!("keys = \"{}\"", keys.display())))
        .start_in(directory);
    let mut secrets = Secrets::default();
    let password = add(&relay, "app", &[]);
    let rotated = relay.json(&["credential", "rotate", "app", "--overlap", "1h"]);
    let newer = rotated["secret"].as_str().expect("a password").to_owned();
    let other = add(&relay, "other", &["--network", "192.0.2.0/24"]);
    let token = key.sign(&claims("app", json!({})));
    let expired = key.sign(&claims("app", json!({ "exp": 1_000_000_000 })));
    for (what, secret) in [
        ("a password", &password),
        ("a rotated password", &newer),
        ("a password that may not be used", &other),
        ("a token", &token),
        ("an expired token", &expired),
        ("a wrong password", &WRONG.to_owned()),
        ("a password in a wrong place", &BURIED.to_owned()),
    ] {
        secrets.add(what, secret);
    }
    secrets.add("a token's signature", token.rsplit('.').next().expect("a signature"));
    let pem = std::fs::read_to_string(relay.spool().join("tls/self-signed.key")).expect("the key");
    secrets.add_pem("the key of TLS", &pem);

    // Every mechanism, well and ill.
    for good in [&password, &newer] {
        assert!(Talk::tls(relay.address).say(&plain("app", good)).starts_with("235 "));
    }
    let mut talk = Talk::tls(relay.address);
    talk.expect("AUTH LOGIN", "334 ");
    talk.expect(&STANDARD.encode("app"), "334 ");
    talk.expect(&STANDARD.encode(&password), "235 ");
    let (proof, reply) = scram(&relay, "app", &newer);
    assert!(reply.starts_with("235 "), "{reply}");
    secrets.add("a proof of SCRAM", proof);
    let bearer = |token: &str| STANDARD.encode(format!("n,a=app,\u{1}auth=Bearer {token}\u{1}\u{1}"));
    let xoauth2 = |token: &str| STANDARD.encode(format!("user=app\u{1}auth=Bearer {token}\u{1}\u{1}"));
    for (mechanism, answer) in [("OAUTHBEARER", bearer(&token)), ("XOAUTH2", xoauth2(&token))] {
        Talk::tls(relay.address).expect(&format!("AUTH {mechanism} {answer}"), "235 ");
    }
    // Those that fail are answered later and later, so they go at once.
    std::thread::scope(|scope| {
        let (relay, other, expired) = (&relay, &other, &expired);
        scope.spawn(move || Talk::tls(relay.address).expect(&plain("app", WRONG), "535 "));
        scope.spawn(move || Talk::tls(relay.address).expect(&plain("other", other), "535 "));
        scope.spawn(move || {
            let mut talk = Talk::tls(relay.address);
            talk.expect("AUTH LOGIN", "334 ");
            talk.expect(&STANDARD.encode("nobody"), "334 ");
            talk.expect(&STANDARD.encode(WRONG), "535 ");
        });
        scope.spawn(move || assert!(scram(relay, "app", WRONG).1.starts_with("535 ")));
        for (mechanism, answer) in [("OAUTHBEARER", bearer(expired)), ("XOAUTH2", xoauth2(expired))] {
            scope.spawn(move || {
                let mut talk = Talk::tls(relay.address);
                talk.expect(&format!("AUTH {mechanism} {answer}"), "334 ");
                talk.expect("", "535 ");
            });
        }
    });
    // Passwords where none belongs: half a login, an answer nobody asked for, commands, the name of EHLO, and content's end.
    let mut talk = Talk::tls(relay.address);
    for command in [
        format!("AUTH PLAIN {}!", STANDARD.encode(format!("\0app\0{BURIED}"))),
        format!("AUTH PLAIN {} {BURIED}", STANDARD.encode("\0app\0x")),
        format!("AUTH CRAM-MD5 {BURIED}"),
        format!("AUTH {BURIED}"),
        STANDARD.encode(BURIED),
        BURIED.to_owned(),
        format!("PASS {BURIED}"),
        format!("MAIL FROM:<{BURIED}"),
        format!("RCPT TO:<a@b.test> {BURIED}"),
    ] {
        talk.expect(&command, "5");
    }
    drop(talk);
    // Domains with keys of their own, made here and elsewhere.
    let made = relay.command(&["domain", "add", "own.test", "--tenant", "acme"]).succeeded().stdout;
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let file = relay.directory().file("dkim.pem", pair.serialize_pem());
    secrets.add_pem("a key of DKIM", &pair.serialize_pem());
    let path = file.to_str().expect("a path");
    let added = relay.command(&[
        "domain",
        "add-key",
        "own.test",
        "--tenant",
        "acme",
        "--kind",
        "ed25519",
        "--selector",
        "s1",
        "--file",
        path,
    ]);
    let told = added.succeeded().stdout;
    let shown = [
        made,
        told,
        relay.command(&["domain", "show", "own.test", "--tenant", "acme"]).succeeded().stdout,
        relay.json(&["domain", "show", "own.test", "--tenant", "acme"]).to_string(),
        relay.json(&["domain", "list"]).to_string(),
        relay.json(&["credential", "list"]).to_string(),
        relay.command(&["credential", "list"]).succeeded().stdout,
        relay.json(&["tenant", "list"]).to_string(),
        relay.json(&["status"]).to_string(),
        relay.json(&["queue", "list"]).to_string(),
        get(metrics, "/metrics"),
        get(metrics, "/readyz"),
    ];
    relay.command(&["credential", "disable", "app"]).succeeded();
    relay.command(&["credential", "remove", "other"]).succeeded();
    let (log, output) = (relay.log.clone(), relay.output.clone());
    relay.stop();
    let log = log.all().join("\n");
    assert!(log.contains("login_failed") && log.contains("nobody") && log.contains("expired"), "{log}");
    secrets.must_not_be_in("the log", &log);
    secrets.must_not_be_in("standard output", &output.all().join("\n"));
    for text in shown {
        secrets.must_not_be_in("a command or the metrics", &text);
    }
}

#[test]
fn nothing_secret_is_in_what_the_program_writes() {
    search(Setup::new());
}

#[test]
fn nor_in_the_log_for_people() {
    search(Setup::new().human());
}

#[test]
fn the_search_finds_what_it_is_for() {
    let mut secrets = Secrets::default();
    secrets.add("a password", "correct horse");
    for text in [
        "login=app password=\"correct horse\"",
        "AUTH PLAIN AGFwcABjb3JyZWN0IGhvcnNl",
        "Y29ycmVjdCBob3JzZQ==",
        "636F727265637420686F727365",
    ] {
        let searched = std::panic::catch_unwind(|| secrets.must_not_be_in("a text", text));
        assert!(searched.is_err(), "{text}");
    }
    secrets.must_not_be_in("a text", "incorrect");
}
