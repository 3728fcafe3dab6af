//! How the commands ask a running relay: HTTP over its admin socket.

use super::args::Target;
use super::{Failure, exit};
use crate::config::Config;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// How long an answer may take: acts on a long queue need a while.
const ANSWER_TIME: Duration = Duration::from_secs(300);
/// Octets of an answer, at most.
const ANSWER_OCTETS_MAX: usize = 256 << 20;

/// A running relay, by its admin socket.
#[derive(Debug)]
pub struct Relay {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Relay {
    /// The one that is meant.
    pub fn find(target: &Target) -> Result<Relay, Failure> {
        let socket = socket_path(target)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(exit::IO, format!("the runtime cannot be started: {error}")))?;
        Ok(Relay { socket, runtime })
    }

    /// GET.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, Bytes::new())
    }

    /// POST of a JSON body.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Failure::new(exit::IO, format!("the request cannot be written: {error}")))?;
        self.ask(Method::POST, path, body.into())
    }

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let exchange = exchange(&self.socket, method, path, body);
        let answered = self.runtime.block_on(async { tokio::time::timeout(ANSWER_TIME, exchange).await });
        let (status, body) = answered.map_err(|_| {
            let text = format!("the relay did not answer within {} s", ANSWER_TIME.as_secs());
            Failure::new(exit::TEMPORARY, text)
        })??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                let text = format!("the relay's answer is not understood: {error}; is it of another version?");
                Failure::new(exit::IO, text)
            });
        }
        Err(refusal(status, &body))
    }
}

/// The error that an answer tells.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let said = |key: &str| json.get(key).and_then(|text| text.as_str()).unwrap_or_default().to_owned();
    let (error, hint) = (said("error"), said("hint"));
    let code = match status {
        StatusCode::NOT_FOUND => exit::NOTHING,
        StatusCode::BAD_REQUEST => exit::USAGE,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => exit::TEMPORARY,
        _ => exit::IO,
    };
    if error.is_empty() {
        return Failure::new(code, format!("the relay answers {status}"));
    }
    Failure::new(code, if hint.is_empty() { error } else { format!("{error}; {hint}") })
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable_relay(socket, &error))?;
    let broken = |error: &dyn std::fmt::Display| Failure::new(exit::IO, format!("the connection broke: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "ringpost")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| broken(&error))?;
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_OCTETS_MAX).collect().await;
    Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
}

fn unreachable_relay(socket: &Path, error: &std::io::Error) -> Failure {
    let path = socket.display();
    let text = match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => format!(
            "no relay answers at {path}; start one with `ringpost serve`, or name its directory with --spool or its \
             socket with --admin-socket"
        ),
        std::io::ErrorKind::PermissionDenied => {
            format!("{path}: permission denied; only the user that runs the relay may ask it")
        }
        _ => format!("{path}: {error}"),
    };
    Failure::new(exit::UNAVAILABLE, text)
}

fn socket_path(target: &Target) -> Result<PathBuf, Failure> {
    if let Some(socket) = &target.admin_socket {
        return Ok(socket.clone());
    }
    if let Some(spool) = &target.spool {
        return Ok(spool.join("control.sock"));
    }
    match &target.config {
        Some(file) => Ok(Config::load(file)?.admin_socket()),
        None => Ok(Config::embedded()?.admin_socket()),
    }
}

/// A value in a query, percent-encoded (RFC 3986 2.1).
pub fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(byte as char),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}
