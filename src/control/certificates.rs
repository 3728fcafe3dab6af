//! The certificates of the listeners while the program runs: read from their files, read again when these change or an operator
//! asks, and watched over until they end. Shards get each set as a whole and sessions never notice.
//!
//! A file that cannot be used leaves in force what was read before, and is told once for each change of it. Not here: where the
//! files are (src/server/certificates.rs) and how they get there by ACME (acme.rs).

use super::log::EventLog;
use crate::clock::UnixTime;
use crate::event::Severity;
use crate::io::certificate::{CertificateFacts, Pair, shown_fingerprint};
use crate::io::clock;
use crate::io::own_certificate::own_certificate;
use crate::io::presented::{ClientProof, ListenerTls, Presented, Tickets};
use crate::io::tls::{self, ServerTls, TlsSetupError};
use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often files are looked at for changes.
pub const LOOK: Duration = Duration::from_secs(60);
/// A file that was changed less than this ago may be one of several that are being replaced: it waits for the next look.
const SETTLED: Duration = Duration::from_secs(5);
/// An own certificate that has less than this left is made anew.
const OWN_NEARLY_OVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// How many days before the end of a certificate it is warned of, at the earliest.
const WARN_DAYS: [i64; 5] = [1, 3, 7, 14, 30];
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Where a certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// PEM, with the chain.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
    /// Whether it comes to be while the program runs: then it may be missing.
    pub awaited: bool,
}

/// What the listeners of one kind ask of their clients' certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRule {
    /// PEM of the authorities that prove them.
    pub authorities: PathBuf,
    /// Whether a client without a good one is turned away.
    pub required: bool,
}

/// One listening address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerPlan {
    /// Whether clients log in.
    pub logins: bool,
    /// Whether it asks for certificates.
    pub clients: Option<ClientRule>,
}

/// Everything that certificates are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificatePlan {
    /// Certificates; the first is for clients that ask for no name that is known.
    pub pairs: Vec<PairFiles>,
    /// For an own certificate while there is no other: the spool, and the name it is for. None where one must not be made.
    pub own: Option<(PathBuf, Box<str>)>,
    /// All listening addresses, those without TLS, too.
    pub listeners: Vec<ListenerPlan>,
}

/// A certificate as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// Its file.
    pub file: String,
    /// The names it proves, by which clients choose it (SNI).
    pub names: Vec<String>,
    /// Whether it is for clients that name none of them, too.
    pub default: bool,
    /// Its subject.
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// Seconds since 1970.
    pub not_after_unix_s: u64,
    /// Whole days; negative once it has ended.
    pub days_left: i64,
    /// SHA-256 of the certificate, in hexadecimal with colons.
    pub fingerprint_sha256: String,
    /// SHA-256 of its public key, in hexadecimal.
    pub public_key_sha256: String,
    /// Why the file as it is now cannot be used; what is in force was read before.
    pub trouble: Option<String>,
}

/// What a reload came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Files whose certificates are others than before.
    pub changed: Vec<String>,
    /// Files that cannot be used, with the reason.
    pub failed: Vec<String>,
    /// How many certificates are in force.
    pub in_force: usize,
}

/// Figures for monitoring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateFigures {
    /// The certificates in force.
    pub certificates: Vec<CertificateView>,
    /// Reloads done.
    pub reloads: u64,
    /// Files that could not be used, each time counted.
    pub failures: u64,
    /// Files that cannot be used as they are now.
    pub outdated: u64,
}

/// What tells one state of a file from another; None when it cannot be looked at.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// A set of listeners that ask the same of clients.
#[derive(Debug)]
struct Kind {
    rule: Option<ClientRule>,
    presented: Arc<ArcSwap<ListenerTls>>,
}

/// One certificate in force.
#[derive(Clone, Debug)]
struct InForce {
    file: PathBuf,
    pair: Pair,
}

