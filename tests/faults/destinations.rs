//! Destinations that misbehave: the mail waits, the queue says why, and it is delivered once when they do better.

use super::mail::{Client, Destination, Ledger, Shared, content, serve, stall};
use super::program::{Setup, wait};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SHORT: &str = "[route.timeouts]\nbanner = \"2s\"\nhello = \"2s\"\nmail = \"2s\"\nrcpt = \"2s\"\ndata = \"2s\"\nblock = \
                     \"2s\"\nfinal_dot = \"2s\"\n";

type Fault = fn(&Shared, usize, TcpStream) -> io::Result<()>;

/// The first connection does `fault`, the others are as they should be. The deferral's reason has all these words.
fn first_fails(name: &str, fault: Fault, words: &[&str]) -> Destination {
    let mut setup = Setup::new(name);
    let destination = Destination::scripted(move |shared, number, stream| match number {
        0 => fault(shared, number, stream),
        _ => serve(shared, number, stream, false),
    });
    let ledger = Ledger::default();
    setup.next_hop = Some(destination.address);
    setup.route = format!("connections = 1\n{SHORT}");
    let mut program = setup.start();
    let id = ledger.send(&setup, name, 20_000).expect("mail is taken");
    ledger.wait_delivered(&setup, &destination);
    program.must_run(&setup);
    wait("the end of the message", &setup, || (setup.events("delivered").len() == 1).then_some(()));
    let log = setup.log();
    println!("{log}");
    for word in words {
        assert!(log.contains(word), "`{word}` is not in the log\n{log}");
    }
    let bad: Vec<_> = ["bounced", "expired", "dsn"].into_iter().flat_map(|event| setup.events(event)).collect();
    assert!(bad.is_empty(), "{bad:?}");
    let all_are_json = log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
    assert!(all_are_json && !log.contains('\u{1b}'), "{log}");
    assert_eq!(setup.queue_says(&["show", &id]).0, 1, "it is done");
    program.stop(&setup);
    destination
}

/// Answers each line with the next of these, then stalls.
fn recite(stream: &TcpStream, greeting: &[u8], replies: &[&[u8]]) -> io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    output.write_all(greeting)?;
    for reply in replies {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        output.write_all(reply)?;
    }
    stall(stream)
}

const GREETING: &[u8] = b"220 destination.example ESMTP\r\n";
const HELLO: &[u8] = b"250-destination.example\r\n250 8BITMIME\r\n";

#[test]
fn silence_after_the_connection() {
    first_fails("stall-greeting", |_, _, stream| stall(&stream), &["no answer in the time allowed"]);
}

#[test]
fn silence_after_the_final_dot() {
    // The destination has it and does not say so: it comes again, which SMTP cannot help. Here the first is not counted.
    first_fails(
        "stall-dot",
        |shared, number, stream| serve(shared, number, stream, true),
        &["no answer in the time allowed", "\"deferred\""],
    );
}

#[test]
fn silence_within_the_dialogue() {
    first_fails("stall-mail", |_, _, stream| recite(&stream, GREETING, &[HELLO]), &["no answer in the time allowed"]);
}

#[test]
fn not_now_as_a_greeting() {
    first_fails("busy", |_, _, stream| recite(&stream, b"421 4.3.2 too busy to talk\r\n", &[]), &["too busy to talk"]);
}

#[test]
fn garbage_as_a_greeting() {
    first_fails(
        "garbage-greeting",
        |_, _, mut stream| {
            stream.write_all(&[0x16, 3, 1, 0, 200, 0, 255, 254, b'\n', b'\r', b'x'].repeat(1000))?;
            stall(&stream)
        },
        &["destination"],
    );
}

#[test]
fn a_connection_closed_at_once() {
    first_fails(
        "closed",
        |_, _, stream| {
            drop(stream);
            Ok(())
        },
        &["closed"],
    );
}

#[test]
fn a_reply_without_end() {
    first_fails(
        "endless",
        |_, _, mut stream| {
            stream.write_all(GREETING)?;
            let lines = b"250-more and more and more of the same\r\n".repeat(1000);
            // Ends when the program has had enough.
            (0..10_000).try_for_each(|_| stream.write_all(&lines))
        },
        &["destination"],
    );
}

