//! The control thread: everything that may wait or take long, beside the shards and never in their way. It looks up
//! names, writes the event log, answers operators and monitoring, runs the sandbox and watches over start and stop.
//!
//! One tokio runtime with one thread. [`run`] is its loop; server.rs (L5) makes the parts and starts the shards. What
//! fails here is told in the event log; only a shard that ends by itself, or an admin socket that breaks, ends the
//! program.

pub mod acme;
pub mod acme_challenges;
pub mod acme_client;
pub mod authentication;
pub mod certificate_routes;
pub mod certificates;
pub mod domain_check;
pub mod domain_requests;
pub mod domains;
pub mod filter_content;
pub mod filters;
pub mod http;
pub mod https;
pub mod identities;
pub mod identity_requests;
pub mod log;
pub mod log_output;
pub mod metrics_text;
pub mod milter;
pub mod monitoring;
pub mod mta_sts;
pub mod oauth;
pub mod post;
pub mod requests;
pub mod reservations;
pub mod resolve;
pub mod rspamd;
pub mod sandbox;
pub mod sandbox_routes;
pub mod suppression_log;
pub mod suppression_requests;
pub mod suppression_routes;
pub mod suppressions;

use crate::event::{Event, Severity};
use crate::io::dns::Resolver;
use crate::io::dnssec::Prover;
use crate::io::mailbox::{Inbox, Sender};
use crate::limits::DRAIN_TIME;
use crate::shard::message::{AdminRequest, Report, ShardState, ToShard};
use crate::shard::permits::SiteRegistry;
use acme::{Acme, AcmePlan};
use acme_challenges::Challenges;
use authentication::Authenticator;
use certificates::Certificates;
use domain_check::DomainCheck;
use filters::{Filter, Filters};
use http::{Phase, Shared};
use identities::Identities;
use log::EventLog;
use mta_sts::MtaSts;
use oauth::TokenChecker;
use requests::Requests;
use reservations::Reservations;
use resolve::ResolveService;
use sandbox::Sandbox;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use suppressions::{Bounced, Suppressions};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

/// Reports handled before other things get their turn.
const REPORTS_PER_TURN: usize = 1024;
/// How often undelivered answers are tried again and the log is flushed.
const TICK: Duration = Duration::from_millis(20);
/// How long shards may take beyond their own time to drain.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long they may take once the operator is in a hurry.
const HURRY_TIME: Duration = Duration::from_secs(2);

/// The signal that stops nothing: certificates are read again.
pub const SIGHUP: &str = "SIGHUP";

/// What server.rs has made ready.
pub struct ControlParts {
    /// The shards' mailboxes, in the order of their numbers.
    pub shards: Vec<Sender<ToShard>>,
    /// What the shards report.
    pub inbox: Inbox<Report>,
    /// The sites.
    pub registry: SiteRegistry,
    /// Who may log in.
    pub identities: Identities,
    /// To whom nothing is sent any more.
    pub suppressions: Suppressions,
    /// The listeners' certificates.
    pub certificates: Certificates,
    /// A certificate that is ordered, where that is wanted.
    pub acme: Option<AcmeParts>,
    /// The key under which logins are remembered.
    pub login_key: [u8; 32],
    /// Checks tokens, where clients may log in with them.
    pub tokens: Option<TokenChecker>,
    /// The content filters, in the order of the configuration.
    pub filters: Vec<Filter>,
    /// The relay's own name.
    pub hostname: Box<str>,
    /// The spool directory.
    pub spool: PathBuf,
    /// Looks up names.
    pub resolver: Arc<Resolver>,
    /// Policies of MTA-STS, where a route obeys them.
    pub mta_sts: Option<Arc<MtaSts>>,
    /// What DNSSEC proves, where a route obeys DANE.
    pub prover: Option<Arc<Prover>>,
    /// Where events go.
    pub log: EventLog,
    /// For the admin interface.
    pub admin: UnixListener,
    /// For monitoring.
    pub monitoring: Option<TcpListener>,
    /// The sandbox with its listener and the name it greets with.
    pub sandbox: Option<(Sandbox, TcpListener, Box<str>)>,
    /// What threads ended with: a shard by its number; none stands for recovery, which tells only a failure.
    pub ended: UnboundedReceiver<(Option<u8>, Result<(), String>)>,
    /// SIGTERM, SIGINT and SIGHUP, once each time.
    pub signals: UnboundedReceiver<&'static str>,
    /// Told what the program's state is, once each time it changes; for the service manager and the terminal.
    pub notify: Box<dyn FnMut(Notice) + Send>,
    /// How often the service manager wants to hear that the program lives.
    pub watchdog: Option<Duration>,
}

