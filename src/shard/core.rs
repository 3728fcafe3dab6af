//! One shard, pure: everything that happens comes in by [`Handler`], everything that is to be done goes out as commands.
//!
//! This file holds the shard's state and the order of its turns; each matter has its own file (ingress, storing,
//! router, site, egress, outcome, lease, admin, lifecycle). Nothing here does IO or reads a clock, so the simulator
//! runs all of it.

use crate::clock::{Instant, Now, UnixTime};
use crate::envelope::Envelope;
use crate::event::{Event, Severity};
use crate::id::{MessageId, MessageIds};
use crate::io::executor::HEARTBEAT;
use crate::io::handler::{CloseReason, Command, ConnId, Handler, TlsInfo, TlsSide};
use crate::limits::{DROPS_TOLD_EVERY, MAX_QUEUED_REPORTS, SLOW_TICKS, SWEEP_SHARE};
use crate::metrics::ShardMetrics;
use crate::policy::classify::Classifier;
use crate::policy::identity::Directory;
use crate::policy::logins::Logins;
use crate::policy::scram::ScramSource;
use crate::policy::suppression::SuppressionTable;
use crate::queue::{Queue, QueueConfig, SiteId};
use crate::shard::admission::Admission;
use crate::shard::connections::{Conn, Connections};
use crate::shard::egress;
use crate::shard::filtering::Filtering;
use crate::shard::ingress;
use crate::shard::lease::{Leases, Loads};
use crate::shard::limit_queue::LimitQueues;
use crate::shard::message::{LeaseEnded, Report, ToShard};
use crate::shard::outcome::Reports;
use crate::shard::permits::SitePermits;
use crate::shard::quotas::AwaitingCount;
use crate::shard::retained::Retained;
use crate::shard::room::Room;
use crate::shard::router::Router;
use crate::shard::settings::{Settings, Target};
use crate::shard::signing::Signing;
use crate::shard::site::Sites;
use crate::shard::storing::{AwaitingRoom, Pending, Storing};
use crate::shard::tenants::Tenants;
use crate::shard::waiting_for_domain::WaitingForDomain;
use arc_swap::ArcSwap;
use bytes::Bytes;
use foldhash::{HashMap, HashSet};
use ringpost_spool::{DiskDone, DiskOp, Log, LogConfig, LogEvent, OpId};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// What a shard is made from.
#[derive(Debug)]
pub struct CoreParts {
    /// Which one.
    pub shard: u8,
    /// Of how many.
    pub shards: u8,
    /// The configuration.
    pub settings: Arc<Settings>,
    /// The fixed sites of the registry.
    pub sites: Vec<Arc<SitePermits>>,
    /// Shared by all shards.
    pub loads: Arc<Loads>,
    /// The first sequence number that this shard's log may use.
    pub first_sequence: u32,
    /// For jitter, shuffles and generations.
    pub seed: u64,
    /// When anything was last written to the spool: ids are given out above this, even if the clock went back since.
    pub spool_written: UnixTime,
    /// Who may log in.
    pub directory: Arc<ArcSwap<Directory>>,
    /// The key under which logins are remembered.
    pub login_key: [u8; 32],
    /// The key with which salts are made for names that nobody has.
    pub salt_key: [u8; 32],
    /// To whom nothing is sent any more.
    pub suppression: Arc<SuppressionTable>,
    /// Whether recovery will send messages and then [`ToShard::RecoveryDone`].
    pub recovering: bool,
}

/// A notification for which the spool had no room: its id, envelope, content and the message it is about.
pub(super) type Unsent = (MessageId, Envelope, Vec<Bytes>, Option<MessageId>);

