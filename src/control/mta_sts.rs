//! Policies of MTA-STS (RFC 8461): found by a domain's record, fetched by HTTPS, and kept for as long as they say, also over
//! restarts.
//!
//! Whoever answers for a domain can make this host ask somewhere: so only public addresses are asked, at one port, at one path,
//! without following redirections, within bounds of time and size, and after a failure not again for
//! [`STS_RETRY`](crate::limits::STS_RETRY). What was kept holds until its end whatever DNS and the server say meanwhile, since
//! else whoever is on the way could take it away (section 10.2).
//!
//! Not here: what a policy says (src/policy/mta_sts.rs), and what becomes of the hosts (src/control/resolve.rs).

use super::log::EventLog;
use crate::clock::UnixTime;
use crate::event::Severity;
use crate::io::clock;
use crate::io::dns::Resolver;
use crate::io::own_certificate::write_whole;
use crate::io::tls::ClientTls;
use crate::limits::{STS_DOMAINS_MAX, STS_POLICY_OCTETS_MAX, STS_REFRESH, STS_RETRY, STS_TIME_MAX};
use crate::policy::mta_sts::{StsPolicy, record_id};
use bytes::Bytes;
use foldhash::HashMap;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// The least time between two writes of the file.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// Failures that are told in [`TOLD_EVERY`].
const TOLD_MAX: u32 = 20;
const TOLD_EVERY: Duration = Duration::from_secs(600);

/// How servers of policies are asked.
#[derive(Clone)]
pub struct StsPlan {
    /// Their names are proven by these.
    pub tls: ClientTls,
    /// Their port.
    pub port: u16,
    /// Private networks in which they may be.
    pub networks: Vec<IpNet>,
    /// Where policies are kept.
    pub file: PathBuf,
}

/// A policy as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    id: Box<str>,
    fetched_unix_ms: u64,
    max_age_s: u64,
    mode: Box<str>,
    mx: Vec<Box<str>>,
}

/// A policy in use.
#[derive(Clone, Debug)]
struct Entry {
    id: Box<str>,
    fetched: UnixTime,
    policy: Arc<StsPolicy>,
}

impl Entry {
    fn until(&self) -> UnixTime {
        self.fetched.after(self.policy.max_age)
    }

    fn kept(&self) -> Kept {
        Kept {
            id: self.id.clone(),
            fetched_unix_ms: self.fetched.as_millis(),
            max_age_s: self.policy.max_age.as_secs(),
            mode: self.policy.mode.word().into(),
            mx: self.policy.mx.clone(),
        }
    }

    /// Read again as if it had just come: a file is no better than a server.
    fn of(kept: &Kept) -> Option<Entry> {
        let mut text = format!("version: STSv1\nmode: {}\nmax_age: {}\n", kept.mode, kept.max_age_s);
        kept.mx.iter().for_each(|mx| text.extend(["mx: ", mx, "\n"]));
        let policy = Arc::new(StsPolicy::parse(&text).ok()?);
        Some(Entry { id: kept.id.clone(), fetched: UnixTime::from_millis(kept.fetched_unix_ms), policy })
    }
}

/// A domain whose policy could not be had.
#[derive(Debug)]
struct Failure {
    id: Box<str>,
    until: Instant,
    why: String,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Box<str>, Entry>,
    failures: HashMap<Box<str>, Failure>,
    changed: bool,
    told: Option<(Instant, u32)>,
}

/// What is known of a domain's policy.
#[derive(Clone, Debug, Default)]
pub struct StsFound {
    /// The policy that holds.
    pub policy: Option<Arc<StsPolicy>>,
    /// Why there is none, or no newer one, where the domain says that there is.
    pub trouble: Option<String>,
}

/// All policies.
pub struct MtaSts {
    plan: StsPlan,
    resolver: Arc<Resolver>,
    state: Mutex<State>,
    changed: Notify,
    log: EventLog,
}

impl std::fmt::Debug for MtaSts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MtaSts").field("file", &self.plan.file).finish_non_exhaustive()
    }
}

