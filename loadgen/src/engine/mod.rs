//! The engine: one io_uring, one thread, any number of connections; the border between it and what drives it.
//!
//! A [`Driver`] is told what happens and answers through [`Io`]; it never waits and never touches a socket. The engine is
//! not ringpost's (src/io of the program): a measuring instrument that shared its engine with what it measures would
//! share its defects too, and it needs timers of microseconds where a shard needs none. What it needs of the kernel is
//! Linux 6.1 or newer; without, or where io_uring is forbidden, [`run`] fails with words that say so.

mod buffers;
pub(crate) mod cores;
mod io;
mod run;
mod socket;
mod tls;

pub use cores::{CPUS_MAX, keep_on_core};
pub use io::Io;
pub use run::run;
pub use socket::{cpu_of_thread, listen};
pub use tls::TlsRole;

use std::net::SocketAddr;

/// One connection of one engine. Places are small and dense and are used again; the generation tells one use from the next.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// The place: an index for the driver's own table.
    pub index: u32,
    /// Counts the uses of the place.
    pub generation: u32,
}

/// Why a connection is over without having been closed by the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer sent its end.
    Peer,
    /// The socket failed, in words.
    Error(String),
    /// TLS failed, in words.
    Tls(String),
}

/// How the driver closes a connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Close {
    /// After everything that was written has gone out.
    Flush,
    /// At once; what was written and is not yet with the kernel is dropped.
    Now,
    /// At once and with a reset instead of an end.
    Reset,
}

/// What runs on an engine. All calls come from the engine's thread.
pub trait Driver {
    /// The engine runs; called once, first.
    fn started(&mut self, io: &mut Io);

    /// A listener has taken a connection. False closes it with a reset.
    fn accepted(&mut self, io: &mut Io, listener: usize, conn: ConnId) -> bool;

    /// A connection asked for with [`Io::connect`] stands, or failed for the reason given and is gone.
    fn connected(&mut self, io: &mut Io, conn: ConnId, result: Result<(), String>);

    /// Bytes came, in clear. The driver keeps what it cannot use yet.
    fn received(&mut self, io: &mut Io, conn: ConnId, bytes: &[u8]);

    /// The handshake that was asked for with [`Io::start_tls`] is done.
    fn tls_started(&mut self, io: &mut Io, conn: ConnId);

    /// The connection is over. Not called for those that the driver closed.
    fn ended(&mut self, io: &mut Io, conn: ConnId, reason: Ended);

    /// A timer set with [`Io::wake_at`] is due.
    fn timer(&mut self, io: &mut Io, token: u64);

    /// Somebody outside has asked for the end; the driver calls [`Io::stop`], now or once it has finished. Called once.
    fn stop_asked(&mut self, io: &mut Io);
}

/// Where the engine listens: a bound socket, and its address.
#[derive(Debug)]
pub struct Listener {
    /// The socket, listening.
    pub socket: socket2::Socket,
    /// Where.
    pub address: SocketAddr,
}