/// One shard.
pub struct Core {
    pub(super) shard: u8,
    pub(super) shards: u8,
    pub(super) settings: Arc<Settings>,
    /// This shard's own copy of the settings' rules.
    pub(super) classifier: Classifier,
    /// The time of the call under way.
    pub(super) now: Now,
    pub(super) commands: VecDeque<Command<ToShard, Report>>,
    pub(super) connections: Connections,
    pub(super) admission: Admission,
    pub(super) log: Log,
    pub(super) queue: Queue,
    pub(super) router: Router,
    pub(super) sites: Sites,
    /// The site of each route that is a pool.
    pub(super) fixed_sites: Vec<Option<SiteId>>,
    /// Addresses of the pools' named hosts.
    pub(super) named_hops: HashMap<Box<str>, Vec<IpAddr>>,
    pub(super) tenants: Tenants,
    pub(super) directory: Arc<ArcSwap<Directory>>,
    pub(super) suppression: Arc<SuppressionTable>,
    pub(super) logins: Logins,
    pub(super) scram: ScramSource,
    pub(super) ids: MessageIds,
    pub(super) storing: Storing,
    /// Messages that wait for their signatures.
    pub(super) signing: Signing,
    pub(super) filtering: Filtering,
    /// Messages for which a segment is being prepared.
    pub(super) awaiting_room: AwaitingRoom,
    pub(super) awaiting_count: AwaitingCount,
    pub(super) waiting_for_domain: WaitingForDomain,
    /// Sessions whose content goes to a file of its own.
    pub(super) spilling: HashMap<MessageId, ConnId>,
    pub(super) unsent_notifications: Vec<Unsent>,
    /// Messages in the spool whose envelope cannot be read: they stay where they are.
    pub(super) unreadable: HashSet<MessageId>,
    /// Notifications whose record the spool moves.
    pub(super) moving_notifications: Vec<Pending>,
    pub(super) retained: Retained,
    pub(super) reports: Reports,
    /// Connections that wait for content.
    pub(super) fetching: HashMap<OpId, ConnId>,
    pub(super) leases: Leases,
    pub(super) loads: Arc<Loads>,
    /// Octets of incoming content in memory.
    pub(super) content_octets: usize,
    /// Above this many octets new content is refused.
    pub(super) content_ceiling: usize,
    /// For encoding, reused.
    pub(super) scratch: Vec<u8>,
    pub(super) metrics: Box<ShardMetrics>,
    /// Reports that found no room with the control thread.
    pub(super) unsent_reports: VecDeque<Report>,
    /// Answers to leases that found no room with their home.
    pub(super) unsent_answers: Vec<(u8, Box<LeaseEnded>)>,
    /// Since when the shard is stopping.
    pub(super) stopping: Option<Instant>,
    /// Since when every shard is.
    pub(super) all_stop_since: Option<Instant>,
    pub(super) recovering: bool,
    /// The sync under way, for the metrics.
    sync_began: Option<(OpId, Instant)>,
    /// When the shard was started, until the control thread was told that it takes mail.
    pub(super) unannounced: Option<Instant>,
    stopped: bool,
    pub(super) ticks: u64,
    swept: usize,
    /// Of the dropped events, those that the log knows of.
    told_drops: u64,
    pub(super) room: Room,
    pub(super) limit_queues: LimitQueues,
    /// For when the machine was last asked to wake the shard.
    alarm: Instant,
    random: u64,
}

impl Core {
    /// A shard that has yet to be started.
    pub fn new(parts: CoreParts) -> Core {
        let CoreParts {
            shard,
            shards,
            settings,
            sites: permits,
            loads,
            first_sequence,
            seed,
            spool_written,
            directory,
            login_key,
            salt_key,
            suppression,
            recovering,
        } = parts;
        let log = Log::new(
            LogConfig {
                segment_size: settings.segment_size,
                spares: settings.spare_segments,
                ..LogConfig::new(shard, seed)
            },
            first_sequence,
        );
        let queue = Queue::new(QueueConfig { schedule: settings.schedule.clone(), hold_all: settings.hold }, seed ^ 1);
        let mut core = Core {
            shard,
            shards,
            now: Now::default(),
            commands: VecDeque::new(),
            connections: Connections::default(),
            admission: Admission::new(&settings),
            log,
            queue,
            router: Router::default(),
            sites: Sites::default(),
            fixed_sites: vec![None; settings.routes.len()],
            named_hops: HashMap::default(),
            tenants: Tenants::default(),
            directory,
            suppression,
            logins: Logins::new(&login_key),
            scram: ScramSource::new(&login_key, &salt_key, shard),
            ids: MessageIds::above(shard, spool_written),
            storing: Storing::default(),
            signing: Signing::default(),
            filtering: Filtering::default(),
            awaiting_room: AwaitingRoom::default(),
            awaiting_count: AwaitingCount::default(),
            waiting_for_domain: WaitingForDomain::default(),
            spilling: HashMap::default(),
            unsent_notifications: Vec::new(),
            unreadable: HashSet::default(),
            moving_notifications: Vec::new(),
            retained: Retained::new(settings.retained_content),
            reports: Reports::default(),
            fetching: HashMap::default(),
            leases: Leases::new(shards),
            loads,
            content_octets: 0,
            content_ceiling: settings.content_memory.saturating_mul(2),
            scratch: Vec::new(),
            metrics: Box::new(ShardMetrics::new(shard)),
            unsent_reports: VecDeque::new(),
            unsent_answers: Vec::new(),
            stopping: None,
            all_stop_since: None,
            recovering,
            sync_began: None,
            unannounced: None,
            stopped: false,
            ticks: 0,
            swept: 0,
            told_drops: 0,
            room: Room::default(),
            limit_queues: LimitQueues::default(),
            alarm: Instant::MAX,
            random: seed ^ 0x9e37_79b9_7f4a_7c15,
            classifier: settings.classifier.clone(),
            settings,
        };
        core.learn_fixed_sites(&permits);
        core
    }

