//! What an operator does: the commands, their JSON, the printed recipe, stopping.

use super::bodies::{assert_same, message};
use super::programs::{find, run, skip};
use super::relay::{Directory, RINGPOST, Relay, Setup, free_address, text};
use super::sink::{ALL, Sink};
use super::smtplib::{mail, send, send_one};
use serde_json::json;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn the_printed_recipe_works_as_it_is_printed() {
    for name in ["curl", "swaks"] {
        if find(name).is_none() {
            return skip(&format!("{name} is not installed; apt-get install {name}"));
        }
    }
    // As in an empty checkout: the embedded default but for ports, which others may use here.
    let (directory, address, metrics) = (Directory::new(), free_address(), free_address());
    let mut command = Command::new(RINGPOST);
    command.current_dir(directory.path()).arg("serve").args(["--shards", "1"]);
    command.args(["--listen", &address.to_string(), "--metrics", &metrics.to_string()]);
    let relay = Relay::spawn(command, directory, address);
    let printed = relay.output.wait(|lines| lines.iter().any(|line| line.contains("Ctrl-C")).then(|| lines.to_vec()));
    let printed = printed.unwrap_or_else(|| panic!("no recipe: {:?}", relay.log.all()));
    let recipe: Vec<&str> = printed.iter().filter_map(|line| line.strip_prefix("  ")).collect();
    assert_eq!(recipe.len(), 3, "{printed:#?}");
    let shell = |line: &str| {
        let mut command = Command::new("sh");
        command.current_dir(relay.directory().path()).arg("-c").arg(line);
        run(command, b"").succeeded().stdout
    };
    shell(recipe[0]);
    shell(recipe[1]);
    // The outcome is shown as soon as both are delivered.
    let deadline = std::time::Instant::now() + super::PATIENCE;
    let shown = loop {
        let shown = shell(recipe[2]);
        if shown.contains("2 messages delivered to the sandbox") || std::time::Instant::now() > deadline {
            break shown;
        }
    };
    for part in ["hello", "<me@example.com>", "you@example.org", "2 messages delivered"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let mut command = Command::new("curl");
    command.args(["-sS", &format!("http://{metrics}/metrics")]);
    assert!(run(command, b"").succeeded().stdout.contains("ringpost_"));
}

#[test]
fn what_the_sandbox_took() {
    let relay = Setup::new().sections("[sandbox]\nenabled = true").start();
    let content = message("sandboxed", "Hello.\r\n.\r\n");
    let Some(id) = send_one(&relay, "ann@origin.test", &["bob@dest.test", "eve@dest.test"], &content) else { return };
    let empty = relay.json(&["sandbox", "list"]);
    assert!(empty.is_array());
    let list = relay.wait_json(&["sandbox", "list"], |list| list.as_array().is_some_and(|list| !list.is_empty()));
    assert_eq!(list[0]["id"], id.as_str());
    assert_eq!(list[0]["recipients"], json!(["bob@dest.test", "eve@dest.test"]));
    assert_eq!(list[0]["subject"], "sandboxed");
    for name in ["1", &id] {
        let shown = relay.json(&["sandbox", "show", name]);
        assert_same(text(&shown, "content").as_bytes(), &content, "shown by the sandbox");
        assert_eq!(shown["truncated"], false);
        let human = relay.command(&["sandbox", "show", name]).succeeded().stdout;
        assert!(human.contains("from       <ann@origin.test>") && human.contains("\nHello.\n.\n"), "{human}");
    }
    assert!(relay.command(&["sandbox", "list"]).succeeded().stdout.contains("1 message delivered to the sandbox"));
    assert_ne!(relay.command(&["sandbox", "show", "2"]).status.code(), Some(0));
}

/// Three messages that wait: one of another sender, one to another domain.
fn three_held(relay: &Relay) -> Option<[String; 3]> {
    let content = message("held", "Wait.\r\n");
    Some([
        send_one(relay, "ann@origin.test", &["bob@dest.test", "eve@dest.test"], &content)?,
        send_one(relay, "amy@origin.test", &["bob@dest.test"], &content)?,
        send_one(relay, "ann@origin.test", &["bob@other.test"], &content)?,
    ])
}

#[test]
fn the_queue_listed_and_acted_on() {
    let sink = Sink::with(ALL, |line| line.contains("later@").then(|| "450 4.2.0 later".into()));
    let relay = Setup::new().next_hop(sink.address).flag("--retry", "1h").start();
    let Some(id) = send_one(&relay, "ann@origin.test", &["later@dest.test", "bob@dest.test"], b"x\r\n") else { return };
    sink.wait_for("bob@dest.test");
    let waits = |state: &'static str| {
        relay.wait_json(&["queue", "show", &id], |shown| shown["recipients"][0]["state"] == state)
    };
    let shown = waits("scheduled");
    assert_eq!((&shown["id"], &shown["sender"]), (&json!(id), &json!("ann@origin.test")));
    assert_eq!((&shown["done"], &shown["recipients"][0]["attempts"]), (&json!(1), &json!(1)));
    assert!(text(&shown["recipients"][0], "why").contains("450 4.2.0"), "{shown:#}");
    assert_eq!(shown["recipients"][0]["class"], "temporary-failure", "{shown:#}");
    let human = relay.command(&["queue", "show", &id]).succeeded().stdout;
    assert!(human.contains("<later@dest.test>") && human.contains("450 4.2.0"), "{human}");
    // Again, by hand, long before it is due.
    assert_eq!(relay.json(&["queue", "retry", &id])["changed"], 1);
    relay.wait_json(&["queue", "show", &id], |shown| shown["recipients"][0]["attempts"] == 2);
    waits("scheduled");
    assert_eq!(relay.json(&["queue", "hold", "--domain", "dest.test"])["changed"], 1);
    let held = waits("held");
    assert!(text(&held["recipients"][0], "why").contains("an operator holds it; the last attempt"), "{held:#}");
    assert_eq!(relay.json(&["queue", "list", "--state", "held"])[0]["id"], id.as_str());
    assert_eq!(relay.json(&["queue", "release", &id])["changed"], 1);
    relay.wait_json(&["queue", "show", &id], |shown| shown["recipients"][0]["attempts"] == 3);
    assert_eq!(relay.json(&["queue", "delete", &id])["changed"], 1);
    relay.wait_empty();
    assert_eq!(relay.command(&["queue", "show", &id]).status.code(), Some(1));
    assert_eq!(sink.mails().len(), 1, "nobody is told of what was deleted");
    for act in ["deleted", "held", "released"] {
        relay.wait_log(|event| event["event"] == "operator" && event["act"] == act && event["id"] == id.as_str());
    }
}

