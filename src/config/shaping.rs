//! Shaping files: what providers and domains tolerate, in layers. The shipped one comes first, those of `[shaping] files`
//! after it in their order. A key that a later file says for a provider replaces that of an earlier one, the others stay.
//!
//! What the keys come to for a site is src/shard/shaping.rs.

use super::check::Problem;
use super::error::ConfigError;
use super::outbound_tls::TlsUseKey;
use super::read::{self, DomainRule, FromText, MaybeCount, Pace};
use super::settings::pattern;
use super::{Config, text};
use crate::limits::{QUEUE_RECIPIENTS_MAX, SHAPING_ENTRIES_MAX};
use crate::shard::settings::DomainPattern;
use crate::shard::shaping::{DomainEntry, LimitSpec, Provider, Shaping, Timeouts, Tolerance};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is known of providers that many send to.
const SHIPPED: &str = include_str!("shipped_shaping.toml");

/// The name of the shipped file, where one is shown.
const SHIPPED_NAME: &str = "shipped shaping.toml";

/// `[shaping]`: which files say what destinations tolerate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapingSection {
    /// Files of one's own; later ones say more.
    #[serde(deserialize_with = "read::many")]
    pub files: Vec<PathBuf>,
    /// Whether the file that comes with the program is used, before one's own.
    pub shipped: bool,
    /// What they come to together.
    #[serde(skip)]
    said: ShapingFile,
}

impl Default for ShapingSection {
    fn default() -> ShapingSection {
        ShapingSection { files: Vec::new(), shipped: true, said: ShapingFile::default() }
    }
}

impl FromText for PathBuf {
    const EXPECTED: &'static str = "the path of a file";
    fn from_text(text: &str) -> Result<PathBuf, String> {
        if text.is_empty() { Err(format!("expected {}", PathBuf::EXPECTED)) } else { Ok(text.into()) }
    }
}

/// One file, or several laid over each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ShapingFile {
    default: Keys,
    provider: BTreeMap<String, Keys>,
    domain: Vec<Keys>,
    limit: BTreeMap<String, LimitKeys>,
}

/// What is said of one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Keys {
    #[serde(deserialize_with = "read::some_many")]
    mx: Option<Vec<DomainRule>>,
    #[serde(deserialize_with = "read::some_many")]
    domains: Option<Vec<DomainRule>>,
    /// Where it is from, for people.
    source: Option<String>,
    connections: Option<u32>,
    #[serde(deserialize_with = "read::some")]
    connection_rate: Option<Pace>,
    #[serde(deserialize_with = "read::some")]
    rate: Option<Pace>,
    #[serde(deserialize_with = "read::some")]
    messages_per_connection: Option<MaybeCount>,
    recipients_per_transaction: Option<u32>,
    tls: Option<TlsUseKey>,
    #[serde(deserialize_with = "read::some")]
    connect_timeout: Option<Duration>,
    #[serde(deserialize_with = "read::some")]
    idle_timeout: Option<Duration>,
    timeouts: TimeoutKeys,
    adapt: Option<bool>,
    #[serde(deserialize_with = "read::some_many")]
    limits: Option<Vec<String>>,
    total: LimitKeys,
}

/// A limit over several sites.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitKeys {
    #[serde(deserialize_with = "read::some")]
    connections: Option<MaybeCount>,
    #[serde(deserialize_with = "read::some")]
    connection_rate: Option<Pace>,
    #[serde(deserialize_with = "read::some")]
    rate: Option<Pace>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TimeoutKeys {
    #[serde(deserialize_with = "read::some")]
    banner: Option<Duration>,
    #[serde(deserialize_with = "read::some")]
    hello: Option<Duration>,
    #[serde(deserialize_with = "read::some")]
    mail: Option<Duration>,
    #[serde(deserialize_with = "read::some")]
    rcpt: Option<Duration>,
    #[serde(deserialize_with = "read::some")]
    data: Option<Duration>,
    #[serde(deserialize_with = "read::some")]
    block: Option<Duration>,
    #[serde(deserialize_with = "read::some")]
    final_dot: Option<Duration>,
}

/// Lays the keys of `$over` over those of `$under`.
macro_rules! lay_over {
    ($under:expr, $over:expr, $($key:ident),+) => { $($under.$key = $over.$key.or($under.$key.take());)+ };
}

