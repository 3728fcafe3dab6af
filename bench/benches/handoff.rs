//! What it costs to hand something to a shard: into its mailbox and out, on one thread and across two, and the way from a
//! thread to a sleeping shard and back. Run alone: `cargo bench -p ringpost-bench --bench handoff`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringpost::clock::{Instant, Now};
use ringpost::io::executor::{DiskSpec, Mailboxes, ShardSpec, run_shard};
use ringpost::io::handler::{CloseReason, Command, ConnId, Handler, TlsInfo};
use ringpost::io::mailbox::{inbox, mailbox};
use ringpost::io::tls::{self, TlsSetup};
use ringpost_spool::DiskDone;
use std::collections::VecDeque;
use std::hint::{black_box, spin_loop};
use std::net::SocketAddr;
use std::time::Duration;

/// About as large as a lease's descriptor behind its box.
type Message = [u64; 4];

/// Reports each message back; ends on one that begins with zero.
#[derive(Default)]
struct Answering {
    commands: VecDeque<Command<Message, Message>>,
}

impl Handler for Answering {
    type Message = Message;
    type Report = Message;

    fn started(&mut self, _: Now) {}
    fn accepted(&mut self, _: usize, _: SocketAddr, _: SocketAddr, _: Now, _: &mut Vec<u8>) -> Option<ConnId> {
        None
    }
    fn connected(&mut self, _: ConnId, _: SocketAddr, _: Now) {}
    fn connect_failed(&mut self, _: ConnId, _: &str, _: Now) {}
    fn received(&mut self, _: ConnId, bytes: &[u8], _: Now, _: &mut Vec<u8>) -> usize {
        bytes.len()
    }
    fn sent(&mut self, _: ConnId, _: Now) {}
    fn tls_started(&mut self, _: ConnId, _: TlsInfo, _: Now, _: &mut Vec<u8>) {}
    fn closed(&mut self, _: ConnId, _: CloseReason, _: Now) {}
    fn disk_done(&mut self, _: DiskDone, _: Now) {}
    fn message(&mut self, message: Message, _: Now) {
        self.commands.push_back(if message[0] == 0 { Command::Exit } else { Command::Report(message) });
    }
    fn message_refused(&mut self, _: u8, _: Message, _: Now) {}
    fn report_refused(&mut self, report: Message, _: Now) {
        self.commands.push_back(Command::Report(report));
    }
    fn trouble(&mut self, _: String, _: Now) {}
    fn tick(&mut self, _: Now, _: Duration) {}
    fn turn_ended(&mut self, _: Now) {}
    fn next_deadline(&self) -> Option<Instant> {
        None
    }
    fn poll_command(&mut self) -> Option<Command<Message, Message>> {
        self.commands.pop_front()
    }
}

fn one_thread(criterion: &mut Criterion) {
    let (sender, mailbox) = mailbox::<Message>(1024);
    let mut group = criterion.benchmark_group("handoff");
    group.throughput(Throughput::Elements(1));
    group.bench_function("post and take, one thread", |bencher| {
        bencher.iter(|| {
            let _ = sender.push(black_box([1; 4]));
            black_box(mailbox.try_pop())
        });
    });
    group.finish();
}

fn two_threads(criterion: &mut Criterion) {
    const MANY: u64 = 10_000;
    let mut group = criterion.benchmark_group("handoff");
    group.throughput(Throughput::Elements(MANY));
    group.bench_function("post and take, two threads, 10,000 messages", |bencher| {
        bencher.iter_batched(
            || mailbox::<Message>(1024),
            |(sender, mailbox)| {
                let poster = std::thread::spawn(move || {
                    for number in 0..MANY {
                        while sender.push([number; 4]).is_err() {
                            spin_loop();
                        }
                    }
                });
                let mut taken = 0;
                while taken < MANY {
                    match mailbox.try_pop() {
                        Some(message) => taken += u64::from(black_box(message)[0] < MANY),
                        None => spin_loop(),
                    }
                }
                // A panic in the poster would have left the loop above without an end.
                let _ = poster.join();
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Starts a shard that only answers, measures, and ends it.
fn to_a_shard_and_back(criterion: &mut Criterion) {
    let directory = std::env::temp_dir().join(format!("ringpost-handoff-{}", std::process::id()));
    let setup = || -> Result<TlsSetup, tls::TlsSetupError> {
        let client = tls::client_opportunistic()?;
        Ok(TlsSetup { server: Vec::new(), client_verify: client.clone(), client_opportunistic: client })
    };
    let (sender, own) = mailbox::<Message>(4096);
    let (control, reports) = inbox(4096, |_| true);
    let spec = ShardSpec {
        shard: 0,
        cpu: None,
        listeners: Vec::new(),
        disk: DiskSpec { directory: directory.clone(), segment_size: 1 << 20, spares: 0 },
        tls: setup().expect("the crypto provider works"),
        mailboxes: Mailboxes { own, shards: Vec::new(), control },
        io_memory: 64 * 1024,
    };
    let thread = run_shard(spec, Answering::default).expect("a shard starts");
    let answer = || {
        loop {
            match reports.try_recv() {
                Some(report) => return report,
                None => std::thread::yield_now(),
            }
        }
    };
    let mut group = criterion.benchmark_group("handoff");
    group.bench_function("to a sleeping shard and back", |bencher| {
        bencher.iter(|| {
            let _ = sender.push([1; 4]);
            black_box(answer())
        });
    });
    group.throughput(Throughput::Elements(1000));
    group.bench_function("to a busy shard and back, 1,000 at a time", |bencher| {
        bencher.iter(|| {
            for number in 1..=1000 {
                let _ = sender.push([number; 4]);
            }
            for _ in 0..1000 {
                black_box(answer());
            }
        });
    });
    group.finish();
    let _ = sender.push([0; 4]);
    thread.join().expect("the shard does not panic").expect("the shard ends well");
    let _ = std::fs::remove_dir_all(directory);
}

criterion_group!(benches, one_thread, two_threads, to_a_shard_and_back);
criterion_main!(benches);
