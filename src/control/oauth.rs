//! Tokens of OAuth 2 (RFC 6750) that clients log in with: signed ones (RFC 7519) are checked against the issuer's keys
//! (RFC 7517), others by asking the issuer (RFC 7662).
//!
//! Runs beside the control thread's loop. Keys are kept and read anew after a while, or when a token names one that is not
//! there, but not more often than [`KEYS_PAUSE`]; when they cannot be read, those that are there go on. A token that is
//! wrong and an issuer that does not answer are told apart: only the first is a failed login. Tokens are never logged.

use super::https::{Https, HttpsError};
use crate::clock::UnixTime;
use crate::io::secret_file;
use crate::limits::LOGIN_OCTETS_MAX;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// After so long keys are read anew.
const KEYS_FRESH: Duration = Duration::from_secs(3600);
/// Keys are not read more often than this, whatever tokens name.
const KEYS_PAUSE: Duration = Duration::from_secs(30);
/// Octets of a set of keys, and of an issuer's answer.
const ANSWER_OCTETS_MAX: usize = 256 * 1024;
/// Keys of a set; more are not looked at.
const KEYS_MAX: usize = 64;

/// Algorithms that a token may be signed with: none that shares a secret.
pub const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// What tokens must be like.
#[derive(Clone, Debug)]
pub struct OauthSettings {
    /// Who may have issued them (`iss`).
    pub issuers: Vec<String>,
    /// For whom they must be (`aud`): one of these.
    pub audiences: Vec<String>,
    /// How they are checked.
    pub source: TokenSource,
    /// With what they may be signed.
    pub algorithms: Vec<Algorithm>,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// The scope that they must have, if any.
    pub scope: Option<String>,
    /// The claim that names the login.
    pub claim: String,
}

/// How tokens are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// By the keys of a file.
    File(PathBuf),
    /// By the keys at this address.
    Url(String),
    /// By asking there (RFC 7662).
    Introspection {
        /// Where.
        url: String,
        /// As whom.
        client_id: String,
        /// Where the client's secret is kept; read for each question, so that it may be rotated.
        secret_file: PathBuf,
    },
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOwner {
    /// The login that it names.
    pub login: Box<str>,
    /// When it ends.
    pub until: UnixTime,
}

/// Why a token is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// It is wrong; for the operator's log.
    Wrong(String),
    /// It cannot be checked now.
    Unavailable(String),
}

/// Checks tokens.
pub struct TokenChecker {
    settings: OauthSettings,
    https: Https,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    set: Option<JwkSet>,
    read: Option<Instant>,
    tried: Option<Instant>,
}

impl TokenChecker {
    /// With these settings; `https` asks issuers.
    pub fn new(settings: OauthSettings, https: Https) -> TokenChecker {
        TokenChecker { settings, https, keys: Mutex::default() }
    }

    /// Checks one.
    ///
    /// # Errors
    /// When it is wrong, or cannot be checked.
    pub async fn check(&self, token: &str, now: UnixTime) -> Result<TokenOwner, TokenError> {
        let claims = match &self.settings.source {
            TokenSource::File(_) | TokenSource::Url(_) => self.signed(token).await?,
            TokenSource::Introspection { url, client_id, secret_file } => {
                self.introspected(token, url, client_id, secret_file).await?
            }
        };
        self.judge(&claims, now)
    }

