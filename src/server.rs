//! Assembly: from a configuration to a running relay, and its orderly end.
//!
//! The order of the start: bind the ports, give up what is not needed (ground.rs), lock the spool, check the machine, listen,
//! read certificates, list the spool,
//! start the shards, then recovery beside them, then the control thread's loop on this thread. Everything that can be
//! wrong with the machine or the configuration is found before the first shard runs, and told with what to do.
//! The end: the control loop returns when all shards are drained, or out of time; the process then ends.

mod certificates;
mod directory;
mod error;
mod filters;
mod greeting;
mod ground;
mod outbound;
mod recovery;
mod services;
mod suppression;
mod tokens;

use crate::clock::UnixTime;
use crate::config::{self, Config, ListenerSection, ListenerTls};
use crate::control::acme::AcmePlan;
use crate::control::certificates::Certificates;
use crate::control::identities::{Identities, SharedDirectory};
use crate::control::log::EventLog;
use crate::control::log_output::LogOutput;
use crate::control::sandbox::Sandbox;
use crate::control::suppressions::Suppressions;
use crate::control::{self, ControlParts, Ended, Notice};
use crate::event::Severity;
use crate::io::bind;
use crate::io::dns::{DnsConfig, Resolver};
use crate::io::executor::{DiskSpec, ListeningSocket, Mailboxes, ShardSpec, run_shard};
use crate::io::mailbox::{Inbox, InboxSender, Mailbox, Sender, inbox, mailbox};
use crate::io::probe::{Machine, ProbeError, probe};
use crate::io::tls::TlsSetup;
use crate::limits::{CONTROL_INBOX, LEASES_PER_SHARD, MAILBOX_CAPACITY, MAILBOX_FOR_CONTROL, MAILBOX_FOR_HINTS};
use crate::policy::suppression::SuppressionTable;
use crate::shard::core::{Core, CoreParts};
use crate::shard::lease::Loads;
use crate::shard::message::{Report, ToShard};
use crate::shard::permits::SiteRegistry;
use crate::shard::settings::Settings;
use certificates::{ChallengeSockets, tls_setup};
pub use certificates::{certificates_of, check_files};
pub use directory::SpoolDirectory;
pub use error::ServeError;
use ground::Ground;
pub use ground::GroundError;
use ringpost_spool::{Snapshot, StdDisk};
use services::Services;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use suppression::suppressions;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Octets that each shard registers for disk writes, tried in this order where locked memory is short.
const IO_MEMORY: [usize; 4] = [1 << 20, 512 << 10, 256 << 10, 64 << 10];

/// What a client is told when no descriptor is left for its session.
const NO_DESCRIPTOR: &[u8] = b"421 4.3.2 Too many connections, try again in a few minutes\r\n";

/// What the terminal gets to see beside the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terminal {
    /// How this program was called; then a recipe for a first message is printed once it runs.
    pub recipe_for: Option<String>,
    /// Lines of `login:password` that are made credentials of the tenant "default".
    pub credential_file: Option<PathBuf>,
}

/// The listening sockets of all shards, by shard and then in the order of the settings' listeners.
type Sockets = Vec<Vec<(SocketAddr, ListeningSocket)>>;

/// Runs a relay on this thread until it is told to stop.
pub fn serve(config: &Config, terminal: &Terminal) -> Result<(), ServeError> {
    // Before any thread is started, the log's included: what a process gives up, its threads give up one by one.
    let ground = Ground::prepare(config, terminal.credential_file.as_deref())?;
    let log = EventLog::new(config.log.format, config.log.level, LogOutput::new(io::stderr()));
    let result = run(config, terminal, &log, ground);
    log.finish();
    result
}

