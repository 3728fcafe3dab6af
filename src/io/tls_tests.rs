//! Tests of TLS on connections: both sides are ours, and the bytes that must not be carried in.

use crate::io::handler::{CloseReason, Command, ConnId, TlsInfo, TlsSide};
use crate::io::testing::{Event, Order, PATIENCE, TestShard};
use crate::io::tls;
use crate::policy::outbound_tls::{Proof, TlsFailure};
use bytes::Bytes;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, SupportedProtocolVersion};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

fn side(name: &str, verify: bool) -> TlsSide {
    let proof = if verify { Proof::Names(Arc::from([Box::from(name)])) } else { Proof::None };
    TlsSide::Client { name: name.to_owned(), setup: 0, proof }
}

/// Connects the shard with its own listener. Gives the client's and the server's end.
fn pair(shard: &TestShard, index: u32, implicit: bool) -> (ConnId, ConnId) {
    let to = if implicit { shard.tls_address } else { shard.address };
    let conn = shard.connect(index, to, PATIENCE);
    let (mut server, mut connected) = (None, false);
    while server.is_none() || !connected {
        match shard.event() {
            Event::Accepted(accepted) => server = Some(accepted),
            Event::Connected(of) if of == conn => connected = true,
            other => panic!("{other:?}"),
        }
    }
    (conn, server.unwrap())
}

