//! Tests of the executor and of connections, in clear text: real sockets on loopback against a real shard.

use crate::io::handler::{CloseReason, Command, ConnId};
use crate::io::testing::{Event, Order, PATIENCE, TestShard};
use bytes::Bytes;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn read_exact(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// A client that has been greeted, and its id.
fn client(shard: &TestShard) -> (TcpStream, ConnId) {
    let mut stream = dial(shard.address);
    let conn = shard.accepted();
    assert_eq!(read_exact(&mut stream, 7), b"hello\r\n");
    (stream, conn)
}

fn closed(shard: &TestShard, conn: ConnId) -> CloseReason {
    match shard.event() {
        Event::Closed(closed, reason) if closed == conn => reason,
        other => panic!("{other:?} instead of the end of {conn:?}"),
    }
}

#[test]
fn echo_and_the_end_of_the_peer() {
    let shard = TestShard::start("echo");
    let (mut stream, conn) = client(&shard);
    for round in 0..100 {
        let line = format!("line {round}\r\n");
        stream.write_all(line.as_bytes()).unwrap();
        assert_eq!(read_exact(&mut stream, line.len()), line.as_bytes());
        assert_eq!(shard.received(conn, line.len()), line.as_bytes());
    }
    drop(stream);
    assert_eq!(closed(&shard, conn), CloseReason::Peer);
    assert!(shard.turns.load(std::sync::atomic::Ordering::Relaxed) > 0);
    shard.exit().unwrap();
}

#[test]
fn what_is_not_taken_is_offered_again() {
    let shard = TestShard::start("rest");
    let (mut stream, conn) = client(&shard);
    shard.order(Order::Take(4));
    // An order is carried out before what is sent after its answer, so a report tells that it was.
    shard.command(Command::NotifySent(conn));
    assert!(matches!(shard.event(), Event::Sent(of) if of == conn));
    stream.write_all(b"abcdefghij").unwrap();
    assert_eq!(shard.received(conn, 4), b"abcd");
    shard.command(Command::ResumeRead(conn));
    assert_eq!(shard.received(conn, 4), b"efgh");
    // More comes while reading is paused: it is offered after the rest, in order.
    stream.write_all(b"klm").unwrap();
    shard.order(Order::Take(100));
    shard.command(Command::ResumeRead(conn));
    assert_eq!(shard.received(conn, 5), b"ijklm");
    shard.command(Command::Close { conn, flush: false });
    assert_eq!(closed(&shard, conn), CloseReason::Asked);
    shard.exit().unwrap();
}

#[test]
fn a_paused_connection_is_not_read() {
    let shard = TestShard::start("pause");
    let (mut stream, conn) = client(&shard);
    shard.command(Command::PauseRead(conn));
    shard.command(Command::NotifySent(conn));
    assert!(matches!(shard.event(), Event::Sent(_)));
    stream.write_all(b"early").unwrap();
    let (_other, second) = client(&shard);
    shard.command(Command::Close { conn: second, flush: true });
    // Nothing of the first connection came before this.
    assert_eq!(closed(&shard, second), CloseReason::Asked);
    shard.command(Command::ResumeRead(conn));
    assert_eq!(shard.received(conn, 5), b"early");
    shard.command(Command::Close { conn, flush: true });
    closed(&shard, conn);
    shard.exit().unwrap();
}

#[test]
fn large_output_waits_for_a_slow_reader_and_stays_in_order() {
    const PIECE: usize = 300_000;
    let shard = TestShard::start("large");
    let (mut stream, conn) = client(&shard);
    for piece in 0..50_u8 {
        shard.command(Command::Send { conn, bytes: Bytes::from(vec![piece; PIECE]) });
    }
    shard.command(Command::NotifySent(conn));
    shard.command(Command::Close { conn, flush: true });
    // A command for a connection that is being closed does nothing.
    shard.command(Command::Send { conn, bytes: Bytes::from_static(b"too late") });
    for piece in 0..50_u8 {
        assert!(read_exact(&mut stream, PIECE).iter().all(|byte| *byte == piece), "piece {piece}");
    }
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(matches!(shard.event(), Event::Sent(of) if of == conn));
    assert_eq!(closed(&shard, conn), CloseReason::Asked);
    shard.exit().unwrap();
}

#[test]
fn large_input_arrives_whole() {
    const LENGTH: usize = 8 << 20;
    let shard = TestShard::start("input");
    let (mut stream, conn) = client(&shard);
    shard.order(Order::Echo(false));
    shard.command(Command::NotifySent(conn));
    assert!(matches!(shard.event(), Event::Sent(_)));
    let bytes: Vec<u8> = (0..LENGTH).map(|index| (index % 251) as u8).collect();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || {
        stream.write_all(&sent).unwrap();
        stream
    });
    assert!(shard.received(conn, LENGTH) == bytes);
    drop(writer.join().unwrap());
    assert_eq!(closed(&shard, conn), CloseReason::Peer);
    shard.exit().unwrap();
}

