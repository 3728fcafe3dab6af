//! TLS on a connection of the engine: rustls, driven by hand over the same buffers.
//!
//! Certificates are not verified as a client: a load generator trusts what it was pointed at. Fails with rustls's words.

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use std::io::{Read, Write};
use std::sync::Arc;

/// Which side of a handshake to play.
#[derive(Clone, Debug)]
pub enum TlsRole {
    /// The client, towards this name.
    Client(Arc<ClientConfig>, String),
    /// The server.
    Server(Arc<ServerConfig>),
}

/// The state of TLS on one connection.
#[derive(Debug)]
pub(super) struct Tls {
    connection: Connection,
    announced: bool,
}

/// What incoming bytes came to.
pub(super) struct Progress {
    /// The handshake has just been completed.
    pub(super) started: bool,
    /// The peer has closed its side.
    pub(super) closed: bool,
}

impl Tls {
    pub(super) fn new(role: TlsRole) -> Result<Tls, String> {
        let connection = match role {
            TlsRole::Client(config, name) => {
                let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
                ClientConnection::new(config, name).map(Connection::Client)
            }
            TlsRole::Server(config) => ServerConnection::new(config).map(Connection::Server),
        };
        let mut connection = connection.map_err(|error| error.to_string())?;
        // What is written goes out with the same turn, so that nothing piles up here.
        connection.set_buffer_limit(None);
        Ok(Tls { connection, announced: false })
    }

    /// Takes bytes off the wire; appends what they hold in clear to `clear`.
    pub(super) fn receive(&mut self, mut wire: &[u8], clear: &mut Vec<u8>) -> Result<Progress, String> {
        let mut closed = false;
        while !wire.is_empty() {
            self.connection.read_tls(&mut wire).map_err(|error| error.to_string())?;
            let state = self.connection.process_new_packets().map_err(|error| error.to_string())?;
            closed |= state.peer_has_closed();
            let at = clear.len();
            let coming = state.plaintext_bytes_to_read();
            clear.resize(at + coming, 0);
            if coming > 0 {
                self.connection.reader().read_exact(&mut clear[at..]).map_err(|error| error.to_string())?;
            }
        }
        let started = !self.announced && !self.connection.is_handshaking();
        self.announced |= started;
        Ok(Progress { started, closed })
    }

    /// Encrypts and appends what is to go on the wire, handshake included.
    pub(super) fn send(&mut self, clear: &[u8], wire: &mut Vec<u8>) {
        // Neither can fail: the writer has no limit, and a Vec takes everything.
        let _ = self.connection.writer().write_all(clear);
        while self.connection.wants_write() {
            let _ = self.connection.write_tls(wire);
        }
    }

    /// Tells the peer that no more comes.
    pub(super) fn say_goodbye(&mut self) {
        self.connection.send_close_notify();
    }
}