/// What a certificate is ordered with.
pub struct AcmeParts {
    /// What and where.
    pub plan: AcmePlan,
    /// Challenges are answered from these.
    pub challenges: Arc<Challenges>,
    /// Where http-01 is answered.
    pub http: Vec<TcpListener>,
    /// Where tls-alpn-01 is answered.
    pub alpn: Vec<TcpListener>,
}

impl AcmeParts {
    /// Answers challenges and orders from now on.
    fn start(self, certificates: &Arc<Certificates>, log: &EventLog) -> Arc<Acme> {
        for listener in self.http {
            tokio::spawn(Arc::clone(&self.challenges).serve_http(listener));
        }
        for listener in self.alpn {
            tokio::spawn(Arc::clone(&self.challenges).serve_alpn(listener));
        }
        let acme = Acme::new(self.plan, Arc::clone(certificates), self.challenges, log.clone());
        tokio::spawn(Arc::clone(&acme).run());
        acme
    }
}

/// What a service manager and a terminal want to know.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// All shards listen.
    Ready,
    /// The stop has begun.
    Stopping,
    /// All shards answered lately.
    Alive,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All shards are drained and synced.
    Drained,
    /// Asked to hurry, or out of time: transactions under way were cut off. What was acknowledged is on disk.
    Hurried,
    /// A shard ended by itself, for this reason.
    ShardDied {
        /// Which.
        shard: u8,
        /// Why.
        reason: String,
    },
    /// Recovery could not read the spool, for this reason.
    SpoolUnreadable(String),
}

/// The loop's own state.
struct Control {
    shared: Arc<Shared>,
    resolve: ResolveService,
    authenticator: Authenticator,
    filters: Filters,
    reservations: Reservations,
    log: EventLog,
    notify: Box<dyn FnMut(Notice) + Send>,
    listening: Vec<bool>,
    running: Vec<bool>,
    /// Shards that have not been told to stop because their mailbox was full.
    to_stop: Vec<u8>,
    deadline: Option<Instant>,
    hurried: bool,
    died: Option<(u8, String)>,
    unreadable: Option<String>,
}

/// Runs until all shards have ended.
pub async fn run(parts: ControlParts) -> Ended {
    let ControlParts { shards, inbox, registry, resolver, log, admin, monitoring, sandbox, .. } = parts;
    let (mut ended, mut signals, watchdog) = (parts.ended, parts.signals, parts.watchdog);
    let (resolve, mut resolved) =
        ResolveService::new(Arc::clone(&resolver), parts.mta_sts.clone(), parts.prover, registry, shards.clone());
    let count = shards.len();
    let authenticator =
        Authenticator::new(parts.identities.directory(), &parts.login_key, shards.clone(), log.clone(), parts.tokens);
    let filters = Filters::new(parts.filters, shards.clone(), log.clone(), parts.hostname, &parts.spool);
    let kept = sandbox.as_ref().map(|(sandbox, ..)| sandbox.clone());
    let identities = Arc::new(parts.identities);
    let suppressions = Arc::new(parts.suppressions);
    tokio::spawn(Arc::clone(&suppressions).run(log.clone()));
    let certificates = Arc::new(parts.certificates);
    tokio::spawn(Arc::clone(&certificates).run());
    if let Some(policies) = parts.mta_sts {
        tokio::spawn(policies.run());
    }
    let acme = parts.acme.map(|parts| parts.start(&certificates, &log));
    let reservations = Reservations::start(Arc::clone(&identities), shards.clone(), log.clone());
    let domains = DomainCheck::new(Arc::clone(&identities), resolver, log.clone());
    tokio::spawn(domains.clone().run());
    let shared =
        Arc::new(Shared::new(Requests::new(shards), kept, identities, domains, suppressions, certificates, acme));
    spawn_services(&shared, &log, admin, monitoring, sandbox);
    let mut control = Control {
        shared,
        resolve,
        authenticator,
        filters,
        reservations,
        log,
        notify: parts.notify,
        listening: vec![false; count],
        running: vec![true; count],
        to_stop: Vec::new(),
        deadline: None,
        hurried: false,
        died: None,
        unreadable: None,
    };
    let alive = control.watch(watchdog);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut alive_told, mut idle) = (0, true);
    while control.running.iter().any(|running| *running) {
        tokio::select! {
            report = inbox.recv() => {
                control.report(report);
                for _ in 0..REPORTS_PER_TURN {
                    match inbox.try_recv() {
                        Some(report) => control.report(report),
                        None => break,
                    }
                }
                control.log.flush();
            }
            Some(resolution) = resolved.recv() => control.resolved(resolution),
            Some((thread, result)) = ended.recv() => match thread {
                Some(shard) => control.shard_ended(shard, result),
                None => control.recovery_ended(result),
            },
            Some(signal) = signals.recv() => control.signal(signal),
            // Nothing needs the tick while nothing is undelivered and nothing stops: the process then sleeps.
            _ = tick.tick(), if !idle => control.tick(),
            () = sleep_until(control.deadline) => break,
            Some(count) = next_alive(&alive, alive_told) => {
                alive_told = count;
                (control.notify)(Notice::Alive);
            }
        }
        idle = !control.resolve.has_undelivered() && control.to_stop.is_empty();
    }
    while let Some(report) = inbox.try_recv() {
        control.report(report);
    }
    control.end()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

