//! What it costs to cut a transaction's commands out of the stream and to read them: the framer of lines, the adapter
//! of commands, the parameters. Run with `cargo bench -p ringpost-bench --bench command`.
//!
//! Bound: 0.75 us for the lines of one transaction (MAIL, RCPT, DATA), framed and read with their parameters and
//! addresses. Accepting 1 KB may cost 50 us (issue 4), most of which goes to the kernel, to copying, to the checksum
//! and to the disk; the whole protocol is held to a twentieth of it, 2.5 us (see session.rs), and the lines to a third
//! of that. A line more (RCPT) may add 0.25 us. A line that comes in two pieces costs one allocation and must not cost
//! 0.25 us more: whoever sends slowly must not be dear.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringpost::smtp::command::{self, Command};
use ringpost::smtp::line::{Framed, LineReader, LongLines};
use ringpost::smtp::parameters::{self, Offered};
use ringpost_bench::envelope_commands;
use std::hint::black_box;

const OFFERED: Offered = Offered { dsn: true, smtputf8: true, auth: true, require_tls: true };

/// Gives all of the input to the framer and what it frames to `then`; returns how many lines there were.
fn frame(lines: &mut LineReader, mut input: &[u8], mut then: impl FnMut(&[u8])) -> usize {
    let mut count = 0;
    while !input.is_empty() {
        let (consumed, framed) = lines.handle_input(input, LongLines::None);
        input = &input[consumed..];
        match framed {
            Framed::Line(line) => {
                then(&line);
                count += 1;
            }
            Framed::Partial => {}
            Framed::Fault(fault) => panic!("{fault:?}"),
        }
    }
    count
}

/// Reads a line as a session does, its parameters included.
fn read(line: &[u8]) {
    let sound = match command::read(line) {
        Ok(Command::Mail(arguments)) => black_box(parameters::mail(arguments, OFFERED)).is_ok(),
        Ok(Command::Recipient(arguments)) => {
            black_box(parameters::recipient(arguments, OFFERED, false, "mx.example.org")).is_ok()
        }
        other => black_box(other).is_ok(),
    };
    assert!(sound, "{}", String::from_utf8_lossy(line));
}

fn lines(criterion: &mut Criterion) {
    let input = [&envelope_commands(1)[..], b"DATA\r\n"].concat();
    let mut group = criterion.benchmark_group("command");
    group.throughput(Throughput::Elements(3));
    let mut reader = LineReader::default();
    group.bench_function("MAIL, RCPT, DATA framed", |bencher| {
        bencher.iter(|| {
            let count = frame(&mut reader, black_box(&input), |line| {
                black_box(line);
            });
            assert_eq!(count, 3);
        });
    });
    group.bench_function("MAIL, RCPT, DATA framed, each line in two pieces", |bencher| {
        bencher.iter(|| {
            for line in input.split_inclusive(|&octet| octet == b'\n') {
                let (first, second) = black_box(line).split_at(line.len() / 2);
                let mut take = |piece| {
                    frame(&mut reader, piece, |line| {
                        black_box(line);
                    })
                };
                assert_eq!((take(first), take(second)), (0, 1));
            }
        });
    });
    group.bench_function("MAIL, RCPT, DATA framed and read", |bencher| {
        bencher.iter(|| assert_eq!(frame(&mut reader, black_box(&input), read), 3));
    });
    let recipients = 100;
    let many = envelope_commands(recipients);
    group.throughput(Throughput::Elements(recipients as u64));
    group.bench_function("MAIL and 100 RCPT framed and read", |bencher| {
        bencher.iter(|| assert_eq!(frame(&mut reader, black_box(&many), read), recipients + 1));
    });
    group.finish();
}

fn commands(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("command/read");
    for line in [
        "EHLO mail.example.com\r\n",
        "MAIL FROM:<bounces-0000001@news.example.com> SIZE=1024 BODY=8BITMIME\r\n",
        "MAIL FROM:<bounces-0000001@news.example.com> SIZE=1024 RET=HDRS ENVID=QQ314159 SMTPUTF8\r\n",
        "RCPT TO:<someone.0000001@example.net>\r\n",
        "RCPT TO:<someone.0000001@example.net> NOTIFY=FAILURE,DELAY ORCPT=rfc822;someone@example.net\r\n",
        "DATA\r\n",
        "BDAT 1024 LAST\r\n",
        "NOOP\r\n",
    ] {
        group.bench_function(line.trim_end(), |bencher| bencher.iter(|| read(black_box(line.as_bytes()))));
    }
    group.finish();
}

criterion_group!(benches, lines, commands);
criterion_main!(benches);
