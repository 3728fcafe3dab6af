//! Moves bytes: from the relay's output queues onto the way, from the way to whom they are for, and into the handlers
//! in pieces of random size, as far as they take them. Connections end here too, in the manners that sockets have.

use crate::world::machine::Callback;
use crate::world::random::{MS, Ns, S, US};
use crate::world::wire::{self, LinkId, Output, Piece, RelayEnd, Way};
use crate::world::{Event, World};
use bytes::Bytes;
use ringpost::io::handler::{CloseReason, Handler, TlsInfo};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Octets that one read of the machine takes at most.
const READ_MAX: usize = 64 * 1024;

/// The beginning of bytes, for the trace.
pub fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).escape_debug().collect()
}

impl World {
    /// The relay's end of a connection.
    fn relay_end(&mut self, link: LinkId) -> Option<&mut RelayEnd> {
        self.links.get_mut(&link)?.relay.as_mut()
    }

    /// Puts a piece on the way.
    fn put(&mut self, link: LinkId, way: Way, piece: Piece, extra: Ns) {
        let now = self.now;
        let Some(found) = self.links.get_mut(&link) else { return };
        if found.pipe(way).ended {
            return;
        }
        let at = found.put(way, piece, now, extra, &mut self.random);
        self.at(at, Event::Arrive(link, way));
    }

    // ---- the other party ----

    /// The party sends bytes.
    pub fn party_sends(&mut self, link: LinkId, bytes: Vec<u8>, extra: Ns) {
        if bytes.is_empty() {
            return;
        }
        for piece in wire::split(bytes.into(), &mut self.random) {
            self.put(link, Way::In, Piece::Bytes(piece), extra);
        }
    }

    /// What was sent so far ends the replies to these arrivals.
    pub fn mark_reply(&mut self, link: LinkId, arrivals: Vec<usize>) {
        if let Some(found) = self.links.get_mut(&link) {
            found.marks.push_back((found.into.sent, arrivals));
        }
    }

    /// The party's half of a handshake.
    pub fn party_starts_tls(&mut self, link: LinkId, works: bool) {
        self.put(link, Way::In, Piece::Tls(works), 0);
    }

    /// The party sends no more, but listens.
    pub fn party_half_closes(&mut self, link: LinkId) {
        self.put(link, Way::In, Piece::Fin, 0);
    }

    /// The party is gone: what it has sent still arrives.
    pub fn party_closes(&mut self, link: LinkId) {
        self.put(link, Way::In, Piece::Fin, 0);
        self.party_forgets(link);
    }

    /// The party breaks the connection.
    pub fn party_resets(&mut self, link: LinkId) {
        self.put(link, Way::In, Piece::Reset, 0);
        self.party_forgets(link);
    }

    fn party_forgets(&mut self, link: LinkId) {
        if let Some(found) = self.links.get_mut(&link) {
            found.party_open = false;
        }
        self.forget_if_over(link);
    }

    fn forget_if_over(&mut self, link: LinkId) {
        let over = |found: &wire::Link| found.relay.is_none() && !found.party_open && found.out.flight.is_empty();
        if self.links.get(&link).is_some_and(over) {
            self.links.remove(&link);
        }
    }

