//! What the whole protocol costs on the side that delivers: one transaction against recorded replies, on a connection
//! that is kept. Run with `cargo bench -p ringpost-bench --bench client`.
//!
//! Bound: 4 us per message of 1 KB, whichever way the peer offers. Draining a queue may cost 80 us per message and
//! accepting and delivering one 110 us (issue 4); the protocol is held to a twentieth of the smaller, and the rest is
//! the kernel's, the record's and the shard's. By CHUNKING the content is never copied, so a message of 10 KB may cost
//! no more than one of 1 KB; by DATA its lines are looked through for dots, at 0.2 us per KB as the scanner does it. A
//! further recipient costs 0.5 us: its command, its reply, its outcome.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost::envelope::{Body, Notify};
use ringpost::smtp::client::{
    Client, ClientConfig, ClientEvent, ClientTimeouts, OutgoingContent, OutgoingRecipient, RecipientOutcome, TlsUse,
    Transaction,
};
use ringpost_bench::{CONTENTS, content, now};
use std::hint::black_box;
use std::sync::Arc;

/// What a peer offers, and what it has said to a transaction for one recipient, flight by flight.
struct Recorded {
    name: &'static str,
    extensions: &'static str,
    /// Of the recipients' own replies there are as many as recipients.
    flights: &'static [&'static [&'static str]],
}

/// Stands for the reply to RCPT.
const RCPT: &str = "250 2.1.5 OK\r\n";

const RECORDED: [Recorded; 3] = [
    Recorded {
        name: "one flight (CHUNKING)",
        extensions: "250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250 CHUNKING\r\n",
        flights: &[&["250 2.1.0 OK\r\n", RCPT, "250 2.0.0 OK: queued as 4hB7Tz3kQpWm\r\n"]],
    },
    Recorded {
        name: "two flights (PIPELINING)",
        extensions: "250-PIPELINING\r\n250-SIZE 52428800\r\n250 8BITMIME\r\n",
        flights: &[
            &["250 2.1.0 OK\r\n", RCPT, "354 End data with <CR><LF>.<CR><LF>\r\n"],
            &["250 2.0.0 OK: queued as 4hB7Tz3kQpWm\r\n"],
        ],
    },
    Recorded {
        name: "command by command",
        extensions: "250-SIZE 52428800\r\n250 8BITMIME\r\n",
        flights: &[
            &["250 2.1.0 OK\r\n"],
            &[RCPT],
            &["354 End data with <CR><LF>.<CR><LF>\r\n"],
            &["250 2.0.0 OK: queued as 4hB7Tz3kQpWm\r\n"],
        ],
    },
];

fn ready(extensions: &str) -> Client {
    let config = ClientConfig {
        ehlo_name: "mx.example.org".into(),
        tls: TlsUse::Opportunistic,
        assume_8bitmime: false,
        chunking: true,
        pipelining: true,
        pipelined_messages: true,
        timeouts: ClientTimeouts::default(),
    };
    let mut client = Client::new(Arc::new(config), now(0).instant);
    client.handle_input(b"220 mx.example.net ESMTP\r\n", now(0).instant);
    while client.poll_transmit().is_some() {}
    client.handle_input(format!("250-mx.example.net\r\n{extensions}").as_bytes(), now(0).instant);
    assert_eq!(client.poll_event(), Some(ClientEvent::Ready));
    client
}

fn message(recipients: usize, content: &Bytes) -> Transaction {
    let recipient = |number| OutgoingRecipient {
        address: format!("someone.{number:07}@example.net").into(),
        notify: Notify::DEFAULT,
        orcpt: None,
    };
    Transaction {
        reverse_path: Some("bounces-0000001@news.example.com".into()),
        recipients: (0..recipients).map(recipient).collect(),
        body: Body::SevenBit,
        smtputf8: false,
        require_tls: false,
        ret: None,
        envid: None,
        content_len: content.len() as u64,
        content: OutgoingContent::Whole(vec![content.clone()]),
    }
}

/// The peer's replies, each flight whole, for so many recipients.
fn replies(recorded: &Recorded, recipients: usize) -> Vec<Vec<u8>> {
    let lockstep = recorded.flights.iter().any(|flight| *flight == [RCPT]);
    let times = |reply: &str| if reply == RCPT { recipients } else { 1 };
    let mut all = Vec::new();
    for flight in recorded.flights {
        if lockstep {
            all.extend(flight.iter().flat_map(|reply| vec![reply.as_bytes().to_vec(); times(reply)]));
        } else {
            all.push(flight.iter().map(|reply| reply.repeat(times(reply))).collect::<String>().into_bytes());
        }
    }
    all
}

/// Delivers a message; returns the octets sent.
fn deliver(client: &mut Client, transaction: Transaction, replies: &[Vec<u8>]) -> usize {
    let mut sent = 0;
    let mut delivered = 0;
    let recipients = transaction.recipients.len();
    client.begin(transaction, now(1).instant);
    for reply in replies {
        while let Some(bytes) = client.poll_transmit() {
            sent += black_box(bytes).len();
        }
        client.handle_input(black_box(reply), now(1).instant);
        while let Some(event) = client.poll_event() {
            match event {
                ClientEvent::Recipient { outcome: RecipientOutcome::Delivered(reply), .. } => {
                    black_box(reply);
                    delivered += 1;
                }
                ClientEvent::Ready => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(client.is_idle() && delivered == recipients);
    sent
}

fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("client");
    group.throughput(Throughput::Elements(1));
    for recorded in &RECORDED {
        let mut client = ready(recorded.extensions);
        for (name, recipients, octets) in
            CONTENTS.map(|(name, octets)| (name, 1, octets)).into_iter().chain([("1 KB to 100", 100, 1024)])
        {
            let content = Bytes::from(content(octets));
            let replies = replies(recorded, recipients);
            group.bench_function(BenchmarkId::new(recorded.name, name), |bencher| {
                bencher.iter_batched(
                    || message(recipients, &content),
                    |message| assert!(deliver(&mut client, message, &replies) > content.len()),
                    criterion::BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, messages);
criterion_main!(benches);
