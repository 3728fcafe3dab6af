//! What checks the tokens that clients log in with, made from the configuration.

use super::ServeError;
use crate::config::Config;
use crate::control::https::Https;
use crate::control::oauth::TokenChecker;
use crate::io::tls;

/// Checks tokens as `[oauth]` says.
pub(super) fn token_checker(config: &Config) -> Result<Option<TokenChecker>, ServeError> {
    let Some(oauth) = &config.oauth else { return Ok(None) };
    let tls = match &oauth.authorities {
        Some(file) => tls::client_verify(tls::load_roots(file)?)?,
        None => tls::client_verify_system()?.0,
    };
    Ok(oauth.settings().map(|settings| TokenChecker::new(settings, Https::new(&tls))))
}