fn run(config: &Config, terminal: &Terminal, log: &EventLog, ground: Ground) -> Result<(), ServeError> {
    let start = |what| move |cause| ServeError::Start { what, cause };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        // They compute password hashes: whoever guesses must not take cores from the mail.
        .on_thread_start(crate::io::priority::step_back)
        .build()
        .map_err(start("the control thread's runtime"))?;
    // From here on a signal is an orderly stop: what is still to be started is started, and then drained.
    let signals = {
        let _within = runtime.enter();
        signals().map_err(start("the handling of signals"))?
    };
    let shards = config.effective_shards();
    let directory = SpoolDirectory::open(&config.spool.dir)?;
    if let Some(warning) = directory.warning() {
        log.notice(Severity::Warning, &warning);
    }
    for (severity, text) in &ground.notes {
        log.notice(*severity, text);
    }
    for listener in config.listener.iter().filter(|listener| listener.auth_in_clear) {
        let address = listener.address.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        log.notice(
            Severity::Warning,
            &format!(
                "{address}: passwords are taken without TLS (auth_in_clear): that is for trials on this machine alone"
            ),
        );
    }
    let (machine, io_memory) = probe_machine(shards)?;
    for warning in &machine.warnings {
        log.notice(Severity::Warning, warning);
    }
    let Ground { sockets, challenges, .. } = ground;
    listen(&sockets)?;
    let (tls, certificates) = tls_setup(config, log)?;
    let acme = certificates::acme_plan(config)?.map(|plan| (plan, challenges));
    let identities = Identities::open(directory.path())?;
    if let Some(file) = &terminal.credential_file {
        identities.take_credentials(file, crate::io::clock::now().unix)?;
    }
    let (suppressions, damage) = suppressions(config, directory.path())?;
    damage.iter().for_each(|text| log.notice(Severity::Error, text));
    let login_key = control::identities::random()?;
    let salt_key = identities.salt_key()?;
    let first_login = match terminal.recipe_for {
        Some(_) if config.listener.iter().any(ListenerSection::authentication) => {
            identities.first_login(crate::io::clock::now().unix)?
        }
        _ => None,
    };
    let services = Services::bind(config)?;

    let mut settings = config::settings::settings(config, services.sandbox_address());
    settings.classifier = config.classification.classifier()?;
    settings.max_outgoing = settings.max_outgoing.min(machine.outgoing_per_shard(shards));
    let settings = Arc::new(settings);
    let registry = SiteRegistry::new(Arc::clone(&settings), shards);
    let disk = StdDisk::open(directory.path()).map_err(|cause| ServeError::Spool(cause.to_string()))?;
    let mut snapshot = Snapshot::take(&disk).map_err(|cause| ServeError::Spool(cause.to_string()))?;
    let spares = settings.spare_segments * usize::from(shards);
    if let Err(error) = snapshot.free_unused(&disk, spares) {
        let text = format!(
            "segments of the spool that were prepared and never used could not be freed: {error}; check the spool's disk \
             and permissions"
        );
        log.notice(Severity::Warning, &text);
    }
    let plan = ShardPlan {
        shards,
        settings: Arc::clone(&settings),
        first_sequence: snapshot.next_sequence(),
        spool_written: UnixTime::from_millis(directory.last_written_ms()),
        loads: Arc::new(Loads::new(shards)),
        disk: DiskSpec { directory: directory.path().to_owned(), segment_size: settings.segment_size, spares },
        tls,
        cores: machine.cores,
        busy_poll: config.busy_poll.unwrap_or_default(),
        io_memory,
        directory: identities.directory(),
        login_key,
        salt_key,
        suppression: suppressions.table(),
    };
    let (mailboxes, senders) = shard_mailboxes(shards);
    let (reports, inbox) = inbox(CONTROL_INBOX, |report| !matches!(report, Report::Event { .. }));
    let (ended, all_ended) = unbounded_channel();
    start_shards(&plan, &registry, mailboxes, &senders, sockets, &reports, &ended)?;
    start_recovery(disk, snapshot, &senders, log, &ended)?;

    let parts = LoopParts {
        config,
        terminal,
        first_login,
        log,
        registry,
        services,
        identities,
        suppressions,
        certificates,
        acme,
        login_key,
        senders,
        inbox,
        ended: all_ended,
        signals,
    };
    let outcome = runtime.block_on(control_loop(parts));
    // Lookups and connections under way hold nothing that must be kept.
    runtime.shutdown_background();
    outcome
}