#[test]
fn a_line_without_end() {
    first_fails(
        "endless-line",
        |_, _, mut stream| {
            let octets = [b'2'; 65536];
            (0..10_000).try_for_each(|_| stream.write_all(&octets))
        },
        &["destination"],
    );
}

/// Closes the connection when the content has begun.
fn break_off(stream: &TcpStream) -> io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    output.write_all(GREETING)?;
    for reply in [HELLO, b"250 OK\r\n", b"250 OK\r\n", b"354 go on\r\n"] {
        input.read_line(&mut String::new())?;
        output.write_all(reply)?;
    }
    input.read_line(&mut String::new())?;
    Ok(())
}

#[test]
fn a_closed_connection_within_the_content() {
    first_fails("cut-content", |_, _, stream| break_off(&stream), &["\"deferred\""]);
}

/// A reply that tries to write lines of its own into the log.
const INJECTION: &[u8] = b"450-4.2.1 first\0\x1b[31mred\x07\x08\r\n450 4.2.1 second \xff\xfe \xe2\x80\xae\xc2\x85\
                           2026-01-01T00:00:00Z ERROR notice text=\"forged\"\r\n";

#[test]
fn control_characters_in_a_reply() {
    first_fails(
        "control",
        |_, _, stream| recite(&stream, GREETING, &[HELLO, INJECTION, b"221 bye\r\n", b"221 bye\r\n"]),
        &["4.2.1"],
    );
}

#[test]
fn control_characters_in_a_reply_in_a_log_for_people() {
    let mut setup = Setup::new("control-human");
    setup.log_format = "human";
    let destination = Destination::scripted(|shared, number, stream| match number {
        0 => recite(&stream, GREETING, &[HELLO, INJECTION, b"221 bye\r\n"]),
        _ => serve(shared, number, stream, false),
    });
    let ledger = Ledger::default();
    setup.next_hop = Some(destination.address);
    setup.route = SHORT.into();
    let program = setup.start();
    ledger.send(&setup, "control", 1000).expect("mail is taken");
    ledger.wait_delivered(&setup, &destination);
    program.stop(&setup);
    let log = std::fs::read(setup.path("log")).expect("the log");
    assert!(log.iter().all(|&octet| octet == b'\n' || octet >= b' ' && octet != 0x7f), "{}", setup.log());
    let text = String::from_utf8(log).expect("the log is UTF-8");
    assert!(!text.contains('\u{202e}') && !text.contains('\u{85}') && text.contains("4.2.1"), "{text}");
    assert!(text.lines().all(|line| line.starts_with("20")), "{text}");
    assert!(
        !text
            .lines()
            .any(|line| line.contains(" ERROR notice text=\"forged\"") && line.starts_with("2026-01-01T00:00:00Z"))
    );
}

#[test]
fn a_tls_handshake_that_fails_is_followed_by_a_connection_in_clear() {
    fn with_tls(shared: &Shared, number: usize, stream: TcpStream) -> io::Result<()> {
        let mut input = BufReader::new(stream.try_clone()?);
        let mut output = &stream;
        output.write_all(GREETING)?;
        input.read_line(&mut String::new())?;
        output.write_all(b"250-destination.example\r\n250 STARTTLS\r\n")?;
        let mut command = String::new();
        input.read_line(&mut command)?;
        shared.commands.lock().expect("no panic").push((number, command.trim_end().to_owned()));
        output.write_all(b"220 go on\r\n")?;
        output.write_all(b"this is no handshake at all\r\n")?;
        stall(&stream)
    }
    let destination = first_fails("no-tls", with_tls, &["TLS"]);
    assert_eq!(destination.commands_of(0), ["STARTTLS"]);
    let second = destination.commands_of(1);
    assert!(second.iter().any(|command| command == "DATA"), "{second:?}");
}

#[test]
fn a_dead_first_host_costs_one_connection_attempt_and_no_mail() {
    let mut setup = Setup::new("dead");
    let (ledger, destination) = (Ledger::default(), Destination::start(true));
    let dead = ringpost_load::relay::free_address().expect("a port that nobody listens on");
    setup.route = format!("next_hops = [\"{dead}\", \"{}\"]\n", destination.address);
    let program = setup.start();
    for number in 0..20 {
        ledger.send(&setup, &format!("failover{number}"), 1000).expect("mail is taken");
    }
    ledger.wait_delivered(&setup, &destination);
    program.stop(&setup);
}

