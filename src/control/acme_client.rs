//! One order of a certificate by ACME (RFC 8555): the account, the order, its challenges, the certificate. All of it goes over
//! HTTPS within bounds of time and size, on the control thread's runtime.
//!
//! Not here: when to order, and what becomes of the certificate (acme.rs).

use super::acme_challenges::Challenges;
use crate::io::tls::ClientTls;
use crate::limits::ACME_ANSWER_OCTETS_MAX;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, StatusCode, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, Error,
    ExternalAccountKey, HttpClient, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long one request may take.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the server may take to look at the challenges, and again to make the certificate.
const POLL_TIME_MAX: Duration = Duration::from_secs(180);

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct OrderError {
    /// In words, the server's own included.
    pub text: String,
    /// The account is not known there any more.
    pub account_is_gone: bool,
    /// The server has had enough of us for now.
    pub limited: bool,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl OrderError {
    /// In words.
    pub fn new(text: impl Into<String>) -> OrderError {
        OrderError { text: text.into(), account_is_gone: false, limited: false, retry_after: None }
    }
}

impl From<Error> for OrderError {
    fn from(error: Error) -> OrderError {
        let kind = match &error {
            Error::Api(problem) => problem.r#type.as_deref().unwrap_or("").rsplit(':').next().unwrap_or("").to_owned(),
            _ => String::new(),
        };
        OrderError {
            account_is_gone: kind == "accountDoesNotExist",
            limited: kind == "rateLimited",
            ..OrderError::new(with_causes(&error))
        }
    }
}

/// The causes behind an error say what went wrong; its own text often does not.
fn with_causes(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// A certificate and its key, as PEM.
pub struct Issued {
    /// With its chain.
    pub certificate: String,
    /// In PKCS#8.
    pub key: Zeroizing<String>,
}

/// HTTPS to the server, and nothing else.
#[derive(Clone)]
struct Http {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    /// What the last refusal said about asking again.
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl Http {
    fn new(tls: &ClientTls) -> Http {
        let connector =
            HttpsConnectorBuilder::new().with_tls_config((**tls).clone()).https_only().enable_http1().build();
        Http { client: Client::builder(TokioExecutor::new()).build(connector), retry_after: Arc::default() }
    }

    async fn exchange(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let url = request.uri().to_string();
        let other = |text: String| Error::Other(format!("{url}: {text}").into());
        let response = self.client.request(request).await.map_err(|error| other(with_causes(&error)))?;
        let (parts, body) = response.into_parts();
        if matches!(parts.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let seconds =
                parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner) = seconds.map(Duration::from_secs);
        }
        let body = Limited::new(body, ACME_ANSWER_OCTETS_MAX).collect().await;
        let body = body.map_err(|error| other(error.to_string()))?.to_bytes();
        // What is no document of the protocol is most likely told by something in between.
        if !parts.status.is_success() && serde_json::from_slice::<serde_json::Value>(&body).is_err() {
            return Err(other(format!("answered {}", parts.status)));
        }
        Ok(BytesResponse::from(Response::from_parts(parts, Full::new(body))))
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let url = request.uri().to_string();
        let exchange = self.clone().exchange(request);
        Box::pin(async move {
            match tokio::time::timeout(REQUEST_TIME_MAX, exchange).await {
                Ok(answer) => answer,
                Err(_) => {
                    let text = format!("{url}: no answer in {} s", REQUEST_TIME_MAX.as_secs());
                    Err(Error::Other(text.into()))
                }
            }
        })
    }
}

/// What is ordered, and where.
pub struct AcmeClient<'a> {
    /// The server's directory.
    pub directory: &'a str,
    /// Its certificate is proven by these.
    pub tls: &'a ClientTls,
    /// `mailto:` addresses.
    pub contact: &'a [String],
    /// The names of the certificate.
    pub domains: &'a [Box<str>],
    /// Kinds of challenges that can be answered, the preferred first.
    pub kinds: &'a [ChallengeType],
    /// Where they are answered.
    pub challenges: &'a Challenges,
}

impl AcmeClient<'_> {
    /// Orders a certificate. With no `account` one is made first, as that of `external` if there is such a key, and given to
    /// `keep` as JSON.
    ///
    /// # Errors
    /// In words; nothing was changed but what `keep` has kept.
    pub async fn order(
        &self,
        account: Option<&str>,
        external: Option<&ExternalAccountKey>,
        keep: impl AsyncFnOnce(Zeroizing<String>) -> Result<(), OrderError>,
    ) -> Result<Issued, OrderError> {
        let http = Http::new(self.tls);
        let issued = self.try_order(&http, account, external, keep).await;
        self.challenges.clear();
        issued.map_err(|error| {
            let retry_after = http.retry_after.lock().unwrap_or_else(PoisonError::into_inner).take();
            OrderError { limited: error.limited || retry_after.is_some(), retry_after, ..error }
        })
    }

    async fn try_order(
        &self,
        http: &Http,
        account: Option<&str>,
        external: Option<&ExternalAccountKey>,
        keep: impl AsyncFnOnce(Zeroizing<String>) -> Result<(), OrderError>,
    ) -> Result<Issued, OrderError> {
        let builder = Account::builder_with_http(Box::new(http.clone()));
        let account = match account {
            Some(text) => {
                let credentials: AccountCredentials = serde_json::from_str(text)
                    .map_err(|error| OrderError::new(format!("the account that was kept is damaged: {error}")))?;
                builder.from_credentials(credentials).await?
            }
            None => {
                let contact: Vec<&str> = self.contact.iter().map(String::as_str).collect();
                let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
                let (account, credentials) = builder.create(&new, self.directory.to_owned(), external).await?;
                let text = serde_json::to_string(&credentials).map(Zeroizing::new);
                keep(text.map_err(|error| OrderError::new(error.to_string()))?).await?;
                account
            }
        };
        let names: Vec<Identifier> = self.domains.iter().map(|name| Identifier::Dns(name.to_string())).collect();
        let mut order = account.new_order(&NewOrder::new(&names)).await?;
        self.answer_challenges(&mut order).await?;
        let polls = RetryPolicy::new().timeout(POLL_TIME_MAX);
        match order.poll_ready(&polls).await {
            Ok(OrderStatus::Ready) => {}
            Ok(_) | Err(Error::Api(_)) => return Err(refusal(&mut order).await),
            Err(error) => return Err(error.into()),
        }
        let key = Zeroizing::new(order.finalize().await?);
        let certificate = order.poll_certificate(&polls).await?;
        Ok(Issued { certificate, key })
    }

    async fn answer_challenges(&self, order: &mut Order) -> Result<(), OrderError> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let domain = authorization.identifier().to_string();
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                status => return Err(OrderError::new(format!("the server says that {domain} is {status:?}"))),
            }
            let offered = |kind: &&ChallengeType| authorization.challenges.iter().any(|one| one.r#type == **kind);
            let Some(kind) = self.kinds.iter().find(offered).cloned() else {
                let text =
                    format!("the server offers no challenge for {domain} that is answered here ({:?})", self.kinds);
                return Err(OrderError::new(text));
            };
            let Some(mut challenge) = authorization.challenge(kind.clone()) else { continue };
            let answer = challenge.key_authorization();
            match kind {
                ChallengeType::TlsAlpn01 => {
                    let digest = answer.digest();
                    self.challenges.offer_alpn(&domain, digest.as_ref()).map_err(OrderError::new)?;
                }
                _ => self.challenges.offer_http(&challenge.token, answer.as_str()),
            }
            challenge.set_ready().await?;
        }
        Ok(())
    }
}

/// What the server found wrong with the names.
async fn refusal(order: &mut Order) -> OrderError {
    let mut found = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        let domain = authorization.identifier().to_string();
        for challenge in &authorization.challenges {
            if let Some(problem) = &challenge.error {
                let detail = problem.detail.as_deref().unwrap_or("no reason is given");
                found.push(format!("{domain}: {detail}"));
            }
        }
    }
    if found.is_empty() {
        found.extend(order.state().error.as_ref().map(ToString::to_string));
    }
    let what = if found.is_empty() { "it gives no reason".to_owned() } else { found.join("; ") };
    OrderError::new(format!("the server does not believe that the names are ours: {what}"))
}