impl MtaSts {
    /// With what an earlier run has kept. Blocks for the disk.
    pub fn open(plan: StsPlan, resolver: Arc<Resolver>, log: EventLog) -> Arc<MtaSts> {
        let entries = read_kept(&plan.file, clock::now().unix).unwrap_or_else(|why| {
            let text = format!("policies of MTA-STS were kept and are lost: {why}; they are fetched anew");
            log.notice(Severity::Warning, &text);
            HashMap::default()
        });
        let state = Mutex::new(State { entries, ..State::default() });
        Arc::new(MtaSts { plan, resolver, state, changed: Notify::new(), log })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what has changed, for as long as the program runs.
    pub async fn run(self: Arc<MtaSts>) {
        loop {
            self.changed.notified().await;
            let kept: Vec<(Box<str>, Kept)> = {
                let mut state = self.state();
                if !std::mem::take(&mut state.changed) {
                    continue;
                }
                state.entries.iter().map(|(domain, entry)| (domain.clone(), entry.kept())).collect()
            };
            let file = self.plan.file.clone();
            let written = tokio::task::spawn_blocking(move || {
                let kept: std::collections::BTreeMap<_, _> = kept.into_iter().collect();
                write_whole(&file, &serde_json::to_vec(&kept).unwrap_or_default())
            });
            if let Ok(Err(error)) = written.await {
                let file = self.plan.file.display();
                let text = format!("{file}: {error}; policies of MTA-STS are not kept over a restart");
                self.log.notice(Severity::Warning, &text);
            }
            tokio::time::sleep(WRITE_EVERY).await;
        }
    }

    /// The policy that holds for a domain (in lower case, A-labels). Answers within [`STS_TIME_MAX`].
    pub async fn find(self: &Arc<MtaSts>, domain: &str) -> StsFound {
        match tokio::time::timeout(STS_TIME_MAX, self.look(domain)).await {
            Ok(found) => found,
            Err(_) => {
                let trouble = format!("no answer within {} s", STS_TIME_MAX.as_secs());
                StsFound { policy: self.known(domain).map(|entry| entry.policy), trouble: Some(trouble) }
            }
        }
    }

    /// What is kept and has not ended.
    fn known(&self, domain: &str) -> Option<Entry> {
        let now = clock::now().unix;
        self.state().entries.get(domain).filter(|entry| entry.until() > now).cloned()
    }

    async fn look(self: &Arc<MtaSts>, domain: &str) -> StsFound {
        let known = self.known(domain);
        let of_known = |known: Option<Entry>| StsFound { policy: known.map(|entry| entry.policy), trouble: None };
        let texts = self.resolver.known_texts(&format!("_mta-sts.{domain}")).await.unwrap_or_default();
        let Some(id) = record_id(texts.iter().map(String::as_str)) else { return of_known(known) };
        if let Some(entry) = &known
            && entry.id == id
        {
            if clock::now().unix.since(entry.fetched) >= STS_REFRESH.min(entry.policy.max_age / 2) {
                self.renewing(domain, id);
            }
            return of_known(known);
        }
        match self.renewing(domain, id).await {
            Ok(Ok(policy)) => StsFound { policy: Some(policy), trouble: None },
            Ok(Err(trouble)) => StsFound { trouble: Some(trouble), ..of_known(known) },
            Err(error) => StsFound { trouble: Some(error.to_string()), ..of_known(known) },
        }
    }

    /// Fetches a policy beside whoever waits for it: what comes too late for one is there for the next.
    fn renewing(self: &Arc<MtaSts>, domain: &str, id: Box<str>) -> JoinHandle<Result<Arc<StsPolicy>, String>> {
        let (this, domain) = (Arc::clone(self), Box::<str>::from(domain));
        tokio::spawn(async move { this.renew(&domain, id).await })
    }

    /// Fetches a policy and keeps it, unless that has failed a short time ago.
    async fn renew(&self, domain: &str, id: Box<str>) -> Result<Arc<StsPolicy>, String> {
        let failed = self
            .state()
            .failures
            .get(domain)
            .filter(|one| one.id == id && one.until > Instant::now())
            .map(|one| one.why.clone());
        if let Some(why) = failed {
            return Err(why);
        }
        // In the way of a second one, for as long as this one may take.
        self.note_failure(domain, &id, "it is being fetched");
        match tokio::time::timeout(STS_TIME_MAX, self.fetch(domain)).await {
            Ok(Ok(policy)) => {
                let policy = Arc::new(policy);
                self.keep(domain, Entry { id, fetched: clock::now().unix, policy: Arc::clone(&policy) });
                Ok(policy)
            }
            Ok(Err(why)) => Err(self.failed(domain, &id, why)),
            Err(_) => Err(self.failed(domain, &id, format!("no answer within {} s", STS_TIME_MAX.as_secs()))),
        }
    }

    fn failed(&self, domain: &str, id: &str, why: String) -> String {
        self.note_failure(domain, id, &why);
        let tells = {
            let mut state = self.state();
            let now = Instant::now();
            let (since, told) = state.told.filter(|(since, _)| now - *since < TOLD_EVERY).unwrap_or((now, 0));
            state.told = Some((since, told + 1));
            told < TOLD_MAX
        };
        if tells {
            let text = format!("the MTA-STS policy of {domain} cannot be had: {why}; what was kept of it holds on");
            self.log.notice(Severity::Warning, &text);
        }
        why
    }

    fn note_failure(&self, domain: &str, id: &str, why: &str) {
        let now = Instant::now();
        let mut state = self.state();
        if state.failures.len() >= STS_DOMAINS_MAX {
            state.failures.retain(|_, failure| failure.until > now);
        }
        // Where even that is too much, servers are asked more often than they should be.
        if state.failures.len() < STS_DOMAINS_MAX {
            let failure = Failure { id: id.into(), until: now + STS_RETRY, why: why.into() };
            state.failures.insert(domain.into(), failure);
        }
    }

    fn keep(&self, domain: &str, entry: Entry) {
        let now = clock::now().unix;
        let mut state = self.state();
        state.failures.remove(domain);
        if state.entries.len() >= STS_DOMAINS_MAX && !state.entries.contains_key(domain) {
            state.entries.retain(|_, entry| entry.until() > now);
            let soonest = state.entries.iter().min_by_key(|(_, entry)| entry.until()).map(|(domain, _)| domain.clone());
            if let Some(soonest) = soonest.filter(|_| state.entries.len() >= STS_DOMAINS_MAX) {
                state.entries.remove(&soonest);
            }
        }
        state.entries.insert(domain.into(), entry);
        state.changed = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Asks the server (RFC 8461 3.3).
    async fn fetch(&self, domain: &str) -> Result<StsPolicy, String> {
        let host = format!("mta-sts.{domain}");
        let addresses = self.resolver.addresses_of(&host).await?;
        let total = addresses.len();
        let allowed: Vec<IpAddr> = addresses.into_iter().filter(|&address| self.may_ask(address)).collect();
        if allowed.is_empty() {
            return Err(match total {
                0 => format!("{host} has no address"),
                _ => format!("{host} leads to no public address"),
            });
        }
        let mut last = String::new();
        for address in allowed.into_iter().take(2) {
            match TcpStream::connect(SocketAddr::new(address, self.plan.port)).await {
                Ok(socket) => return self.ask(&host, socket).await,
                Err(error) => last = format!("{host}: {error}"),
            }
        }
        Err(last)
    }

    fn may_ask(&self, address: IpAddr) -> bool {
        is_public(address) || self.plan.networks.iter().any(|network| network.contains(&address))
    }

    async fn ask(&self, host: &str, socket: TcpStream) -> Result<StsPolicy, String> {
        let wrong = |what: &dyn std::fmt::Display| format!("https://{host}: {what}");
        let name = ServerName::try_from(host.to_owned()).map_err(|error| wrong(&error))?;
        let stream = TlsConnector::from(self.plan.tls.clone()).connect(name, socket).await;
        let stream = stream.map_err(|error| wrong(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| wrong(&error))?;
        let connection = tokio::spawn(connection);
        let request = Request::get("/.well-known/mta-sts.txt").header(header::HOST, host).body(Empty::<Bytes>::new());
        let answered = async {
            let answer = sender.send_request(request.map_err(|error| wrong(&error))?).await;
            let answer = answer.map_err(|error| wrong(&error))?;
            if answer.status() != StatusCode::OK {
                return Err(wrong(&format!("answered {}", answer.status())));
            }
            let kind =
                answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/plain") {
                return Err(wrong(&"the answer is no text/plain"));
            }
            let body = Limited::new(answer.into_body(), STS_POLICY_OCTETS_MAX).collect().await;
            Ok(body.map_err(|error| wrong(&error))?.to_bytes())
        };
        let body = answered.await;
        connection.abort();
        let body = body?;
        let text = std::str::from_utf8(&body).map_err(|_| wrong(&"the policy is no UTF-8"))?;
        StsPolicy::parse(text).map_err(|error| wrong(&format!("the policy cannot be used: {error}")))
    }
}

/// Whether it leads out of this host and its networks.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0)
                || (a == 198 && (18..20).contains(&b)))
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            // What is embedded in an address of a transition is as good or bad as it is by itself.
            match v6.to_ipv4_mapped() {
                Some(v4) => is_public(IpAddr::V4(v4)),
                // Global unicast alone, without documentation, Teredo and 6to4, which lead to addresses of IPv4.
                None => {
                    first & 0xe000 == 0x2000
                        && first != 0x2002
                        && !(first == 0x2001 && v6.segments()[1] < 0x200)
                        && !(first == 0x2001 && v6.segments()[1] == 0xdb8)
                }
            }
        }
    }
}

