//! Logging in: real clients, the exact dialogue, refusals that tell nothing, and identities that change under open sessions.

use super::programs::{program, run};
use super::relay::{Relay, Setup};
use super::sink::Sink;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

const STARTTLS: &str = "kind = \"submission\"";
const IMPLICIT: &str = "kind = \"submission\"\ntls = \"implicit\"";

/// A client under TLS from the first octet, that talks line by line.
struct Talk(BufReader<StreamOwned<ClientConnection, TcpStream>>);

impl Talk {
    fn with(relay: &Relay) -> Talk {
        let config = ringpost::io::tls::client_opportunistic().expect("TLS");
        let name = ServerName::try_from("relay.test").expect("a name");
        let connection = ClientConnection::new(config, name).expect("a client");
        let socket = TcpStream::connect(relay.address).expect("a connection");
        let mut talk = Talk(BufReader::new(StreamOwned::new(connection, socket)));
        assert!(talk.reply().starts_with("220 "));
        talk
    }

    fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("a reply");
            reply.push_str(&line);
            if line.as_bytes().get(3) != Some(&b'-') {
                return reply;
            }
        }
    }

    fn say(&mut self, command: &str) -> String {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).expect("a command is sent");
        self.reply()
    }

    /// Says it and expects this beginning.
    #[track_caller]
    fn expect(&mut self, command: &str, reply: &str) {
        let got = self.say(command);
        assert!(got.starts_with(reply), "{command}: {got}");
    }
}

fn plain(login: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", STANDARD.encode(format!("\0{login}\0{password}")))
}

/// Adds a tenant "acme" and a login of it; gives its password.
pub fn add(relay: &Relay, login: &str, more: &[&str]) -> String {
    if !relay.command(&["tenant", "list"]).stdout.contains("acme") {
        relay.command(&["tenant", "add", "acme", "--unverified", "pass"]).succeeded();
    }
    let answer = relay.json(&[&["credential", "add", login, "--tenant", "acme"], more].concat());
    answer["secret"].as_str().expect("a password").to_owned()
}

#[test]
fn swaks_and_curl_log_in() {
    let sink = Sink::new();
    let relay = Setup::new().listener(STARTTLS).next_hop(sink.address).start();
    let password = add(&relay, "app", &[]);
    for mechanism in ["PLAIN", "LOGIN"] {
        let Some(mut swaks) = program("swaks") else { return };
        swaks.args(["--server", "127.0.0.1", "--port", &relay.port(), "--tls", "--auth", mechanism]);
        swaks.args(["--auth-user", "app", "--auth-password", &password]);
        let recipient = format!("{mechanism}@dest.test").to_lowercase();
        swaks.args(["--from", "ann@origin.test", "--to", &recipient]);
        run(swaks, b"").succeeded();
        assert!(sink.wait_for(&recipient).text().contains("with ESMTPSA (TLSv1.3 "));
        let received = relay.wait_log(|event| event["event"] == "received" && event["to"] == recipient.as_str());
        assert_eq!(received["tenant"], "acme", "{received}");
    }
    let Some(mut curl) = program("curl") else { return };
    let file = relay.directory().file("curl.eml", "Subject: hello\r\n\r\nHello.\r\n");
    curl.args(["--silent", "--show-error", "--insecure", "--ssl-reqd", &format!("smtp://127.0.0.1:{}", relay.port())]);
    curl.args(["--user", &format!("app:{password}"), "--mail-from", "ann@origin.test"]);
    curl.args(["--mail-rcpt", "curl@dest.test", "--upload-file"]).arg(file);
    run(curl, b"").succeeded();
    sink.wait_for("curl@dest.test");
    assert!(!relay.log.all().join("\n").contains(&password), "the password is in the log");
    relay.stop();
}

