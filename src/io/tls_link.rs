//! TLS on one connection, driven by hand: ciphertext and clear text go through buffers that the shard shares, and rustls
//! keeps only what it cannot finish. It never touches a socket itself and never waits.
//!
//! A failed handshake is told in words that an operator can use; bytes that came in clear text before a handshake are never
//! given to it.

use crate::io::handler::{TlsInfo, TlsSide};
use crate::io::peer_proof::{self, Authorities};
use crate::io::presented::ClientProof;
use crate::io::tls::TlsSetup;
use crate::policy::outbound_tls::Proof;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{ClientConnection, Connection, ServerConnection};
use std::io::{self, Read, Write};
use std::net::IpAddr;

/// At most so many bytes of ciphertext wait in rustls for a slow peer; clear text waits outside.
const CIPHERTEXT_MAX: usize = 64 * 1024;

/// RFC 9266 section 4.2.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// One side of TLS on one connection.
#[derive(Debug)]
pub(crate) struct TlsLink {
    connection: Connection,
    /// Whether the handler was told that the handshake is done.
    pub(crate) announced: bool,
    /// Ciphertext that came but could not be taken yet, because reading was paused in the midst of it.
    pub(crate) pending: Vec<u8>,
    /// Whether the session may need the channel binding.
    exporter: bool,
    /// How a client proves itself by its certificate, where the listener asks for one.
    clients: Option<ClientProof>,
    /// What the peer must show, and who vouches for names; forgotten once it was looked at.
    asked: Option<Box<(Proof, Authorities)>>,
}

impl TlsLink {
    /// The server's side, with the certificates of a listener.
    pub(crate) fn server(setup: &TlsSetup, listener: usize) -> Result<TlsLink, String> {
        let server = setup.server_for(listener).ok_or("no certificate is configured for this listener")?;
        let presented = server.presented.load();
        let connection = ServerConnection::new(presented.config.clone()).map_err(|error| words(&error))?;
        let link = TlsLink::new(Connection::Server(connection));
        Ok(TlsLink { exporter: server.exporter, clients: presented.clients.clone(), ..link })
    }

    /// The side that `side` names; `peer` is the remote address, `listener` where the connection came in.
    pub(crate) fn start(
        setup: &TlsSetup,
        side: &TlsSide,
        peer: Option<IpAddr>,
        listener: usize,
    ) -> Result<TlsLink, String> {
        let TlsSide::Client { name, setup: chosen, proof } = side else {
            return TlsLink::server(setup, listener);
        };
        let plain_name = name.strip_suffix('.').unwrap_or(name).to_owned();
        let server_name = match (ServerName::try_from(plain_name), peer) {
            (Ok(name), _) => name,
            // The name is only for SNI. An address is never sent as SNI (RFC 6066 section 3).
            (Err(_), Some(address)) => ServerName::from(address),
            (Err(_), None) => return Err(format!("{name:?} is not a name that a certificate can prove")),
        };
        let config = setup.client(*chosen).ok_or("no set-up is there for deliveries")?;
        let connection = ClientConnection::new(config.clone(), server_name).map_err(|error| words(&error))?;
        let link = TlsLink::new(Connection::Client(connection));
        let asked = (*proof != Proof::None).then(|| Box::new((proof.clone(), setup.authorities.clone())));
        Ok(TlsLink { asked, ..link })
    }

    fn new(mut connection: Connection) -> TlsLink {
        connection.set_buffer_limit(Some(CIPHERTEXT_MAX));
        TlsLink { connection, announced: false, pending: Vec::new(), exporter: false, clients: None, asked: None }
    }

    /// Takes some ciphertext from the front of `input` and decrypts it.
    ///
    /// # Errors
    /// In words, when what came is not acceptable; an alert for the peer may wait to be written.
    pub(crate) fn take(&mut self, input: &mut &[u8]) -> Result<(), String> {
        self.connection.read_tls(input).map_err(|error| error.to_string())?;
        match self.connection.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => Err(words(&error)),
        }
    }

    /// Clear text that was decrypted, into `buffer`: `Ok(0)` when there is none now, an error of kind `UnexpectedEof` after
    /// the peer's close_notify.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.connection.reader().read(buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => Ok(read),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Encrypts some of `bytes`: as much as there is room for.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(bytes)
    }

    /// Whether ciphertext waits to be sent.
    pub(crate) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Sends ciphertext.
    pub(crate) fn send(&mut self, socket: &mut dyn Write) -> io::Result<usize> {
        self.connection.write_tls(socket)
    }

    /// Tells the peer that nothing more comes.
    pub(crate) fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// What the handshake came to, the first time that this is asked after it was done.
    pub(crate) fn announce(&mut self) -> Option<TlsInfo> {
        if self.announced || self.connection.is_handshaking() {
            return None;
        }
        self.announced = true;
        let version = match self.connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let cipher =
            self.connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown");
        let client =
            self.clients.as_ref().and_then(|proof| proof.client(self.connection.peer_certificates()?, UnixTime::now()));
        let unproven = self.asked.take().and_then(|asked| {
            let chain = self.connection.peer_certificates().unwrap_or_default();
            peer_proof::look(&asked.0, chain, &asked.1, UnixTime::now()).err()
        });
        Some(TlsInfo { version, cipher, client, exporter: self.channel_binding(), unproven })
    }

    /// The channel binding tls-exporter, where it is asked for and unique.
    fn channel_binding(&self) -> Option<[u8; 32]> {
        if !self.exporter || self.connection.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return None;
        }
        self.connection.export_keying_material([0; 32], EXPORTER_LABEL, Some(&[])).ok()
    }
}

/// An error of rustls in words that say whose fault it was.
fn words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => {
            format!("the peer sent something that is not TLS ({error})")
        }
        rustls::Error::AlertReceived(alert) => format!("the peer ended TLS with the alert {alert:?}"),
        rustls::Error::InvalidCertificate(problem) => format!("the peer's certificate is not acceptable: {problem}"),
        rustls::Error::NoCertificatesPresented => "the peer presented no certificate".to_owned(),
        rustls::Error::PeerIncompatible(problem) => {
            format!("there is no TLS version, cipher or key exchange in common ({problem:?})")
        }
        rustls::Error::PeerMisbehaved(problem) => format!("the peer broke the rules of TLS ({problem:?})"),
        other => other.to_string(),
    }
}
