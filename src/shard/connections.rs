//! The shard's table of connections: gives out ids, finds a connection by its id, and tells a stale id from a live one.

use crate::clock::Instant;
use crate::io::handler::ConnId;
use crate::shard::egress::Outbound;
use crate::shard::ingress::Inbound;
use std::net::SocketAddr;

/// A connection of either direction.
#[derive(Debug)]
pub enum Conn {
    /// A client's session.
    Inbound(Box<Inbound>),
    /// Ours, to a destination.
    Outbound(Box<Outbound>),
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    used: bool,
    conn: Option<Conn>,
}

/// All connections of a shard. Places are reused only after [`free`](Connections::free), so an id that is late (a disk
/// read for a session that is gone) finds nothing instead of somebody else.
#[derive(Debug, Default)]
pub struct Connections {
    places: Vec<Place>,
    vacant: Vec<u32>,
    inbound: usize,
    outbound: usize,
}

impl Connections {
    /// A new id for a connection that [`put`](Connections::put) will fill.
    pub fn allocate(&mut self) -> ConnId {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        place.used = true;
        ConnId { index, generation: place.generation }
    }

    fn place(&mut self, id: ConnId) -> Option<&mut Place> {
        self.places.get_mut(id.index as usize).filter(|place| place.used && place.generation == id.generation)
    }

    /// Takes a connection out, so that the shard can be changed while it is worked on. Its place stays its own.
    pub fn take(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.place(id)?.conn.take();
        match conn {
            Some(Conn::Inbound(_)) => self.inbound -= 1,
            Some(Conn::Outbound(_)) => self.outbound -= 1,
            None => {}
        }
        conn
    }

    /// Takes out a client's session.
    pub fn take_inbound(&mut self, id: ConnId) -> Option<Box<Inbound>> {
        match self.take(id)? {
            Conn::Inbound(inbound) => Some(inbound),
            other => {
                self.put(id, other);
                None
            }
        }
    }

    /// The client of this session.
    pub fn client_of(&mut self, id: ConnId) -> Option<SocketAddr> {
        let inbound = self.take_inbound(id)?;
        let client = inbound.state.client;
        self.put(id, Conn::Inbound(inbound));
        Some(client)
    }

    /// Takes out one of ours.
    pub fn take_outbound(&mut self, id: ConnId) -> Option<Box<Outbound>> {
        match self.take(id)? {
            Conn::Outbound(outbound) => Some(outbound),
            other => {
                self.put(id, other);
                None
            }
        }
    }

    /// Puts a connection (back) into its place.
    pub fn put(&mut self, id: ConnId, conn: Conn) {
        let inbound = matches!(conn, Conn::Inbound(_));
        if let Some(place) = self.place(id) {
            place.conn = Some(conn);
            if inbound { self.inbound += 1 } else { self.outbound += 1 }
        }
    }

    /// Looks at a connection.
    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        self.places
            .get(id.index as usize)
            .filter(|place| place.used && place.generation == id.generation)
            .and_then(|place| place.conn.as_ref())
    }

    /// Since when one of ours has had no work, if it has none.
    pub fn idle_since(&self, id: ConnId) -> Option<Instant> {
        match self.get(id)? {
            Conn::Outbound(outbound) => outbound.idle_since(),
            Conn::Inbound(_) => None,
        }
    }

    /// Gives up the id; what was still in its place comes back.
    pub fn free(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.take(id);
        if let Some(place) = self.place(id) {
            place.used = false;
            self.vacant.push(id.index);
        }
        conn
    }

    /// Clients' sessions.
    pub fn inbound(&self) -> usize {
        self.inbound
    }

    /// Connections of ours.
    pub fn outbound(&self) -> usize {
        self.outbound
    }

    /// The length of the table, for sweeps.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// The connection at a place of the table, if there is one.
    pub fn at(&self, index: usize) -> Option<(ConnId, &Conn)> {
        let place = self.places.get(index).filter(|place| place.used)?;
        let conn = place.conn.as_ref()?;
        Some((ConnId { index: index as u32, generation: place.generation }, conn))
    }
}