#[test]
fn gsasl_and_msmtp_prove_their_password_by_scram() {
    let sink = Sink::new();
    let relay = Setup::new().listener(STARTTLS).next_hop(sink.address).start();
    let password = add(&relay, "app", &[]);
    let gsasl = |password: &str, mechanism: &str| {
        let mut gsasl = program("gsasl")?;
        gsasl.args(["--smtp", "--connect", &format!("127.0.0.1:{}", relay.port()), "--mechanism", mechanism]);
        gsasl.args(["--authentication-id", "app", "--password", password]);
        gsasl.args(["--starttls", "--x509-ca-file="]);
        // With a channel to bind it does not do without.
        if !mechanism.ends_with("-PLUS") {
            gsasl.arg("--no-cb");
        }
        Some(run(gsasl, b""))
    };
    let Some(good) = gsasl(&password, "SCRAM-SHA-256") else { return };
    assert!(good.stdout.contains("235 2.7.0 "), "{} {}", good.stdout, good.stderr);
    let bound = gsasl(&password, "SCRAM-SHA-256-PLUS").expect("it is there");
    assert!(bound.stdout.contains("235 2.7.0 "), "{} {}", bound.stdout, bound.stderr);
    let bad = gsasl("wrong", "SCRAM-SHA-256").expect("it is there");
    assert!(bad.stdout.contains("535 5.7.8 "), "{} {}", bad.stdout, bad.stderr);
    // Both secrets of a rotation prove themselves.
    let rotated = relay.json(&["credential", "rotate", "app", "--overlap", "1h"]);
    let newer = rotated["secret"].as_str().expect("a password").to_owned();
    for password in [&password, &newer] {
        let good = gsasl(password, "SCRAM-SHA-256").expect("it is there");
        assert!(good.stdout.contains("235 2.7.0 "), "{} {}", good.stdout, good.stderr);
    }
    let Some(mut msmtp) = program("msmtp") else { return };
    msmtp.args(["--host=127.0.0.1", &format!("--port={}", relay.port()), "--tls=on", "--tls-certcheck=off"]);
    msmtp.args([
        "--auth=scram-sha-256",
        "--user=app",
        &format!("--passwordeval=echo {newer}"),
        "--from=ann@origin.test",
    ]);
    msmtp.args(["--", "msmtp-scram@dest.test"]);
    run(msmtp, b"Subject: hello\r\n\r\nHello.\r\n").succeeded();
    sink.wait_for("msmtp-scram@dest.test");
    relay.stop();
}

#[test]
fn the_dialogue_word_by_word() {
    let relay = Setup::new().listener(IMPLICIT).hold().start();
    let password = add(&relay, "app", &[]);
    let mut talk = Talk::with(&relay);
    talk.expect("AUTH PLAIN", "503 5.5.1 ");
    let hello = talk.say("EHLO app.example.com");
    for line in [
        "250-PIPELINING\r\n",
        "250-SIZE 52428800\r\n",
        "250-8BITMIME\r\n",
        "250 AUTH PLAIN LOGIN SCRAM-SHA-256-PLUS SCRAM-SHA-256\r\n",
    ] {
        assert!(hello.contains(line), "{hello}");
    }
    talk.expect("MAIL FROM:<notifications@yoursenddomain.com>", "250 2.1.0 OK\r\n");
    talk.expect("AUTH PLAIN", "503 5.5.1 A transaction");
    talk.expect("RCPT TO:<user@example.com>", "530 5.7.0 ");
    talk.expect("RSET", "250 ");
    for (command, reply) in [
        ("AUTH", "501 5.5.4 "),
        ("AUTH CRAM-MD5", "504 5.5.4 "),
        ("AUTH PLAIN a b", "501 5.5.4 "),
        ("AUTH PLAIN !", "501 5.5.2 "),
    ] {
        talk.expect(command, reply);
    }
    talk.expect("AUTH LOGIN", "334 VXNlcm5hbWU6\r\n");
    talk.expect("*", "501 5.7.0 Authentication cancelled\r\n");
    talk.expect("AUTH PLAIN", "334 \r\n");
    talk.expect(plain("app", &password).trim_start_matches("AUTH PLAIN "), "235 2.7.0 Authentication successful\r\n");
    talk.expect(&plain("app", &password), "503 5.5.1 Already logged in");
    talk.expect("MAIL FROM:<notifications@yoursenddomain.com> AUTH=<>", "250 2.1.0 OK\r\n");
    talk.expect("RCPT TO:<user@example.com>", "250 2.1.5 OK\r\n");
    talk.expect("DATA", "354 Start mail input; end with CRLF.CRLF\r\n");
    talk.expect("Subject: hello\r\n\r\nHello.\r\n.", "250 2.0.0 OK: queued as ");
    talk.expect("QUIT", "221 2.0.0 Goodbye\r\n");
    // A second session is recognised without another hash; pipelined behind it comes what it sends next.
    let mut talk = Talk::with(&relay);
    talk.expect("EHLO app.example.com", "250-");
    talk.expect(&format!("{}\r\nNOOP", plain("app", &password)), "235 2.7.0 ");
    assert!(talk.reply().starts_with("250 2.0.0 "));
    relay.stop();
}

