//! Postfix on either side: as the client that relays through us, as the destination we relay to, and its smtp-source
//! and smtp-sink.

use super::bodies::{assert_same, eight_bit, message, odd_messages};
use super::postfix::{NOBODY, Postfix, possible};
use super::programs::{kill_group, program, run, stop_with_parent};
use super::relay::{Directory, Setup, free_address};
use super::sink::Sink;
use super::smtplib::{mail, send, send_one};
use serde_json::json;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Messages that Postfix passes on unchanged: it ends headers where a line is none.
fn plain_messages() -> Vec<(&'static str, Vec<u8>)> {
    odd_messages().into_iter().filter(|(name, _)| !["dot-first", "no-headers", "folded"].contains(name)).collect()
}

/// Sends by `ringpost send`.
fn submit(server: &str, to: &[&str], content: &[u8]) {
    let mut command = Command::new(super::relay::RINGPOST);
    command.args(["send", "--server", server, "--from", "ann@origin.test", "--message", "-"]);
    to.iter().for_each(|to| {
        command.args(["--to", to]);
    });
    run(command, content).succeeded();
}

#[test]
fn postfix_relays_through_us() {
    if !possible() {
        return;
    }
    let sink = Sink::new();
    let relay = Setup::new().next_hop(sink.address).start();
    for (way, line) in [("plain", "smtp_tls_security_level = none"), ("tls", "smtp_tls_security_level = encrypt")] {
        let relayhost = format!("relayhost = [127.0.0.1]:{}", relay.address.port());
        let postfix = Postfix::start(&[&relayhost, line]);
        for (name, content) in plain_messages() {
            let to = format!("{name}-{way}@dest.test");
            submit(&postfix.address.to_string(), &[&to, "too@dest.test"], &content);
            let arrived = sink.wait_for(&to);
            let trace = assert_same(&arrived.content, &content, name);
            assert!(trace.contains("from postfix.test ([127.0.0.1])"), "{trace}");
            assert!(trace.contains(if way == "tls" { "with ESMTPS (TLSv1.3" } else { "with ESMTP id" }), "{trace}");
            assert_eq!(arrived.to.len(), 2, "{:?}", arrived.to);
        }
    }
}

#[test]
fn we_relay_through_postfix() {
    if !possible() {
        return;
    }
    let sink = Sink::new();
    let relayhost = format!("relayhost = [127.0.0.1]:{}", sink.address.port());
    let postfix = Postfix::start(&[&relayhost]);
    let relay = Setup::new().next_hop(postfix.address).start();
    for (name, content) in plain_messages() {
        let to = format!("{name}@dest.test");
        let Some(id) = send_one(&relay, "ann@origin.test", &[&to, "too@dest.test"], &content) else { return };
        let arrived = sink.wait_for(&to);
        let trace = assert_same(&arrived.content, &content, name);
        assert_eq!(trace.matches("Received: ").count(), 2, "{trace}");
        relay.wait_event("delivered", &id, &to);
    }
    // What the sender wants to be told of goes along, and 8-bit and international mail.
    let mut asked = mail("ann@origin.test", &["dsn@dest.test"], &eight_bit());
    asked["mail_options"] = json!(["BODY=8BITMIME", "RET=HDRS", "ENVID=QQ314"]);
    asked["rcpt_options"] = json!(["NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;dsn+2Bx@origin.test"]);
    let mut international = mail("jürgen@grün.test", &["用户@例子.test"], "Subject: ü\r\n\r\nü\r\n".as_bytes());
    international["mail_options"] = json!(["SMTPUTF8", "BODY=8BITMIME"]);
    send(&relay, vec![asked, international], json!({}));
    let arrived = sink.wait_for("dsn@dest.test");
    assert_same(&arrived.content, &eight_bit(), "8-bit through Postfix");
    for part in [" RET=HDRS", " ENVID=QQ314"] {
        assert!(arrived.from.contains(part), "{part}: {}", arrived.from);
    }
    for part in [" NOTIFY=SUCCESS,DELAY", " ORCPT=rfc822;dsn+2Bx@origin.test"] {
        assert!(arrived.to[0].contains(part), "{part}: {:?}", arrived.to);
    }
    assert_same(&sink.wait_for("用户@例子.test").content, "Subject: ü\r\n\r\nü\r\n".as_bytes(), "SMTPUTF8");
    assert!(postfix.log().contains("postfix/smtpd"), "{}", postfix.log());
    relay.wait_empty();
}