#[test]
fn after_a_half_close_queued_output_still_goes_out() {
    const LENGTH: usize = 20 << 20;
    let shard = TestShard::start("half");
    let (mut stream, conn) = client(&shard);
    shard.command(Command::Send { conn, bytes: Bytes::from(vec![1; LENGTH]) });
    stream.write_all(b"last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    shard.order(Order::Echo(false));
    let mut length = 0;
    let mut buffer = vec![0; 65_536];
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => break,
            read => length += read,
        }
    }
    assert!(length >= LENGTH, "{length}");
    assert_eq!(shard.received(conn, 10), b"last words");
    assert_eq!(closed(&shard, conn), CloseReason::Peer);
    shard.exit().unwrap();
}

#[test]
fn outgoing_connections_talk_both_ways() {
    let shard = TestShard::start("connect");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let conn = ConnId { index: 100_003, generation: 9 };
    let from = Some("127.0.0.2".parse().unwrap());
    let to = listener.local_addr().unwrap();
    shard.command(Command::Connect { conn, to, from, timeout: PATIENCE });
    let (mut peer, address) = listener.accept().unwrap();
    assert_eq!(address.ip().to_string(), "127.0.0.2");
    assert!(matches!(shard.event(), Event::Connected(of) if of == conn));
    peer.write_all(b"220 hi\r\n").unwrap();
    assert_eq!(shard.received(conn, 8), b"220 hi\r\n");
    shard.command(Command::Send { conn, bytes: Bytes::from_static(b"EHLO ") });
    shard.command(Command::Send { conn, bytes: Bytes::from_static(b"me\r\n") });
    assert_eq!(read_exact(&mut peer, 9), b"EHLO me\r\n");
    // An old id of the same place does nothing.
    shard.command(Command::Close { conn: ConnId { index: conn.index, generation: 8 }, flush: false });
    drop(peer);
    assert_eq!(closed(&shard, conn), CloseReason::Peer);
    shard.exit().unwrap();
}

#[test]
fn connections_that_cannot_be_made_say_why() {
    let shard = TestShard::start("refused");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let conn = shard.connect(1, address, PATIENCE);
    match shard.event() {
        Event::ConnectFailed(of, error) => assert_eq!((of, &*error), (conn, "connection refused")),
        other => panic!("{other:?}"),
    }
    let conn = ConnId { index: 100_002, generation: 1 };
    let from = Some("203.0.113.7".parse().unwrap());
    shard.command(Command::Connect { conn, to: address, from, timeout: PATIENCE });
    match shard.event() {
        Event::ConnectFailed(of, error) => assert!(of == conn && error.contains("not one of this machine"), "{error}"),
        other => panic!("{other:?}"),
    }
    // No route for TCP leads to many at once.
    let conn = shard.connect(3, "224.0.0.1:25".parse().unwrap(), PATIENCE);
    match shard.event() {
        Event::ConnectFailed(of, error) => assert_eq!((of, &*error), (conn, "no route to that network")),
        other => panic!("{other:?}"),
    }
    shard.exit().unwrap();
}

/// A listener whose backlog is full drops what comes, so that a connect hangs.
#[test]
fn a_connect_that_takes_too_long_is_given_up() {
    let shard = TestShard::start("timeout");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            Ok(filler) => fillers.push(filler),
            Err(_) => break,
        }
        assert!(fillers.len() < 100, "the backlog never fills");
    }
    let conn = shard.connect(1, address, Duration::from_millis(60));
    match shard.event() {
        Event::ConnectFailed(of, error) => assert_eq!((of, &*error), (conn, "no answer in time")),
        other => panic!("{other:?}"),
    }
    // One that is closed while it connects fails too, and only once.
    let conn = shard.connect(2, address, PATIENCE);
    shard.command(Command::Close { conn, flush: true });
    assert!(matches!(shard.event(), Event::ConnectFailed(of, _) if of == conn));
    shard.exit().unwrap();
}

