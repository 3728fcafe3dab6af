//! swaks, msmtp, curl, smtp-source and `ringpost send` as clients.

use super::bodies::{assert_same, eight_bit, message, odd_messages};
use super::programs::{program, run};
use super::relay::{RINGPOST, Setup};
use super::sink::{Mail, Sink};
use std::process::Command;

/// The same text with LF alone, as files on this system have it.
fn with_lf(content: &[u8]) -> Vec<u8> {
    String::from_utf8(content.to_vec()).expect("text").replace("\r\n", "\n").into_bytes()
}

fn assert_protocol(mail: &Mail, tls: bool) {
    let text = mail.text();
    let protocol = if tls { "with ESMTPS (TLSv1.3 " } else { "with ESMTP id " };
    assert!(text.contains(protocol), "{text}");
}

#[test]
fn swaks_in_all_its_ways() {
    let sink = Sink::new();
    let relay = Setup::new().next_hop(sink.address).start();
    let ways: [(&str, &[&str]); 5] = [
        ("plain", &[]),
        ("pipelined", &["--pipeline"]),
        ("encrypted", &["--tls"]),
        ("both", &["--tls", "--pipeline"]),
        ("old", &["--protocol", "SMTP"]),
    ];
    let content = message("swaks", "Hello from swaks.\r\n.dot\r\n..two\r\n\r\nend\r\n");
    let file = relay.directory().file("swaks.eml", with_lf(&content));
    for (name, flags) in ways {
        let Some(mut command) = program("swaks") else { return };
        let to = format!("{name}-1@dest.test,{name}-2@dest.test,{name}-3@dest.test");
        command.args(["--server", "127.0.0.1", "--port", &relay.port()]).args(flags);
        command.args(["--ehlo", "swaks.test", "--from", "ann@origin.test", "--to", &to]);
        command.arg("--data").arg(format!("@{}", file.display()));
        let finished = run(command, b"").succeeded();
        assert!(finished.stdout.contains("250 2.0.0 OK: queued as "), "{}", finished.stdout);
        let arrived = sink.wait_for(&format!("{name}-1@dest.test"));
        assert_eq!(arrived.to.len(), 3, "one transaction for all: {:?}", arrived.to);
        // swaks itself adds an empty line to what it is given.
        assert_same(&arrived.content, &[content.as_slice(), b"\r\n"].concat(), name);
        if name != "old" {
            assert_protocol(&arrived, flags.contains(&"--tls"));
        }
    }
    relay.wait_empty();
    assert_eq!(sink.mails().len(), ways.len());
}

#[test]
fn msmtp_with_and_without_tls() {
    let sink = Sink::new();
    let relay = Setup::new().next_hop(sink.address).start();
    // What is no message for msmtp, which reads headers, is left out.
    let messages = odd_messages().into_iter().filter(|(name, _)| !["dot-first", "no-headers"].contains(name));
    for (name, content) in messages {
        for tls in ["off", "on"] {
            let Some(mut command) = program("msmtp") else { return };
            command.args(["--host=127.0.0.1", &format!("--port={}", relay.port()), "--from=ann@origin.test"]);
            command.args([&format!("--tls={tls}"), "--tls-starttls=on", "--tls-certcheck=off", "--timeout=50"]);
            command.args(["--set-from-header=off", "--set-date-header=off", "--set-msgid-header=off"]);
            let to = [format!("{name}-{tls}@dest.test"), format!("{name}-{tls}-too@dest.test")];
            command.args(&to);
            run(command, &with_lf(&content)).succeeded();
            let arrived = sink.wait_for(&to[0]);
            assert_eq!(arrived.to.len(), 2);
            assert_same(&arrived.content, &content, name);
            assert_protocol(&arrived, tls == "on");
        }
    }
}