#[test]
fn quotas_hold_over_sessions_and_shards() {
    let relay = Setup::new().listener(IMPLICIT).hold().start();
    let password = add(&relay, "app", &[]);
    relay.command(&["tenant", "limit", "acme", "--messages", "3/day", "--recipients", "1000/hour,4/day"]).succeeded();
    relay.command(&["credential", "limit", "app", "--messages", "5/week"]).fails("no amount");
    let session = || {
        let mut talk = Talk::with(&relay);
        talk.expect("EHLO app.example.com", "250-");
        talk.expect(&plain("app", &password), "235 ");
        talk
    };
    let mail = |talk: &mut Talk, recipients: usize| {
        talk.expect("MAIL FROM:<a@origin.test>", "250 ");
        for number in 0..recipients {
            talk.expect(&format!("RCPT TO:<{number}@dest.test>"), "250 ");
        }
        talk.expect("DATA", "354 ");
        talk.expect("From: a@origin.test\r\n\r\nHello.\r\n.", "250 ");
    };
    mail(&mut session(), 2);
    let mut talk = session();
    talk.expect("MAIL FROM:<a@origin.test>", "250 ");
    talk.expect("RCPT TO:<1@dest.test>", "250 ");
    talk.expect("RCPT TO:<2@dest.test>", "250 ");
    let refused = talk.say("RCPT TO:<3@dest.test>");
    assert!(refused.starts_with("450 4.7.1 The quota of 4 recipients is used up (4/day): try again in "), "{refused}");
    // A transaction that sends nothing counts for nothing.
    talk.expect("RSET", "250 ");
    mail(&mut talk, 1);
    mail(&mut talk, 1);
    let refused = talk.say("MAIL FROM:<a@origin.test>");
    assert!(refused.starts_with("450 4.7.1 The quota of 3 messages"), "{refused}");
    assert!(session().say("MAIL FROM:<a@origin.test>").starts_with("450 4.7.1 "), "another session of it");
    // What is lifted is lifted at once, and a credential has quotas of its own.
    relay.command(&["tenant", "limit", "acme"]).succeeded();
    relay.command(&["credential", "limit", "app", "--messages", "4/d"]).succeeded();
    let listed = relay.command(&["credential", "list"]).succeeded();
    assert!(listed.stdout.contains("messages 4/day"), "{}", listed.stdout);
    mail(&mut session(), 5);
    relay.stop();
}

