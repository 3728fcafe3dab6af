//! DNS is down: mail waits and says for what, and goes when names are answered again.

use super::mail::{Destination, Ledger};
use super::program::{Setup, wait};
use std::net::{SocketAddr, UdpSocket};

/// A name server that knows one mail host on loopback for every domain.
fn serve_names(socket: UdpSocket) {
    std::thread::spawn(move || {
        let mut query = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut query) {
            if let Some(answer) = answer(&query[..len]) {
                // Who is not reached asks again.
                let _ = socket.send_to(&answer, from);
            }
        }
    });
}

/// The answer to a query: MX and A records; of all other types there are none.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    let question = query.get(12..end + 5)?;
    let kind = u16::from_be_bytes([query[end + 1], query[end + 2]]);
    let data: &[u8] = match kind {
        // MX, preference 10, "mail" before the name that was asked.
        15 => b"\x00\x0a\x04mail\xc0\x0c",
        1 => &[127, 0, 0, 1],
        _ => &[],
    };
    let mut answer = query[..2].to_vec();
    answer.extend_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(!data.is_empty()), 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    if !data.is_empty() {
        answer.extend_from_slice(&[0xc0, 0x0c]);
        answer.extend_from_slice(&kind.to_be_bytes());
        answer.extend_from_slice(&[0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
        answer.extend_from_slice(data);
    }
    Some(answer)
}

#[test]
fn a_closed_name_server_defers() {
    let address = UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr()).expect("a port");
    without_names("closed", address, || UdpSocket::bind(address).expect("the port again"));
}

#[test]
fn a_silent_name_server_defers() {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
    let address = socket.local_addr().expect("an address");
    without_names("silent", address, || socket);
}

fn without_names(name: &str, server: SocketAddr, socket: impl FnOnce() -> UdpSocket) {
    let mut setup = Setup::new(name);
    let (ledger, destination) = (Ledger::default(), Destination::start(true));
    setup.route = format!("target = \"mx\"\nport = {}\n", destination.address.port());
    setup.dns = format!("servers = \"{server}\"\ntimeout = \"1s\"\nattempts = 1\n");
    let mut program = setup.start();
    let id = ledger.send(&setup, "nameless", 1000).expect("mail is taken without DNS");
    let why = wait("a reason that names DNS", &setup, || {
        let (code, text) = setup.queue_says(&["show", &id]);
        assert_eq!(code, 0, "{text}");
        (text.contains("destination.example") && text.to_lowercase().contains("dns")).then_some(text)
    });
    println!("{name}: {why}");
    assert_eq!(destination.connections(), 0);
    serve_names(socket());
    ledger.wait_delivered(&setup, &destination);
    program.must_run(&setup);
    let bad: Vec<_> = ["bounced", "expired", "dsn"].into_iter().flat_map(|event| setup.events(event)).collect();
    assert!(bad.is_empty(), "{bad:?}");
    program.stop(&setup);
}