/// How all shards are made.
struct ShardPlan {
    shards: u8,
    settings: Arc<Settings>,
    first_sequence: u32,
    spool_written: UnixTime,
    loads: Arc<Loads>,
    disk: DiskSpec,
    tls: TlsSetup,
    cores: Vec<usize>,
    busy_poll: Duration,
    io_memory: usize,
    directory: SharedDirectory,
    login_key: [u8; 32],
    salt_key: [u8; 32],
    suppression: Arc<SuppressionTable>,
}

/// The core of one shard; runs on the shard's thread.
fn make_core(parts: CoreParts) -> Core {
    Core::new(parts)
}

impl ShardPlan {
    fn core_parts(&self, shard: u8, registry: &SiteRegistry) -> CoreParts {
        CoreParts {
            shard,
            shards: self.shards,
            settings: Arc::clone(&self.settings),
            sites: registry.sites().to_vec(),
            loads: Arc::clone(&self.loads),
            first_sequence: self.first_sequence,
            seed: random_seed(),
            spool_written: self.spool_written,
            directory: Arc::clone(&self.directory),
            login_key: self.login_key,
            salt_key: self.salt_key,
            suppression: Arc::clone(&self.suppression),
            recovering: true,
        }
    }

    /// A core of its own where there are enough; else the scheduler shares them out.
    fn core_of(&self, shard: u8) -> Option<usize> {
        if usize::from(self.shards) > self.cores.len() {
            return None;
        }
        self.cores.get(usize::from(shard)).copied()
    }
}

/// Unpredictable bits of the standard library's hash keys: enough for jitter and generations.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn probe_machine(shards: u8) -> Result<(Machine, usize), ServeError> {
    let mut last = None;
    for io_memory in IO_MEMORY {
        match probe(usize::from(shards), io_memory) {
            Ok(machine) => return Ok((machine, io_memory)),
            Err(error @ ProbeError::LockedMemory { .. }) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.map_or_else(|| ServeError::Spool("no size of IO memory was tried".into()), ServeError::Probe))
}

/// Takes connections from here on; not before the spool is locked, or a second start would take those of the first.
fn listen(sockets: &Sockets) -> Result<(), ServeError> {
    for (address, ListeningSocket { socket, .. }) in sockets.iter().flatten() {
        bind::listen(socket, *address).map_err(ServeError::Bind)?;
    }
    Ok(())
}

fn bind_listeners(config: &Config, shards: u8) -> Result<Sockets, ServeError> {
    let mut sockets: Sockets = (0..shards).map(|_| Vec::new()).collect();
    for listener in &config.listener {
        let implicit = listener.tls == ListenerTls::Implicit;
        // A PROXY header comes before the handshake, so that the session reads it first.
        let (implicit_tls, refusal) = (implicit && !listener.proxy, if implicit { b"" } else { NO_DESCRIPTOR });
        for &address in &listener.address {
            let bound: Vec<OwnedFd> = bind::reserve(address, usize::from(shards)).map_err(ServeError::Bind)?;
            for (shard, socket) in sockets.iter_mut().zip(bound) {
                shard.push((address, ListeningSocket { socket, implicit_tls, refusal }));
            }
        }
    }
    Ok(sockets)
}

fn shard_mailboxes(shards: u8) -> (Vec<Mailbox<ToShard>>, Vec<Sender<ToShard>>) {
    // Room for every lease and answer that can be under way, and for what else comes; never more than the bound.
    let leases = 2 * LEASES_PER_SHARD as usize * usize::from(shards - 1);
    let capacity = (leases + MAILBOX_FOR_CONTROL + MAILBOX_FOR_HINTS).min(MAILBOX_CAPACITY);
    let (senders, mailboxes): (Vec<_>, Vec<_>) = (0..shards).map(|_| mailbox(capacity)).unzip();
    (mailboxes, senders)
}