#[test]
fn curl_with_and_without_tls() {
    let sink = Sink::new();
    let relay = Setup::new().next_hop(sink.address).start();
    let mut messages = odd_messages();
    messages.push(("eight-bit", eight_bit()));
    for (name, content) in messages {
        let file = relay.directory().file("curl.eml", &content);
        for flags in [&[] as &[&str], &["--ssl-reqd", "-k"]] {
            let Some(mut command) = program("curl") else { return };
            let to = format!("{name}-{}@dest.test", flags.len());
            command.arg("-sS").args(flags).arg(format!("smtp://127.0.0.1:{}/curl.test", relay.port()));
            command.args(["--mail-from", "ann@origin.test", "--mail-rcpt", &to, "--mail-rcpt", "too@dest.test"]);
            command.arg("-T").arg(&file);
            run(command, b"").succeeded();
            let arrived = sink.wait_for(&to);
            assert_eq!(arrived.to.len(), 2);
            assert_same(&arrived.content, &content, name);
            assert_protocol(&arrived, !flags.is_empty());
        }
    }
}

#[test]
fn smtp_source_over_many_sessions() {
    let sink = Sink::new();
    let relay = Setup::new().next_hop(sink.address).start();
    let Some(mut command) = program("smtp-source") else { return };
    command.args(["-s", "10", "-m", "200", "-l", "5000", "-r", "3", "-N", "-d"]);
    command.args(["-f", "ann@origin.test", "-t", "bob@dest.test"]).arg(relay.address.to_string());
    run(command, b"").succeeded();
    let mails = sink.wait(200);
    for mail in &mails {
        assert_eq!(mail.to.len(), 3, "{:?}", mail.to);
        assert!(mail.content.len() > 5000 && mail.content.ends_with(b"\r\n"));
    }
    relay.wait_empty();
    assert_eq!(sink.mails().len(), 200, "each arrives once");
}

#[test]
fn ringpost_send_in_all_its_ways() {
    let sink = Sink::new();
    let relay = Setup::new().next_hop(sink.address).start();
    let server = relay.address.to_string();
    let send = |to: &[&str], flags: &[&str], input: &[u8]| {
        let mut command = Command::new(RINGPOST);
        command.args(["send", "--server", &server, "--from", "ann@origin.test"]).args(flags);
        to.iter().for_each(|to| {
            command.args(["--to", to]);
        });
        run(command, input)
    };
    for (name, content) in odd_messages() {
        for flags in [&["--message", "-"] as &[&str], &["--message", "-", "--starttls"]] {
            let to = format!("{name}-{}@dest.test", flags.len());
            send(&[&to, "too@dest.test"], flags, &content).succeeded();
            let arrived = sink.wait_for(&to);
            assert_same(&arrived.content, &content, name);
            assert_protocol(&arrived, flags.len() == 3);
        }
    }
    send(&["subject@dest.test"], &["--subject", "Grüße", "--body", "Hallo\n.\n"], b"").succeeded();
    let text = sink.wait_for("subject@dest.test").text();
    assert!(
        text.contains("Subject: =?utf-8?B?R3LDvMOfZQ==?=\r\n") && text.contains("\r\n\r\nHallo\r\n.\r\n"),
        "{text}"
    );
    let verbose = send(&["verbose@dest.test"], &["--verbose"], b"").succeeded();
    assert!(verbose.stdout.contains("EHLO") || verbose.stderr.contains("EHLO"), "{verbose:?}");
    assert_eq!(send(&["no address"], &[], b"").status.code(), Some(64));
}

#[test]
fn ringpost_send_tells_of_refusals() {
    let sink = Sink::with(&[], |line| line.contains("nobody").then(|| "550 5.1.1 nobody here".into()));
    let send = |server: &str| {
        let mut command = Command::new(RINGPOST);
        command.args(["send", "--server", server, "--from", "", "--to", "nobody@dest.test", "--timeout", "20"]);
        run(command, b"")
    };
    let refused = send(&sink.address.to_string());
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(format!("{refused:?}").contains("550 5.1.1 nobody here"), "{refused:?}");
    let address = sink.address.to_string();
    drop(sink);
    assert_eq!(send(&address).status.code(), Some(69));
}
