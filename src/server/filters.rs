//! The content filters, made from the configuration.

use super::ServeError;
use crate::config::{Config, FilterSection};
use crate::control::filters::{Filter, FilterKind};
use crate::control::rspamd::Rspamd;
use crate::io::secret_file;
use crate::io::tls;
use hyper::header::HeaderValue;

/// All filters of `[[filter]]`, in their order.
pub(super) fn filters(config: &Config) -> Result<Vec<Filter>, ServeError> {
    config.filter.iter().map(filter).collect()
}

fn filter(section: &FilterSection) -> Result<Filter, ServeError> {
    let kind = match (&section.milter, &section.rspamd) {
        (Some(address), _) => FilterKind::Milter(address.clone()),
        (None, url) => {
            let tls = match &section.authorities {
                Some(file) => tls::client_verify(tls::load_roots(file)?)?,
                None => tls::client_verify_system()?.0,
            };
            FilterKind::Rspamd(Rspamd::new(url.as_deref().unwrap_or_default(), password(section)?, &tls))
        }
    };
    Ok(Filter {
        name: section.name.as_str().into(),
        kind,
        timeout: section.timeout,
        on_failure: section.on_failure,
        concurrency: section.concurrency,
    })
}

fn password(section: &FilterSection) -> Result<Option<HeaderValue>, ServeError> {
    let Some(file) = &section.password_file else { return Ok(None) };
    let key = || format!("filter {}, password_file", section.name);
    let wrong = |problem| ServeError::SecretFile { key: key(), problem };
    let text = secret_file::read(file).map_err(wrong)?;
    let value = HeaderValue::from_str(&text);
    let mut value =
        value.map_err(|_| wrong(format!("{}: it holds more than one line of plain text", file.display())))?;
    value.set_sensitive(true);
    Ok(Some(value))
}