#[derive(Debug, Default)]
struct State {
    /// By the plan's order; none for one that is awaited.
    pairs: Vec<Option<InForce>>,
    own: Option<InForce>,
    /// By the kinds' order.
    proofs: Vec<Option<ClientProof>>,
    /// Of each file when it was last read.
    stamps: HashMap<PathBuf, Stamp>,
    /// Files that could not be used when last read.
    troubles: HashMap<PathBuf, String>,
    /// What was warned of last, by fingerprint: days, and when.
    warned: HashMap<[u8; 32], (i64, UnixTime)>,
    reloads: u64,
    failures: u64,
}

impl State {
    /// In the order of preference; the own one stands in where there is no other.
    fn in_force(&self) -> Vec<&InForce> {
        let mut all: Vec<&InForce> = self.pairs.iter().flatten().collect();
        if all.is_empty() {
            all.extend(&self.own);
        }
        all
    }

    /// What is to be said about certificates that end within thirty days: once for each of [`WARN_DAYS`], and each day once one
    /// has ended.
    fn warnings(&mut self, now: UnixTime) -> Vec<(Severity, String)> {
        let (mut due, mut warned) = (Vec::new(), HashMap::new());
        for one in self.in_force() {
            let facts = &one.pair.facts;
            let left = days_left(facts, now);
            let Some(step) = warning_step(left).filter(|_| is_late(facts, now)) else { continue };
            let told = self.warned.get(&facts.fingerprint).copied();
            let again = |(last, at): (i64, UnixTime)| last != step || (step < 0 && now.since(at) >= DAY);
            if told.is_none_or(again) {
                let (file, title, end) = (one.file.display(), facts.title(), facts.not_after);
                due.push(if left < 0 {
                    let text = format!(
                        "TLS: the certificate {file} for {title} has ended on {end}, clients refuse it: renew it"
                    );
                    (Severity::Error, text)
                } else {
                    let when = if left == 0 { "within a day".to_owned() } else { format!("in {left} days") };
                    let text = format!("TLS: the certificate {file} for {title} ends {when}, on {end}: renew it");
                    (Severity::Warning, text)
                });
            }
            let since = told.filter(|told| !again(*told)).map_or(now, |(_, at)| at);
            warned.insert(facts.fingerprint, (step, since));
        }
        self.warned = warned;
        due
    }
}

/// What all files hold now.
struct FilesRead {
    stamps: HashMap<PathBuf, Stamp>,
    /// None where one is awaited.
    pairs: Vec<Option<Result<Pair, TlsSetupError>>>,
    /// None where no certificates of clients are asked for.
    proofs: Vec<Option<Result<ClientProof, TlsSetupError>>>,
}

impl FilesRead {
    fn of<'a>(pairs: &[PairFiles], rules: impl Iterator<Item = Option<&'a ClientRule>>) -> FilesRead {
        let mut stamps = HashMap::new();
        // Before they are read: what changes meanwhile is seen at the next look.
        let mut seen = |path: &Path| stamps.insert(path.to_owned(), stamp(path));
        let of_pair = |files: &PairFiles| {
            seen(&files.certificate);
            seen(&files.key);
            let missing = files.awaited && !files.certificate.exists();
            (!missing).then(|| Pair::load(&files.certificate, &files.key))
        };
        let pairs = pairs.iter().map(of_pair).collect();
        let mut of_rule = |rule: &ClientRule| {
            seen(&rule.authorities);
            ClientProof::load(&rule.authorities, rule.required)
        };
        let proofs = rules.map(|rule| rule.map(&mut of_rule)).collect();
        FilesRead { stamps, pairs, proofs }
    }
}

/// The certificates of all listeners.
#[derive(Debug)]
pub struct Certificates {
    plan: CertificatePlan,
    kinds: Vec<Kind>,
    tickets: Tickets,
    log: Option<EventLog>,
    /// Held by a reload from its beginning to its end.
    reloading: Mutex<()>,
    /// Held for moments alone: the control thread asks for lists.
    state: Mutex<State>,
}

