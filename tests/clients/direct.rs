//! Delivery to the domains' own mail hosts, found by a name server of the tests' own.

use super::bodies::{assert_same, message};
use super::dns::NameServer;
use super::relay::{Relay, Setup, text};
use super::sink::{ALL, Sink};
use super::smtplib::{mail, send, send_one};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};

/// Destinations on one port of several addresses of loopback, and one for reports to the sender: 127.0.0.1.
fn hosts(last_octets: &[u8]) -> Vec<Sink> {
    for _ in 0..50 {
        let first = Sink::new();
        let port = first.address.port();
        let taken = |&octet: &u8| std::net::TcpListener::bind((Ipv4Addr::new(127, 0, 0, octet), port)).is_err();
        if last_octets.iter().any(taken) {
            continue;
        }
        let others = last_octets.iter().map(|&octet| {
            let address: IpAddr = Ipv4Addr::new(127, 0, 0, octet).into();
            Sink::on((address, port), ALL, |_| None)
        });
        return std::iter::once(first).chain(others.collect::<Vec<_>>()).collect();
    }
    panic!("no port is free on all addresses");
}

/// A relay that asks this name server, in which the sender's domain leads to the first host.
fn relay(names: &NameServer, first: &Sink) -> Relay {
    let setup = Setup::new().flag("--resolver", names.address).flag("--delivery-port", first.address.port());
    setup.flag("--retry", 1).start()
}

fn names() -> NameServer {
    NameServer::new().mx("origin.test", 10, "mx.origin.test").a("mx.origin.test", [127, 0, 0, 1])
}

#[test]
fn the_preferred_host_first_and_then_the_others() {
    let hosts = hosts(&[11, 12]);
    let names = names()
        .mx("dest.test", 20, "second.dest.test")
        .mx("dest.test", 10, "first.dest.test")
        .a("first.dest.test", [127, 0, 0, 11])
        .a("second.dest.test", [127, 0, 0, 12]);
    let relay = relay(&names, &hosts[0]);
    let content = message("preferred", "By the first.\r\n");
    if send_one(&relay, "ann@origin.test", &["bob@DEST.test"], &content).is_none() {
        return;
    }
    assert_same(&hosts[1].wait_for("bob@DEST.test").content, &content, "the preferred host");
    hosts[1].close();
    let id = send_one(&relay, "ann@origin.test", &["eve@dest.test"], &content).expect("Python is there");
    assert_same(&hosts[2].wait_for("eve@dest.test").content, &content, "the other host");
    let delivered = relay.wait_event("delivered", &id, "eve@dest.test");
    assert!(text(&delivered, "remote").contains("second.dest.test"), "{delivered}");
    assert_eq!(hosts[1].mails().len(), 1);
}

#[test]
fn a_host_without_mx_and_one_behind_an_alias() {
    let hosts = hosts(&[13, 14]);
    let names = names()
        .a("implicit.test", [127, 0, 0, 13])
        .cname("alias.test", "real.test")
        .mx("real.test", 10, "mx.real.test")
        .cname("mx.real.test", "host.real.test")
        .a("host.real.test", [127, 0, 0, 14]);
    let relay = relay(&names, &hosts[0]);
    for (to, host) in [("bob@implicit.test", &hosts[1]), ("bob@alias.test", &hosts[2])] {
        if send_one(&relay, "ann@origin.test", &[to], b"x\r\n").is_none() {
            return;
        }
        host.wait_for(to);
    }
}

#[test]
fn domains_that_take_no_mail_or_are_not_there() {
    let hosts = hosts(&[]);
    let names = names().mx("null.test", 0, "").mx("empty.test", 10, "nowhere.empty.test");
    let relay = relay(&names, &hosts[0]);
    for (to, reply, status) in [
        ("bob@null.test", "556 5.1.10 ", "Status: 5.1.10"),
        ("bob@missing.test", "550 5.1.2 ", "Status: 5.1.2"),
        ("bob@empty.test", "550 5.1.2 ", "Status: 5.1.2"),
    ] {
        let Some(id) = send_one(&relay, "ann@origin.test", &[to], b"Subject: x\r\n\r\nx\r\n") else { return };
        let bounced = relay.wait_event("bounced", &id, to);
        assert!(text(&bounced, "reply").starts_with(reply), "{bounced}");
        relay.wait_empty();
        let reports = hosts[0].mails();
        let report = reports.last().expect("a report").text();
        assert!(report.contains(status) && report.contains(&format!("Final-Recipient: rfc822; {to}")), "{report}");
    }
    assert_eq!(hosts[0].mails().len(), 3);
}