    fn learn_fixed_sites(&mut self, permits: &[Arc<SitePermits>]) {
        for permits in permits {
            let route = permits.route;
            if matches!(self.settings.routes[route].target, Target::NextHops(_)) {
                let addresses = self.pool_addresses(route);
                self.fixed_sites[route] = Some(self.learn_site(Arc::clone(permits), addresses, Instant::MAX));
            }
        }
    }

    /// The next random number (splitmix64).
    pub(super) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.random;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    pub(super) fn event(&mut self, event: Event) {
        let (shard, at) = (self.shard, self.now.unix);
        self.commands.push_back(Command::Report(Report::Event { shard, at, event }));
    }

    pub(super) fn report(&mut self, report: Report) {
        self.commands.push_back(Command::Report(report));
    }

    pub(super) fn send(&mut self, conn: ConnId, bytes: Bytes) {
        if !bytes.is_empty() {
            self.commands.push_back(Command::Send { conn, bytes });
        }
    }

    pub(super) fn close(&mut self, conn: ConnId, flush: bool) {
        self.commands.push_back(Command::Close { conn, flush });
    }

    pub(super) fn start_tls(&mut self, conn: ConnId, side: TlsSide) {
        self.commands.push_back(Command::StartTls { conn, side });
    }

    /// What the spool has to say.
    fn log_events(&mut self, now: Now) {
        while let Some(event) = self.log.poll_event() {
            match event {
                LogEvent::Durable(position) => self.messages_durable(position, now),
                LogEvent::Failed { to, .. } => self.messages_failed(to, now),
                LogEvent::ContentRead { op, result, .. } => {
                    let result = result.map_err(|error| error.to_string());
                    if !self.head_read(op, &result, now) {
                        self.content_read(op, result, now);
                    }
                }
                LogEvent::Spilled { id, result } => self.content_spilled(MessageId(id), result.is_err(), now),
                LogEvent::SpillProgress { id, .. } => self.spill_progress(MessageId(id)),
                LogEvent::WantState { id } => self.tell_state(MessageId(id)),
                LogEvent::Moved { id, content } => self.message_moved(MessageId(id), content),
                LogEvent::Recycled { segment } => self.tell_recycled(segment),
                LogEvent::Trouble(text) => self.notice(Severity::Error, text),
                LogEvent::SpaceLow => {
                    self.notice(Severity::Error, "the spool's disk is full: new mail gets 452; free some disk space")
                }
                LogEvent::SpaceBack => self.notice(Severity::Info, "the spool has room again: mail is taken"),
            }
        }
    }

    /// Looks at a share of the connections for deadlines that have passed: each is seen about once a second.
    fn sweep_connections(&mut self, now: Now) {
        let places = self.connections.places();
        for _ in 0..places.div_ceil(SWEEP_SHARE) {
            self.swept = if self.swept + 1 < places { self.swept + 1 } else { 0 };
            let Some((id, conn)) = self.connections.at(self.swept) else { continue };
            let due = self.connection_deadline(conn);
            if due <= now.instant {
                match conn {
                    Conn::Inbound(_) => self.inbound_timeout(id, now),
                    Conn::Outbound(_) => self.outbound_timeout(id, now),
                }
            }
        }
    }

    fn connection_deadline(&self, conn: &Conn) -> Instant {
        match conn {
            Conn::Inbound(inbound) => ingress::deadline(inbound),
            Conn::Outbound(outbound) => {
                let idle_timeout = self.sites.get(outbound.site()).map(|known| known.permits.shape.idle_timeout);
                egress::deadline(outbound, idle_timeout.unwrap_or_default())
            }
        }
    }