impl Certificates {
    /// Reads all files; without a log nothing is told.
    ///
    /// # Errors
    /// For the first file that cannot be used.
    pub fn open(plan: CertificatePlan, log: Option<&EventLog>, now: UnixTime) -> Result<Certificates, TlsSetupError> {
        let tickets = tls::ticketer()?;
        let mut kinds: Vec<Option<ClientRule>> = Vec::new();
        for listener in &plan.listeners {
            if !kinds.contains(&listener.clients) {
                kinds.push(listener.clients.clone());
            }
        }
        let read = FilesRead::of(&plan.pairs, kinds.iter().map(Option::as_ref));
        let mut state = State { stamps: read.stamps, ..State::default() };
        for (files, pair) in plan.pairs.iter().zip(read.pairs) {
            let pair = match pair {
                Some(Ok(pair)) => Some(pair),
                None => None,
                Some(Err(error)) if !files.awaited => return Err(error),
                Some(Err(error)) => {
                    let text = format!("TLS: {error}; another one is awaited");
                    log.iter().for_each(|log| log.notice(Severity::Error, &text));
                    None
                }
            };
            state.pairs.push(pair.map(|pair| InForce { file: files.certificate.clone(), pair }));
        }
        if state.pairs.iter().all(Option::is_none) {
            state.own = own(&plan, log, now)?;
        }
        let presented = Arc::new(Presented::new(state.in_force().into_iter().map(|one| &one.pair)));
        let of_kind = |(rule, proof): (Option<ClientRule>, Option<Result<ClientProof, TlsSetupError>>)| {
            let proof = proof.transpose()?;
            let listener = ListenerTls::new(Arc::clone(&presented), proof.clone(), &tickets)?;
            Ok((Kind { rule, presented: Arc::new(ArcSwap::from_pointee(listener)) }, proof))
        };
        let kinds: Result<Vec<_>, TlsSetupError> = kinds.into_iter().zip(read.proofs).map(of_kind).collect();
        let (kinds, proofs) = kinds?.into_iter().unzip();
        state.proofs = proofs;
        let (log, reloading, state) = (log.cloned(), Mutex::new(()), Mutex::new(state));
        Ok(Certificates { plan, kinds, tickets, log, reloading, state })
    }

    /// What each listener presents, in their order.
    pub fn listeners(&self) -> Vec<ServerTls> {
        let of = |listener: &ListenerPlan| {
            let kind = self.kinds.iter().find(|kind| kind.rule == listener.clients)?;
            Some(ServerTls { presented: Arc::clone(&kind.presented), exporter: listener.logins })
        };
        self.plan.listeners.iter().filter_map(of).collect()
    }

    /// Reads all files again and puts in force what can be used. Blocks.
    pub fn reload(&self, now: UnixTime) -> Reloaded {
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        // Files are read before the state is taken: a disk that is slow must not hold up whoever asks for a list.
        let read = FilesRead::of(&self.plan.pairs, self.kinds.iter().map(|kind| kind.rule.as_ref()));
        let any = read.pairs.iter().any(|pair| matches!(pair, Some(Ok(_))));
        let stands_in = !any && self.state().pairs.iter().all(Option::is_none);
        let own = if stands_in { own(&self.plan, self.log.as_ref(), now) } else { Ok(None) };
        let mut state = self.state();
        let (mut reloaded, mut troubles) = (Reloaded::default(), Vec::new());
        state.reloads += 1;
        state.troubles.clear();
        state.stamps = read.stamps;
        for (files, (place, pair)) in self.plan.pairs.iter().zip(state.pairs.iter_mut().zip(read.pairs)) {
            match pair {
                None => {}
                Some(Ok(pair)) => {
                    if place.as_ref().is_none_or(|old| old.pair.facts != pair.facts) {
                        reloaded.changed.push(files.certificate.display().to_string());
                        self.tell_new(&files.certificate, &pair);
                    }
                    *place = Some(InForce { file: files.certificate.clone(), pair });
                }
                Some(Err(error)) => troubles.push((files.certificate.clone(), error)),
            }
        }
        match own {
            Ok(None) => {}
            Ok(Some(new)) => {
                if state.own.as_ref().is_none_or(|old| old.pair.facts != new.pair.facts) {
                    reloaded.changed.push(new.file.display().to_string());
                }
                state.own = Some(new);
            }
            Err(error) => {
                let file = self.plan.own.as_ref().map_or_else(PathBuf::new, |(spool, _)| spool.join("tls"));
                troubles.push((file, error));
            }
        }
        let presented = Arc::new(Presented::new(state.in_force().into_iter().map(|one| &one.pair)));
        for (kind, (place, proof)) in self.kinds.iter().zip(state.proofs.iter_mut().zip(read.proofs)) {
            match (proof, &kind.rule) {
                (Some(Ok(proof)), _) => *place = Some(proof),
                (Some(Err(error)), Some(rule)) => troubles.push((rule.authorities.clone(), error)),
                _ => {}
            }
            match ListenerTls::new(Arc::clone(&presented), place.clone(), &self.tickets) {
                Ok(listener) => kind.presented.store(Arc::new(listener)),
                Err(error) => troubles.push((PathBuf::new(), error)),
            }
        }
        for (file, error) in troubles {
            state.failures += 1;
            let text = error.to_string();
            self.tell(Severity::Error, &format!("TLS: what was read before stays in use: {text}"));
            reloaded.failed.push(text.clone());
            state.troubles.insert(file, text);
        }
        reloaded.in_force = state.in_force().len();
        self.warn(&mut state, now);
        reloaded
    }

