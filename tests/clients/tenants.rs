//! What bounds one tenant's or login's messages, and gateways that hand in the mail of several tenants.

use super::auth::add;
use super::relay::{Relay, Setup, text};
use super::sink::Sink;
use super::talk::{Talk, plain};

const GATEWAY: &str =
    "kind = \"submission\"\ntls = \"implicit\"\ntenant_header = \"X-Tenant\"\ntenant_subaddress = true\n";

/// A session of this login, and what EHLO says in it.
fn session(relay: &Relay, login: &str, password: &str) -> (Talk, String) {
    let mut talk = Talk::tls(relay.address);
    talk.expect(&plain(login, password), "235 ");
    let hello = talk.say("EHLO client.test");
    (talk, hello)
}

/// Sends a message with this content and gives the last reply.
fn send(talk: &mut Talk, from: &str, to: &[&str], content: &str) -> String {
    let mail = talk.say(&format!("MAIL FROM:<{from}>"));
    if !mail.starts_with("250 ") {
        return mail;
    }
    for to in to {
        talk.expect(&format!("RCPT TO:<{to}>"), "250 ");
    }
    talk.expect("DATA", "354 ");
    talk.say(&format!("{content}\r\n."))
}

#[test]
fn one_message_of_a_tenant_is_bounded() {
    let relay = Setup::new().listener("kind = \"submission\"\ntls = \"implicit\"").hold().start();
    let password = add(&relay, "app", &[]);
    let (_, hello) = session(&relay, "app", &password);
    assert!(hello.contains("250-SIZE 52428800\r\n") && hello.contains("RCPTMAX=1000"), "{hello}");
    let bounds = ["--recipients-per-message", "2", "--message-size", "100KB"];
    relay.command(&[&["tenant", "limit", "acme"], &bounds[..]].concat()).succeeded();
    relay.command(&["credential", "limit", "app", "--message-size", "90KB"]).succeeded();
    let listed = relay.command(&["tenant", "list"]).succeeded().stdout;
    assert!(listed.contains("2 recipients a message, 100000 octets a message"), "{listed}");
    let mut strange = Talk::tls(relay.address);
    assert!(strange.say("EHLO client.test").contains("250-SIZE 52428800\r\n"), "strangers are told what holds for all");
    let (mut talk, hello) = session(&relay, "app", &password);
    assert!(hello.contains("250-SIZE 90000\r\n") && hello.contains("RCPTMAX=2\r\n"), "{hello}");
    talk.expect("MAIL FROM:<a@origin.test> SIZE=90001", "552 5.3.4 ");
    talk.expect("MAIL FROM:<a@origin.test> SIZE=90000", "250 ");
    talk.expect("RCPT TO:<1@dest.test>", "250 ");
    talk.expect("RCPT TO:<2@dest.test>", "250 ");
    talk.expect("RCPT TO:<3@dest.test>", "452 4.5.3 ");
    talk.expect("DATA", "354 ");
    let line = format!("{}\r\n", "x".repeat(998));
    talk.expect(&format!("From: a@origin.test\r\n\r\n{}.", line.repeat(90)), "552 5.3.4 ");
    let fits = send(&mut talk, "a@origin.test", &["1@dest.test", "2@dest.test"], &line.repeat(89));
    assert!(fits.starts_with("250 "), "{fits}");
    relay.command(&["credential", "limit", "app"]).succeeded();
    relay.command(&["tenant", "limit", "acme"]).succeeded();
    talk.expect("MAIL FROM:<a@origin.test> SIZE=90001", "250 ");
    talk.expect("RSET", "250 ");
    relay.stop();
}