    /// A client connects. None when nobody listens.
    pub fn client_connects(&mut self, client: usize) -> Option<LinkId> {
        let epoch = self.epoch;
        let process = self.process.as_ref()?;
        let listening: Vec<u8> =
            (0..process.shards.len()).filter(|&s| process.shards[s].listening).map(|s| s as u8).collect();
        if listening.is_empty() || self.out_of_descriptors() {
            return None;
        }
        let shard = *self.random.pick(&listening);
        let peer = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + client as u8 % 100)), 40_000);
        let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 25);
        let link = self.new_link(true, client);
        let mut out = Vec::new();
        let conn = self.enter(shard, |core, now| core.accepted(0, peer, local, now, &mut out))?;
        self.trace.line(self.now, format_args!("s{shard} accepts client {client} as #{link} {conn:?}"));
        match conn {
            Some(conn) => {
                if let Some(found) = self.links.get_mut(&link) {
                    found.relay = Some(RelayEnd::new(epoch, shard, conn, false));
                }
                if let Some(found) = self.shard(epoch, shard)
                    && found.conns.insert(conn, link).is_some()
                {
                    self.ledger.violation(format!("shard {shard} gave the id {conn:?} to two connections"));
                }
                self.relay_says(link, out);
            }
            None => {
                self.put(link, Way::Out, Piece::Bytes(out.into()), 0);
                self.put(link, Way::Out, Piece::Fin, 0);
            }
        }
        self.drain(shard);
        Some(link)
    }

    // ---- the relay's end ----

    /// What a call put into `out` goes out before the commands of that call.
    fn relay_says(&mut self, link: LinkId, out: Vec<u8>) {
        if out.is_empty() {
            return;
        }
        self.trace.line(self.now, format_args!("#{link} says {}: {}", out.len(), shown(&out)));
        if let Some(end) = self.relay_end(link)
            && end.is_open()
        {
            end.output.push_back(Output::Bytes(out.into()));
        }
        self.flush_relay(link);
    }

    /// Sends what the network takes.
    pub fn flush_relay(&mut self, link: LinkId) {
        loop {
            let Some(found) = self.links.get_mut(&link) else { return };
            let window = found.window;
            let room = window.saturating_sub(found.out.held);
            let Some(end) = found.relay.as_mut() else { return };
            if end.end.is_some() || end.connecting {
                return;
            }
            match end.output.pop_front() {
                None => break,
                Some(Output::Notify) => {
                    let (epoch, shard, conn) = (end.epoch, end.shard, end.conn);
                    if let Some(found) = self.shard(epoch, shard) {
                        found.callbacks.push_back(Callback::Sent(conn));
                    }
                }
                Some(Output::StartTls) => {
                    end.handshake_due = false;
                    end.handshaking = true;
                    self.put(link, Way::Out, Piece::Tls(true), 0);
                    self.look_soon(link);
                }
                Some(output) if end.handshaking => {
                    end.output.push_front(output);
                    break;
                }
                Some(Output::Bytes(mut bytes)) => {
                    if room < bytes.len().min(window / 2) {
                        end.output.push_front(Output::Bytes(bytes));
                        // Goes on when enough has arrived; tiny pieces would breed tiny pieces.
                        return;
                    }
                    if bytes.len() > room {
                        end.output.push_front(Output::Bytes(bytes.split_off(room)));
                    }
                    for piece in wire::split(bytes, &mut self.random) {
                        self.put(link, Way::Out, Piece::Bytes(piece), 0);
                    }
                }
            }
        }
        let Some(end) = self.relay_end(link) else { return };
        if end.closing {
            self.end_link(link, CloseReason::Asked);
        } else if end.peer_ended {
            self.end_link(link, CloseReason::Peer);
        }
    }

    /// The relay's end is over; the machine closes it a little later.
    pub fn end_link(&mut self, link: LinkId, reason: CloseReason) {
        let wait = self.random.skewed(US, 100 * US);
        let Some(end) = self.relay_end(link) else { return };
        if end.end.is_none() {
            end.end = Some(reason);
            self.after(wait, Event::Finish(link));
        }
    }

    /// The machine closes the relay's end and tells the handler.
    pub fn finish(&mut self, link: LinkId) {
        let Some(end) = self.links.get_mut(&link).and_then(|found| found.relay.take()) else { return };
        let inbound = self.links.get(&link).is_some_and(|found| found.inbound);
        let reason = end.end.clone().unwrap_or(CloseReason::Asked);
        let gently = end.output.is_empty() && matches!(reason, CloseReason::Asked | CloseReason::Tls(_));
        self.trace.line(self.now, format_args!("#{link} is closed: {reason:?}"));
        self.put(link, Way::Out, if gently { Piece::Fin } else { Piece::Reset }, 0);
        if end.connecting {
            // Nobody is there to hear of it.
            self.party_forgets(link);
            self.links.remove(&link);
        }
        if !inbound {
            self.site_left(link, end.epoch);
        }
        let (epoch, shard, conn) = (end.epoch, end.shard, end.conn);
        let Some(found) = self.shard(epoch, shard) else { return };
        found.conns.remove(&conn);
        if end.connecting {
            let error = match reason {
                CloseReason::Error(error) => error,
                _ => "given up".into(),
            };
            self.call(shard, |core, now| core.connect_failed(conn, &error, now));
        } else {
            self.call(shard, |core, now| core.closed(conn, reason, now));
        }
        self.forget_if_over(link);
    }

    /// A connection to a site is gone.
    fn site_left(&mut self, link: LinkId, epoch: u32) {
        if epoch == self.epoch
            && let Some(site) = self.site_of_link.remove(&link)
        {
            self.site_open[site] -= 1;
            self.plant_in_finish(site);
        }
    }

    /// The relay's call is answered, or not.
    pub fn answered(&mut self, link: LinkId) {
        let Some(host) = self.links.get(&link).map(|found| found.party) else { return };
        if self.relay_end(link).is_none_or(|end| !end.connecting || end.end.is_some()) {
            return;
        }
        match self.host_answers(host) {
            None => {}
            Some(false) => self.end_link(link, CloseReason::Error("Connection refused".into())),
            Some(true) => {
                let Some(end) = self.relay_end(link) else { return };
                end.connecting = false;
                let (shard, conn) = (end.shard, end.conn);
                self.trace.line(self.now, format_args!("#{link} is connected"));
                let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9)), 50_000);
                self.destination_accepts(link, host);
                self.call(shard, |core, now| core.connected(conn, local, now));
                self.flush_relay(link);
            }
        }
    }

    /// No answer came in time.
    pub fn connect_timeout(&mut self, link: LinkId) {
        if self.relay_end(link).is_some_and(|end| end.connecting) {
            self.end_link(link, CloseReason::Error("no answer in time".into()));
        }
    }

    /// What was queued when the connection was to be closed has not gone out in time.
    pub fn flush_timeout(&mut self, link: LinkId) {
        let now = self.clocks().instant;
        let Some(end) = self.relay_end(link) else { return };
        if end.deadline <= now {
            let reason = if end.peer_ended { CloseReason::Peer } else { CloseReason::Asked };
            self.end_link(link, reason);
        }
    }

    /// The machine looks at a connection soon.
    pub fn look_soon(&mut self, link: LinkId) {
        let wait = self.random.skewed(US, 200 * US);
        if let Some(end) = self.relay_end(link)
            && !std::mem::replace(&mut end.look_planned, true)
        {
            self.after(wait, Event::Look(link));
        }
    }

    /// Gives the handler what has arrived, as far as it takes it.
    pub fn look(&mut self, link: LinkId) {
        if let Some(end) = self.relay_end(link) {
            end.look_planned = false;
        }
        self.flush_relay(link);
        loop {
            let Some(found) = self.links.get_mut(&link) else { return };
            let inbound = found.inbound;
            let Some(end) = found.relay.as_mut() else { return };
            if end.handshaking {
                if !self.handshake(link) {
                    return;
                }
                continue;
            }
            // A client that does not take our answers is not asked for more.
            let blocked = inbound && !end.output.is_empty();
            if !end.takes_input() || blocked {
                return;
            }
            if end.rest.is_empty() {
                match end.arrived.pop_front() {
                    None => return,
                    Some(Piece::Bytes(bytes)) => end.rest = bytes,
                    Some(Piece::Tls(_)) => end.rest = Bytes::from_static(b"\x16\x03\x01\x02\x00\x01\r\n"),
                    Some(Piece::Fin) => {
                        end.peer_ended = true;
                        self.trace.line(self.now, format_args!("#{link} ends its side"));
                        let deadline = self.clocks().instant;
                        if let Some(end) = self.relay_end(link) {
                            end.deadline = deadline.after(std::time::Duration::from_nanos(10 * S));
                        }
                        self.after(10 * S, Event::FlushTimeout(link));
                        self.flush_relay(link);
                        return;
                    }
                    Some(Piece::Reset) => return,
                }
                self.read_on(link);
            }
            if !self.deliver(link) {
                return;
            }
        }
    }

    /// Joins what has arrived in several pieces, now and then: one read may take them all.
    fn read_on(&mut self, link: LinkId) {
        while self.random.chance(500) {
            let Some(end) = self.relay_end(link) else { return };
            let Some(Piece::Bytes(next)) = end.arrived.front() else { return };
            if end.rest.len() + next.len() > READ_MAX {
                return;
            }
            let joined = [&end.rest[..], &next[..]].concat();
            end.rest = joined.into();
            end.arrived.pop_front();
        }
    }

    /// Calls `received` once. False when the handler took less than all.
    fn deliver(&mut self, link: LinkId) -> bool {
        let Some(end) = self.relay_end(link) else { return false };
        let bytes = std::mem::take(&mut end.rest);
        let (shard, conn) = (end.shard, end.conn);
        let mut out = Vec::new();
        let taken = self.enter(shard, |core, now| core.received(conn, &bytes, now, &mut out)).unwrap_or(0);
        self.trace
            .line(self.now, format_args!("s{shard} receives on #{link} {taken}/{}: {}", bytes.len(), shown(&bytes)));
        if taken > bytes.len() {
            self.ledger.violation(format!("shard {shard} took {taken} octets of {}", bytes.len()));
        }
        self.note_read(link, taken);
        let whole = taken == bytes.len();
        if let Some(end) = self.relay_end(link)
            && !whole
        {
            end.rest = bytes.slice(taken..);
            end.paused = true;
        }
        self.relay_says(link, out);
        self.drain(shard);
        whole
    }

    /// The relay has read so many octets more: replies that end there are known to it.
    fn note_read(&mut self, link: LinkId, taken: usize) {
        let now = self.now;
        let Some(found) = self.links.get_mut(&link) else { return };
        let Some(end) = found.relay.as_mut() else { return };
        end.read += taken as u64;
        while found.marks.front().is_some_and(|(at, _)| *at <= end.read) {
            for arrival in found.marks.pop_front().map(|mark| mark.1).unwrap_or_default() {
                self.ledger.arrivals[arrival].replied_at.get_or_insert(now);
            }
        }
    }

    /// Looks for the peer's half of the handshake. False when it has not come, or will not do.
    fn handshake(&mut self, link: LinkId) -> bool {
        let Some(end) = self.relay_end(link) else { return false };
        match end.arrived.pop_front() {
            None => false,
            Some(Piece::Tls(true)) => {
                end.handshaking = false;
                end.tls = true;
                let (shard, conn) = (end.shard, end.conn);
                self.trace.line(self.now, format_args!("#{link} is encrypted"));
                let info = TlsInfo { version: "TLSv1.3", cipher: "TLS13_AES_256_GCM_SHA384", ..TlsInfo::default() };
                let mut out = Vec::new();
                self.enter(shard, |core, now| core.tls_started(conn, info, now, &mut out));
                self.relay_says(link, out);
                self.flush_relay(link);
                self.drain(shard);
                true
            }
            Some(Piece::Fin) => {
                self.end_link(link, CloseReason::Tls("the peer closed the connection during the handshake".into()));
                false
            }
            Some(_) => {
                self.end_link(link, CloseReason::Tls("the handshake failed".into()));
                false
            }
        }
    }

    // ---- arrivals ----

    /// The next piece of a connection has arrived.
    pub fn arrive(&mut self, link: LinkId, way: Way) {
        let Some(found) = self.links.get_mut(&link) else { return };
        let Some(piece) = found.pipe(way).flight.pop_front() else { return };
        match way {
            Way::In => self.arrive_in(link, piece),
            Way::Out => self.arrive_out(link, piece),
        }
        self.forget_if_over(link);
    }

    fn arrive_in(&mut self, link: LinkId, piece: Piece) {
        let reset = !self.healed && piece.len() > 0 && self.random.chance(self.plan.rates.reset);
        let Some(end) = self.relay_end(link) else { return };
        if reset || piece == Piece::Reset {
            end.arrived.clear();
            self.trace.line(self.now, format_args!("#{link} is reset"));
            self.end_link(link, CloseReason::Error("Connection reset by peer".into()));
            if reset {
                self.party_lost(link);
            }
            return;
        }
        end.arrived.push_back(piece);
        self.look(link);
    }

    fn arrive_out(&mut self, link: LinkId, piece: Piece) {
        let Some(found) = self.links.get_mut(&link) else { return };
        found.out.held -= piece.len();
        let (inbound, party, open) = (found.inbound, found.party, found.party_open);
        if !open {
            // A closed socket answers bytes with a reset.
            if piece.len() > 0 && !found.into.ended {
                self.put(link, Way::In, Piece::Reset, 0);
            }
        } else {
            match piece {
                Piece::Bytes(bytes) if inbound => self.client_hears(party, link, &bytes),
                Piece::Bytes(bytes) => self.destination_hears(link, &bytes),
                Piece::Tls(_) if inbound => self.client_encrypted(party, link),
                Piece::Tls(_) => self.destination_encrypted(link),
                Piece::Fin | Piece::Reset => self.party_lost(link),
            }
        }
        self.flush_relay(link);
        self.drain_of(link);
        if self.relay_end(link).is_some_and(|end| end.output.is_empty() && !end.arrived.is_empty()) {
            self.look_soon(link);
        }
    }

    /// Makes the callbacks that a flush has caused.
    fn drain_of(&mut self, link: LinkId) {
        if let Some((epoch, shard)) = self.relay_end(link).map(|end| (end.epoch, end.shard))
            && self.shard(epoch, shard).is_some_and(|found| !found.callbacks.is_empty())
        {
            self.drain(shard);
        }
    }

    /// The party learns that the connection is over.
    fn party_lost(&mut self, link: LinkId) {
        let Some(found) = self.links.get(&link) else { return };
        let (inbound, party) = (found.inbound, found.party);
        if inbound {
            self.client_lost(party, link);
        } else {
            self.destinations.remove(&link);
        }
        self.put(link, Way::In, Piece::Fin, 0);
        self.party_forgets(link);
    }

    /// The process is gone: the kernel sends what it has, and the end.
    pub fn relay_ends_vanish(&mut self, all_lost: bool) {
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            let Some(found) = self.links.get_mut(&link) else { continue };
            let Some(end) = found.relay.take() else { continue };
            if all_lost {
                // Bytes in the machine's own buffers are gone with it.
                let keep = self.random.below(found.out.flight.len() as u64 + 1) as usize;
                let lost: usize = found.out.flight.iter().skip(keep).map(Piece::len).sum();
                found.out.held -= lost;
                found.out.flight.truncate(keep);
            }
            let unread = !end.arrived.is_empty() || !end.rest.is_empty();
            let piece = if unread || all_lost { Piece::Reset } else { Piece::Fin };
            if end.connecting {
                self.links.remove(&link);
                continue;
            }
            self.put(link, Way::Out, piece, if all_lost { 200 * MS } else { 0 });
            self.forget_if_over(link);
        }
    }
}