    /// Looks for files that have changed since they were read, reads them, and warns of certificates that end soon. Blocks.
    pub fn look(&self, now: UnixTime) -> Option<Reloaded> {
        if self.is_due(now) {
            return Some(self.reload(now));
        }
        self.warn(&mut self.state(), now);
        None
    }

    /// Whether a file has changed and is settled, or the own certificate is to be made anew.
    fn is_due(&self, now: UnixTime) -> bool {
        let (stamps, own_is_over) = {
            let state = self.state();
            let own = state.own.as_ref().filter(|_| state.pairs.iter().all(Option::is_none));
            let over = |own: &InForce| own.pair.facts.not_after < now.after(OWN_NEARLY_OVER);
            (state.stamps.clone(), own.is_some_and(over))
        };
        let changed: Vec<Stamp> = stamps
            .iter()
            .map(|(path, known)| (stamp(path), known))
            .filter(|(present, known)| present != *known)
            .map(|(present, _)| present)
            .collect();
        let settled = |present: &Stamp| {
            let at = present.map_or(0, |(_, _, _, seconds, _)| u64::try_from(seconds).unwrap_or(0));
            let at = UnixTime::from_millis(at.saturating_mul(1000));
            // One of the future was written before the clock went back.
            at > now || now.since(at) >= SETTLED
        };
        (!changed.is_empty() && changed.iter().all(settled)) || own_is_over
    }

    /// Reads all files again beside the runtime's own thread.
    pub async fn reload_now(self: &Arc<Certificates>) -> Reloaded {
        let this = Arc::clone(self);
        // It does not panic, and a runtime that ends asks for nothing.
        tokio::task::spawn_blocking(move || this.reload(clock::now().unix)).await.unwrap_or_default()
    }

    /// Reads all files again because of a signal, and says what came of it.
    pub async fn reload_for(self: Arc<Certificates>, signal: &'static str) {
        let Reloaded { changed, failed, in_force } = self.reload_now().await;
        let severity = if failed.is_empty() { Severity::Info } else { Severity::Warning };
        let text = format!(
            "{signal}: certificates were read again: {in_force} in use, {} changed, {} cannot be used; other parts of the \
             configuration are read at the start only",
            changed.len(),
            failed.len()
        );
        self.tell(severity, &text);
    }

    /// Looks after the files for as long as the program runs.
    pub async fn run(self: Arc<Certificates>) {
        let mut interval = tokio::time::interval(LOOK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let this = Arc::clone(&self);
            // As above.
            let _ = tokio::task::spawn_blocking(move || this.look(clock::now().unix)).await;
        }
    }

    /// The certificates in force, the default first.
    pub fn list(&self, now: UnixTime) -> Vec<CertificateView> {
        let state = self.state();
        let all = state.in_force().into_iter().enumerate();
        all.map(|(index, one)| {
            let trouble = state.troubles.get(&one.file).cloned();
            CertificateView { default: index == 0, trouble, ..CertificateView::of(&one.file, &one.pair.facts, now) }
        })
        .collect()
    }

