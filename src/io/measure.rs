//! Measurements of this layer, for docs/adr/0001-runtime-and-its-cures.md: memory per idle connection, processor time per
//! echo, and what the cures cost. Not run by default, since they say nothing on a busy machine but are only as good as it:
//! `cargo test --release --lib io::measure -- --ignored --nocapture --test-threads=1`.

use crate::clock::{Instant, Now};
use crate::io::executor::{DiskSpec, ListeningSocket, Mailboxes, ShardSpec, run_shard};
use crate::io::handler::{CloseReason, Command, ConnId, Handler, TlsInfo};
use crate::io::mailbox::{Sender, inbox, mailbox};
use crate::io::testing::{directory, tls_setup};
use ringpost_spool::DiskDone;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Sends back what comes and counts; ends on any message.
#[derive(Default)]
struct Echo {
    free: Vec<ConnId>,
    next: u32,
    exit: bool,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    open: AtomicU64,
    turns: AtomicU64,
    late_max_us: AtomicU64,
}

impl Handler for Echo {
    type Message = ();
    type Report = ();

    fn started(&mut self, _now: Now) {}

    fn accepted(&mut self, _: usize, _: SocketAddr, _: SocketAddr, _: Now, _: &mut Vec<u8>) -> Option<ConnId> {
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        let id = self.free.pop().map(|old| ConnId { index: old.index, generation: old.generation + 1 });
        id.or_else(|| {
            self.next += 1;
            Some(ConnId { index: self.next - 1, generation: 0 })
        })
    }

    fn connected(&mut self, _: ConnId, _: SocketAddr, _: Now) {}

    fn connect_failed(&mut self, _: ConnId, _: &str, _: Now) {}

    fn received(&mut self, _: ConnId, bytes: &[u8], _: Now, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(bytes);
        bytes.len()
    }

    fn sent(&mut self, _: ConnId, _: Now) {}

    fn tls_started(&mut self, _: ConnId, _: TlsInfo, _: Now, _: &mut Vec<u8>) {}

    fn closed(&mut self, conn: ConnId, _: CloseReason, _: Now) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
        self.free.push(conn);
    }

    fn disk_done(&mut self, _: DiskDone, _: Now) {}

    fn message(&mut self, (): (), _: Now) {
        self.exit = true;
    }

    fn message_refused(&mut self, _: u8, (): (), _: Now) {}

    fn report_refused(&mut self, (): (), _: Now) {}

    fn trouble(&mut self, text: String, _: Now) {
        println!("trouble: {text}");
    }

    fn tick(&mut self, _: Now, late: Duration) {
        self.counts.late_max_us.fetch_max(late.as_micros() as u64, Ordering::Relaxed);
    }

    fn turn_ended(&mut self, _: Now) {
        self.counts.turns.fetch_add(1, Ordering::Relaxed);
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn poll_command(&mut self) -> Option<Command<(), ()>> {
        std::mem::take(&mut self.exit).then_some(Command::Exit)
    }
}

struct Running {
    address: SocketAddr,
    counts: Arc<Counts>,
    orders: Sender<()>,
    thread: JoinHandle<Result<(), String>>,
}

fn start(name: &str) -> Running {
    let directory = directory(name);
    let socket = crate::io::bind::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let address = socket2::SockRef::from(&socket).local_addr().unwrap().as_socket().unwrap();
    let (orders, own) = mailbox(16);
    let (control, _) = inbox(16);
    let spec = ShardSpec {
        shard: 0,
        cpu: None,
        listeners: vec![ListeningSocket { socket, implicit_tls: false, refusal: b"" }],
        disk: DiskSpec { directory, segment_size: 1 << 20, spares: 0 },
        tls: tls_setup(),
        mailboxes: Mailboxes { own, shards: vec![], control },
        io_memory: 64 * 1024,
    };
    let echo = Echo::default();
    let counts = Arc::clone(&echo.counts);
    let thread = run_shard(spec, move || echo).unwrap();
    Running { address, counts, orders, thread }
}

