//! What deliveries need beside their connections: policies of destinations, as the configuration wants them.

use crate::config::Config;
use crate::control::log::EventLog;
use crate::control::mta_sts::{MtaSts, StsPlan};
use crate::io::dns::{DnsConfig, Resolver, ResolverError};
use crate::io::dnssec::Prover;
use crate::io::tls::{self, TlsSetupError};
use crate::policy::outbound_tls::TlsRule;
use crate::shard::settings::{Route, Settings, Target};
use std::sync::Arc;

/// Whether any route by MX that delivers asks for this.
fn any_route(settings: &Settings, asks: impl Fn(&TlsRule) -> bool) -> bool {
    let of =
        |route: &Route| matches!(route.target, Target::Mx { .. }) && route.tls.asks_destinations() && asks(&route.tls);
    !settings.hold && settings.routes.iter().any(of)
}

/// What DNSSEC proves, where any route obeys DANE.
pub(super) fn prover(
    config: &Config,
    settings: &Settings,
    dns: &DnsConfig,
) -> Result<Option<Arc<Prover>>, ResolverError> {
    if !any_route(settings, |rule| rule.dane) {
        return Ok(None);
    }
    Prover::new(dns, config.outbound_tls.trust_anchors.as_deref()).map(|prover| Some(Arc::new(prover)))
}

/// Policies of MTA-STS, where any route obeys them.
pub(super) fn mta_sts(
    config: &Config,
    settings: &Settings,
    resolver: &Arc<Resolver>,
    log: &EventLog,
) -> Result<Option<Arc<MtaSts>>, TlsSetupError> {
    if !any_route(settings, |rule| rule.mta_sts) {
        return Ok(None);
    }
    let section = &config.outbound_tls;
    let tls = match &section.authorities {
        Some(file) => tls::client_verify(tls::load_roots(file)?)?,
        // That there are none was told already.
        None => tls::client_verify_system()?.0,
    };
    let plan = StsPlan {
        tls,
        port: section.policy_port,
        networks: section.policy_networks.clone(),
        file: config.spool.dir.join("mta-sts.json"),
    };
    Ok(Some(MtaSts::open(plan, Arc::clone(resolver), log.clone())))
}
