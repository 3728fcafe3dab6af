//! Answers the shards' questions to DNS: one lookup for all who ask the same at a time, then the answer to each of
//! them with the site it leads to. Nothing is cached here: each shard keeps what it was told for its TTL.
//!
//! Bounded: beyond [`MAX_LOOKUPS`] new questions are dropped, and the shards ask again. An answer that finds a
//! shard's mailbox full waits here and is tried again at every tick.

use super::mta_sts::{MtaSts, StsFound};
use crate::io::dns::{DnsFailure, Query, Resolution, Resolver};
use crate::io::dnssec::Prover;
use crate::io::mailbox::Sender;
use crate::limits::UNMET_POLICY_TTL;
use crate::policy::mta_sts::{Mode, StsPolicy};
use crate::policy::outbound_tls::{HostTls, TlsLevel};
use crate::shard::message::ToShard;
use crate::shard::permits::{SitePermits, SiteRegistry};
use foldhash::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What a domain's policy of MTA-STS makes of its hosts (RFC 8461 5): those that it does not name get nothing.
fn obey(policy: &StsPolicy, domain: &str, resolution: &mut Resolution) {
    let Ok(hosts) = &mut resolution.result else { return };
    let wish = match policy.mode {
        Mode::None => return,
        Mode::Testing => HostTls::Tested,
        Mode::Enforce => HostTls::Named,
    };
    let unnamed: Vec<&str> = hosts.iter().map(|host| &*host.name).filter(|name| !policy.names(name)).collect();
    if policy.mode == Mode::Enforce && unnamed.len() == hosts.len() {
        let text = format!(
            "the MTA-STS policy of {domain} (enforce) names none of its mail hosts ({}); nothing is sent until one of the two \
             is mended",
            unnamed.join(" ")
        );
        resolution.result = Err(DnsFailure::Policy(text));
        resolution.ttl = resolution.ttl.min(UNMET_POLICY_TTL);
        return;
    }
    if policy.mode == Mode::Enforce {
        hosts.retain(|host| policy.names(&host.name));
    }
    // DANE comes first (RFC 8461 2).
    for host in hosts.iter_mut().filter(|host| host.tls == HostTls::None && policy.names(&host.name)) {
        host.tls = wish.clone();
    }
}

/// Keeps the hosts that prove who they are and that the domain is proven to name (RFC 8689 4.2.1).
fn protect(domain: &str, trouble: Option<String>, resolution: &mut Resolution) {
    let Ok(hosts) = &mut resolution.result else { return };
    hosts.retain(|host| matches!(host.tls, HostTls::Named | HostTls::Dane(_)));
    if hosts.is_empty() {
        resolution.result = Err(match trouble {
            // It may have a policy that will do.
            Some(trouble) => DnsFailure::Policy(format!(
                "REQUIRETLS was asked for, and the MTA-STS policy of {domain} cannot be had: {trouble}"
            )),
            None => DnsFailure::Unprotected(format!(
                "REQUIRETLS was asked for, and {domain} publishes neither an MTA-STS policy in mode enforce nor TLSA records that \
                 are looked for and proven"
            )),
        });
        resolution.ttl = resolution.ttl.min(UNMET_POLICY_TTL);
    }
}

/// Lookups under way or waiting for their turn.
pub const MAX_LOOKUPS: usize = 100_000;