#[test]
fn a_gateway_names_the_tenant_by_header_or_subaddress() {
    let sink = Sink::new();
    let relay = Setup::new().listener(GATEWAY).next_hop(sink.address).start();
    let own = add(&relay, "own", &[]);
    let gateway = add(&relay, "gateway", &["--any-tenant"]);
    for tenant in ["shop", "off"] {
        relay.command(&["tenant", "add", tenant, "--unverified", "pass"]).succeeded();
    }
    relay.command(&["tenant", "disable", "off"]).succeeded();
    relay.command(&["tenant", "limit", "shop", "--recipients-per-message", "1", "--message-size", "400KB"]).succeeded();
    let body = "From: ann@origin.test\r\nSubject: hello\r\n\r\nHello.";
    let named = |tenant: &str| format!("X-Tenant: {tenant}\r\nSubject: hello\r\nx-tenant: again\r\n{body}");
    let tenant_of = |to: &str| {
        let event = relay.wait_log(|event| event["event"] == "received" && event["to"] == to);
        text(&event, "tenant").to_owned()
    };
    let mut talk = session(&relay, "gateway", &gateway).0;
    // By header, by subaddress, both; and where nothing names one, or nothing that is a tenant.
    for (from, to, content, tenant) in [
        ("ann@origin.test", "1+tag@dest.test", named("shop"), "shop"),
        ("ann+shop@origin.test", "2@dest.test", body.to_owned(), "shop"),
        ("ann+shop+bob=dest.test@origin.test", "3@dest.test", named("acme"), "acme"),
        ("ann+list@origin.test", "4@dest.test", body.to_owned(), "acme"),
    ] {
        let reply = send(&mut talk, from, &[to], &content);
        assert!(reply.starts_with("250 "), "{to}: {reply}");
        assert_eq!(tenant_of(to), tenant, "{to}");
        let mail = sink.wait_for(to);
        assert!(mail.from.starts_with(&format!("<{from}>")), "{}", mail.from);
        assert!(!mail.text().to_lowercase().contains("x-tenant"), "{}", mail.text());
        assert!(mail.text().ends_with("\r\n\r\nHello.\r\n") && mail.text().contains("Subject: hello\r\n"));
    }
    let reply = send(&mut talk, "ann@origin.test", &["5@dest.test"], &named("off"));
    assert!(reply.starts_with("550 5.7.1 Tenant off may not submit"), "{reply}");
    let reply = send(&mut talk, "ann+off@origin.test", &["5@dest.test"], body);
    assert!(reply.starts_with("550 5.7.1 Tenant off may not submit"), "{reply}");
    let reply = send(&mut talk, "ann@origin.test", &["5@dest.test"], &named("nobody"));
    assert!(reply.starts_with("550 5.7.1 There is no tenant nobody"), "{reply}");
    // The bounds of the tenant that the header has named, also of a content that has left memory before.
    let reply = send(&mut talk, "ann@origin.test", &["5@dest.test", "6@dest.test"], &named("shop"));
    assert!(reply.starts_with("550 5.5.3 "), "{reply}");
    let long = format!("{}\r\n{}", named("shop"), "Hello, and so on, and so on.\r\n".repeat(14_000));
    let reply = send(&mut talk, "ann@origin.test", &["5@dest.test"], &long);
    assert!(reply.starts_with("552 5.3.4 "), "{reply}");
    // Another login sends as its own tenant, whatever it says; the header goes all the same.
    let mut talk = session(&relay, "own", &own).0;
    let reply = send(&mut talk, "ann+shop@origin.test", &["7@dest.test"], &named("shop"));
    assert!(reply.starts_with("250 "), "{reply}");
    assert_eq!(tenant_of("7@dest.test"), "acme");
    assert!(!sink.wait_for("7@dest.test").text().to_lowercase().contains("x-tenant"));
    relay.stop();
}

#[test]
fn headers_that_must_be_there() {
    let sink = Sink::new();
    let listener =
        "kind = \"submission\"\ntrusted = \"127.0.0.1\"\nrequired_headers = [\"Message-ID\", \"List-Unsubscribe\"]";
    let relay = Setup::new().listener(listener).next_hop(sink.address).start();
    let mut talk = Talk::clear(relay.address);
    assert!(talk.reply().starts_with("220 "));
    talk.expect("EHLO client.test", "250");
    let body = "From: ann@origin.test\r\n\r\nMessage-ID: <not-here@origin.test>";
    for (content, answer) in [
        (body.to_owned(), "550 5.6.0 The message has no Message-ID header, which must be there"),
        (format!("Message-ID: <1@origin.test>\r\n{body}"), "550 5.6.0 The message has no List-Unsubscribe header"),
        (format!("message-id: <1@origin.test>\r\nList-Unsubscribe: <https://x.test>\r\n{body}"), "250 "),
    ] {
        let reply = send(&mut talk, "ann@origin.test", &["bob@dest.test"], &content);
        assert!(reply.starts_with(answer), "{reply}");
    }
    let mail = sink.wait_for("bob@dest.test").text();
    assert!(
        mail.contains("\r\nDate: ") && mail.matches("essage-").count() == 2,
        "what is not required is added: {mail}"
    );
    relay.stop();
}
