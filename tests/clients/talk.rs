//! A client that says what it is told to, octet by octet if need be: in the clear, behind STARTTLS, or under TLS from the
//! first octet.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

enum Link {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Between,
}

pub struct Talk {
    link: Link,
    input: Vec<u8>,
}

fn handshake(socket: TcpStream) -> Link {
    let config = ringpost::io::tls::client_opportunistic().expect("TLS");
    let name = ServerName::try_from("relay.test").expect("a name");
    let connection = ClientConnection::new(config, name).expect("a client");
    Link::Tls(Box::new(StreamOwned::new(connection, socket)))
}

impl Talk {
    /// In the clear; the greeting is still to be read.
    pub fn clear(address: SocketAddr) -> Talk {
        let socket = TcpStream::connect(address).expect("a connection");
        socket.set_nodelay(true).expect("no delay");
        Talk { link: Link::Clear(socket), input: Vec::new() }
    }

    /// Under TLS, greeted and with EHLO said.
    pub fn tls(address: SocketAddr) -> Talk {
        let socket = TcpStream::connect(address).expect("a connection");
        let mut talk = Talk { link: handshake(socket), input: Vec::new() };
        let greeting = talk.reply();
        assert!(greeting.starts_with("220 "), "{greeting}");
        talk.expect("EHLO client.test", "250");
        talk
    }

    /// Begins the handshake: STARTTLS was answered.
    pub fn start_tls(&mut self) {
        assert!(self.input.is_empty(), "more came in the clear: {}", self.input.escape_ascii());
        let Link::Clear(socket) = std::mem::replace(&mut self.link, Link::Between) else { panic!("TLS twice") };
        self.link = handshake(socket);
    }

    /// Sends octets as they are. A server that has closed takes none, which its last reply explains.
    pub fn send(&mut self, octets: &[u8]) {
        let _ = match &mut self.link {
            Link::Clear(socket) => socket.write_all(octets),
            Link::Tls(stream) => stream.write_all(octets).and_then(|()| stream.flush()),
            Link::Between => Ok(()),
        };
    }

    /// The next whole reply; what there is of it when the server has ended the connection.
    pub fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let Some(line) = self.line() else { return reply };
            reply.push_str(&line);
            if line.as_bytes().get(3) != Some(&b'-') {
                return reply;
            }
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.input.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.input.drain(..at + 2).collect();
                return Some(String::from_utf8(line).expect("replies are text"));
            }
            let mut piece = [0; 4096];
            let read = match &mut self.link {
                Link::Clear(socket) => socket.read(&mut piece),
                Link::Tls(stream) => stream.read(&mut piece),
                Link::Between => Ok(0),
            };
            match read {
                Ok(octets) if octets > 0 => self.input.extend_from_slice(&piece[..octets]),
                _ => return None,
            }
        }
    }

    pub fn say(&mut self, command: &str) -> String {
        self.send(format!("{command}\r\n").as_bytes());
        self.reply()
    }

    /// Says it and expects a reply that begins so.
    #[track_caller]
    pub fn expect(&mut self, command: &str, reply: &str) {
        let got = self.say(command);
        assert!(got.starts_with(reply), "{}: {got}", command.escape_debug());
    }
}

/// The command that logs in by PLAIN.
pub fn plain(login: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", STANDARD.encode(format!("\0{login}\0{password}")))
}