/// Collects what both ends are told until each has started TLS and the client has received `expected`.
fn started(shard: &TestShard, client: ConnId, server: ConnId, expected: &[u8]) {
    let mut told = Vec::new();
    let mut text = Vec::new();
    while told.len() < 2 || text.len() < expected.len() {
        match shard.event() {
            Event::TlsStarted(conn, info) => {
                assert_eq!(info.version, "TLSv1.3");
                assert!(info.cipher.starts_with("TLS13_"), "{}", info.cipher);
                // The channel binding is for sessions that come in.
                assert_eq!(info.exporter.is_some(), conn == server);
                told.push(conn);
            }
            Event::Received(conn, bytes) if conn == client => text.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    told.sort();
    assert_eq!(told, [server, client]);
    assert_eq!(text, expected);
}

fn closed_both(shard: &TestShard) -> Vec<(ConnId, CloseReason)> {
    let mut ends = Vec::new();
    while ends.len() < 2 {
        match shard.event() {
            Event::Closed(conn, reason) => ends.push((conn, reason)),
            other => panic!("{other:?}"),
        }
    }
    ends.sort_by_key(|(conn, _)| *conn);
    ends
}

#[test]
fn implicit_tls_echoes_and_ends_by_close_notify() {
    let shard = TestShard::start("tls");
    let (client, server) = pair(&shard, 1, true);
    shard.command(Command::StartTls { conn: client, side: side("mail.example.org", true) });
    started(&shard, client, server, b"hello\r\nprotected\r\n");
    shard.command(Command::Send { conn: client, bytes: Bytes::from_static(b"over TLS") });
    assert_eq!(shard.received(server, 8), b"over TLS");
    assert_eq!(shard.received(client, 8), b"over TLS");
    shard.command(Command::Close { conn: client, flush: true });
    assert_eq!(closed_both(&shard), [(server, CloseReason::Peer), (client, CloseReason::Asked)]);
    shard.exit().unwrap();
}

/// A client of rustls itself, connected, with the handshake done.
fn raw_client(shard: &TestShard, config: &Arc<ClientConfig>) -> (ClientConnection, TcpStream) {
    let name = ServerName::try_from("mail.example.org").unwrap();
    let mut client = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut stream = TcpStream::connect(shard.tls_address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    while client.is_handshaking() {
        client.complete_io(&mut stream).unwrap();
    }
    (client, stream)
}

fn raw_config(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    Arc::new(tls::taking_any_certificate(tls::provider(), &[version]).unwrap().with_no_client_auth())
}

/// What the server's side came to, for the next session.
fn server_info(shard: &TestShard) -> TlsInfo {
    let conn = shard.accepted();
    match shard.event() {
        Event::TlsStarted(of, info) if of == conn => info,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_channel_binding_is_that_of_the_client_and_of_tls_1_3_alone() {
    let shard = TestShard::start("exporter");
    let (client, stream) = raw_client(&shard, &raw_config(&rustls::version::TLS13));
    let of_client = client.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", None).unwrap();
    let info = server_info(&shard);
    assert_eq!(info.exporter, Some(of_client));
    let (_, old) = raw_client(&shard, &raw_config(&rustls::version::TLS12));
    let info = server_info(&shard);
    assert_eq!((info.version, info.exporter), ("TLSv1.2", None));
    // The shard ends once its connections have.
    drop((stream, old));
    shard.exit().unwrap();
}

#[test]
fn starttls_switches_a_plain_connection() {
    let shard = TestShard::start("starttls");
    let (client, server) = pair(&shard, 1, false);
    assert_eq!(shard.received(client, 7), b"hello\r\n");
    shard.command(Command::Send { conn: client, bytes: Bytes::from_static(b"STARTTLS\r\n") });
    assert_eq!(shard.received(server, 10), b"STARTTLS\r\n");
    assert_eq!(shard.received(client, 10), b"STARTTLS\r\n");
    shard.command(Command::StartTls { conn: server, side: TlsSide::Server { begun: false } });
    shard.command(Command::StartTls { conn: client, side: side("anything at all", false) });
    started(&shard, client, server, b"protected\r\n");
    // Much in one go, with a notice at its end.
    let bytes = Bytes::from(vec![5; 3 << 20]);
    shard.order(Order::Echo(false));
    shard.command(Command::Send { conn: client, bytes: bytes.clone() });
    shard.command(Command::NotifySent(client));
    let (mut length, mut sent) = (0, false);
    while length < bytes.len() || !sent {
        match shard.event() {
            Event::Received(conn, more) if conn == server => length += more.len(),
            Event::Sent(conn) if conn == client => sent = true,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(length, bytes.len());
    shard.command(Command::Close { conn: server, flush: true });
    assert_eq!(closed_both(&shard), [(server, CloseReason::Asked), (client, CloseReason::Peer)]);
    shard.exit().unwrap();
}

#[test]
fn what_is_not_taken_over_tls_is_offered_again() {
    let shard = TestShard::start("tls-rest");
    let (client, server) = pair(&shard, 1, true);
    shard.command(Command::StartTls { conn: client, side: side("mail.example.org", true) });
    started(&shard, client, server, b"hello\r\nprotected\r\n");
    shard.order(Order::Echo(false));
    shard.order(Order::Take(1000));
    let bytes: Vec<u8> = (0..100_000_u32).map(|index| (index % 251) as u8).collect();
    shard.command(Command::Send { conn: client, bytes: Bytes::from(bytes.clone()) });
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        match shard.event() {
            Event::Received(conn, more) if conn == server => got.extend(more),
            other => panic!("{other:?}"),
        }
        shard.command(Command::ResumeRead(server));
    }
    assert!(got == bytes);
    shard.command(Command::Close { conn: client, flush: false });
    closed_both(&shard);
    shard.exit().unwrap();
}

#[test]
fn a_certificate_that_does_not_prove_the_name_is_told_when_asked_for() {
    let shard = TestShard::start("tls-verify");
    for (index, (name, verify, wanted)) in [
        ("other.example.org", true, Some(TlsFailure::HostMismatch)),
        ("not a name", true, Some(TlsFailure::HostMismatch)),
        ("other.example.org", false, None),
        ("mail.example.org", true, None),
        // A resumed session is looked at as well.
        ("mail.example.org", true, None),
    ]
    .into_iter()
    .enumerate()
    {
        let (client, server) = pair(&shard, index as u32 + 1, true);
        shard.command(Command::StartTls { conn: client, side: side(name, verify) });
        let (mut told, mut received) = (None, 0);
        while told.is_none() || received < b"hello\r\nprotected\r\n".len() {
            match shard.event() {
                Event::TlsStarted(conn, info) if conn == client => told = Some(info.unproven),
                Event::TlsStarted(conn, _) => assert_eq!(conn, server),
                Event::Received(conn, bytes) if conn == client => received += bytes.len(),
                other => panic!("{other:?}"),
            }
        }
        let told = told.unwrap();
        assert_eq!(told.as_ref().map(|unproven| unproven.failure), wanted, "{name}: {told:?}");
        shard.command(Command::Close { conn: client, flush: true });
        closed_both(&shard);
    }
    shard.exit().unwrap();
}

#[test]
fn clear_text_is_never_carried_into_tls() {
    let shard = TestShard::start("injection");
    let mut stream = TcpStream::connect(shard.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let conn = shard.accepted();
    shard.order(Order::Echo(false));
    shard.order(Order::Take(10));
    shard.command(Command::NotifySent(conn));
    assert!(matches!(shard.event(), Event::Sent(_)));
    // The rest of the same segment is left over, and dropped; what comes after it is not TLS.
    stream.write_all(b"STARTTLS\r\nMAIL FROM:<evil@example.org>\r\n").unwrap();
    assert_eq!(shard.received(conn, 10), b"STARTTLS\r\n");
    shard.command(Command::StartTls { conn, side: TlsSide::Server { begun: false } });
    stream.write_all(b"RCPT TO:<victim@example.org>\r\n").unwrap();
    match shard.event() {
        Event::Closed(of, CloseReason::Tls(text)) => assert!(of == conn && text.contains("not TLS"), "{text}"),
        other => panic!("{other:?}"),
    }
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    // A peer that goes away in the midst of a handshake.
    let stream = TcpStream::connect(shard.tls_address).unwrap();
    let conn = shard.accepted();
    drop(stream);
    match shard.event() {
        Event::Closed(of, CloseReason::Tls(text)) => {
            assert!(of == conn && text.contains("during the handshake"), "{text}")
        }
        other => panic!("{other:?}"),
    }
    // A handshake that does not come on can be ended at any time.
    let _stream = TcpStream::connect(shard.tls_address).unwrap();
    let conn = shard.accepted();
    shard.command(Command::Close { conn, flush: true });
    assert!(matches!(shard.event(), Event::Closed(of, CloseReason::Asked) if of == conn));
    shard.exit().unwrap();
}