type AliveCount = Option<tokio::sync::watch::Receiver<u64>>;

async fn next_alive(alive: &AliveCount, told: u64) -> Option<u64> {
    let mut alive = alive.clone()?;
    alive.wait_for(|count| *count > told).await.ok().map(|count| *count)
}

/// Starts what serves by itself.
fn spawn_services(
    shared: &Arc<Shared>,
    log: &EventLog,
    admin: UnixListener,
    monitoring: Option<TcpListener>,
    sandbox: Option<(Sandbox, TcpListener, Box<str>)>,
) {
    let (router, log_of_admin) = (http::admin_router(Arc::clone(shared)), log.clone());
    tokio::spawn(async move {
        if let Err(error) = axum::serve(admin, router).await {
            let text = format!("the admin socket broke: {error}; restart the program to use it again");
            log_of_admin.notice(Severity::Error, &text);
        }
    });
    if let Some(listener) = monitoring {
        let (router, log) = (monitoring::monitoring_router(Arc::clone(shared)), log.clone());
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                log.notice(Severity::Error, &format!("the port for metrics broke: {error}; restart to use it again"));
            }
        });
    }
    if let Some((sandbox, listener, hostname)) = sandbox {
        let log = log.clone();
        tokio::spawn(async move {
            let error = sandbox.serve(listener, hostname).await;
            log.notice(Severity::Error, &format!("the sandbox broke: {error}; its mail waits until the next start"));
        });
    }
}

