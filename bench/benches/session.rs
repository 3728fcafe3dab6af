//! What the whole protocol costs on the side that accepts: the bytes of one transaction go in, replies come out, and
//! the owner says yes to everything and keeps nothing. Run with `cargo bench -p ringpost-bench --bench session`.
//!
//! Bound: 2.5 us per message of 1 KB, a twentieth of the 50 us that accepting may cost (issue 4), and 4.5 us per
//! message of 10 KB: lines, commands, scanner, questions to the owner and the texts of replies are all of it. The way
//! in which a transaction comes (one flight, command by command, BDAT) may change this by no more than 0.5 us, and a
//! further recipient costs 0.25 us. An EHLO costs less than 1 us, so that a connection for each message stays cheap.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost::clock::Now;
use ringpost::envelope::Recipient;
use ringpost::id::MessageId;
use ringpost::reply::Reply;
use ringpost::smtp::server::{MailFrom, Session, Step, Transactions};
use ringpost_bench::{CONTENTS, data, envelope_commands, now, session_config, transaction};
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

/// Says yes.
#[derive(Default)]
struct Willing {
    octets: usize,
}

impl Transactions for Willing {
    fn proxied(&mut self, _client: SocketAddr, _now: Now) -> Result<(), Reply> {
        Ok(())
    }
    fn hello(&mut self, name: &str, _extended: bool) {
        black_box(name);
    }
    fn mail(&mut self, mail: MailFrom, _now: Now) -> Result<(), Reply> {
        black_box(mail);
        Ok(())
    }
    fn recipient(&mut self, recipient: Recipient, _now: Now) -> Result<(), Reply> {
        black_box(recipient);
        Ok(())
    }
    fn begin_content(&mut self, _now: Now) -> Result<(), Reply> {
        Ok(())
    }
    fn content(&mut self, bytes: &[u8]) -> Result<(), Reply> {
        self.octets += black_box(bytes).len();
        Ok(())
    }
    fn end_content(&mut self, _now: Now) -> Result<(), Reply> {
        Ok(())
    }
    fn abort(&mut self) {}
}

struct Talk {
    session: Session,
    owner: Willing,
    out: Vec<u8>,
}

impl Talk {
    fn new() -> Talk {
        let mut out = Vec::with_capacity(16 * 1024);
        let mut session = Session::new(Arc::new(session_config()), false, now(0).instant);
        session.start(now(0).instant, &mut out);
        let mut talk = Talk { session, owner: Willing::default(), out };
        assert_eq!(talk.say(b"EHLO mail.example.com\r\n"), Step::Read);
        talk
    }

    /// Gives the session all of the input, and takes its replies away.
    fn say(&mut self, mut input: &[u8]) -> Step {
        loop {
            let (consumed, step) = self.session.handle_input(input, now(1), &mut self.owner, &mut self.out);
            input = &input[consumed..];
            black_box(&self.out);
            self.out.clear();
            if step != Step::Read || input.is_empty() {
                assert!(input.is_empty(), "{} octets were left", input.len());
                return step;
            }
        }
    }

    /// A transaction in these pieces.
    fn transact(&mut self, pieces: &[&[u8]]) {
        let last = pieces.iter().map(|piece| self.say(black_box(piece))).last();
        assert_eq!(last, Some(Step::AwaitStorage));
        self.session.handle_stored(Ok(MessageId(1)), now(1).instant, &mut self.out);
        assert!(self.out.starts_with(b"250 "));
        self.out.clear();
    }
}

fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session");
    group.throughput(Throughput::Elements(1));
    let mut talk = Talk::new();
    for (name, octets) in CONTENTS {
        let (by_data, by_bdat) = (transaction(1, octets, false), transaction(1, octets, true));
        let (commands, content) = (envelope_commands(1), data(octets, false));
        let mut steps: Vec<&[u8]> = commands.split_inclusive(|&octet| octet == b'\n').collect();
        steps.extend([&b"DATA\r\n"[..], &content]);
        let mut measure = |what: &str, pieces: &[&[u8]]| {
            group.bench_function(BenchmarkId::new(what, name), |bencher| {
                bencher.iter(|| talk.transact(pieces));
            });
        };
        measure("one flight by DATA", &[&by_data]);
        measure("one flight by BDAT", &[&by_bdat]);
        measure("command by command", &steps);
    }
    let many = transaction(100, 1024, false);
    group.bench_function("100 recipients/1 KB", |bencher| bencher.iter(|| talk.transact(&[&many])));
    assert!(talk.owner.octets > 0);
    group.bench_function("EHLO", |bencher| {
        bencher.iter(|| assert_eq!(talk.say(black_box(b"EHLO mail.example.com\r\n")), Step::Read));
    });
    group.finish();
}

criterion_group!(benches, messages);
criterion_main!(benches);
