//! The border between the pure shard and the machine: what happens comes in by [`Handler`], what is to be done goes
//! out as [`Command`]s. Nothing here touches a socket, so that the simulator can stand in for the rest of src/io.

use crate::clock::Now;
use crate::io::peer_proof::Unproven;
use crate::policy::outbound_tls::Proof;
use bytes::Bytes;
use ringpost_spool::{DiskDone, DiskOp};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// One connection of one shard. The handler gives it out; the generation tells a connection from an earlier one that
/// had the same place.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Place in the shard's table of connections: small and dense, reused after `closed`.
    pub index: u32,
    /// Counts the uses of this place.
    pub generation: u32,
}

/// A client's certificate that an authority of the listener has proven, and whose key the client has shown to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-256 of the certificate (DER).
    pub fingerprint: [u8; 32],
    /// The subject's alternative names that are e-mail addresses or DNS names (RFC 5280 4.2.1.6), in its order; domains
    /// are in lower case. At most [`CLIENT_NAMES_MAX`](crate::limits::CLIENT_NAMES_MAX).
    pub names: Vec<Box<str>>,
}

/// What a TLS handshake came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsInfo {
    /// "TLSv1.2" or "TLSv1.3".
    pub version: &'static str,
    /// The suite's name, as in "TLS13_AES_256_GCM_SHA384".
    pub cipher: &'static str,
    /// The client's certificate: on the server's side, where the listener asks for one and a good one came.
    pub client: Option<Arc<ClientCertificate>>,
    /// The channel binding tls-exporter (RFC 9266): on the server's side of TLS 1.3, where clients log in. Not of TLS 1.2,
    /// whose binding is unique only with the extended master secret (RFC 9266 section 4.2), of which rustls does not tell.
    pub exporter: Option<[u8; 32]>,
    /// On the client's side: what there is to say against the peer, where a proof was asked for.
    pub unproven: Option<Unproven>,
}

/// Which side of a handshake to play.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsSide {
    /// With the certificates of the listener.
    Server {
        /// What came and was left is the beginning of the handshake. Else it is thrown away: what came in clear must not
        /// be taken for something that came protected.
        begun: bool,
    },
    /// Towards this name.
    Client {
        /// The peer's name, for SNI.
        name: String,
        /// Which set-up is used, by its place.
        setup: u16,
        /// What is looked at once the handshake is done; what comes of it is told, not acted on.
        proof: Proof,
    },
}

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The handler asked for it.
    Asked,
    /// The peer sent its end (FIN or close_notify).
    Peer,
    /// An error of the socket, in words.
    Error(String),
    /// The handshake failed, in words.
    Tls(String),
}

/// What the shard asks of the machine. Commands of one connection are carried out in order.
#[derive(Debug)]
pub enum Command<M, R> {
    /// Sends bytes on a connection; they are queued when the peer is slow.
    Send {
        /// Where.
        conn: ConnId,
        /// What; never copied for large pieces.
        bytes: Bytes,
    },
    /// Asks for [`Handler::sent`] once all that was queued before is with the kernel.
    NotifySent(ConnId),
    /// Closes a connection: after what is queued has gone out when `flush` (for at most 10 s), else at once.
    Close {
        /// Which.
        conn: ConnId,
        /// Whether queued bytes still go out.
        flush: bool,
    },
    /// Reads no more from this connection until [`Command::ResumeRead`].
    PauseRead(ConnId),
    /// Reads on, beginning with the bytes that `received` left.
    ResumeRead(ConnId),
    /// Opens a connection; answered by `connected` or `connect_failed`.
    Connect {
        /// The id it will have.
        conn: ConnId,
        /// The remote end.
        to: SocketAddr,
        /// The local address to send from.
        from: Option<IpAddr>,
        /// After how long to give up.
        timeout: Duration,
    },
    /// Runs a TLS handshake once all queued bytes are out; answered by `tls_started` or `closed`.
    StartTls {
        /// Which.
        conn: ConnId,
        /// As which side.
        side: TlsSide,
    },
    /// Work for the disk; answered by `disk_done`, save for removals that need no answer.
    Disk(DiskOp),
    /// A message for another shard. The sender keeps count so that the mailbox always has room: when it has none all
    /// the same, the message comes back by `message_refused`.
    Post {
        /// To which shard.
        shard: u8,
        /// What.
        message: M,
    },
    /// A report for the control thread; when its mailbox is full it comes back by `report_refused`.
    Report(R),
    /// Asks for [`Handler::woken`] at this time, instead of at the one that was asked for before.
    WakeAt(crate::clock::Instant),
    /// Ends another turn after this one, soon: after whatever has become ready by then.
    NextTurn,
    /// Stops taking connections: listeners are closed.
    StopListening,
    /// The shard is done: its executor ends once every connection is closed.
    Exit,
}

