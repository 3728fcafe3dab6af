//! A message's commands behind the content of the one before: used where a host takes them, given up where it does not, and
//! never at the price of a message.

use super::mail::{Destination, Ledger, serve, serve_with};
use super::program::{Setup, wait};
use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Messages in all.
const MESSAGES: usize = 40;

/// After so many ordinary ones a host is tried.
const ORDINARY: usize = 8;

/// So many at the end do not stand behind another: there is not enough work left.
const LAST: usize = 3;

/// What the first connection does with each content, which it counts.
type AtDot = fn(usize, &mut BufReader<TcpStream>) -> io::Result<bool>;

/// All messages wait for a host whose first connection treats contents so; all must arrive once. Gives the end of the
/// relay's log and how many connections there were.
fn deliver(name: &str, at_dot: AtDot) -> (String, usize) {
    let mut setup = Setup::new(name);
    let gate = Arc::new(AtomicBool::new(false));
    let closed = Arc::clone(&gate);
    let destination = Destination::scripted(move |shared, number, stream| {
        while !closed.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        match number {
            0 => serve_with(shared, number, stream, &mut |count, input| at_dot(count, input)),
            _ => serve(shared, number, stream, false),
        }
    });
    let ledger = Ledger::default();
    setup.next_hop = Some(destination.address);
    setup.route = "connections = 1\n[route.timeouts]\nmail = \"2s\"\n".into();
    let program = setup.start();
    for number in 0..MESSAGES {
        ledger.send(&setup, &format!("{name}{number}"), 1000).expect("mail is taken");
    }
    gate.store(true, Ordering::Release);
    ledger.wait_delivered(&setup, &destination);
    wait("the end of all messages", &setup, || (setup.events("delivered").len() == MESSAGES).then_some(()));
    assert_eq!(setup.events("deferred"), Vec::<serde_json::Value>::new());
    let log = setup.log();
    program.stop(&setup);
    (log, destination.connections())
}

#[test]
fn a_host_that_takes_them_is_sent_them() {
    // Once it has passed the trial, it answers to no content before the next message's commands have come: who waits for its
    // answer would wait for ever.
    let (log, connections) = deliver("ahead", |count, input| {
        if count > ORDINARY + 2 && count < MESSAGES - LAST {
            input.fill_buf()?;
        }
        Ok(true)
    });
    assert_eq!(connections, 1, "{log}");
}

#[test]
fn a_host_that_throws_them_away_is_found_out() {
    let (log, connections) = deliver("ahead-thrown-away", |count, input| {
        if count == ORDINARY + 1 {
            let thrown_away = input.fill_buf()?.len();
            input.consume(thrown_away);
        }
        Ok(true)
    });
    assert!(log.contains("does not take a message's commands behind another's content"), "{log}");
    assert_eq!(connections, 2, "{log}");
}

#[test]
fn a_host_that_loses_the_first_of_them_is_found_out() {
    let (log, connections) = deliver("ahead-lost", |count, input| {
        if count == ORDINARY + 1 {
            input.read_line(&mut String::new())?;
        }
        Ok(true)
    });
    assert!(log.contains("does not take a message's commands behind another's content"), "{log}");
    assert_eq!(connections, 2, "{log}");
}
