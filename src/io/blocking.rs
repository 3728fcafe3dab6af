//! One outgoing connection by blocking calls, with TLS when asked for: for commands such as `ringpost send`, never for
//! the mail path. It fails with the system's error, or in the words of the handshake.

use crate::io::tls::client_opportunistic;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// A connection, in clear or encrypted.
#[derive(Debug)]
pub enum BlockingStream {
    /// In clear.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl BlockingStream {
    /// Connects to the first address of the host that answers.
    ///
    /// # Errors
    /// Of the last address tried, or when the name has none.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> io::Result<BlockingStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in (host, port).to_socket_addrs()? {
            match BlockingStream::connect_to(address, timeout) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn connect_to(address: SocketAddr, timeout: Duration) -> io::Result<BlockingStream> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        Ok(BlockingStream::Plain(stream))
    }

    /// Bounds the next reads and writes.
    ///
    /// # Errors
    /// When the system refuses the bound.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let socket = match self {
            BlockingStream::Plain(stream) => stream,
            BlockingStream::Tls(stream) => stream.get_ref(),
        };
        // Zero would mean: without bound.
        let timeout = timeout.max(Duration::from_millis(1));
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))
    }

    /// Runs the handshake; the certificate is not verified. Gives the version of TLS with the stream.
    ///
    /// # Errors
    /// When the handshake fails or the connection is encrypted already.
    pub fn start_tls(self, host: &str) -> io::Result<(BlockingStream, String)> {
        let BlockingStream::Plain(mut stream) = self else {
            return Err(io::Error::other("the connection is encrypted already"));
        };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let config = client_opportunistic().map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        let version = connection.protocol_version().map_or_else(String::new, |version| format!("{version:?}"));
        Ok((BlockingStream::Tls(Box::new(StreamOwned::new(connection, stream))), version))
    }
}

impl Read for BlockingStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            BlockingStream::Plain(stream) => stream.read(buffer),
            BlockingStream::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for BlockingStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            BlockingStream::Plain(stream) => stream.write(bytes),
            BlockingStream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            BlockingStream::Plain(stream) => stream.flush(),
            BlockingStream::Tls(stream) => stream.flush(),
        }
    }
}
