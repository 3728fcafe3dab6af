//! Connections of the simulated network: what is under way in either direction, in pieces that arrive one after the
//! other, and what the machine knows of the relay's end (as src/io/connection.rs does of a socket).
//!
//! Values and queues only; moving them along is the business of network.rs.

use crate::world::random::{MS, Ns, Random};
use bytes::Bytes;
use ringpost::clock::Instant;
use ringpost::io::handler::{CloseReason, ConnId};
use std::collections::VecDeque;

/// Names a connection for as long as the world lasts.
pub type LinkId = u32;

/// The two directions.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Towards the relay.
    In,
    /// From the relay.
    Out,
}

/// What travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Bytes(Bytes),
    /// One side's half of a handshake; false: it cannot work.
    Tls(bool),
    /// Nothing more comes.
    Fin,
    /// All is over.
    Reset,
}

impl Piece {
    /// Octets of content.
    pub fn len(&self) -> usize {
        match self {
            Piece::Bytes(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
pub struct Pipe {
    /// On the way.
    pub flight: VecDeque<Piece>,
    /// When the last of these arrives.
    pub last_at: Ns,
    /// Octets on the way, or arrived and not read.
    pub held: usize,
    /// Octets ever put in.
    pub sent: u64,
    /// Nothing more may be put in.
    pub ended: bool,
}

/// What waits to be done with the relay's end of a connection.
#[derive(Debug)]
pub enum Output {
    Bytes(Bytes),
    Notify,
    StartTls,
}

/// The relay's end.
#[derive(Debug)]
pub struct RelayEnd {
    pub epoch: u32,
    pub shard: u8,
    pub conn: ConnId,
    pub connecting: bool,
    pub paused: bool,
    pub handshake_due: bool,
    pub handshaking: bool,
    pub tls: bool,
    pub peer_ended: bool,
    pub closing: bool,
    pub end: Option<CloseReason>,
    /// When flushing has taken too long.
    pub deadline: Instant,
    pub output: VecDeque<Output>,
    /// Arrived and not given to the handler.
    pub arrived: VecDeque<Piece>,
    /// Given and not taken.
    pub rest: Bytes,
    /// Octets the handler has taken.
    pub read: u64,
    /// A look at this end is planned.
    pub look_planned: bool,
}

impl RelayEnd {
    /// A new one.
    pub fn new(epoch: u32, shard: u8, conn: ConnId, connecting: bool) -> RelayEnd {
        RelayEnd {
            epoch,
            shard,
            conn,
            connecting,
            paused: false,
            handshake_due: false,
            handshaking: false,
            tls: false,
            peer_ended: false,
            closing: false,
            end: None,
            deadline: Instant::MAX,
            output: VecDeque::new(),
            arrived: VecDeque::new(),
            rest: Bytes::new(),
            read: 0,
            look_planned: false,
        }
    }

    /// Whether it takes commands.
    pub fn is_open(&self) -> bool {
        self.end.is_none() && !self.closing
    }

    /// Whether the handler may be given input.
    pub fn takes_input(&self) -> bool {
        self.is_open() && !self.paused && !self.peer_ended && !self.handshake_due && !self.connecting
    }
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    /// A client's; otherwise the relay's own to a destination.
    pub inbound: bool,
    /// Which client, or which host.
    pub party: usize,
    pub relay: Option<RelayEnd>,
    /// The other side still cares.
    pub party_open: bool,
    pub into: Pipe,
    pub out: Pipe,
    /// Octets that may be on the way from the relay at a time.
    pub window: usize,
    pub delay: Ns,
    /// Arrivals whose replies end at these places of the way in.
    pub marks: VecDeque<(u64, Vec<usize>)>,
}

impl Link {
    /// A connection without anything on it.
    pub fn new(inbound: bool, party: usize, random: &mut Random, delay: Ns) -> Link {
        Link {
            inbound,
            party,
            relay: None,
            party_open: true,
            into: Pipe::default(),
            out: Pipe::default(),
            window: *random.pick(&[2_000, 16_000, 200_000]),
            delay,
            marks: VecDeque::new(),
        }
    }

    /// One of the directions.
    pub fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::In => &mut self.into,
            Way::Out => &mut self.out,
        }
    }

    /// Puts a piece on the way; gives when it arrives.
    pub fn put(&mut self, way: Way, piece: Piece, now: Ns, extra: Ns, random: &mut Random) -> Ns {
        let delay = self.delay / 4 + random.skewed(0, self.delay) + extra;
        let len = piece.len();
        let pipe = self.pipe(way);
        pipe.held += len;
        pipe.sent += len as u64;
        pipe.ended |= matches!(piece, Piece::Fin | Piece::Reset);
        pipe.flight.push_back(piece);
        pipe.last_at = pipe.last_at.max(now + delay);
        pipe.last_at
    }
}

/// Cuts bytes into pieces at random: one, a few, or very many small ones.
pub fn split(bytes: Bytes, random: &mut Random) -> Vec<Bytes> {
    let len = bytes.len();
    let cuts = match random.below(10) {
        0..=5 => 0,
        6..=8 => random.range(1, 3),
        _ => random.range(1, 12),
    };
    // Large writes never travel whole.
    let cuts = cuts.max(len as u64 / 16_384);
    let mut places: Vec<usize> = (0..cuts).map(|_| random.below(len as u64) as usize).collect();
    places.push(len);
    places.sort_unstable();
    let mut from = 0;
    let mut pieces = Vec::with_capacity(places.len());
    for to in places {
        if to > from {
            pieces.push(bytes.slice(from..to));
            from = to;
        }
    }
    pieces
}

/// How long a closed connection may take to flush, as in src/io/turn.rs.
pub const FLUSH_TIMEOUT: Ns = 10_000 * MS;