    /// The claims of a token whose signature is good.
    async fn signed(&self, token: &str) -> Result<Value, TokenError> {
        let wrong = |error: jsonwebtoken::errors::Error| TokenError::Wrong(format!("the token is wrong: {error}"));
        let header = decode_header(token).map_err(wrong)?;
        if !self.settings.algorithms.contains(&header.alg) {
            return Err(TokenError::Wrong(format!("tokens signed with {:?} are not taken", header.alg)));
        }
        let key = self.key(header.kid.as_deref(), header.alg).await?;
        let mut validation = Validation::new(header.alg);
        // Everything that is claimed is judged below, for tokens of both kinds alike.
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_aud) = (false, false);
        decode::<Value>(token, &key, &validation).map(|data| data.claims).map_err(wrong)
    }

    /// The key that a token names.
    async fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, TokenError> {
        let mut keys = self.keys.lock().await;
        let now = Instant::now();
        let passed = |since: Option<Instant>, time| since.is_none_or(|since| now.duration_since(since) >= time);
        let absent = keys.set.as_ref().is_none_or(|set| find(set, id, algorithm).is_none());
        if (absent || passed(keys.read, KEYS_FRESH)) && passed(keys.tried, KEYS_PAUSE) {
            keys.tried = Some(now);
            match self.read_keys().await {
                Ok(set) => (keys.set, keys.read) = (Some(set), Some(now)),
                Err(error) if keys.set.is_none() => return Err(TokenError::Unavailable(error)),
                // Those that are there go on.
                Err(_) => {}
            }
        }
        let Some(set) = &keys.set else {
            return Err(TokenError::Unavailable("the issuer's keys could not be read".into()));
        };
        let key =
            find(set, id, algorithm).ok_or_else(|| TokenError::Wrong("no key of the issuer fits the token".into()))?;
        DecodingKey::from_jwk(key)
            .map_err(|error| TokenError::Wrong(format!("the issuer's key cannot be used: {error}")))
    }

    async fn read_keys(&self) -> Result<JwkSet, String> {
        let text = match &self.settings.source {
            TokenSource::File(file) => {
                let path = file.clone();
                let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
                let read = read.map_err(|error| error.to_string())?;
                read.map_err(|error| format!("{}: {error}", file.display()))?
            }
            TokenSource::Url(url) => self.https.get(url, ANSWER_OCTETS_MAX).await.map_err(|error| error.to_string())?,
            TokenSource::Introspection { .. } => return Err("no keys are used".into()),
        };
        // A set may hold keys of kinds that are not known here: those are passed over.
        let whole: Value = serde_json::from_slice(&text).map_err(|error| format!("no set of keys: {error}"))?;
        let some = whole.get("keys").and_then(Value::as_array).ok_or("no set of keys: it has no `keys`")?;
        let keys = some.iter().take(KEYS_MAX).filter_map(|key| serde_json::from_value(key.clone()).ok()).collect();
        Ok(JwkSet { keys })
    }

    /// The claims of a token that the issuer says is active.
    async fn introspected(
        &self,
        token: &str,
        url: &str,
        client_id: &str,
        secret_file: &std::path::Path,
    ) -> Result<Value, TokenError> {
        let unavailable = |text: String| TokenError::Unavailable(text);
        let secret = secret_file::read(secret_file).map_err(unavailable)?;
        // RFC 6749 2.3.1: both are encoded before they are joined.
        let login = Zeroizing::new(format!("{}:{}", form_encoded(client_id), form_encoded(&secret)));
        let authorization = Zeroizing::new(format!("Basic {}", STANDARD.encode(&*login)));
        let body = format!("token={}&token_type_hint=access_token", form_encoded(token));
        let answer = self.https.post_form(url, &authorization, body, ANSWER_OCTETS_MAX).await;
        let answer = answer.map_err(|error: HttpsError| unavailable(error.to_string()))?;
        let claims: Value = serde_json::from_slice(&answer).map_err(|error| unavailable(format!("{url}: {error}")))?;
        if claims.get("active") != Some(&Value::Bool(true)) {
            return Err(TokenError::Wrong("the issuer says that the token is not active".into()));
        }
        Ok(claims)
    }

    /// Whether the claims are those of a token for us, now.
    fn judge(&self, claims: &Value, now: UnixTime) -> Result<TokenOwner, TokenError> {
        let settings = &self.settings;
        let wrong = |text: &str| Err(TokenError::Wrong(text.into()));
        let asked = matches!(settings.source, TokenSource::Introspection { .. });
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        // RFC 7662 2.2 lets an issuer leave out who it is: it is the one that was asked.
        if !(text("iss").is_some_and(|issuer| settings.issuers.iter().any(|one| one == issuer))
            || asked && claims.get("iss").is_none())
        {
            return wrong("the token is of another issuer");
        }
        if !words(claims.get("aud")).iter().any(|one| settings.audiences.iter().any(|own| own == one)) {
            return wrong("the token is for another audience");
        }
        let leeway = settings.leeway.as_millis() as u64;
        let time = |name: &str| claims.get(name).and_then(Value::as_f64).map(|seconds| (seconds * 1000.0) as u64);
        let Some(end) = time("exp").map(|end| end.saturating_add(leeway)) else {
            return wrong("the token has no end");
        };
        if end <= now.as_millis() {
            return wrong("the token has expired");
        }
        if time("nbf").is_some_and(|begin| begin > now.as_millis().saturating_add(leeway)) {
            return wrong("the token is not valid yet");
        }
        if let Some(scope) = &settings.scope {
            // `scope` has words (RFC 9068 2.2.3); some issuers call it `scp` and make it a list.
            let has = |name: &str| words(claims.get(name)).iter().any(|words| words.split(' ').any(|one| one == scope));
            if !has("scope") && !has("scp") {
                return wrong("the token lacks the scope");
            }
        }
        match text(&settings.claim).filter(|login| (1..=LOGIN_OCTETS_MAX).contains(&login.len())) {
            Some(login) => Ok(TokenOwner { login: login.into(), until: UnixTime::from_millis(end) }),
            None => wrong("the token names no login"),
        }
    }
}

