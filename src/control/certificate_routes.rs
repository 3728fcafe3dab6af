//! The part of the admin interface that is about certificates (http.rs has the table of all paths).

use super::certificates::{CertificateView, Reloaded};
use super::http::{Failure, Shared};
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use std::sync::Arc;

/// Its paths.
pub fn certificate_router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/certificates", get(certificates))
        .route("/v1/certificates/reload", post(reload_certificates))
        .route("/v1/certificates/renew", post(renew_certificate))
        .with_state(shared)
}

async fn certificates(State(shared): State<Arc<Shared>>) -> Json<Vec<CertificateView>> {
    Json(shared.certificates.list(crate::io::clock::now().unix))
}

async fn reload_certificates(State(shared): State<Arc<Shared>>) -> Json<Reloaded> {
    Json(shared.certificates.reload_now().await)
}

async fn renew_certificate(State(shared): State<Arc<Shared>>) -> Result<Json<()>, Failure> {
    match &shared.acme {
        Some(acme) => {
            acme.renew();
            Ok(Json(()))
        }
        None => Err(Failure::bad("no certificate is ordered by ACME", "add [tls.acme] to the configuration")),
    }
}