    /// What needs doing only now and then.
    fn slow_tick(&mut self, now: Now) {
        self.ask_again(now);
        self.ask_to_reserve_again();
        self.retry_blocked_reports(now);
        self.append_unsent_notifications(now);
        self.retry_reports();
        self.release_verified(now);
        self.tell_drops();
        self.tell_refused_connections();
    }

    /// Tells the log that lines of it are missing, not more often than it can be read.
    fn tell_drops(&mut self) {
        let dropped = self.metrics.dropped_events - self.told_drops;
        if dropped == 0 || !self.ticks.is_multiple_of(DROPS_TOLD_EVERY) {
            return;
        }
        self.told_drops = self.metrics.dropped_events;
        let text = format!(
            "{dropped} lines are missing from this log: the control thread could not keep up (ringpost_dropped_events_total              counts them); no mail is concerned"
        );
        self.notice(Severity::Warning, text);
    }

    fn retry_reports(&mut self) {
        let waiting = std::mem::take(&mut self.unsent_reports);
        self.commands.extend(waiting.into_iter().map(Command::Report));
        for (home, ended) in std::mem::take(&mut self.unsent_answers) {
            self.end_lease(home, *ended);
        }
    }

    /// The turn's end: all that came in has been looked at.
    fn end_turn(&mut self, now: Now) {
        self.route_unrouted(now);
        self.pump_sites(now);
        self.serve_limits(now);
        self.append_waiting(now);
        self.retry_reports_with_room(now);
        self.sign_waiting(now);
        self.log.flush(now.instant.as_millis());
        self.log_events(now);
        self.announce(now);
        self.stop_if_done(now);
        self.set_alarm(now);
    }

    /// What is due before the next heartbeat is not left to it.
    fn set_alarm(&mut self, now: Now) {
        let next = self.sites.next_wake().into_iter().chain(self.limit_queues.next_wake()).min();
        if let Some(at) = next
            && at > now.instant
            && at < now.instant.after(HEARTBEAT)
            && at != self.alarm
        {
            self.alarm = at;
            self.commands.push_back(Command::WakeAt(at));
        }
    }
}

impl Handler for Core {
    type Message = ToShard;
    type Report = Report;

    fn started(&mut self, now: Now) {
        self.now = now;
        self.unannounced = Some(now.instant);
        self.end_turn(now);
    }

    fn accepted(
        &mut self,
        listener: usize,
        peer: SocketAddr,
        local: SocketAddr,
        now: Now,
        out: &mut Vec<u8>,
    ) -> Option<ConnId> {
        self.now = now;
        self.inbound_accepted(listener, peer, local, now, out)
    }

    fn connected(&mut self, _conn: ConnId, _local: SocketAddr, now: Now) {
        self.now = now;
    }

    fn connect_failed(&mut self, conn: ConnId, error: &str, now: Now) {
        self.now = now;
        if let Some(Conn::Outbound(outbound)) = self.connections.free(conn) {
            self.outbound_connect_failed(outbound, error, now);
        }
    }

    fn received(&mut self, conn: ConnId, bytes: &[u8], now: Now, out: &mut Vec<u8>) -> usize {
        self.now = now;
        match self.connections.take(conn) {
            Some(Conn::Inbound(inbound)) => self.inbound_received(inbound, bytes, now, out),
            Some(Conn::Outbound(outbound)) => {
                self.outbound_received(outbound, bytes, now);
                bytes.len()
            }
            None => bytes.len(),
        }
    }

    fn sent(&mut self, conn: ConnId, now: Now) {
        self.now = now;
        self.outbound_sent(conn);
    }

    fn tls_started(&mut self, conn: ConnId, info: TlsInfo, now: Now, out: &mut Vec<u8>) {
        self.now = now;
        match self.connections.take(conn) {
            Some(Conn::Inbound(inbound)) => self.inbound_tls_started(inbound, info, now, out),
            Some(Conn::Outbound(outbound)) => self.outbound_tls_started(outbound, info, now),
            None => {}
        }
    }

    fn closed(&mut self, conn: ConnId, reason: CloseReason, now: Now) {
        self.now = now;
        match self.connections.free(conn) {
            Some(Conn::Inbound(inbound)) => self.inbound_closed(inbound, reason),
            Some(Conn::Outbound(outbound)) => self.outbound_closed(outbound, reason, now),
            None => {}
        }
    }

