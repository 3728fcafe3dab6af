//! Answers to what an ACME server asks to see before it believes that a name is ours: http-01 (RFC 8555 section 8.3) on one port
//! and tls-alpn-01 (RFC 8737) on another. Bounded: connections at a time, their time, and the size of a request.
//!
//! The ports are open for as long as the program runs and know nothing but the challenges that are under way.

use crate::io::acme_alpn::AlpnResponder;
use crate::io::tls::TlsSetupError;
use crate::limits::CHALLENGE_CONNECTIONS_MAX;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// How long one connection may take.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Octets of a request's head.
const HEAD_OCTETS_MAX: usize = 8192;
/// How long to wait after a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// Where http-01 looks.
const PATH: &str = "/.well-known/acme-challenge/";

/// The challenges that are under way.
#[derive(Debug)]
pub struct Challenges {
    /// Key authorizations by token.
    tokens: Mutex<HashMap<Box<str>, Box<str>>>,
    alpn: AlpnResponder,
}

impl Challenges {
    /// None yet.
    ///
    /// # Errors
    /// When the crypto provider lacks a protocol version.
    pub fn new() -> Result<Arc<Challenges>, TlsSetupError> {
        Ok(Arc::new(Challenges { tokens: Mutex::default(), alpn: AlpnResponder::new()? }))
    }

    /// Answers http-01 for this token.
    pub fn offer_http(&self, token: &str, authorization: &str) {
        self.tokens().insert(token.into(), authorization.into());
    }

    /// Answers tls-alpn-01 for this domain.
    ///
    /// # Errors
    /// In words, when the certificate for it cannot be made.
    pub fn offer_alpn(&self, domain: &str, digest: &[u8]) -> Result<(), String> {
        self.alpn.offer(domain, digest)
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.tokens().clear();
        self.alpn.clear();
    }

    fn tokens(&self) -> MutexGuard<'_, HashMap<Box<str>, Box<str>>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let token = request.uri().path().strip_prefix(PATH).unwrap_or("");
        let found = self.tokens().get(token).filter(|_| request.method() == Method::GET).cloned();
        let (status, text) = match found {
            Some(authorization) => (StatusCode::OK, authorization.into_string()),
            None => (StatusCode::NOT_FOUND, "there is nothing here\n".to_owned()),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        response
    }

    async fn answer_http(self: Arc<Challenges>, stream: TcpStream) {
        let service = service_fn(move |request: Request<Incoming>| {
            let response = self.respond(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(HEAD_OCTETS_MAX)
            .serve_connection(TokioIo::new(stream), service);
        // Whoever goes away or is too slow gets no answer.
        let _ = tokio::time::timeout(TIME_MAX, connection).await;
    }

    async fn answer_alpn(self: Arc<Challenges>, stream: TcpStream) {
        // As above.
        let _ = tokio::time::timeout(TIME_MAX, self.alpn.answer(stream)).await;
    }

    /// Answers http-01 here for as long as the program runs.
    pub async fn serve_http(self: Arc<Challenges>, listener: TcpListener) {
        serve(listener, |stream| Arc::clone(&self).answer_http(stream)).await;
    }

    /// Answers tls-alpn-01 here for as long as the program runs.
    pub async fn serve_alpn(self: Arc<Challenges>, listener: TcpListener) {
        serve(listener, |stream| Arc::clone(&self).answer_alpn(stream)).await;
    }
}

/// The oldest connection makes room for a new one, so that clients that only hold theirs are in nobody's way.
async fn serve<F: Future<Output = ()> + Send + 'static>(listener: TcpListener, answer: impl Fn(TcpStream) -> F) {
    let mut under_way: VecDeque<AbortHandle> = VecDeque::with_capacity(CHALLENGE_CONNECTIONS_MAX);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                under_way.retain(|one| !one.is_finished());
                if under_way.len() >= CHALLENGE_CONNECTIONS_MAX
                    && let Some(oldest) = under_way.pop_front()
                {
                    oldest.abort();
                }
                under_way.push_back(tokio::spawn(answer(stream)).abort_handle());
            }
            // Most likely no descriptor is left; the client waits meanwhile.
            Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
        }
    }
}