/// Processor time of the threads of this name, in nanoseconds.
fn processor_time(name: &str) -> u64 {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim() == name {
            total += read("schedstat").split(' ').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    total
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Connections that are idle; waits until there are no others.
fn dial(running: &Running, count: u64) -> Vec<TcpStream> {
    while running.counts.open.load(Ordering::Relaxed) > 0 {
        std::thread::yield_now();
    }
    let streams: Vec<_> = (0..count)
        .map(|_| {
            let mut stream = TcpStream::connect(running.address).unwrap();
            // One exchange, so that it has been through everything an idle session has.
            stream.write_all(b"hello").unwrap();
            stream.read_exact(&mut [0; 5]).unwrap();
            stream
        })
        .collect();
    assert_eq!(running.counts.open.load(Ordering::Relaxed), count);
    streams
}

#[test]
#[ignore = "a measurement"]
fn memory_per_idle_connection() {
    crate::io::probe::probe(1, 64 * 1024).unwrap();
    let running = start("memory");
    drop(dial(&running, 100));
    let before = resident_kib();
    let streams = dial(&running, 5000);
    let after = resident_kib();
    let (busy, pause) = (processor_time("shard-0"), Duration::from_secs(5));
    std::thread::sleep(pause);
    let idle = (processor_time("shard-0") - busy) as f64 / pause.as_nanos() as f64;
    println!("5,000 idle connections: {:.2} KiB each", (after - before) as f64 / 5000.0);
    println!("processor with them idle, heartbeat included: {:.2} %", idle * 100.0);
    drop(streams);
    running.orders.push(()).unwrap();
    running.thread.join().unwrap().unwrap();
}

/// Each connection sends its next request when it has the answer to the last; gives the requests made.
fn ping_pong(address: SocketAddr, connections: usize, requests: usize) {
    let mut streams: Vec<_> = (0..connections).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut polls: Vec<_> = streams
        .iter()
        .map(|stream| libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let request = [b'x'; 41];
    for stream in &mut streams {
        stream.set_nodelay(true).unwrap();
        stream.write_all(&request).unwrap();
    }
    let mut done = 0;
    while done < requests {
        // SAFETY: the array is valid for its length.
        let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) };
        assert!(ready > 0);
        for (poll, stream) in polls.iter().zip(&mut streams) {
            if poll.revents != 0 {
                stream.read_exact(&mut [0; 41]).unwrap();
                stream.write_all(&request).unwrap();
                done += 1;
            }
        }
    }
}

/// The same by tokio, in the plainest way, on a thread of its own.
fn tokio_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                tokio::task::spawn_local(async move {
                    use tokio::io::{AsyncReadExt, AsyncWriteExt};
                    let mut buffer = vec![0; 4096];
                    while let Ok(read) = stream.read(&mut buffer).await {
                        if read == 0 || stream.write_all(&buffer[..read]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
    };
    std::thread::Builder::new().name("tokio-echo".to_owned()).spawn(serve).unwrap();
    address
}

#[test]
#[ignore = "a measurement"]
fn processor_time_per_echo() {
    const REQUESTS: usize = 300_000;
    let running = start("echo-cpu");
    let tokio = tokio_echo();
    for round in 0..3 {
        for (name, address) in [("shard-0", running.address), ("tokio-echo", tokio)] {
            ping_pong(address, 50, 10_000);
            let (before, turns) = (processor_time(name), running.counts.turns.load(Ordering::Relaxed));
            ping_pong(address, 50, REQUESTS);
            let per_request = (processor_time(name) - before) as f64 / REQUESTS as f64 / 1000.0;
            let turns = running.counts.turns.load(Ordering::Relaxed) - turns;
            println!("round {round}, {name}: {per_request:.2} us of processor per echo, {turns} turns");
        }
    }
    // The same with many idle connections beside them.
    crate::io::probe::probe(1, 64 * 1024).unwrap();
    let idle = dial(&running, 5000);
    for round in 0..3 {
        ping_pong(running.address, 50, 10_000);
        let (before, turns) = (processor_time("shard-0"), running.counts.turns.load(Ordering::Relaxed));
        ping_pong(running.address, 50, REQUESTS);
        let per_request = (processor_time("shard-0") - before) as f64 / REQUESTS as f64 / 1000.0;
        let turns = running.counts.turns.load(Ordering::Relaxed) - turns;
        println!("round {round}, shard-0 with 5,000 idle beside: {per_request:.2} us per echo, {turns} turns");
    }
    drop(idle);
    println!("greatest lateness of a heartbeat: {} us", running.counts.late_max_us.load(Ordering::Relaxed));
    running.orders.push(()).unwrap();
    running.thread.join().unwrap().unwrap();
}