impl Control {
    /// Asks all shards now and then whether they live, for the service manager's watchdog.
    fn watch(&self, period: Option<Duration>) -> AliveCount {
        let period = period?;
        let (count, alive) = tokio::sync::watch::channel(0);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(period / 3);
            loop {
                interval.tick().await;
                // No message has this id, so that the answer costs nothing; it only proves that each shard answers.
                if shared.requests.ask(AdminRequest::Show { id: 0 }).await.is_ok() {
                    count.send_modify(|count| *count += 1);
                }
            }
        });
        Some(alive)
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Resolve { shard, query } => self.resolve.ask(shard, query),
            Report::Login { shard, question } => self.authenticator.ask(shard, *question),
            Report::Filter { shard, question } => self.filters.ask(shard, *question),
            Report::Reserve { tenant, login } => self.reservations.ask(tenant, login),
            Report::Bounced { tenant, address, bounce, reply } => {
                self.shared.suppressions.bounced(Bounced { tenant, address, bounce, reply }, &self.log);
            }
            Report::Admin { shard, ticket, reply } => self.shared.requests.answered(shard, ticket, reply),
            Report::Event { shard, at, event } => self.log.event(at, Some(shard), &event),
            Report::State { shard, state } => self.shard_state(shard, state),
        }
    }

    fn shard_state(&mut self, shard: u8, state: ShardState) {
        match state {
            ShardState::Listening => {
                if let Some(listening) = self.listening.get_mut(usize::from(shard)) {
                    *listening = true;
                }
                if self.shared.phase() == Phase::Starting && self.listening.iter().all(|listening| *listening) {
                    self.shared.enter(Phase::Running);
                    (self.notify)(Notice::Ready);
                }
            }
            ShardState::Recovered => {
                let recovered = self.shared.recovered.fetch_add(1, Ordering::Relaxed) + 1;
                if recovered == self.listening.len() as u64 {
                    self.log.notice(Severity::Info, "the whole spool is in the queue");
                }
            }
            ShardState::Stopped => {}
        }
    }

    fn resolved(&mut self, resolution: crate::io::dns::Resolution) {
        self.resolve.finished(resolution);
        let mut dns = self.shared.dns.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *dns = (self.resolve.lookups, self.resolve.failures);
    }

    fn signal(&mut self, name: &'static str) {
        if name == SIGHUP {
            tokio::spawn(Arc::clone(&self.shared.certificates).reload_for(name));
            return;
        }
        if self.shared.phase() == Phase::Stopping {
            self.hurried = true;
            self.log.notice(
                Severity::Warning,
                &format!("{name} again: stopping at once; what was acknowledged is on disk"),
            );
            self.deadline = Some(Instant::now() + HURRY_TIME);
            self.tell_all_to_stop();
            return;
        }
        self.log.notice(Severity::Info, &format!("{name}: taking no new mail, finishing what is under way"));
        self.stop(DRAIN_TIME + STOP_GRACE);
    }

    fn stop(&mut self, within: Duration) {
        self.shared.enter(Phase::Stopping);
        (self.notify)(Notice::Stopping);
        self.deadline = Some(Instant::now() + within);
        self.tell_all_to_stop();
    }

    fn tell_all_to_stop(&mut self) {
        self.to_stop = (0..self.running.len()).filter(|&shard| self.running[shard]).map(|shard| shard as u8).collect();
        self.tell_to_stop();
    }

    fn tell_to_stop(&mut self) {
        let shards = self.shared.requests.shards();
        self.to_stop.retain(|&shard| {
            shards.get(usize::from(shard)).is_some_and(|mailbox| mailbox.push(ToShard::Shutdown).is_err())
        });
    }

    fn tick(&mut self) {
        self.resolve.retry();
        self.tell_to_stop();
    }

    fn shard_ended(&mut self, shard: u8, result: Result<(), String>) {
        if let Some(running) = self.running.get_mut(usize::from(shard)) {
            *running = false;
        }
        self.to_stop.retain(|other| *other != shard);
        let reason = match result {
            Ok(()) if self.shared.phase() == Phase::Stopping => return,
            Ok(()) => "it ended without being asked to".to_owned(),
            Err(reason) => reason,
        };
        let text = format!("shard {shard} is dead: {reason}; the program stops, and starts again with what is on disk");
        self.log.notice(Severity::Error, &text);
        self.died.get_or_insert((shard, reason));
        if self.shared.phase() != Phase::Stopping {
            self.stop(HURRY_TIME + STOP_GRACE);
        }
    }

    fn recovery_ended(&mut self, result: Result<(), String>) {
        let Err(reason) = result else { return };
        self.log.notice(Severity::Error, &format!("the spool cannot be read: {reason}; the program stops"));
        self.unreadable = Some(reason);
        if self.shared.phase() != Phase::Stopping {
            self.stop(DRAIN_TIME + STOP_GRACE);
        }
    }

    fn end(self) -> Ended {
        let left: Vec<usize> = (0..self.running.len()).filter(|&shard| self.running[shard]).collect();
        // Where a shard died or was cut off what it has counted is not known for sure: then all that is reserved counts as used.
        if left.is_empty()
            && self.died.is_none()
            && let Err(error) = self.shared.identities.settle(crate::io::clock::now().unix)
        {
            let text = format!("what is left of the quotas' reserved blocks could not be given back: {error}");
            self.log.notice(Severity::Warning, &text);
        }
        if !left.is_empty() && !self.hurried {
            self.log.notice(Severity::Warning, &format!("shards {left:?} did not stop in time and are cut off"));
        }
        self.log.event(
            crate::io::clock::now().unix,
            None,
            &Event::Notice { severity: Severity::Info, text: "stopped".into() },
        );
        self.log.finish();
        match self.died {
            Some((shard, reason)) => Ended::ShardDied { shard, reason },
            None if self.unreadable.is_some() => Ended::SpoolUnreadable(self.unreadable.unwrap_or_default()),
            None if self.hurried || !left.is_empty() => Ended::Hurried,
            None => Ended::Drained,
        }
    }
}

#[cfg(test)]
mod tests;