/// The pure heart of a shard, as the machine sees it. After every call the machine drains
/// [`poll_command`](Handler::poll_command).
pub trait Handler {
    /// What comes from other shards and from the control thread.
    type Message: Send + 'static;
    /// What goes to the control thread.
    type Report: Send + 'static;

    /// The executor runs; called once, first.
    fn started(&mut self, now: Now);

    /// A client connected. The id to use, or `None` to close it (after `out` was sent).
    fn accepted(
        &mut self,
        listener: usize,
        peer: SocketAddr,
        local: SocketAddr,
        now: Now,
        out: &mut Vec<u8>,
    ) -> Option<ConnId>;

    /// An outgoing connection stands.
    fn connected(&mut self, conn: ConnId, local: SocketAddr, now: Now);

    /// An outgoing connection could not be made; the id is free again.
    fn connect_failed(&mut self, conn: ConnId, error: &str, now: Now);

    /// Bytes came. Returns how many were taken: fewer than given means that reading pauses until
    /// [`Command::ResumeRead`], when the rest is offered again. What is put into `out` is sent on this connection
    /// before any command of this call.
    fn received(&mut self, conn: ConnId, bytes: &[u8], now: Now, out: &mut Vec<u8>) -> usize;

    /// Answers [`Command::NotifySent`].
    fn sent(&mut self, conn: ConnId, now: Now);

    /// The handshake is done.
    fn tls_started(&mut self, conn: ConnId, info: TlsInfo, now: Now, out: &mut Vec<u8>);

    /// The connection is gone and its id is free again: always the last call for it, whoever closed it.
    fn closed(&mut self, conn: ConnId, reason: CloseReason, now: Now);

    /// Disk work is done.
    fn disk_done(&mut self, done: DiskDone, now: Now);

    /// A message came in the mailbox.
    fn message(&mut self, message: Self::Message, now: Now);

    /// A message did not find room in another shard's mailbox.
    fn message_refused(&mut self, shard: u8, message: Self::Message, now: Now);

    /// A report did not find room in the control thread's mailbox.
    fn report_refused(&mut self, report: Self::Report, now: Now);

    /// The machine has trouble that is nobody's connection: no descriptors left, a helper that failed. In words that
    /// say what to do.
    fn trouble(&mut self, text: String, now: Now);

    /// The heartbeat, every 20 ms or so; `late` is by how much it came late.
    fn tick(&mut self, now: Now, late: Duration);

    /// The time of [`Command::WakeAt`] has come.
    fn woken(&mut self, now: Now);

    /// All that was ready in this turn of the executor has run: the moment to close a batch.
    fn turn_ended(&mut self, now: Now);

    /// When `tick` is needed next, for a simulator that jumps over idle time.
    fn next_deadline(&self) -> Option<crate::clock::Instant>;

    /// The next thing to do.
    fn poll_command(&mut self) -> Option<Command<Self::Message, Self::Report>>;
}