#[test]
fn the_queue_of_a_relay_that_holds() {
    let sink = Sink::new();
    let relay = Setup::new().next_hop(sink.address).flag("--retry", 1).sections("").hold().start();
    let Some([first, second, third]) = three_held(&relay) else { return };
    let ids = |filter: &[&str]| -> Vec<String> {
        let list = relay.json(&[&["queue", "list"], filter].concat());
        list.as_array().expect("a list").iter().map(|message| text(message, "id").to_owned()).collect()
    };
    assert_eq!(ids(&[]), [&*first, &second, &third]);
    assert_eq!(ids(&["--limit", "2"]).len(), 2);
    let shown = relay.json(&["queue", "show", &first]);
    assert_eq!(shown["recipients"][0]["why"], "the relay was started to hold all mail", "{shown:#}");
    assert_eq!(ids(&["--domain", "other.test"]), [&*third]);
    assert_eq!(ids(&["--sender", "amy@origin.test"]), [&*second]);
    assert_eq!(ids(&["--recipient", "eve@dest.test"]), [&*first]);
    assert!(ids(&["--tenant", "nobody"]).is_empty());
    let human = relay.command(&["queue", "list"]).succeeded().stdout;
    assert!(human.contains(&first) && human.contains("<amy@origin.test>") && human.contains("3 messages"), "{human}");
    let status = relay.json(&["status"]);
    assert_eq!((&status["status"]["received"], &status["status"]["messages"]), (&json!(3), &json!(3)));
    assert_eq!(status["status"]["state"], "running");
    assert!(relay.command(&["status"]).succeeded().stdout.contains("3 messages"));
    // An act without a choice is refused, and one that finds nothing says so.
    assert_eq!(relay.command(&["queue", "delete"]).status.code(), Some(64));
    assert_eq!(relay.command(&["queue", "delete", "--domain", "none.test"]).status.code(), Some(1));
    assert_eq!(relay.json(&["queue", "delete", "--sender", "amy@origin.test"])["changed"], 1);
    assert_eq!(ids(&[]), [&*first, &third]);
    // A start without --hold delivers the rest, and what was deleted does not come back.
    let directory = relay.stop();
    let relay = Setup::new().next_hop(sink.address).flag("--retry", 1).start_in(directory);
    sink.wait(2);
    relay.wait_empty();
    let mut to: Vec<String> = sink.mails().iter().flat_map(|mail| mail.to.clone()).collect();
    to.iter_mut().for_each(|to| to.truncate(to.find('>').expect("a path") + 1));
    to.sort();
    assert_eq!(to, ["<bob@dest.test>", "<bob@other.test>", "<eve@dest.test>"]);
}