    /// What the certificate that came from this file says.
    pub fn facts_of(&self, file: &Path) -> Option<Arc<CertificateFacts>> {
        let state = self.state();
        let found = state.pairs.iter().flatten().find(|one| one.file == file);
        found.map(|one| Arc::clone(&one.pair.facts))
    }

    /// For monitoring.
    pub fn figures(&self, now: UnixTime) -> CertificateFigures {
        let certificates = self.list(now);
        let state = self.state();
        CertificateFigures {
            certificates,
            reloads: state.reloads,
            failures: state.failures,
            outdated: state.troubles.len() as u64,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_new(&self, file: &Path, pair: &Pair) {
        let facts = &pair.facts;
        let text = format!(
            "TLS: a new certificate is in use: {}, for {}, until {}, SHA-256 fingerprint {}; clients that pin it must be told",
            file.display(),
            facts.title(),
            facts.not_after,
            shown_fingerprint(&facts.fingerprint)
        );
        self.tell(Severity::Info, &text);
    }

    fn warn(&self, state: &mut State, now: UnixTime) {
        for (severity, text) in state.warnings(now) {
            self.tell(severity, &text);
        }
    }

    fn tell(&self, severity: Severity, text: &str) {
        if let Some(log) = &self.log {
            log.notice(severity, text);
            log.flush();
        }
    }
}

impl CertificateView {
    fn of(file: &Path, facts: &CertificateFacts, now: UnixTime) -> CertificateView {
        CertificateView {
            file: file.display().to_string(),
            names: facts.names.iter().map(ToString::to_string).collect(),
            default: false,
            subject: facts.subject.clone(),
            issuer: facts.issuer.clone(),
            not_before: facts.not_before.to_string(),
            not_after: facts.not_after.to_string(),
            not_after_unix_s: facts.not_after.as_millis() / 1000,
            days_left: days_left(facts, now),
            fingerprint_sha256: shown_fingerprint(&facts.fingerprint),
            public_key_sha256: facts.public_key.iter().map(|octet| format!("{octet:02x}")).collect(),
            trouble: None,
        }
    }
}

/// The certificate that stands in while there is no other; made where it is missing or nearly over.
fn own(plan: &CertificatePlan, log: Option<&EventLog>, now: UnixTime) -> Result<Option<InForce>, TlsSetupError> {
    let Some((spool, name)) = &plan.own else { return Ok(None) };
    let own = own_certificate(spool, name, now)?;
    let pair = Pair::new(own.chain, own.key, &own.file)?;
    if let Some(log) = log.filter(|_| own.made) {
        let text = format!(
            "made a certificate, signed by itself: {}, SHA-256 fingerprint {}; clients that pin it must be told",
            own.file.display(),
            shown_fingerprint(&pair.facts.fingerprint)
        );
        log.notice(Severity::Info, &text);
    }
    Ok(Some(InForce { file: own.file, pair }))
}

/// Of the file that the path leads to now.
fn stamp(path: &Path) -> Stamp {
    let data = std::fs::metadata(path).ok()?;
    Some((data.dev(), data.ino(), data.size(), data.ctime(), data.ctime_nsec()))
}

fn days_left(facts: &CertificateFacts, now: UnixTime) -> i64 {
    let (end, now) = (facts.not_after.as_millis() as i64, now.as_millis() as i64);
    end.saturating_sub(now).div_euclid(DAY.as_millis() as i64)
}

/// Whether seven tenths of its life are over: who renews in time does so before, which for short lives is within the days that are
/// warned of.
fn is_late(facts: &CertificateFacts, now: UnixTime) -> bool {
    now > facts.not_before.after(facts.not_after.since(facts.not_before) * 7 / 10)
}

/// The least of [`WARN_DAYS`] that is reached; -1 when it has ended.
fn warning_step(days_left: i64) -> Option<i64> {
    if days_left < 0 {
        return Some(-1);
    }
    WARN_DAYS.into_iter().find(|&days| days_left < days)
}

#[cfg(test)]
mod tests;