/// What is kept and has not ended. Nothing, where there is no file.
fn read_kept(file: &Path, now: UnixTime) -> Result<HashMap<Box<str>, Entry>, String> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::default()),
        Err(error) => return Err(format!("{}: {error}", file.display())),
    };
    let kept: std::collections::BTreeMap<Box<str>, Kept> =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    let entries = kept.into_iter().filter_map(|(domain, kept)| Some((domain, Entry::of(&kept)?)));
    // Of a time that is yet to come nothing can have been fetched: the clock was wrong.
    let good = entries.filter(|(_, entry)| entry.until() > now && entry.fetched <= now);
    Ok(good.take(STS_DOMAINS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_asked() {
        for public in ["8.8.8.8", "100.63.0.1", "198.17.0.1", "2606:4700::1111", "2001:4860:4860::8888"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for other in [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "198.18.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2001::1",
            "64:ff9b::a00:1",
        ] {
            assert!(!is_public(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn what_is_kept_is_read_again_until_its_end() {
        let text = "version: STSv1\nmode: enforce\nmx: *.a.test\nmx: b.test\nmax_age: 100\n";
        let entry = Entry {
            id: "1".into(),
            fetched: UnixTime::from_millis(1_000_000),
            policy: Arc::new(StsPolicy::parse(text).unwrap()),
        };
        let file = std::env::temp_dir().join(format!("ringpost-sts-{}.json", std::process::id()));
        let kept: std::collections::BTreeMap<_, _> = [("a.test", entry.kept())].into();
        write_whole(&file, &serde_json::to_vec(&kept).unwrap()).unwrap();
        let read = |now| read_kept(&file, UnixTime::from_millis(now)).unwrap();
        let again = read(1_099_999);
        assert_eq!((&again["a.test"].policy, &*again["a.test"].id), (&entry.policy, "1"));
        assert!(read(1_100_000).is_empty() && read(999_999).is_empty());
        std::fs::write(&file, "damaged").unwrap();
        assert!(read_kept(&file, UnixTime::from_millis(0)).unwrap_err().contains("ringpost-sts"));
        std::fs::remove_file(&file).unwrap();
        assert!(read_kept(&file, UnixTime::from_millis(0)).unwrap().is_empty());
    }
}
