//! TLS from the first octet on, behind a PROXY header, and in its older version, in both directions.

use super::bodies::{assert_same, message};
use super::programs::{program, run};
use super::relay::{Relay, Setup};
use super::sink::Sink;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

const IMPLICIT: &str = "tls = \"implicit\"";

#[test]
fn tls_from_the_first_octet_with_swaks_and_curl() {
    let sink = Sink::new();
    let relay = Setup::new().listener(IMPLICIT).next_hop(sink.address).start();
    let Some(mut swaks) = program("swaks") else { return };
    swaks.args(["--server", "127.0.0.1", "--port", &relay.port(), "--tls-on-connect"]);
    swaks.args(["--from", "ann@origin.test", "--to", "swaks@dest.test"]);
    run(swaks, b"").succeeded();
    assert!(sink.wait_for("swaks@dest.test").text().contains("with ESMTPS (TLSv1.3 "));

    let content = message("curl", "Hello.\r\n");
    let file = relay.directory().file("curl.eml", &content);
    let Some(mut curl) = program("curl") else { return };
    curl.args(["--silent", "--show-error", "--insecure", &format!("smtps://127.0.0.1:{}", relay.port())]);
    curl.args(["--mail-from", "ann@origin.test", "--mail-rcpt", "curl@dest.test", "--upload-file"]).arg(file);
    run(curl, b"").succeeded();
    assert_same(&sink.wait_for("curl@dest.test").content, &content, "curl");
    relay.stop();
}

#[test]
fn the_older_version_in_both_directions() {
    let sink = Sink::of_old_tls();
    let relay = Setup::new().next_hop(sink.address).start();
    let Some(mut swaks) = program("swaks") else { return };
    swaks.args(["--server", "127.0.0.1", "--port", &relay.port(), "--tls", "--tls-protocol", "tlsv1_2"]);
    swaks.args(["--from", "ann@origin.test", "--to", "old@dest.test"]);
    run(swaks, b"").succeeded();
    let mail = sink.wait_for("old@dest.test");
    assert!(mail.tls && mail.text().contains("with ESMTPS (TLSv1.2 "), "{}", mail.text());
    let delivered = relay.wait_log(|event| event["event"] == "delivered");
    assert_eq!(delivered["tls"], "TLSv1.2", "{delivered}");
    relay.stop();
}

/// A client behind a proxy: sends the header by pieces that end at these places, the last with the first octets of the
/// handshake, then a message.
fn send_behind_proxy(relay: &Relay, header: &[u8], cuts: &[usize], recipient: &str) {
    let config = ringpost::io::tls::client_opportunistic().expect("TLS");
    let name = ServerName::try_from("relay.test").expect("a name");
    let mut connection = ClientConnection::new(config, name).expect("a client");
    let mut bytes = header.to_vec();
    connection.write_tls(&mut bytes).expect("the first flight");
    let mut socket = TcpStream::connect(relay.address).expect("a connection");
    socket.set_nodelay(true).expect("no delay");
    let mut sent = 0;
    for &cut in cuts.iter().chain(&[bytes.len()]) {
        socket.write_all(&bytes[sent..cut]).expect("the beginning");
        sent = cut;
    }
    let mut stream = BufReader::new(StreamOwned::new(connection, socket));
    for command in [
        "",
        "EHLO client.test\r\n",
        "MAIL FROM:<ann@origin.test>\r\n",
        &format!("RCPT TO:<{recipient}>\r\n"),
        "DATA\r\n",
        "Subject: proxied\r\n\r\nHello.\r\n.\r\n",
    ] {
        stream.get_mut().write_all(command.as_bytes()).expect("a command is sent");
        let mut line = String::new();
        while line.as_bytes().get(3) != Some(&b' ') {
            line.clear();
            stream.read_line(&mut line).expect("a reply");
            assert!(line.starts_with(['2', '3']) && line.len() > 4, "{command}: {line}");
        }
    }
}

#[test]
fn a_proxy_header_before_the_handshake() {
    let sink = Sink::new();
    let trusted = "trusted = [\"192.0.2.0/24\"]";
    let relay = Setup::new().listener(&format!("{IMPLICIT}\nproxy = true\n{trusted}")).next_hop(sink.address).start();
    let header = b"PROXY TCP4 192.0.2.77 192.0.2.1 4711 465\r\n";
    let all = header.len();
    for (name, cuts) in [("whole", &[][..]), ("apart", &[all][..]), ("pieces", &[1, 7, all - 1, all + 1, all + 6][..])]
    {
        let recipient = format!("{name}@dest.test");
        send_behind_proxy(&relay, header, cuts, &recipient);
        let mail = sink.wait_for(&recipient);
        assert!(mail.text().contains("with ESMTPS (TLSv1.3 "), "{}", mail.text());
        let received = relay.wait_log(|event| event["event"] == "received" && event["to"] == recipient.as_str());
        assert_eq!(received["client"], "192.0.2.77", "{received}");
    }
    relay.stop();
}

#[test]
fn a_handshake_without_the_proxy_header_is_closed() {
    let relay = Setup::new().listener(&format!("{IMPLICIT}\nproxy = true")).hold().start();
    let mut socket = TcpStream::connect(relay.address).expect("a connection");
    socket.write_all(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]).expect("something like a handshake");
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = std::io::Read::read_to_end(&mut socket, &mut answer);
    assert_eq!(answer, b"");
    relay.stop();
}