/// Takes one message up to its content, then does nothing with it until the gate opens.
fn hold(shared: &Shared, number: usize, stream: &TcpStream, gate: &AtomicBool) -> io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    output.write_all(GREETING)?;
    for reply in [HELLO, b"250 OK\r\n", b"250 OK\r\n", b"354 go on\r\n"] {
        let mut line = String::new();
        input.read_line(&mut line)?;
        shared.commands.lock().expect("no panic").push((number, line.trim_end().to_owned()));
        output.write_all(reply)?;
    }
    while !gate.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    Ok(())
}

#[test]
fn a_message_that_breaks_its_connection_stops_no_other_while_connections_work() {
    let mut setup = Setup::new("poison");
    let gate = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&gate);
    let destination = Destination::scripted(move |shared, number, stream| match number {
        0 => hold(shared, number, &stream, &held),
        1 => break_off(&stream),
        _ => serve(shared, number, stream, false),
    });
    let ledger = Ledger::default();
    setup.next_hop = Some(destination.address);
    let program = setup.start();
    ledger.send(&setup, "held", 1000).expect("mail is taken");
    wait("DATA of the first", &setup, || destination.commands_of(0).contains(&"DATA".to_owned()).then_some(()));
    ledger.send(&setup, "poison", 1000).expect("mail is taken");
    wait("its deferral", &setup, || (setup.events("deferred").len() == 1).then_some(()));
    ledger.send(&setup, "next", 1000).expect("mail is taken");
    wait("the next message", &setup, || (destination.arrivals(&Ledger::address("next")) == 1).then_some(()));
    assert_eq!(setup.events("site"), Vec::<serde_json::Value>::new(), "{}", setup.log_end());
    gate.store(true, Ordering::Release);
    ledger.wait_delivered(&setup, &destination);
    program.stop(&setup);
}

#[test]
fn shards_that_share_a_distant_host_do_not_take_its_connections_from_each_other_for_ever() {
    let mut setup = Setup::new("distant");
    setup.top = "shards = 2\nhostname = \"relay.example\"\n".into();
    let destination = Destination::start(true);
    let (ledger, stop) = (Ledger::default(), Arc::new(AtomicBool::new(false)));
    let listener = ringpost_load::engine::listen("127.0.0.1:0".parse().expect("an address"), false).expect("a port");
    setup.next_hop = Some(listener.address);
    let proxy = {
        let (to, stop) = (destination.address, Arc::clone(&stop));
        let round_trip = Duration::from_millis(40);
        std::thread::spawn(move || ringpost_load::delay::run(listener, to, round_trip, &Arc::default(), &stop))
    };
    setup.route = "connections = 4\n".into();
    let program = setup.start();
    for number in 0..60 {
        ledger.send(&setup, &format!("distant{number}"), 1000).expect("mail is taken");
    }
    ledger.wait_delivered(&setup, &destination);
    program.stop(&setup);
    stop.store(true, Ordering::Release);
    proxy.join().expect("no panic").expect("the proxy works");
    let connections = destination.connections();
    assert!(connections <= 12, "{connections} connections for a limit of four");
}

#[test]
fn a_site_gets_room_from_one_that_has_no_work() {
    let mut setup = Setup::new("room");
    let (one, other) = (Destination::start(true), Destination::start(true));
    setup.next_hop = Some(one.address);
    setup.limits.push_str("outgoing = 1\n");
    setup.route = format!(
        "domains = \"destination.example\"\nidle_timeout = \"10m\"\n[[route]]\nname = \"other\"\nnext_hops = \"{}\"\n\
         idle_timeout = \"10m\"\n",
        other.address
    );
    let program = setup.start();
    let ledger = Ledger::default();
    let mut client = Client::connect(setup.listen).expect("the relay greets");
    client.ask("EHLO client.example").expect("it answers");
    for round in 1..4 {
        ledger.send_on(&mut client, &format!("room{round}"), 1000).expect("mail is taken");
        ledger.wait_delivered(&setup, &one);
        let address = format!("r{round}@other.example");
        let reply = client.message(&address, &content("other", 1000)).expect("an answer");
        assert!(reply.starts_with("250"), "{reply}");
        wait("its delivery", &setup, || (other.arrivals(&address) == 1).then_some(()));
    }
    assert_eq!((one.connections(), other.connections()), (3, 3));
    program.stop(&setup);
}