#[test]
fn we_deliver_to_mailboxes_of_postfix() {
    if !possible() {
        return;
    }
    let directory = "virtual_mailbox_domains = dest.test";
    let owner = format!("virtual_uid_maps = static:{NOBODY}\nvirtual_gid_maps = static:{NOBODY}");
    let mailbox = "virtual_mailbox_base = $queue_directory/../mail\nvirtual_mailbox_maps = inline:{bob@dest.test=all/}";
    for chunking in [true, false] {
        let discarded = if chunking { "" } else { "smtpd_discard_ehlo_keywords = chunking, silent-discard" };
        let mut postfix = Postfix::start(&[directory, &owner, mailbox, discarded]);
        let relay = Setup::new().next_hop(postfix.address).start();
        let messages = plain_messages();
        for (name, content) in &messages {
            let Some(id) = send_one(&relay, "ann@origin.test", &["bob@dest.test"], content) else { return };
            relay.wait_event("delivered", &id, "bob@dest.test");
            assert!(!name.is_empty());
        }
        postfix.wait_until("all is delivered", |postfix| postfix.mailbox().len() >= messages.len());
        let box_ = postfix.mailbox();
        assert_eq!(box_.len(), messages.len());
        for (name, content) in &messages {
            let lines = String::from_utf8(content.clone()).expect("text").replace("\r\n", "\n").into_bytes();
            let arrived = box_.iter().find(|arrived| arrived.ends_with(&lines));
            assert_same(arrived.unwrap_or_else(|| panic!("{name} did not arrive")), &lines, name);
        }
        // A mailbox that is not there: Postfix refuses it, and the report comes back the same way.
        let id = send_one(&relay, "bob@dest.test", &["nobody@dest.test"], b"Subject: x\r\n\r\nx\r\n").expect("Python");
        relay.wait_event("bounced", &id, "nobody@dest.test");
        postfix.wait_until("the report is there", |postfix| postfix.mailbox().len() > messages.len());
        let report = postfix.mailbox().into_iter().map(|mail| String::from_utf8_lossy(&mail).into_owned());
        let report = report.into_iter().find(|mail| mail.contains("report-type=delivery-status")).expect("a report");
        assert!(report.contains("Status: 5.1.1") && report.contains("User unknown"), "{report}");
    }
}

/// Postfix's smtp-sink, with what it took in files; it is ended when dropped.
struct SmtpSink {
    child: Child,
    address: String,
    directory: Directory,
}

impl SmtpSink {
    fn start(flags: &[&str]) -> Option<SmtpSink> {
        let mut command = program("smtp-sink")?;
        let directory = Directory::below(&std::env::temp_dir());
        std::os::unix::fs::chown(directory.path(), Some(NOBODY), None).expect("an owner");
        let address = free_address().to_string();
        // SAFETY: it only asks.
        if unsafe { libc::geteuid() } == 0 {
            command.args(["-u", "nobody"]);
        }
        command.args(flags).arg("-R").arg(directory.path()).args(["-d", "mail."]).arg(&address).arg("100");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).process_group(0);
        stop_with_parent(&mut command);
        let child = command.spawn().expect("smtp-sink starts");
        let sink = SmtpSink { child, address, directory };
        let deadline = std::time::Instant::now() + super::PATIENCE;
        while std::net::TcpStream::connect(&sink.address).is_err() {
            assert!(std::time::Instant::now() < deadline, "smtp-sink does not listen");
            std::thread::yield_now();
        }
        Some(sink)
    }

    fn mails(&self) -> Vec<String> {
        let files = std::fs::read_dir(Path::new(self.directory.path())).expect("a directory").flatten();
        files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect()
    }
}

impl Drop for SmtpSink {
    fn drop(&mut self) {
        kill_group(&mut self.child);
    }
}

#[test]
fn from_smtp_source_to_smtp_sink() {
    for flags in [&[] as &[&str], &["-p"], &["-8", "-e"]] {
        let Some(sink) = SmtpSink::start(flags) else { return };
        let relay = Setup::new().flag("--next-hop", &sink.address).start();
        let mut command = program("smtp-source").expect("the same package");
        command.args(["-s", "5", "-m", "100", "-l", "3000", "-N", "-f", "ann@origin.test", "-t", "bob@dest.test"]);
        run(command_to(command, &relay.address.to_string()), b"").succeeded();
        relay.wait_empty();
        let mails: Vec<String> = sink.mails().into_iter().filter(|mail| mail.contains("Received: ")).collect();
        assert_eq!(mails.len(), 100, "{flags:?}");
        // Each has another recipient, and each one is there.
        let one = mails.iter().find(|mail| mail.contains("for <")).expect("a recipient");
        assert!(one.contains("ann@origin.test"), "{one}");
    }
    // Byte for byte, in smtp-sink's own form: LF, behind headers that tell of the envelope.
    let Some(sink) = SmtpSink::start(&[]) else { return };
    let relay = Setup::new().flag("--next-hop", &sink.address).start();
    let content = message("sink", ".\r\n..\r\nend\r\n");
    submit(&relay.address.to_string(), &["bob@dest.test"], &content);
    relay.wait_empty();
    let lines = String::from_utf8(content).expect("text").replace("\r\n", "\n");
    let mails = sink.mails();
    assert!(mails.iter().any(|mail| mail.trim_end().ends_with(lines.trim_end())), "{mails:?}");
}

fn command_to(mut command: Command, address: &str) -> Command {
    command.arg(address);
    command
}