impl Keys {
    fn lay_over(&mut self, over: Keys) {
        lay_over!(self, over, mx, domains, source, connections, connection_rate, rate, messages_per_connection);
        lay_over!(self, over, recipients_per_transaction, tls, connect_timeout, idle_timeout, adapt, limits);
        let (under, times) = (&mut self.timeouts, over.timeouts);
        lay_over!(under, times, banner, hello, mail, rcpt, data, block, final_dot);
        self.total.lay_over(over.total);
    }
}

impl LimitKeys {
    fn lay_over(&mut self, over: LimitKeys) {
        lay_over!(self, over, connections, connection_rate, rate);
    }

    fn spec(&self, name: String) -> LimitSpec {
        LimitSpec {
            name: name.into(),
            connections: self.connections.and_then(|count| count.0),
            connection_rate: self.connection_rate.and_then(|pace| pace.0),
            rate: self.rate.and_then(|pace| pace.0),
        }
    }
}

impl ShapingFile {
    fn parse(text: &str) -> Result<ShapingFile, ConfigError> {
        let file: ShapingFile = toml::from_str(text).map_err(|error| ConfigError::from_toml(text, &error))?;
        file.check().map_err(|problem| problem.locate(text))?;
        Ok(file)
    }

    fn lay_over(&mut self, over: ShapingFile) {
        self.default.lay_over(over.default);
        for (name, keys) in over.provider {
            self.provider.entry(name).or_default().lay_over(keys);
        }
        // What a later file says of a domain is found first.
        self.domain.splice(0..0, over.domain);
        for (name, keys) in over.limit {
            self.limit.entry(name).or_default().lay_over(keys);
        }
    }

    /// What can be said of one file alone.
    fn check(&self) -> Result<(), Problem> {
        check_keys("default", &self.default)?;
        for key in [("mx", self.default.mx.is_some()), ("domains", self.default.domains.is_some())] {
            if let (key, true) = key {
                let hint = "write [provider.NAME] or [[domain]] for some of them";
                return Err(Problem::new(format!("default.{key}"), "the default is for every destination", hint));
            }
        }
        if self.default.total != LimitKeys::default() {
            let hint = "write [limit.NAME], and name it in limits";
            return Err(Problem::new("default.total", "only providers have a total", hint));
        }
        for (name, keys) in &self.provider {
            let at = format!("provider.{name}");
            check_name(&at, name)?;
            check_keys(&at, keys)?;
        }
        for (index, keys) in self.domain.iter().enumerate() {
            let at = format!("domain[{index}]");
            check_keys(&at, keys)?;
            if keys.domains.as_ref().is_none_or(Vec::is_empty) {
                let hint = "as in domains = [\"example.com\", \".example.com\"]";
                return Err(Problem::new(at, "it is not said which domains are meant", hint));
            }
            if keys.mx.is_some() || keys.total != LimitKeys::default() {
                let hint = "mx and total belong to [provider.NAME]; a limit over several sites is [limit.NAME]";
                return Err(Problem::new(at, "a domain has neither mail hosts here nor a total", hint));
            }
        }
        for (name, keys) in &self.limit {
            let at = format!("limit.{name}");
            check_name(&at, name)?;
            if *keys == LimitKeys::default() {
                let hint = "give it connections, connection_rate or rate";
                return Err(Problem::new(at, "a limit that limits nothing", hint));
            }
        }
        Ok(())
    }

    /// What only all files together tell. Found out here, it is in no one place of one file.
    fn check_whole(&self) -> Result<(), ConfigError> {
        let count = self.provider.len() + self.domain.len() + self.limit.len();
        if count > SHAPING_ENTRIES_MAX {
            return Err(ConfigError::new(format!("shaping: {count} entries are more than can be kept"))
                .with_hint(format!("at most {SHAPING_ENTRIES_MAX} providers, domains and limits")));
        }
        let named = self.provider.iter().map(|(name, keys)| (format!("provider.{name}"), keys));
        for (at, keys) in named.clone().chain(self.all_domains()).chain([("default".to_owned(), &self.default)]) {
            if let Some(unknown) = keys.limits.iter().flatten().find(|name| !self.limit.contains_key(*name)) {
                let near = text::nearest(unknown, self.limit.keys().map(String::as_str));
                let hint = near
                    .map_or("write [limit.NAME] with its keys".to_owned(), |near| format!("did you mean `{near}`?"));
                return Err(ConfigError::new(format!("shaping, {at}: there is no limit `{unknown}`")).with_hint(hint));
            }
        }
        for (at, keys) in named {
            if keys.mx.is_none() && keys.domains.is_none() {
                let name = at.trim_start_matches("provider.");
                let near =
                    text::nearest(name, self.provider.iter().filter(|(_, k)| k.mx.is_some()).map(|(n, _)| n.as_str()));
                let hint = near.map_or("give it mx = [\".example.net\"] or domains".to_owned(), |near| {
                    format!("give it mx = [\".example.net\"] or domains, or did you mean [provider.{near}]?")
                });
                return Err(ConfigError::new(format!("shaping, {at}: it is not said which sites are this provider's"))
                    .with_hint(hint));
            }
        }
        Ok(())
    }

