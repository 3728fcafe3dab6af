//! `[oauth]`: whose tokens are taken in place of passwords (RFC 7628).

use super::read;
use crate::control::oauth::{OauthSettings, TokenSource};
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `[oauth]`: tokens that clients log in with (OAUTHBEARER and XOAUTH2).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OauthSection {
    /// Who may have issued them.
    #[serde(deserialize_with = "read::many")]
    pub issuers: Vec<String>,
    /// For whom they must be.
    #[serde(deserialize_with = "read::many")]
    pub audiences: Vec<String>,
    /// The issuer's keys: a file, or an address of HTTPS.
    pub keys: Option<String>,
    /// Where the issuer is asked about each token instead (RFC 7662).
    pub introspection: Option<String>,
    /// As whom it is asked.
    pub client_id: Option<String>,
    /// The file of the secret for that.
    pub client_secret_file: Option<PathBuf>,
    /// The authorities that prove the issuer's name; the system's when left out.
    pub authorities: Option<PathBuf>,
    /// What tokens may be signed with.
    #[serde(deserialize_with = "read::many")]
    pub algorithms: Vec<Algorithm>,
    /// How far clocks may differ.
    #[serde(deserialize_with = "read::one")]
    pub leeway: Duration,
    /// The scope that a token must have.
    pub scope: Option<String>,
    /// The claim that names the login.
    pub claim: String,
}

impl Default for OauthSection {
    fn default() -> OauthSection {
        OauthSection {
            issuers: Vec::new(),
            audiences: Vec::new(),
            keys: None,
            introspection: None,
            client_id: None,
            client_secret_file: None,
            authorities: None,
            algorithms: vec![Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA],
            leeway: Duration::from_secs(60),
            scope: None,
            claim: "sub".into(),
        }
    }
}

impl OauthSection {
    /// How tokens are checked; None: the keys for that are not complete.
    pub fn source(&self) -> Option<TokenSource> {
        match (&self.keys, &self.introspection, &self.client_id, &self.client_secret_file) {
            (Some(keys), None, None, None) if keys.contains("://") => Some(TokenSource::Url(keys.clone())),
            (Some(file), None, None, None) => Some(TokenSource::File(file.into())),
            (None, Some(url), Some(client_id), Some(secret_file)) => Some(TokenSource::Introspection {
                url: url.clone(),
                client_id: client_id.clone(),
                secret_file: secret_file.clone(),
            }),
            _ => None,
        }
    }

    /// The files that are read while the program runs.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let keys = self.keys.as_deref().filter(|keys| !keys.contains("://")).map(Path::new);
        [keys, self.client_secret_file.as_deref(), self.authorities.as_deref()].into_iter().flatten()
    }

    /// What tokens must be like; None: the keys for that are not complete.
    pub fn settings(&self) -> Option<OauthSettings> {
        Some(OauthSettings {
            issuers: self.issuers.clone(),
            audiences: self.audiences.clone(),
            source: self.source()?,
            algorithms: self.algorithms.clone(),
            leeway: self.leeway,
            scope: self.scope.clone(),
            claim: self.claim.clone(),
        })
    }
}
