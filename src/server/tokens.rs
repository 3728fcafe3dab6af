//! What checks the tokens that clients log in with, made from the configuration.

use super::ServeError;
use crate::config::Config;
use crate::control::https::Https;
use crate::control::oauth::TokenChecker;
use crate::io::{secret_file, tls};

/// Checks tokens as `[oauth]` says.
pub(super) fn token_checker(config: &Config) -> Result<Option<TokenChecker>, ServeError> {
    let Some(oauth) = &config.oauth else { return Ok(None) };
    let tls = match &oauth.authorities {
        Some(file) => tls::client_verify(tls::load_roots(file)?)?,
        None => tls::client_verify_system()?.0,
    };
    // Read for each question; what is wrong with it is better known now.
    if let Some(file) = &oauth.client_secret_file {
        let key = "oauth.client_secret_file".to_owned();
        secret_file::read(file).map_err(|problem| ServeError::SecretFile { key, problem })?;
    }
    Ok(oauth.settings().map(|settings| TokenChecker::new(settings, Https::new(&tls))))
}
