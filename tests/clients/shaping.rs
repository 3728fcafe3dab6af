//! Limits over several sites, and limits that follow replies, on the real program.

use super::dns::NameServer;
use super::relay::{Directory, Relay, Setup, text};
use super::sink::{ALL, Sink};
use super::smtplib::{mail, send, send_one};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A relay that finds the hosts of `domains`, each a site of its own, at this sink, with these words about them.
fn relay(names: &NameServer, sink: &Sink, directory: &Directory, shaping: &str) -> Relay {
    let file = directory.file("shaping.toml", shaping);
    let setup = Setup::new().flag("--resolver", names.address).flag("--delivery-port", sink.address.port());
    setup.sections(&format!("[shaping]\nfiles = {:?}", file.display().to_string())).start()
}

fn names(domains: &[&str]) -> NameServer {
    domains.iter().fold(NameServer::new(), |names, domain| {
        let host = format!("{domain}.hosts.test");
        names.mx(&format!("{domain}.test"), 10, &host).a(&host, [127, 0, 0, 1])
    })
}

#[test]
fn sites_under_one_limit_take_turns_and_never_pass_it() {
    const DOMAINS: [&str; 4] = ["one", "two", "three", "four"];
    const MESSAGES: usize = 3;
    // Sessions between EHLO and QUIT, now and at the most. QUIT is counted before it is answered.
    let open = Arc::new(Mutex::new((0, 0)));
    let counted = Arc::clone(&open);
    let sink = Sink::with(ALL, move |line| {
        let (now, most) = &mut *counted.lock().expect("a count");
        match line.get(..4).unwrap_or_default() {
            "EHLO" => *now += 1,
            "QUIT" => *now -= 1,
            _ => {}
        }
        *most = (*most).max(*now);
        None
    });
    let (names, directory) = (names(&DOMAINS), Directory::new());
    // Who keeps a connection without work, although others wait, keeps it for longer than the test has patience.
    let shaping = "[provider.all]\nmx = \".hosts.test\"\nidle_timeout = \"1h\"\ntotal = { connections = 1 }\n";
    let relay = relay(&names, &sink, &directory, shaping);
    let mails = (0..MESSAGES * DOMAINS.len())
        .map(|number| {
            let to = format!("r{number}@{}.test", DOMAINS[number % DOMAINS.len()]);
            mail("ann@origin.test", &[&to], b"Subject: x\r\n\r\nx\r\n")
        })
        .collect();
    if send(&relay, mails, json!({})).is_none() {
        return;
    }
    assert_eq!(sink.wait(MESSAGES * DOMAINS.len()).len(), MESSAGES * DOMAINS.len());
    relay.wait_empty();
    assert_eq!(open.lock().expect("a count").1, 1, "connections at a time");
    assert!(sink.connections() >= DOMAINS.len(), "each domain has a host of its own");
    relay.stop();
}

#[test]
fn a_destination_that_says_that_it_is_too_much_is_slowed_down() {
    let said = AtomicBool::new(false);
    let sink = Sink::with(ALL, move |line| {
        let complains = line.starts_with("MAIL") && !said.swap(true, Ordering::SeqCst);
        complains.then(|| "421 4.7.0 Too many concurrent SMTP connections from your host".to_owned())
    });
    let (names, directory) = (names(&["one"]), Directory::new());
    let relay = relay(&names, &sink, &directory, "[default]\nconnections = 5\n");
    if send_one(&relay, "ann@origin.test", &["bob@one.test"], b"Subject: x\r\n\r\nx\r\n").is_none() {
        return;
    }
    let slowed = relay.wait_log(|event| text(event, "event") == "site" && text(event, "state").contains("slowed down"));
    let state = text(&slowed, "state");
    assert!(state.contains("to 1 of 5 connections") && state.contains("421 4.7.0 Too many"), "{state}");
    relay.stop();
}