/// How a thread ended: a shard's number, or none for recovery.
type ThreadEnd = (Option<u8>, Result<(), String>);

fn start_shards(
    plan: &ShardPlan,
    registry: &SiteRegistry,
    mailboxes: Vec<Mailbox<ToShard>>,
    senders: &[Sender<ToShard>],
    sockets: Sockets,
    reports: &InboxSender<Report>,
    ended: &UnboundedSender<ThreadEnd>,
) -> Result<(), ServeError> {
    for (shard, (own, listeners)) in (0..plan.shards).zip(mailboxes.into_iter().zip(sockets)) {
        let spec = ShardSpec {
            shard,
            cpu: plan.core_of(shard),
            busy_poll: plan.busy_poll,
            listeners: listeners.into_iter().map(|(_, socket)| socket).collect(),
            disk: plan.disk.clone(),
            tls: plan.tls.clone(),
            mailboxes: Mailboxes { own, shards: senders.to_vec(), control: reports.clone() },
            io_memory: plan.io_memory,
        };
        let parts = plan.core_parts(shard, registry);
        let started = |cause| ServeError::Start { what: "a shard", cause };
        let thread = run_shard(spec, move || make_core(parts)).map_err(started)?;
        let ended = ended.clone();
        // A thread that waits for the shard's: a panic in it is an end, too, and is told.
        std::thread::Builder::new()
            .name(format!("end-{shard}"))
            .stack_size(64 * 1024)
            .spawn(move || {
                let result = thread.join().unwrap_or_else(|panic| Err(panic_text(panic.as_ref())));
                let _ = ended.send((Some(shard), result));
            })
            .map_err(started)?;
    }
    Ok(())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".into())
}

fn start_recovery(
    disk: StdDisk,
    snapshot: Snapshot,
    senders: &[Sender<ToShard>],
    log: &EventLog,
    ended: &UnboundedSender<ThreadEnd>,
) -> Result<(), ServeError> {
    let (senders, log, ended) = (senders.to_vec(), log.clone(), ended.clone());
    std::thread::Builder::new()
        .name("recovery".into())
        .spawn(move || {
            if let Err(error) = recovery::run(&disk, &snapshot, &senders, &log) {
                let _ = ended.send((None, Err(error)));
            }
        })
        .map(|_| ())
        .map_err(|cause| ServeError::Start { what: "recovery", cause })
}

/// What the control thread's loop is made from.
struct LoopParts<'a> {
    config: &'a Config,
    terminal: &'a Terminal,
    first_login: Option<(String, String)>,
    log: &'a EventLog,
    registry: SiteRegistry,
    services: Services,
    identities: Identities,
    suppressions: Suppressions,
    certificates: Certificates,
    acme: Option<(AcmePlan, ChallengeSockets)>,
    login_key: [u8; 32],
    senders: Vec<Sender<ToShard>>,
    inbox: Inbox<Report>,
    ended: UnboundedReceiver<ThreadEnd>,
    signals: UnboundedReceiver<&'static str>,
}