#[test]
fn an_address_in_brackets_is_where_it_goes() {
    let hosts = hosts(&[15]);
    let names = names();
    let relay = relay(&names, &hosts[0]);
    if send_one(&relay, "ann@origin.test", &["bob@[127.0.0.15]"], b"x\r\n").is_none() {
        return;
    }
    hosts[1].wait_for("bob@[127.0.0.15]");
    relay.wait_empty();
    assert!(hosts[0].mails().is_empty());
}

#[test]
fn nothing_bounces_while_dns_is_down() {
    let hosts = hosts(&[16]);
    let names = names().mx("dest.test", 10, "mx.dest.test").a("mx.dest.test", [127, 0, 0, 16]);
    names.fail("dest.test", true);
    let relay = relay(&names, &hosts[0]);
    let Some(id) = send_one(&relay, "ann@origin.test", &["bob@dest.test"], b"x\r\n") else { return };
    let deferred = relay.wait_event("deferred", &id, "bob@dest.test");
    assert!(text(&deferred, "reply").starts_with("451 4.4.3 "), "{deferred}");
    let why = relay.json(&["queue", "show", &id])["recipients"][0]["why"].to_string();
    assert!(why.contains("451 4.4.3") && why.contains("DNS"), "{why}");
    names.fail("dest.test", false);
    hosts[1].wait_for("bob@dest.test");
    relay.wait_empty();
    assert!(hosts[0].mails().is_empty(), "nobody was told of anything");
}

#[test]
fn a_long_answer_is_asked_for_by_tcp() {
    let hosts = hosts(&[17]);
    let mut names = names().mx("dest.test", 10, "mx.dest.test").a("mx.dest.test", [127, 0, 0, 17]);
    for n in 0..60 {
        names = names.mx("dest.test", 20 + n, &format!("host-{n}.with-a-long-name.dest.test"));
    }
    let relay = relay(&names, &hosts[0]);
    if send_one(&relay, "ann@origin.test", &["bob@dest.test"], b"x\r\n").is_none() {
        return;
    }
    hosts[1].wait_for("bob@dest.test");
    assert!(names.was_asked_by_tcp("dest.test"));
}

#[test]
fn a_domain_in_another_script() {
    let hosts = hosts(&[18]);
    let names = names().mx("xn--fsqu00a.test", 10, "mx.dest.test").a("mx.dest.test", [127, 0, 0, 18]);
    let relay = relay(&names, &hosts[0]);
    let mut international = mail("ann@origin.test", &["bob@例子.test"], b"x\r\n");
    international["mail_options"] = json!(["SMTPUTF8"]);
    if send(&relay, vec![international], json!({})).is_none() {
        return;
    }
    hosts[1].wait_for("bob@例子.test");
    send_one(&relay, "ann@origin.test", &["eve@xn--fsqu00a.test"], b"x\r\n");
    hosts[1].wait_for("eve@xn--fsqu00a.test");
}

#[test]
fn domains_with_the_same_hosts_are_one_site() {
    let hosts = hosts(&[19]);
    let mut names = names().a("mx.provider.test", [127, 0, 0, 19]);
    for n in 0..20 {
        names = names.mx(&format!("d{n}.test"), 10, "mx.provider.test");
    }
    let relay = relay(&names, &hosts[0]);
    let mails = (0..20).map(|n| mail("ann@origin.test", &[&format!("bob@d{n}.test")], b"x\r\n")).collect();
    if send(&relay, mails, json!({})).is_none() {
        return;
    }
    hosts[1].wait(20);
    relay.wait_empty();
    let status = relay.json(&["status"]);
    let sites = status["sites"].as_array().expect("sites");
    assert_eq!(sites.len(), 1, "{status:#}");
}
