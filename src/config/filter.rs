//! `[[filter]]`: content filters that see each message before it is taken.

use super::check::{Problem, is_safe_url};
use super::read::{self, FromText};
use super::{Config, ListenerSection};
use crate::control::filters::{MilterAddress, OnFailure};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// `[[filter]]`: one content filter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilterSection {
    /// For listeners, logs and reasons.
    pub name: String,
    /// Where it listens for the milter protocol.
    #[serde(deserialize_with = "read::some")]
    pub milter: Option<MilterAddress>,
    /// Where rspamd answers, instead.
    pub rspamd: Option<String>,
    /// The file of rspamd's password.
    pub password_file: Option<PathBuf>,
    /// The authorities that prove rspamd's name where it is asked by HTTPS; the system's when left out.
    pub authorities: Option<PathBuf>,
    /// How long it may take for a message, waiting for its turn included.
    #[serde(deserialize_with = "read::one")]
    pub timeout: Duration,
    /// What happens to mail when it gives no answer.
    #[serde(deserialize_with = "read::one")]
    pub on_failure: OnFailure,
    /// Messages that it is shown at a time.
    pub concurrency: usize,
}

impl Default for FilterSection {
    fn default() -> FilterSection {
        FilterSection {
            name: String::new(),
            milter: None,
            rspamd: None,
            password_file: None,
            authorities: None,
            timeout: Duration::from_secs(20),
            on_failure: OnFailure::Defer,
            concurrency: 50,
        }
    }
}

impl FromText for MilterAddress {
    const EXPECTED: &'static str =
        "an address with port or a socket, as in \"127.0.0.1:8891\" or \"unix:/run/filter.sock\"";
    fn from_text(text: &str) -> Result<MilterAddress, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(MilterAddress::Unix(path.into())),
            Some(path) => Err(format!("`{path}` is not a whole path: expected {}", MilterAddress::EXPECTED)),
            None => text
                .parse()
                .map(MilterAddress::Tcp)
                .map_err(|_| format!("`{text}`: expected {}", MilterAddress::EXPECTED)),
        }
    }
}

impl FromText for OnFailure {
    const EXPECTED: &'static str = "\"defer\", \"pass\" or \"hold\"";
    fn from_text(text: &str) -> Result<OnFailure, String> {
        match text {
            "defer" => Ok(OnFailure::Defer),
            "pass" => Ok(OnFailure::Pass),
            "hold" => Ok(OnFailure::Hold),
            other => Err(format!("`{other}`: expected {}", OnFailure::EXPECTED)),
        }
    }
}

impl FilterSection {
    /// The files that are read at the start.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.password_file.iter().chain(&self.authorities)
    }
}

/// The filters that see what comes in at a listener: those that it names, or all.
pub(super) fn filters_of(config: &Config, listener: &ListenerSection) -> Arc<[u16]> {
    let place = |name: &String| config.filter.iter().position(|filter| filter.name == *name);
    let places: Vec<usize> = match &listener.filters {
        Some(names) => names.iter().filter_map(place).collect(),
        None => (0..config.filter.len()).collect(),
    };
    places.into_iter().map(|place| place as u16).collect()
}

/// The most that make sense: a client waits for all of them.
const FILTERS_MAX: usize = 16;
/// Senders give up after ten minutes (RFC 5321 4.5.3.2.6), and several filters take their time one after the other.
const TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// Checks the filters, and that listeners name those that there are.
pub(super) fn check_filters(config: &Config) -> Result<(), Problem> {
    if config.filter.len() > FILTERS_MAX {
        return Err(Problem::new("filter", "more filters than can be run", format!("{FILTERS_MAX} at most")));
    }
    for (index, filter) in config.filter.iter().enumerate() {
        let at = |key: &str| format!("filter[{index}].{key}");
        let plain = |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if !plain(&filter.name) {
            return Err(Problem::new(at("name"), "a filter needs a name", "1 to 64 ASCII characters without spaces"));
        }
        if config.filter[..index].iter().any(|other| other.name == filter.name) {
            return Err(Problem::new(at("name"), format!("two filters are named `{}`", filter.name), "rename one"));
        }
        let url = match (&filter.milter, &filter.rspamd) {
            (Some(_), None) => None,
            (None, Some(url)) => Some(url),
            _ => {
                let hint = "either milter = \"127.0.0.1:8891\" or rspamd = \"http://127.0.0.1:11333\"";
                return Err(Problem::new(at("name"), "it is not said how this filter is asked", hint));
            }
        };
        if let Some(url) = url {
            let known = |scheme| url.strip_prefix(scheme).is_some_and(|rest: &str| !rest.is_empty());
            if !(known("http://") || known("https://")) || url.parse::<hyper::Uri>().is_err() {
                let hint = "http://HOST:PORT or https://HOST:PORT; rspamd's own port is 11333";
                return Err(Problem::new(at("rspamd"), format!("`{url}` is no address of HTTP"), hint));
            }
            if filter.password_file.is_some() && !is_safe_url(url) {
                let hint = "use https://, or leave the password out and let rspamd trust this host (secure_ip)";
                return Err(Problem::new(at("rspamd"), "the password would go over the network in clear", hint));
            }
        } else if let Some(key) =
            [("password_file", filter.password_file.is_some()), ("authorities", filter.authorities.is_some())]
                .into_iter()
                .find_map(|(key, given)| given.then_some(key))
        {
            return Err(Problem::new(at(key), "milters have none", "this key goes with rspamd = \"https://…\""));
        }
        if filter.timeout.is_zero() || filter.timeout > TIMEOUT_MAX {
            return Err(Problem::new(
                at("timeout"),
                "not a time that clients wait for",
                "1s to 2m; 20s is the default",
            ));
        }
        if !(1..=10_000).contains(&filter.concurrency) {
            return Err(Problem::new(at("concurrency"), "out of range", "1 to 10000; 50 is the default"));
        }
    }
    for (index, listener) in config.listener.iter().enumerate() {
        let known = |name: &&String| config.filter.iter().any(|filter| filter.name == **name);
        if let Some(name) = listener.filters.iter().flatten().find(|name| !known(name)) {
            return Err(Problem::new(
                format!("listener[{index}].filters"),
                format!("there is no filter `{name}`"),
                "name one of [[filter]], or write filters = [] for none",
            ));
        }
    }
    Ok(())
}
