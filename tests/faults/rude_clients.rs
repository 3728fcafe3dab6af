//! Clients that misbehave: slow, noisy, endless, deaf. Each is answered or cut by its bound, and others are served.

use super::mail::{Client, Destination, Ledger};
use super::program::{PATIENCE, Program, Setup};
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

/// The limits of time in these tests.
const SHORT: &str = "command_timeout = \"2s\"\ndata_timeout = \"2s\"\nmessage_timeout = \"6s\"\n";

fn start(name: &str, limits: &str) -> (Setup, Program, Ledger, Destination) {
    let mut setup = Setup::new(name);
    let (ledger, destination) = (Ledger::default(), Destination::start(true));
    setup.next_hop = Some(destination.address);
    setup.limits.push_str(limits);
    let program = setup.start();
    (setup, program, ledger, destination)
}

/// The program still takes and delivers mail.
fn well((setup, mut program, ledger, destination): (Setup, Program, Ledger, Destination)) {
    program.must_run(&setup);
    ledger.send(&setup, "well", 1000).expect("mail is taken");
    ledger.wait_delivered(&setup, &destination);
    program.stop(&setup);
}

fn greeted(setup: &Setup) -> Client {
    let mut client = Client::connect(setup.listen).expect("a greeting");
    client.ask("EHLO client.example").expect("a reply");
    client
}

/// Says the text over and over, an octet at a time, until the other side ends it.
fn drip(mut client: Client, text: &[u8], every: Duration) -> (String, Duration) {
    let began = Instant::now();
    for octet in text.iter().cycle() {
        assert!(began.elapsed() < PATIENCE, "it is never cut");
        client.stream().set_read_timeout(Some(every)).expect("a limit");
        if client.say(&[*octet]).is_err() {
            break;
        }
        match client.reply() {
            Ok(reply) => return (reply, began.elapsed()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    (String::new(), began.elapsed())
}

#[test]
fn a_client_that_sends_an_octet_at_a_time_is_cut() {
    let all = start("slow", SHORT);
    let setup = &all.0;
    // Within a command: octets do not count, only whole lines do.
    let (reply, took) = drip(greeted(setup), b"N", Duration::from_millis(200));
    assert!(reply.starts_with("421 4.4.2 "), "{reply:?} after {took:?}");
    // Before anything.
    let mut silent = Client::connect(setup.listen).expect("a greeting");
    assert!(silent.read_to_end().starts_with("421 4.4.2 "));
    // Within content: each block comes in time, the whole message never does.
    let mut client = greeted(setup);
    for command in ["MAIL FROM:<a@client.example>", "RCPT TO:<b@destination.example>", "DATA"] {
        client.ask(command).expect("a reply");
    }
    let (reply, took) = drip(client, b"word word\r\n", Duration::from_millis(200));
    assert!(reply.starts_with("421 4.4.2 "), "{reply:?} after {took:?}");
    assert!(took >= Duration::from_secs(2), "{took:?}");
    well(all);
}

#[test]
fn long_lines_are_refused_and_the_session_goes_on() {
    let all = start("long", "");
    let mut client = greeted(&all.0);
    let long = vec![b'x'; 3 << 20];
    client.say(b"NOOP ").expect("said");
    client.say(&long).expect("said");
    let reply = client.ask("").expect("a reply");
    assert!(reply.starts_with("500 5.5.2 "), "{reply}");
    assert!(client.ask("NOOP").expect("a reply").starts_with("250 "));
    // A line of content may have any length.
    let content = [b"X-Fault: wide\r\nSubject: wide\r\n\r\n", &long[..1 << 19], b"\r\n"].concat();
    all.2.send_content(&mut client, "wide", &content).expect("mail is taken");
    well(all);
}

#[test]
fn pipelined_garbage_ends_the_session_after_some_errors() {
    let all = start("garbage", "");
    let mut client = greeted(&all.0);
    let mut random = ringpost_load::random::Random::part(7, 1);
    for _ in 0..200 {
        let garbage: Vec<u8> = (0..8192).map(|_| random.below(256) as u8).chain(*b"\r\n").collect();
        if client.say(&garbage).is_err() {
            break;
        }
    }
    let said = client.read_to_end();
    assert!(said.lines().count() <= 30, "{said}");
    assert!(said.lines().all(|line| line.starts_with('5') || line.starts_with("421 ")), "{said}");
    // Nothing of it can disturb the log.
    assert!(all.0.log().lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    well(all);
}

#[test]
fn thousands_of_rsets_are_answered_each() {
    const COMMANDS: usize = 20_000;
    let all = start("rset", "");
    let mut client = greeted(&all.0);
    let mut writer = client.stream().try_clone().expect("a handle");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(&b"MAIL FROM:<a@client.example>\r\nRSET\r\n".repeat(COMMANDS / 2)).expect("said")
        });
        for _ in 0..COMMANDS {
            let reply = client.reply().expect("a reply");
            assert!(reply.starts_with("250 "), "{reply}");
        }
    });
    assert!(client.ask("QUIT").expect("a reply").starts_with("221 "));
    well(all);
}

#[test]
fn the_number_of_commands_is_bounded() {
    let all = start("commands", "commands = 100\n");
    let mut client = greeted(&all.0);
    let said = (0..200).map_while(|_| client.ask("NOOP").ok()).collect::<Vec<_>>();
    assert!(said.len() <= 101 && said.last().is_some_and(|last| last.starts_with("421 ")), "{said:?}");
    well(all);
}

#[test]
fn a_client_that_never_reads_costs_little_and_is_closed() {
    const CLIENTS: usize = 4;
    const OCTETS: usize = 32 << 20;
    let all = start("deaf", SHORT);
    let (setup, program) = (&all.0, &all.1);
    let before = program.anonymous();
    let block = b"HELP\r\n".repeat(10_000);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let block = &block;
            scope.spawn(move || {
                let mut client = Client::connect(setup.listen).expect("a greeting");
                let began = Instant::now();
                let mut sent = 0;
                // Ends by an error when the program has closed it; a write that finds no room waits at most a minute.
                while client.say(block).is_ok() {
                    sent += block.len();
                    assert!(sent < OCTETS && began.elapsed() < PATIENCE, "it reads {sent} octets and never answers");
                }
                assert!(began.elapsed() < Duration::from_secs(55), "it is closed by its limit");
            });
        }
    });
    let after = program.anonymous();
    let grown = after.saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} octets for {CLIENTS} clients");
    well(all);
}
