//! Metrics and health by HTTP: on the loopback port for monitoring, and on the admin socket, too. They change nothing.

use super::http::{Failure, Phase, Shared};
use super::metrics_text;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Metrics and health, for the loopback port.
pub fn monitoring_router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .fallback(async || {
            Failure(StatusCode::NOT_FOUND, "there is nothing here".into(), "see docs/CONFIGURATION.md".into())
        })
        .with_state(shared)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    let total = shared.total().await?;
    let mut text = metrics_text::render(&total, &shared.figures());
    metrics_text::certificates(&mut text, &shared.certificates.figures(crate::io::clock::now().unix));
    if let Some(acme) = &shared.acme {
        let (orders, failures) = (acme.orders.load(Ordering::Relaxed), acme.failures.load(Ordering::Relaxed));
        metrics_text::acme(&mut text, orders, failures);
    }
    Ok(([(header::CONTENT_TYPE, metrics_text::CONTENT_TYPE)], text).into_response())
}

async fn ready(State(shared): State<Arc<Shared>>) -> Result<&'static str, Failure> {
    match shared.phase() {
        Phase::Running => Ok("ready\n"),
        Phase::Starting => {
            Err(Failure(StatusCode::SERVICE_UNAVAILABLE, "not all shards listen yet".into(), "wait a moment".into()))
        }
        Phase::Stopping => Err(Failure(
            StatusCode::SERVICE_UNAVAILABLE,
            "the program is stopping".into(),
            "mail is not taken any more".into(),
        )),
    }
}