/// Sends messages until one is refused, or so many are taken; says how many were.
fn send_until_refused(relay: &Relay, password: &str, most: usize) -> usize {
    let mut talk = Talk::with(relay);
    talk.expect("EHLO app.example.com", "250-");
    talk.expect(&plain("app", password), "235 ");
    let mut sent = 0;
    while sent < most {
        let mail = talk.say("MAIL FROM:<a@origin.test>");
        if mail.starts_with("450 4.7.1 The quota of 40 messages is used up (40/day)") {
            return sent;
        }
        assert!(mail.starts_with("250 "), "{mail}");
        talk.expect("RCPT TO:<b@dest.test>", "250 ");
        talk.expect("DATA", "354 ");
        // The first one, whose count nobody has reserved yet, lies in a file of its own.
        let lines = if sent == 0 { 10_000 } else { 1 };
        talk.expect(
            &format!("From: a@origin.test\r\n\r\n{}.", "Hello, and so on, and so on.\r\n".repeat(lines)),
            "250 ",
        );
        sent += 1;
    }
    sent
}

#[test]
fn quotas_outlive_a_kill_and_a_restart() {
    let day = || ringpost::io::clock::now().unix.as_millis() / 86_400_000;
    let begun = day();
    let start = |directory| Setup::new().listener(IMPLICIT).hold().start_in(directory);
    let mut relay = start(super::relay::Directory::new());
    let password = add(&relay, "app", &[]);
    relay.command(&["tenant", "limit", "acme", "--messages", "40/day", "--recipients", "1000/hour"]).succeeded();
    relay.command(&["credential", "limit", "app", "--messages", "100/day"]).succeeded();
    relay.command(&["credential", "limit", "app", "--messages", "100/day,50/day"]).fails("two quotas");
    let mut sent = 0;
    // Each kill may cost the rest of a block, which is a sixteenth of the quota: three messages.
    for _ in 0..2 {
        sent += send_until_refused(&relay, &password, 7);
        relay.signal(libc::SIGKILL);
        relay.wait_end();
        relay = start(relay.take_directory());
    }
    assert_eq!(sent, 14);
    // A stop costs nothing.
    for _ in 0..3 {
        sent += send_until_refused(&relay, &password, 5);
        relay = start(relay.stop());
    }
    assert_eq!(sent, 29);
    sent += send_until_refused(&relay, &password, 100);
    if day() == begun {
        assert!((34..=40).contains(&sent), "{sent} messages of 40 were taken");
        let directory = relay.stop();
        let relay = start(directory);
        assert_eq!(send_until_refused(&relay, &password, 100), 0);
        relay.stop();
    }
}

#[test]
fn nothing_of_a_login_in_the_clear() {
    let relay = Setup::new().listener(STARTTLS).hold().start();
    let mut socket = BufReader::new(TcpStream::connect(relay.address).expect("a connection"));
    let mut say = |command: &str| {
        socket.get_mut().write_all(command.as_bytes()).expect("a command is sent");
        let mut reply = String::new();
        while reply.lines().last().is_none_or(|line| line.as_bytes().get(3) == Some(&b'-')) {
            socket.read_line(&mut reply).expect("a reply");
        }
        reply
    };
    assert!(say("").starts_with("220 "));
    let hello = say("EHLO app.example.com\r\n");
    assert!(hello.contains("STARTTLS") && !hello.contains("AUTH"), "{hello}");
    assert!(say(&format!("{}\r\n", plain("app", "secret"))).starts_with("538 5.7.11 "));
    assert!(say("MAIL FROM:<ann@origin.test>\r\n").starts_with("250 "));
    assert!(say("RCPT TO:<bob@dest.test>\r\n").starts_with("530 5.7.0 "));
    relay.stop();
}

#[test]
fn refused_logins_are_all_told_the_same() {
    let relay = Setup::new().listener(IMPLICIT).hold().start();
    let password = add(&relay, "app", &[]);
    let elsewhere = add(&relay, "elsewhere", &["--network", "192.0.2.0/24"]);
    let off = add(&relay, "off", &[]);
    relay.command(&["credential", "disable", "off"]).succeeded();
    let invalid = "535 5.7.8 Authentication credentials invalid\r\n";
    // Each login in a session of its own: a session has three attempts.
    for (login, tried, reason) in [
        ("app", "wrong", "unknown login or wrong secret"),
        ("nobody", &password, "unknown login or wrong secret"),
        ("elsewhere", &elsewhere, "the credential may not be used from this network"),
        ("off", &off, "the credential is disabled"),
    ] {
        let mut talk = Talk::with(&relay);
        talk.expect("EHLO app.example.com", "250-");
        assert_eq!(talk.say(&plain(login, tried)), invalid, "{login}");
        let event = relay.wait_log(|event| event["event"] == "login_failed" && event["login"] == login);
        assert_eq!((&event["reason"], &event["client"]), (&reason.into(), &"127.0.0.1".into()), "{event}");
    }
    let mut talk = Talk::with(&relay);
    talk.expect("EHLO app.example.com", "250-");
    let boss = format!("AUTH PLAIN {}", STANDARD.encode(format!("boss\0app\0{password}")));
    assert_eq!(talk.say(&boss), invalid);
    relay.stop();
}