#[test]
fn a_handler_is_woken_when_it_wants_and_not_before() {
    let shard = TestShard::start("alarm");
    let now = crate::io::clock::now().instant;
    let (first, second) = (now.after(Duration::from_millis(3)), now.after(Duration::from_millis(5)));
    // The later order takes the place of the earlier one, and the time of one that is past has come.
    shard.command(Command::WakeAt(now.after(Duration::from_secs(600))));
    shard.command(Command::WakeAt(first));
    assert!(matches!(shard.event(), Event::Woken(at) if at >= first));
    shard.command(Command::WakeAt(second));
    assert!(matches!(shard.event(), Event::Woken(at) if at >= second));
    shard.command(Command::WakeAt(now));
    assert!(matches!(shard.event(), Event::Woken(_)));
    shard.exit().unwrap();
}

#[test]
fn a_reset_is_an_error_in_words() {
    let shard = TestShard::start("reset");
    let (stream, conn) = client(&shard);
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    assert_eq!(closed(&shard, conn), CloseReason::Error("the peer reset the connection".to_owned()));
    shard.exit().unwrap();
}

#[test]
fn mailboxes_that_are_full_give_back() {
    let shard = TestShard::start("full");
    for report in 0..4 {
        shard.command(Command::Report(report));
    }
    shard.command(Command::Report(4));
    assert!(matches!(shard.event(), Event::Refused("report")));
    assert_eq!(shard.reports.try_recv(), Some(0));
    // There is no shard 9.
    shard.command(Command::Post { shard: 9, message: Order::Take(1) });
    assert!(matches!(shard.event(), Event::Refused("message")));
    // To itself.
    shard.command(Command::Post { shard: 0, message: Order::Do(Box::new(Command::Report(7))) });
    shard.exit().unwrap();
}

#[test]
fn a_shard_exits_when_its_connections_are_closed() {
    let mut shard = TestShard::start("exit");
    let (mut stream, conn) = client(&shard);
    shard.command(Command::Exit);
    // It listens no more, but what is under way goes on.
    stream.write_all(b"still here").unwrap();
    assert_eq!(read_exact(&mut stream, 10), b"still here");
    assert_eq!(shard.received(conn, 10), b"still here");
    drop(stream);
    assert_eq!(closed(&shard, conn), CloseReason::Peer);
    shard.join().unwrap();
    assert!(TcpStream::connect(shard.address).is_err());
}

#[test]
fn a_panic_in_the_handler_ends_the_shard_with_an_error_that_names_it() {
    let mut shard = TestShard::start("panic");
    let (_stream, _) = client(&shard);
    shard.order(Order::Panic);
    let error = shard.join().unwrap_err();
    assert_eq!(error, "shard 0: panic in a task: the test wants it");
}

/// Runs in a process of its own, since the limit is the whole process's.
#[test]
fn without_descriptors_clients_are_told_to_come_again_later() {
    const CHILD: &str = "RINGPOST_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let name = "io::tests::without_descriptors_clients_are_told_to_come_again_later";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(
            child.status.success(),
            "{}{}",
            String::from_utf8_lossy(&child.stdout),
            String::from_utf8_lossy(&child.stderr)
        );
        return;
    }
    let shard = TestShard::start("descriptors");
    // The clients' own descriptors are taken beforehand.
    let mut clients: Vec<_> =
        (0..8).map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap()).collect();
    let (_stream, _) = client(&shard);
    let next = std::fs::File::open("/dev/null").map(|file| std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is a valid structure, filled in by one call and read by the other.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = next as u64 + 2;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
    let address = shard.address.into();
    let mut dial = || {
        let socket = clients.remove(0);
        socket.connect(&address).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let first = dial();
    let conn = shard.accepted();
    // One or two more are taken: the shard may have closed a file of its own meanwhile.
    let mut others = Vec::new();
    loop {
        others.push(dial());
        match shard.event() {
            Event::Accepted(_) => assert!(others.len() < 4, "there is no end of descriptors"),
            Event::Trouble(text) => {
                assert!(text.contains("no descriptor is left") && text.contains("LimitNOFILE"), "{text}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // The last of them and the next ones find no descriptor, are told so, and are closed. Their own ends stay open, to
    // free none here.
    let mut refused = Vec::new();
    for number in 0..3 {
        let mut stream = if number == 0 { others.pop().unwrap() } else { dial() };
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "421 later\r\n");
        refused.push(stream);
    }
    // With descriptors free again the listener goes on.
    drop(first);
    loop {
        match shard.event() {
            Event::Closed(of, _) if of == conn => break,
            Event::Trouble(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let mut last = dial();
    assert_eq!(read_exact(&mut last, 7), b"hello\r\n");
}