#[test]
fn sigterm_finishes_what_is_under_way() {
    let go = Arc::new(AtomicBool::new(false));
    let (waits, gate) = (Arc::new(AtomicBool::new(false)), Arc::clone(&go));
    let waiting = Arc::clone(&waits);
    let sink = Sink::with(&["PIPELINING"], move |line| {
        if line == "." {
            waiting.store(true, Ordering::SeqCst);
            let deadline = std::time::Instant::now() + super::PATIENCE;
            while !gate.load(Ordering::SeqCst) && std::time::Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
        None
    });
    let mut relay = Setup::new().next_hop(sink.address).flag("--retry", 1).start();
    let Some(id) = send_one(&relay, "ann@origin.test", &["bob@dest.test"], b"x\r\n") else { return };
    let deadline = std::time::Instant::now() + super::PATIENCE;
    while !waits.load(Ordering::SeqCst) {
        assert!(std::time::Instant::now() < deadline, "nothing is delivered");
        std::thread::yield_now();
    }
    relay.terminate();
    // It takes no more mail at once, and finishes the transaction.
    while std::net::TcpStream::connect(relay.address).is_ok() {
        assert!(std::time::Instant::now() < deadline, "it still listens");
        std::thread::yield_now();
    }
    go.store(true, Ordering::SeqCst);
    sink.wait_for("bob@dest.test");
    let status = relay.wait_end();
    assert!(status.success(), "{status}");
    relay.wait_event("delivered", &id, "bob@dest.test");
    let relay = Setup::new().next_hop(sink.address).flag("--retry", 1).start_in(relay.take_directory());
    relay.wait_empty();
    assert_eq!(sink.mails().len(), 1, "the outcome was recorded");
}

#[test]
fn an_idle_client_does_not_hold_up_the_end() {
    let relay = Setup::new().flag("--next-hop", "127.0.0.1:9").start();
    let mut idle = std::net::TcpStream::connect(relay.address).expect("a session");
    idle.set_read_timeout(Some(super::PATIENCE)).expect("a bound");
    let mut first = [0; 4];
    std::io::Read::read_exact(&mut idle, &mut first).expect("a greeting");
    relay.stop();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut idle, &mut rest).expect("the end");
    assert!(rest.contains("\r\n421 4.3.2 "), "{rest:?}");
}

#[test]
fn the_commands_say_when_nothing_runs() {
    let directory = Directory::new();
    for arguments in [&["queue", "list"] as &[&str], &["status"], &["sandbox", "list"]] {
        let mut command = Command::new(RINGPOST);
        command.args(arguments).arg("--spool").arg(directory.path());
        let finished = run(command, b"");
        assert_eq!(finished.status.code(), Some(69), "{finished:?}");
        assert!(finished.stderr.starts_with("ringpost: "), "{}", finished.stderr);
    }
}

#[test]
fn many_messages_are_listed_in_pages() {
    let relay = Setup::new().flag("--next-hop", "127.0.0.1:9").hold().start();
    let mails = (0..1500).map(|n| mail("ann@origin.test", &[&format!("r{n}@dest.test")], b"x\r\n")).collect();
    if send(&relay, mails, json!({})).is_none() {
        return;
    }
    let count = |arguments: &[&str]| relay.json(arguments).as_array().map(Vec::len);
    assert_eq!(count(&["queue", "list", "--limit", "0"]), Some(1500));
    assert_eq!(count(&["queue", "list"]), Some(1000));
    assert_eq!(relay.json(&["queue", "delete", "--all"])["changed"], 1500);
    relay.wait_empty();
}