    fn disk_done(&mut self, done: DiskDone, now: Now) {
        self.now = now;
        if let Some((op, since)) = self.sync_began
            && op == done.op
        {
            self.metrics.sync_us.saturating_record(now.instant.since(since).as_micros() as u64);
            self.sync_began = None;
        }
        self.log.handle_done(done, now.instant.as_millis());
        self.log_events(now);
    }

    fn message(&mut self, message: ToShard, now: Now) {
        self.now = now;
        match message {
            ToShard::Resolved { resolution, permits } => self.resolved(resolution, permits, now),
            ToShard::Recovered(messages) => self.recovered(messages, now),
            ToShard::RecoveryDone { segments, greatest_id } => self.recovery_done(segments, greatest_id, now),
            ToShard::Admin { ticket, request } => self.admin(ticket, request, now),
            ToShard::Shutdown => self.shut_down(now),
            ToShard::Lease(lease) => self.lease_taken(lease, now),
            ToShard::LeaseEnded(ended) => self.lease_ended(*ended, now),
            ToShard::PermitFreed { site } | ToShard::PermitWanted { site } => self.touch(SiteId(site)),
            ToShard::Permit(permit) => self.permit_came(permit, now),
            ToShard::LimitWanted { limit } => self.limit_wanted(limit),
            ToShard::LimitFreed { limit } => self.limit_freed(limit),
            ToShard::LoginJudged(judged) => self.login_judged(*judged, now),
            ToShard::Filtered(verdict) => self.filtered(*verdict, now),
            ToShard::Reserved => self.store_counted(now),
            ToShard::Recycled(segment) => self.log.note_recycled(segment),
        }
    }

    fn message_refused(&mut self, shard: u8, message: ToShard, now: Now) {
        self.now = now;
        match message {
            ToShard::Lease(lease) => self.lease_refused(shard, &lease, now),
            // Its place was reserved with the lease; should the count be wrong all the same, it is sent until it is taken.
            ToShard::LeaseEnded(ended) => self.unsent_answers.push((shard, ended)),
            ToShard::Permit(permit) => self.free(permit),
            _ => {}
        }
    }

    fn report_refused(&mut self, report: Report, now: Now) {
        self.now = now;
        match report {
            // Asked again by ask_again().
            Report::Resolve { .. } => {}
            Report::Event { .. } => self.metrics.dropped_events += 1,
            report if self.unsent_reports.len() < MAX_QUEUED_REPORTS => self.unsent_reports.push_back(report),
            _ => self.metrics.dropped_events += 1,
        }
    }

    fn trouble(&mut self, text: String, now: Now) {
        self.now = now;
        self.notice(Severity::Warning, text);
    }

    fn tick(&mut self, now: Now, late: Duration) {
        self.now = now;
        self.metrics.loop_lag_us.saturating_record(late.as_micros() as u64);
        self.ticks += 1;
        self.queue.handle_timeout(now);
        self.report_delays(now);
        self.wake_due_sites(now);
        self.wake_waiting(now);
        self.store_counted(now);
        self.give_room();
        self.look_at_limits(now);
        self.sweep_connections(now);
        self.sweep_sites(now);
        self.balance();
        if self.ticks.is_multiple_of(SLOW_TICKS) {
            self.slow_tick(now);
        }
    }

    fn woken(&mut self, now: Now) {
        self.now = now;
        self.wake_due_sites(now);
        self.limits_alarm(now);
    }

    fn turn_ended(&mut self, now: Now) {
        self.now = now;
        self.end_turn(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let log = self
            .log
            .next_deadline_ms()
            .map(|at| self.now.instant.after(Duration::from_millis(at.saturating_sub(self.now.instant.as_millis()))));
        let connections = (0..self.connections.places())
            .filter_map(|index| self.connections.at(index))
            .map(|(_, conn)| self.connection_deadline(conn))
            .min();
        [self.queue.next_due(), self.sites.next_wake(), self.limit_queues.next_wake(), log, connections]
            .into_iter()
            .flatten()
            .min()
    }

    fn poll_command(&mut self) -> Option<Command<ToShard, Report>> {
        if let Some(command) = self.commands.pop_front() {
            return Some(command);
        }
        let op = self.log.poll_op()?;
        if let DiskOp::Sync { op, .. } = op {
            self.sync_began = Some((op, self.now.instant));
        }
        Some(Command::Disk(op))
    }
}

impl Core {
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(super) fn set_stopped(&mut self) {
        self.stopped = true;
    }
}