/// A text, or a list of texts.
fn words(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The key with this id; without one, the only key that fits.
fn find<'a>(set: &'a JwkSet, id: Option<&str>, algorithm: Algorithm) -> Option<&'a Jwk> {
    let fits = |key: &&Jwk| {
        let kind = match &key.algorithm {
            AlgorithmParameters::RSA(_) => "RSP",
            AlgorithmParameters::EllipticCurve(_) => "ES",
            AlgorithmParameters::OctetKeyPair(_) => "Ed",
            // A secret that is shared proves nothing.
            _ => return false,
        };
        let name = format!("{algorithm:?}");
        let same_kind = if kind == "RSP" { name.starts_with(['R', 'P']) } else { name.starts_with(kind) };
        let own = key.common.key_algorithm.map(|own| own.to_string());
        same_kind && own.is_none_or(|own| own == name)
    };
    match id {
        Some(id) => set.keys.iter().filter(fits).find(|key| key.common.key_id.as_deref() == Some(id)),
        None => {
            let mut fitting = set.keys.iter().filter(fits);
            fitting.next().filter(|_| fitting.next().is_none())
        }
    }
}

/// As in forms (RFC 6749 appendix B).
fn form_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for octet in text.bytes() {
        match octet {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(octet)),
            _ => out.push_str(&format!("%{octet:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tls;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    const NOW: UnixTime = UnixTime::from_millis(1_000_000_000);

    fn settings(file: PathBuf) -> OauthSettings {
        OauthSettings {
            issuers: vec!["https://id.test".into()],
            audiences: vec!["ringpost".into()],
            source: TokenSource::File(file),
            algorithms: vec![Algorithm::ES256],
            leeway: Duration::from_secs(60),
            scope: Some("smtp".into()),
            claim: "sub".into(),
        }
    }

    fn checker(settings: OauthSettings) -> TokenChecker {
        TokenChecker::new(settings, Https::new(&tls::client_opportunistic().unwrap()))
    }

    fn claims(name: &str, value: Value) -> Value {
        let mut claims = json!({
            "iss": "https://id.test", "aud": ["mail", "ringpost"], "sub": "app", "exp": 1_000_600, "scope": "openid smtp",
        });
        claims[name] = value;
        claims
    }

    #[test]
    fn each_claim_is_judged() {
        let checker = checker(settings("none".into()));
        let judge = |name: &str, value: Value| checker.judge(&claims(name, value), NOW);
        let good = TokenOwner { login: "app".into(), until: UnixTime::from_millis(1_000_660_000) };
        for (name, value) in [
            ("none", json!(1)),
            ("aud", json!("ringpost")),
            ("nbf", json!(1_000_060)),
            ("scope", json!(["smtp"])),
            ("exp", json!(1_000_600.0)),
        ] {
            assert_eq!(judge(name, value), Ok(good.clone()), "{name}");
        }
        for (name, value) in [
            ("iss", json!("https://evil.test")),
            ("iss", json!(["https://id.test"])),
            ("iss", json!(null)),
            ("aud", json!("web")),
            ("aud", json!(null)),
            ("exp", json!(null)),
            ("exp", json!("1000600")),
            ("exp", json!(999_940)),
            ("nbf", json!(1_000_061)),
            ("scope", json!("openid smtps")),
            ("scope", json!(null)),
            ("sub", json!(null)),
            ("sub", json!("")),
            ("sub", json!("x".repeat(256))),
        ] {
            assert!(matches!(judge(name, value.clone()), Err(TokenError::Wrong(_))), "{name} {value}");
        }
    }

    #[tokio::test]
    async fn signatures_are_of_keys_and_algorithms_that_are_allowed() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let private = EncodingKey::from_ec_der(&pair.serialize_der());
        let key = |id: &str| {
            let mut key = Jwk::from_encoding_key(&private, Algorithm::ES256).unwrap();
            key.common.key_id = Some(id.into());
            serde_json::to_value(key).unwrap()
        };
        let file = std::env::temp_dir().join(format!("jwks-{}.json", std::process::id()));
        let shared = json!({ "kty": "oct", "kid": "shared", "k": "c2VjcmV0" });
        let unknown = json!({ "kty": "new", "kid": "unknown" });
        std::fs::write(&file, json!({ "keys": [shared, unknown, key("one")] }).to_string()).unwrap();
        let sign = |id: Option<&str>| {
            let header = Header { kid: id.map(Into::into), ..Header::new(Algorithm::ES256) };
            encode(&header, &claims("none", json!(1)), &private).unwrap()
        };
        let one = checker(settings(file.clone()));
        for id in [Some("one"), None] {
            assert_eq!(one.check(&sign(id), NOW).await.unwrap().login, "app".into());
        }
        let mut tampered = sign(Some("one"));
        tampered.replace_range(tampered.len() - 4.., "AAAA");
        let secret = EncodingKey::from_secret(b"secret");
        let hs = Header { kid: Some("shared".into()), ..Header::new(Algorithm::HS256) };
        let hs = encode(&hs, &claims("none", json!(1)), &secret).unwrap();
        let middle = hs.split('.').nth(1).unwrap();
        for token in [
            tampered,
            sign(Some("two")),
            hs.clone(),
            format!("eyJhbGciOiJub25lIn0.{middle}."),
            String::new(),
            "a.b.c".into(),
            "....".into(),
        ] {
            assert!(matches!(one.check(&token, NOW).await, Err(TokenError::Wrong(_))), "{token}");
        }
        let only_rsa = checker(OauthSettings { algorithms: vec![Algorithm::RS256], ..settings(file.clone()) });
        assert!(matches!(only_rsa.check(&sign(None), NOW).await, Err(TokenError::Wrong(_))));
        // Keys that cannot be read any more go on; those that never could be are the issuer's trouble, not the client's.
        std::fs::write(&file, "no JSON").unwrap();
        one.keys.lock().await.tried = None;
        assert!(matches!(one.check(&sign(Some("two")), NOW).await, Err(TokenError::Wrong(_))));
        assert!(one.check(&sign(Some("one")), NOW).await.is_ok());
        let fresh = checker(settings(file.clone()));
        assert!(matches!(fresh.check(&sign(None), NOW).await, Err(TokenError::Unavailable(_))));
        // A new key is found when a token names it.
        std::fs::write(&file, json!({ "keys": [key("two")] }).to_string()).unwrap();
        assert!(one.check(&sign(Some("two")), NOW).await.is_err(), "not read again so soon");
        one.keys.lock().await.tried = None;
        assert!(one.check(&sign(Some("two")), NOW).await.is_ok());
        std::fs::remove_file(file).unwrap();
    }
}