/// The service: owned by the control thread's loop, which calls it.
#[derive(Debug)]
pub struct ResolveService {
    resolver: Arc<Resolver>,
    mta_sts: Option<Arc<MtaSts>>,
    prover: Option<Arc<Prover>>,
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
        mta_sts: Option<Arc<MtaSts>>,
        prover: Option<Arc<Prover>>,
        registry: SiteRegistry,
        shards: Vec<Sender<ToShard>>,
    ) -> (ResolveService, UnboundedReceiver<Resolution>) {
        let (done, results) = unbounded_channel();
        let service = ResolveService {
            resolver,
            mta_sts,
            prover,
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
        let rule = match &query {
            Query::Mail(domain) | Query::SecureMail(domain) => self.registry.tls_rule(domain),
            Query::Host(_) => None,
        };
        let operator_names_hosts =
            rule.is_some_and(|(rule, _)| rule.level == TlsLevel::Verified && !rule.names.is_empty());
        let rule = rule.filter(|(rule, _)| rule.asks_destinations());
        let mta_sts = self.mta_sts.clone().filter(|_| rule.is_some_and(|(rule, _)| rule.mta_sts));
        let prover = self.prover.clone().zip(rule.filter(|(rule, _)| rule.dane).map(|(_, port)| port));
        tokio::spawn(async move {
            let domain = Box::<str>::from(query.name());
            let hosts = async {
                let mut resolution = resolver.resolve(query).await;
                if let Some((prover, port)) = prover {
                    prover.prove(&domain, port, &mut resolution).await;
                }
                resolution
            };
            let found = async {
                match mta_sts {
                    Some(policies) => policies.find(&domain).await,
                    None => StsFound::default(),
                }
            };
            let (mut resolution, found) = tokio::join!(hosts, found);
            if let Some(policy) = &found.policy {
                obey(policy, &domain, &mut resolution);
            }
            if found.trouble.is_some() {
                // It is looked at again when the server may be.
                resolution.ttl = resolution.ttl.min(UNMET_POLICY_TTL);
            }
            if matches!(resolution.query, Query::SecureMail(_)) && !operator_names_hosts {
                protect(&domain, found.trouble, &mut resolution);
            }
            let _ = done.send(resolution);
        });
    }

    /// A lookup is done: everyone who asked is told.
    pub fn finished(&mut self, resolution: Resolution) {
        let Some(askers) = self.asked.remove(&resolution.query) else { return };
        self.lookups += 1;
        self.failures += u64::from(matches!(resolution.result, Err(DnsFailure::Temporary(_))));
        let permits = match (&resolution.query, &resolution.result) {
            (Query::Mail(domain) | Query::SecureMail(domain), Ok(hosts)) => self.registry.site_of(domain, hosts),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::dns::MxHost;
    use std::time::Duration;

    /// The hosts a, b and c of d.test under a policy in this mode that names these; each with what is asked of it.
    fn obeyed(mode: &str, named: &[&str]) -> Result<Vec<(String, HostTls)>, DnsFailure> {
        let lines: String = named.iter().map(|name| format!("mx: {name}\n")).collect();
        let policy = StsPolicy::parse(&format!("version: STSv1\nmode: {mode}\nmax_age: 1\n{lines}")).unwrap();
        let host = |name: &str, tls| MxHost { preference: 0, name: name.into(), tls, addresses: Vec::new() };
        let dane = HostTls::Dane(Arc::default());
        let hosts = vec![host("a.test", HostTls::None), host("b.test", HostTls::None), host("c.test", dane)];
        let query = Query::Mail("d.test".into());
        let mut resolution = Resolution { query, result: Ok(hosts), ttl: Duration::from_secs(3600) };
        obey(&policy, "d.test", &mut resolution);
        assert_eq!(resolution.ttl <= UNMET_POLICY_TTL, resolution.result.is_err());
        resolution.result.map(|hosts| hosts.into_iter().map(|host| (host.name.into(), host.tls)).collect())
    }

    #[test]
    fn what_must_be_protected_goes_to_proven_hosts_alone() {
        let protected = |tls: &[HostTls], trouble: Option<&str>| {
            let hosts = tls.iter().enumerate().map(|(number, tls)| MxHost {
                preference: 0,
                name: format!("{number}.test").into(),
                tls: tls.clone(),
                addresses: Vec::new(),
            });
            let query = Query::SecureMail("d.test".into());
            let mut resolution = Resolution { query, result: Ok(hosts.collect()), ttl: Duration::from_secs(3600) };
            protect("d.test", trouble.map(Into::into), &mut resolution);
            resolution.result.map(|hosts| hosts.len())
        };
        let dane = HostTls::Dane(Arc::default());
        assert_eq!(protected(&[HostTls::None, HostTls::Named, dane, HostTls::Encrypted, HostTls::Tested], None), Ok(2));
        let none = protected(&[HostTls::None, HostTls::Encrypted, HostTls::Tested], None);
        assert!(
            matches!(&none, Err(DnsFailure::Unprotected(text)) if text.contains("d.test publishes neither")),
            "{none:?}"
        );
        let later = protected(&[HostTls::None], Some("no answer"));
        assert!(matches!(&later, Err(DnsFailure::Policy(text)) if text.contains("no answer")), "{later:?}");
    }

    #[test]
    fn a_policy_takes_away_hosts_or_binds_them() {
        let dane = || ("c.test".to_owned(), HostTls::Dane(Arc::default()));
        let named = |name: &str, tls| (name.to_owned(), tls);
        assert_eq!(obeyed("enforce", &["a.test", "c.test"]), Ok(vec![named("a.test", HostTls::Named), dane()]));
        let all = Ok(vec![named("a.test", HostTls::Tested), named("b.test", HostTls::None), dane()]);
        assert_eq!(obeyed("testing", &["a.test"]), all);
        let free = Ok(vec![named("a.test", HostTls::None), named("b.test", HostTls::None), dane()]);
        assert_eq!(obeyed("none", &[]), free);
        let Err(DnsFailure::Policy(text)) = obeyed("enforce", &["x.test"]) else { panic!("it is met") };
        assert!(text.contains("d.test (enforce) names none of its mail hosts (a.test b.test c.test)"), "{text}");
    }
}
