//! Large messages: to a file of their own, refused above the limit, and many at once within the bound of memory.

use super::mail::{Client, Destination, Ledger, content};
use super::program::Setup;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Octets that the program may take besides contents: code's data, rings, tables, threads.
const BASE: u64 = 64 << 20;

#[test]
fn a_large_message_is_taken_with_a_warning_and_delivered_whole() {
    let mut setup = Setup::new("large");
    let (ledger, destination) = (Ledger::default(), Destination::start(true));
    setup.next_hop = Some(destination.address);
    let program = setup.start();
    let id = ledger.send(&setup, "thirty", 30_000_000).expect("30 MB are taken");
    ledger.wait_delivered(&setup, &destination);
    let warned = setup.wait_line(&["warn"], &["large_message", &id]);
    assert!(warned.contains("send a link"), "{warned}");
    program.stop(&setup);
    let left = std::fs::read_dir(setup.spool_directory.join("content")).expect("the spool").count();
    assert_eq!(left, 0, "its file is removed");
}

#[test]
fn a_message_above_the_limit_is_refused_by_its_size_and_by_counting() {
    let mut setup = Setup::new("too-large");
    let (ledger, destination) = (Ledger::default(), Destination::start(true));
    setup.next_hop = Some(destination.address);
    let mut program = setup.start();
    let mut client = Client::connect(setup.listen).expect("a greeting");
    let hello = client.ask("EHLO client.example").expect("a reply");
    assert!(hello.contains("SIZE 52428800"), "{hello}");
    let reply = client.ask("MAIL FROM:<a@client.example> SIZE=60000000").expect("a reply");
    assert!(reply.starts_with("552 5.3.4 "), "{reply}");
    // A client that does not say it beforehand is heard to the end, and then told.
    let refusal = ledger.send_on(&mut client, "sixty", 60_000_000).expect_err("60 MB are too much");
    assert!(refusal.starts_with("552 5.3.4 "), "{refusal}");
    // And by chunks.
    for command in ["MAIL FROM:<a@client.example>", "RCPT TO:<b@destination.example>"] {
        assert!(client.ask(command).expect("a reply").starts_with("250"));
    }
    client.say(b"BDAT 60000000 LAST\r\n").expect("said");
    client.say(&content("chunk", 60_000_000)[..60_000_000]).expect("said");
    let reply = client.reply().expect("a reply");
    assert!(reply.starts_with("552 5.3.4 "), "{reply}");
    // The session goes on.
    ledger.send_on(&mut client, "small", 1000).expect("mail is taken");
    ledger.wait_delivered(&setup, &destination);
    program.must_run(&setup);
    program.stop(&setup);
    let left = std::fs::read_dir(setup.spool_directory.join("content")).expect("the spool").count();
    assert_eq!(left, 0, "nothing is left of what was refused");
}

#[test]
fn many_large_messages_at_once_stay_within_the_memory_given() {
    const SESSIONS: usize = 24;
    const OCTETS: usize = 8 << 20;
    const CONTENT_MEMORY: u64 = 8 << 20;
    const RETAINED: u64 = 4 << 20;
    let mut setup = Setup::new("parallel");
    let (ledger, destination) = (Ledger::default(), Destination::start(true));
    setup.next_hop = Some(destination.address);
    setup.spool.push_str("content_memory = \"8MiB\"\nretained_content = \"4MiB\"\n");
    let mut program = setup.start();
    let (most, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                most.fetch_max(program.anonymous(), Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        let senders: Vec<_> = (0..SESSIONS)
            .map(|number| {
                let (setup, ledger) = (&setup, &ledger);
                // 452 is an answer, too, while much is under way.
                scope.spawn(move || {
                    (0..200).find_map(|_| match ledger.send(setup, &format!("parallel{number}"), OCTETS) {
                        Ok(id) => Some(id),
                        Err(reply) if reply.starts_with("452 4.3.1 ") => None,
                        Err(reply) => panic!("{reply}\n{}", setup.log_end()),
                    })
                })
            })
            .collect();
        let results: Vec<_> = senders.into_iter().map(|sender| sender.join()).collect();
        let waited =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ledger.wait_delivered(&setup, &destination)));
        done.store(true, Ordering::SeqCst);
        assert!(results.iter().all(|result| matches!(result, Ok(Some(_)))), "all are taken in the end: {results:?}");
        assert!(waited.is_ok());
    });
    program.must_run(&setup);
    // Each session's pieces on the way to the disk, and each delivery's on the way out, come on top.
    let pieces = (SESSIONS as u64) * 5 * (256 << 10) + 20 * 4 * (64 << 10);
    let bound = BASE + CONTENT_MEMORY + RETAINED + pieces;
    let most = most.into_inner();
    println!("{SESSIONS} messages of {OCTETS} octets at once: at most {} MiB of {} MiB", most >> 20, bound >> 20);
    assert!(most <= bound, "{most} octets are more than {bound}");
    program.stop(&setup);
}