    fn all_domains(&self) -> impl Iterator<Item = (String, &Keys)> {
        self.domain.iter().enumerate().map(|(index, keys)| (format!("domain number {}", index + 1), keys))
    }
}

fn check_name(at: &str, name: &str) -> Result<(), Problem> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Problem::new(at, format!("`{name}` is no name"), "1 to 64 letters, digits, - and _"))
}

fn check_keys(at: &str, keys: &Keys) -> Result<(), Problem> {
    let problem = |key: &str, message: &str, hint: &str| Err(Problem::new(format!("{at}.{key}"), message, hint));
    if keys.connections == Some(0) {
        return problem(
            "connections",
            "0 connections deliver nothing",
            "to keep mail, hold it by `ringpost queue hold`",
        );
    }
    if let Some(count) = keys.recipients_per_transaction
        && !(1..=QUEUE_RECIPIENTS_MAX).contains(&(count as usize))
    {
        let hint = format!("1 to {QUEUE_RECIPIENTS_MAX}");
        return problem("recipients_per_transaction", "not a number of recipients that is sent", &hint);
    }
    if keys.mx.iter().chain(&keys.domains).flatten().any(|rule| *rule == DomainRule::Any) {
        return problem("mx", "`*` fits everything", "write it in [default]");
    }
    let times = &keys.timeouts;
    let waits = [times.banner, times.hello, times.mail, times.rcpt, times.data, times.block, times.final_dot];
    if waits.into_iter().flatten().any(|wait| wait < Duration::from_secs(1)) {
        return problem("timeouts", "no peer answers as fast as that", "at least \"1s\" each");
    }
    if keys.connect_timeout.is_some_and(|wait| wait.is_zero()) {
        return problem("connect_timeout", "no host answers as fast as that", "as in \"4s\"");
    }
    Ok(())
}

impl ShapingSection {
    /// Reads the files.
    pub(super) fn load(&mut self) -> Result<(), ConfigError> {
        let mut said = ShapingFile::default();
        if self.shipped {
            said.lay_over(ShapingFile::parse(SHIPPED).map_err(|error| error.in_file(Path::new(SHIPPED_NAME)))?);
        }
        for file in &self.files {
            let text = Config::read(file)?;
            said.lay_over(ShapingFile::parse(&text).map_err(|error| error.in_file(file))?);
        }
        said.check_whole()?;
        self.said = said;
        Ok(())
    }

    /// Where what is said of a provider is from, as its file tells.
    pub fn source_of(&self, provider: &str) -> Option<&str> {
        self.said.provider.get(provider)?.source.as_deref()
    }

    /// What the shards are told.
    pub(super) fn rules(&self) -> Shaping {
        let said = &self.said;
        let mut limits: Vec<LimitSpec> = said.limit.iter().map(|(name, keys)| keys.spec(name.clone())).collect();
        let place = |name: &String| said.limit.keys().position(|known| known == name).map(|place| place as u32);
        let tolerance = |keys: &Keys| tolerance(keys, keys.limits.iter().flatten().filter_map(place).collect());
        let providers = said
            .provider
            .iter()
            .map(|(name, keys)| {
                let mut tolerance = tolerance(keys);
                if keys.total != LimitKeys::default() {
                    tolerance.limits.push(limits.len() as u32);
                    limits.push(keys.total.spec(format!("{name}, total")));
                }
                Provider {
                    name: name.as_str().into(),
                    hosts: keys.mx.as_deref().map_or(DomainPattern::Exact(Vec::new()), pattern),
                    domains: keys.domains.as_deref().map_or(DomainPattern::Exact(Vec::new()), pattern),
                    tolerance,
                }
            })
            .collect();
        let domains = said
            .domain
            .iter()
            .map(|keys| DomainEntry {
                domains: pattern(keys.domains.as_deref().unwrap_or_default()),
                tolerance: tolerance(keys),
            })
            .collect();
        Shaping { default: tolerance(&said.default), providers, domains, limits }
    }
}

