//! What it costs to hand something to a shard: into its mailbox and out, on one thread and across two, and the way from
//! a thread to a sleeping shard and back. Run alone: `cargo bench -p ringpost-bench --bench handoff`.
//!
//! Bounds: 0.1 us to post and take on one thread, 0.15 us with a sleeper to wake, 0.5 us across two threads that do
//! nothing else. A message that another shard delivers crosses twice (its lease and the answer): 1 us, a hundredth of
//! the 110 us that delivering may cost. By issue 4 two shards may cost 1.15 times as much per message as one; the
//! mailboxes must not be what takes that. A sleeping shard answers within 100 us: it wakes by a system call and a
//! switch of threads, and the time from the 250 to the attempt may be 10 ms. A busy shard takes a message and reports
//! it back in 1.5 us.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringpost::clock::{Instant, Now};
use ringpost::io::executor::{DiskSpec, Mailboxes, ShardSpec, run_shard};
use ringpost::io::handler::{CloseReason, Command, ConnId, Handler, TlsInfo};
use ringpost::io::mailbox::{inbox, mailbox};
use ringpost::io::tls::{self, TlsSetup};
use ringpost_bench as _;
use ringpost_spool::DiskDone;
use std::collections::VecDeque;
use std::hint::{black_box, spin_loop};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
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
    fn woken(&mut self, _: Now) {}
    fn turn_ended(&mut self, _: Now) {}
    fn next_deadline(&self) -> Option<Instant> {
        None
    }
    fn poll_command(&mut self) -> Option<Command<Message, Message>> {
        self.commands.pop_front()
    }
}

/// A task that counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
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
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut rounds = 0;
    group.bench_function("wait, post, be woken, take", |bencher| {
        bencher.iter(|| {
            assert!(mailbox.poll_pop(&mut context).is_pending());
            let _ = sender.push(black_box([1; 4]));
            rounds += 1;
            assert!(matches!(black_box(mailbox.poll_pop(&mut context)), Poll::Ready(_)));
        });
    });
    assert_eq!(woken.0.load(Ordering::Relaxed), rounds, "each post wakes the sleeper once");
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
        Ok(TlsSetup { server: Vec::new(), clients: vec![client], authorities: None })
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
        busy_poll: Duration::ZERO,
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
