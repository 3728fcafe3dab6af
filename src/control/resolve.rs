//! Answers the shards' questions to DNS: one lookup for all who ask the same at a time, then the answer to each of
//! them with the site it leads to. Nothing is cached here: each shard keeps what it was told for its TTL.
//!
//! Bounded: beyond [`MAX_LOOKUPS`] new questions are dropped, and the shards ask again. An answer that finds a
//! shard's mailbox full waits here and is tried again at every tick.

use crate::io::dns::{Query, Resolution, Resolver};
use crate::io::mailbox::Sender;
use crate::shard::message::ToShard;
use crate::shard::permits::{SitePermits, SiteRegistry};
use foldhash::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Lookups under way or waiting for their turn.
pub const MAX_LOOKUPS: usize = 100_000;

/// The service: owned by the control thread's loop, which calls it.
#[derive(Debug)]
pub struct ResolveService {
    resolver: Arc<Resolver>,
    registry: SiteRegistry,
    shards: Vec<Sender<ToShard>>,
    /// Who asked what.
    asked: HashMap<Query, Vec<u8>>,
    done: UnboundedSender<Resolution>,
    undelivered: VecDeque<(u8, Resolution, Option<Arc<SitePermits>>)>,
    /// Lookups done since the start.
    pub lookups: u64,
    /// Of these, those that ended in a temporary failure.
    pub failures: u64,
}

impl ResolveService {
    /// The service, and the end at which finished lookups come out; give each to [`finished`](Self::finished).
    pub fn new(
        resolver: Arc<Resolver>,
        registry: SiteRegistry,
        shards: Vec<Sender<ToShard>>,
    ) -> (ResolveService, UnboundedReceiver<Resolution>) {
        let (done, results) = unbounded_channel();
        let service = ResolveService {
            resolver,
            registry,
            shards,
            asked: HashMap::default(),
            done,
            undelivered: VecDeque::new(),
            lookups: 0,
            failures: 0,
        };
        (service, results)
    }

    /// A shard asks.
    pub fn ask(&mut self, shard: u8, query: Query) {
        if let Some(askers) = self.asked.get_mut(&query) {
            if !askers.contains(&shard) {
                askers.push(shard);
            }
            return;
        }
        if self.asked.len() >= MAX_LOOKUPS {
            return;
        }
        self.asked.insert(query.clone(), vec![shard]);
        let (resolver, done) = (Arc::clone(&self.resolver), self.done.clone());
        tokio::spawn(async move {
            let _ = done.send(resolver.resolve(query).await);
        });
    }

    /// A lookup is done: everyone who asked is told.
    pub fn finished(&mut self, resolution: Resolution) {
        let Some(askers) = self.asked.remove(&resolution.query) else { return };
        self.lookups += 1;
        self.failures += u64::from(matches!(resolution.result, Err(crate::io::dns::DnsFailure::Temporary(_))));
        let permits = match (&resolution.query, &resolution.result) {
            (Query::Mail(domain), Ok(hosts)) => self.registry.site_of(domain, hosts),
            _ => None,
        };
        for shard in askers {
            self.deliver(shard, resolution.clone(), permits.clone());
        }
    }

    /// Tries again what found no room.
    pub fn retry(&mut self) {
        for _ in 0..self.undelivered.len() {
            if let Some((shard, resolution, permits)) = self.undelivered.pop_front() {
                self.deliver(shard, resolution, permits);
            }
        }
    }

    /// Whether an answer waits for room.
    pub fn has_undelivered(&self) -> bool {
        !self.undelivered.is_empty()
    }

    fn deliver(&mut self, shard: u8, resolution: Resolution, permits: Option<Arc<SitePermits>>) {
        let Some(mailbox) = self.shards.get(usize::from(shard)) else { return };
        if let Err(ToShard::Resolved { resolution, permits }) = mailbox.push(ToShard::Resolved { resolution, permits })
        {
            self.undelivered.push_back((shard, resolution, permits));
        }
    }
}