fn tolerance(keys: &Keys, limits: Vec<u32>) -> Tolerance {
    let times = &keys.timeouts;
    Tolerance {
        connections: keys.connections,
        connection_rate: keys.connection_rate.map(|pace| pace.0),
        rate: keys.rate.map(|pace| pace.0),
        messages_per_connection: keys.messages_per_connection.map(|count| count.0),
        recipients_per_transaction: keys.recipients_per_transaction.map(|count| count as usize),
        tls: keys.tls.map(Into::into),
        connect_timeout: keys.connect_timeout,
        idle_timeout: keys.idle_timeout,
        adapt: keys.adapt,
        timeouts: Timeouts {
            banner: times.banner,
            hello: times.hello,
            mail: times.mail,
            rcpt: times.rcpt,
            data: times.data,
            block: times.block,
            final_dot: times.final_dot,
        },
        limits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::settings;
    use crate::io::dns::MxHost;
    use crate::policy::outbound_tls::HostTls;
    use crate::shard::permits::SiteRegistry;
    use crate::shard::settings::Rate;
    use crate::smtp::client::TlsUse;
    use std::sync::Arc;

    fn hosts(names: &[&str]) -> Vec<MxHost> {
        names
            .iter()
            .map(|name| MxHost { preference: 10, name: (*name).into(), addresses: Vec::new(), tls: HostTls::None })
            .collect()
    }

    /// A registry with the shipped file and these laid over it.
    fn registry(files: &[&str]) -> SiteRegistry {
        let mut config = Config::parse("[[listener]]\naddress = \"127.0.0.1:25\"\n").unwrap();
        for text in files {
            config.shaping.said.lay_over(ShapingFile::parse(text).unwrap_or_else(|error| panic!("{error}")));
        }
        config.shaping.said.check_whole().unwrap_or_else(|error| panic!("{error}"));
        SiteRegistry::new(Arc::new(settings(&config, None)), 2)
    }

    #[test]
    fn every_provider_of_the_shipped_file_is_found_by_its_hosts() {
        let mut registry = registry(&[]);
        for (provider, host, connections) in [
            ("gmail", "gmail-smtp-in.l.google.com", 5),
            ("gmail", "aspmx2.googlemail.com", 5),
            ("microsoft-consumer", "outlook-com.olc.protection.outlook.com", 5),
            ("microsoft-365", "example-com.mail.protection.outlook.com", 5),
            ("microsoft-365", "example-com.r-v1.mx.microsoft", 5),
            ("yahoo", "mta5.am0.yahoodns.net", 10),
            ("yahoo", "mx-aol.mail.gm0.yahoodns.net", 10),
            ("apple", "mx01.mail.icloud.com", 10),
            ("comcast", "mx1h1.comcast.net", 25),
            ("gmx", "mx01.emig.gmx.net", 4),
            ("gmx", "mx-ha02.web.de", 4),
            ("orange", "smtp-in.orange.fr", 20),
            ("mimecast", "eu-smtp-inbound-1.mimecast.com", 10),
            ("proofpoint", "mxa-00000000.gslb.pphosted.com", 10),
            ("yandex", "mx.yandex.ru", 10),
            ("mail-ru", "mxs.mail.ru", 10),
            ("qq", "mx3.qq.com", 4),
            ("netease", "163mx01.mxmail.netease.com", 4),
            ("zoho", "mx.zoho.com", 10),
            ("fastmail", "in1-smtp.messagingengine.com", 10),
            ("proton", "mail.protonmail.ch", 10),
            ("yahoo-japan", "mx1.mail.yahoo.co.jp", 2),
        ] {
            let site = registry.site_of(&format!("{host}.test"), &hosts(&[host])).unwrap();
            assert_eq!(
                (site.shape.provider.as_deref(), site.shape.limits.connections),
                (Some(provider), connections),
                "{host}"
            );
            assert!(
                site.shape.client.tls != TlsUse::Required
                    || ["gmail", "microsoft-365", "microsoft-consumer"].contains(&provider)
            );
        }
        let mixed = registry.site_of("mixed.test", &hosts(&["aspmx.l.google.com", "mx.example.net"])).unwrap();
        assert_eq!(mixed.shape.provider, None, "one host of another's makes it nobody's");
        let said = &Config::parse("[[listener]]\naddress = \"127.0.0.1:25\"\n").unwrap().shaping.said;
        assert!(said.provider.values().all(|keys| keys.source.is_some()), "each entry says where it is from");
    }

    #[test]
    fn later_files_replace_single_keys_and_domains_have_their_own() {
        let mut registry = registry(&[
            "[default]\nidle_timeout = \"3s\"\n[provider.gmail]\nconnections = 9\n[limit.out]\nrate = \"100/s\"\n",
            "[provider.gmail]\nlimits = [\"out\"]\nmessages_per_connection = \"unlimited\"\ntimeouts.banner = \"9s\"\n\
             [[domain]]\ndomains = \"big.test\"\nconnections = 70\nlimits = \"out\"\n",
        ]);
        let google = hosts(&["aspmx.l.google.com"]);
        let site = registry.site_of("small.test", &google).unwrap();
        assert_eq!((site.shape.limits.connections, site.shape.limits.messages_per_connection), (9, None));
        assert_eq!(
            (site.shape.client.tls, site.shape.client.timeouts.banner),
            (TlsUse::Required, Duration::from_secs(9))
        );
        assert_eq!(site.shape.idle_timeout, Duration::from_secs(3));
        let shared: Vec<&str> = site.shared.iter().map(|limit| &*limit.name).collect();
        assert_eq!(shared, ["out"]);
        assert!(Arc::ptr_eq(&site, &registry.site_of("other.test", &google).unwrap()));
        let big = registry.site_of("big.test", &google).unwrap();
        assert_eq!(
            (big.shape.limits.connections, big.shared.len()),
            (70, 1),
            "over its provider's, and no limit twice"
        );
        assert_eq!(&*big.name, "big.test at aspmx.l.google.com");
        let orange = registry.site_of("orange.test", &hosts(&["smtp-in.orange.fr"])).unwrap();
        let total = &orange.shared[0];
        let hourly = Rate { count: 1000, period: Duration::from_secs(3600), burst: 1 };
        assert_eq!((&*total.name, total.connections, total.connection_rate), ("orange, total", Some(2), Some(hourly)));
    }

    #[test]
    fn a_route_may_do_without_shaping() {
        let text = "[[listener]]\naddress = \"127.0.0.1:25\"\n[[route]]\nshaping = false\nconnections = 33\n";
        let config = Config::parse(text).unwrap();
        let mut registry = SiteRegistry::new(Arc::new(settings(&config, None)), 2);
        let site = registry.site_of("small.test", &hosts(&["aspmx.l.google.com"])).unwrap();
        assert_eq!((site.shape.limits.connections, &site.shape.provider), (33, &None));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, expected) in [
            ("[provider.a]\nmx = \".a.test\"\nconections = 5\n", "3:1: unknown key `conections`"),
            ("[provider.a]\nmx = \".a.test\"\nconnections = 0\n", "3:15: provider.a.connections: 0 connections"),
            ("[[domain]]\nconnections = 5\n", "domain[0]: it is not said which domains"),
            ("[default]\nmx = \".a.test\"\n", "2:6: default.mx: the default is for every"),
            ("[default]\nrate = \"fast\"\n", "2:8: `fast` is not a rate"),
            ("[limit.x]\n", "limit.x: a limit that limits nothing"),
            ("[provider.\"a b\"]\nmx = \".a.test\"\n", "`a b` is no name"),
            ("[provider.a]\nmx = \"*\"\n", "provider.a.mx: `*` fits everything"),
            ("[provider.a]\nmx = \".a.test\"\ntimeouts = { mail = \"1ms\" }\n", "provider.a.timeouts: no peer answers"),
        ] {
            let error = ShapingFile::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let whole = |text: &str| {
            let mut said = ShapingFile::parse(SHIPPED).unwrap();
            said.lay_over(ShapingFile::parse(text).unwrap());
            said.check_whole().unwrap_err().to_string()
        };
        let error = whole("[provider.gmial]\nconnections = 5\n");
        assert!(error.contains("did you mean [provider.gmail]?"), "{error}");
        let error = whole("[default]\nlimits = \"outt\"\n[limit.out]\nrate = \"1/s\"\n");
        assert!(error.contains("there is no limit `outt`") && error.contains("did you mean `out`?"), "{error}");
    }

    #[test]
    fn a_file_that_is_named_and_not_there_is_the_files_error() {
        let text = "[[listener]]\naddress = \"127.0.0.1:25\"\n[shaping]\nfiles = \"/nonexistent/shaping.toml\"\n";
        let error = Config::parse(text).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/shaping.toml: ") && error.contains("cannot be read"), "{error}");
    }
}