async fn control_loop(parts: LoopParts<'_>) -> Result<(), ServeError> {
    let LoopParts {
        config,
        terminal,
        first_login,
        log,
        registry,
        services,
        identities,
        suppressions,
        certificates,
        acme,
        login_key,
        senders,
        inbox,
        ended,
        signals,
    } = parts;
    let start = |what| move |cause| ServeError::Start { what, cause };
    let sandbox_address = services.sandbox_address();
    let sandbox = match services.sandbox {
        Some((listener, _)) => {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(start("the sandbox"))?;
            Some((Sandbox::new(config.sandbox.keep), listener, config.effective_hostname()))
        }
        None => None,
    };
    let monitoring = match services.monitoring {
        Some(listener) => Some(tokio::net::TcpListener::from_std(listener).map_err(start("the port for metrics"))?),
        None => None,
    };
    let dns = dns_config(config);
    let resolver = Arc::new(Resolver::new(&dns)?);
    let mta_sts = outbound::mta_sts(config, registry.settings(), &resolver, log)?;
    let prover = outbound::prover(config, registry.settings(), &dns)?;
    let parts = ControlParts {
        shards: senders,
        inbox,
        registry,
        identities,
        suppressions,
        certificates,
        acme: acme.map(|(plan, sockets)| certificates::acme_parts(plan, sockets)).transpose()?,
        login_key,
        tokens: tokens::token_checker(config)?,
        filters: filters::filters(config)?,
        hostname: config.effective_hostname(),
        spool: config.spool.dir.clone(),
        mta_sts,
        prover,
        resolver,
        log: log.clone(),
        admin: tokio::net::UnixListener::from_std(services.admin).map_err(start("the admin interface"))?,
        monitoring,
        sandbox,
        ended,
        signals,
        notify: notifier(config, terminal, log, sandbox_address, first_login.as_ref()),
        watchdog: sd_notify::watchdog_enabled(),
    };
    let outcome = control::run(parts).await;
    // Left over it would only mislead: the next start removes it in any case.
    let _ = std::fs::remove_file(&services.admin_path);
    match outcome {
        Ended::Drained | Ended::Hurried => Ok(()),
        Ended::ShardDied { shard, reason } => Err(ServeError::ShardDied { shard, reason }),
        Ended::SpoolUnreadable(reason) => Err(ServeError::Spool(reason)),
    }
}

fn dns_config(config: &Config) -> DnsConfig {
    let dns = &config.dns;
    let servers = dns.servers.iter().map(|server| SocketAddr::new(server.address, server.port.unwrap_or(dns.port)));
    DnsConfig { servers: servers.collect(), timeout: dns.timeout, attempts: dns.attempts, concurrency: dns.concurrency }
}

fn signals() -> io::Result<UnboundedReceiver<&'static str>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = unbounded_channel();
    // SIGHUP asks other servers to read their configuration again, and a closed terminal sends it: a relay must not die of
    // it in the middle of its work.
    let wanted = [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
        (SignalKind::hangup(), control::SIGHUP),
    ];
    for (kind, name) in wanted {
        let (mut stream, sender) = (signal(kind)?, sender.clone());
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(name).is_err() {
                    break;
                }
            }
        });
    }
    Ok(receiver)
}

/// Tells the service manager, the log and the terminal.
fn notifier(
    config: &Config,
    terminal: &Terminal,
    log: &EventLog,
    sandbox: Option<SocketAddr>,
    first_login: Option<&(String, String)>,
) -> Box<dyn FnMut(Notice) + Send> {
    let recipe = terminal.recipe_for.as_ref().map(|program| greeting::recipe(config, program, sandbox, first_login));
    let addresses: Vec<String> = config::settings::listen_addresses(config).iter().map(ToString::to_string).collect();
    let text = format!("ringpost {} listens on {}", env!("CARGO_PKG_VERSION"), addresses.join(", "));
    let log = log.clone();
    Box::new(move |notice| {
        let state = match notice {
            Notice::Ready => {
                log.notice(Severity::Info, &text);
                if let Some(recipe) = &recipe {
                    println!("{recipe}");
                }
                sd_notify::NotifyState::Ready
            }
            Notice::Stopping => sd_notify::NotifyState::Stopping,
            Notice::Alive => sd_notify::NotifyState::Watchdog,
        };
        // Without a service manager this does nothing.
        let _ = sd_notify::notify(&[state]);
    })
}

/// How long `ringpost serve` may take to stop, for service files: the shards' time to drain and some more.
pub const STOP_TIME: Duration = Duration::from_secs(crate::limits::DRAIN_TIME.as_secs() + 15);