#[test]
fn identities_change_under_open_sessions() {
    let relay = Setup::new().listener(IMPLICIT).hold().start();
    let password = add(&relay, "app", &["--sender", "news@own.test", "--sender", "bulk.test", "--label", "production"]);
    let mut talk = Talk::with(&relay);
    talk.expect("EHLO app.example.com", "250-");
    talk.expect(&plain("app", &password), "235 ");
    talk.expect("MAIL FROM:<boss@own.test>", "550 5.7.1 This login may not send as <boss@own.test>");
    talk.expect("MAIL FROM:<any@bulk.test>", "250 ");
    talk.expect("RSET", "250 ");
    let rotated = relay.json(&["credential", "rotate", "app", "--overlap", "0s"]);
    let newer = rotated["secret"].as_str().expect("a password").to_owned();
    // The open session goes on, a new one needs the new password.
    talk.expect("MAIL FROM:<any@bulk.test>", "250 ");
    talk.expect("RSET", "250 ");
    let mut other = Talk::with(&relay);
    other.expect("EHLO app.example.com", "250-");
    other.expect(&plain("app", &password), "535 5.7.8 ");
    other.expect(&plain("app", &newer), "235 ");
    relay.command(&["tenant", "disable", "acme"]).succeeded();
    talk.expect("MAIL FROM:<any@bulk.test>", "535 5.7.8 This login may not be used any more");
    relay.command(&["tenant", "enable", "acme"]).succeeded();
    talk.expect("MAIL FROM:<any@bulk.test>", "250 ");
    talk.expect("RSET", "250 ");
    let listed = relay.json(&["credential", "list", "--tenant", "acme"]);
    assert_eq!(listed[0]["senders"], serde_json::json!(["news@own.test", "@bulk.test"]), "{listed}");
    relay.command(&["credential", "remove", "app"]).succeeded();
    talk.expect("MAIL FROM:<any@bulk.test>", "535 5.7.8 ");
    // Another one that gets the same login is not the one that this session has proved.
    relay.command(&["tenant", "add", "other"]).succeeded();
    relay.json(&["credential", "add", "app", "--tenant", "other"]);
    talk.expect("MAIL FROM:<any@bulk.test>", "535 5.7.8 ");
    relay.command(&["credential", "remove", "app"]).succeeded();
    let finished = relay.command(&["credential", "remove", "app"]);
    assert!(finished.stderr.contains("there is no credential `app`"), "{}", finished.stderr);
    relay.stop();
}

#[test]
fn logins_outlive_a_restart_and_come_from_a_file() {
    let relay = Setup::new().listener(IMPLICIT).hold().start();
    let password = add(&relay, "app", &[]);
    let directory = relay.stop();
    let file = directory.file("logins", "# for trials\nfiled:from a file\n");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    let flag = file.to_str().expect("a path").to_owned();
    let relay = Setup::new().listener(IMPLICIT).hold().flag("--credential-file", flag).start_in(directory);
    for (login, password) in [("app", password.as_str()), ("filed", "from a file")] {
        let mut talk = Talk::with(&relay);
        talk.expect("EHLO app.example.com", "250-");
        talk.expect(&plain(login, password), "235 ");
    }
    relay.stop();
}
