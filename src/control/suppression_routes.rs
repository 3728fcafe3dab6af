//! The part of the admin interface that is about suppressed addresses (http.rs has the table of all paths).

use super::http::{Failure, Shared};
use super::suppression_requests::{SuppressionReply, SuppressionRequest};
use super::suppressions::SuppressionError;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use std::sync::Arc;

/// Its path.
pub fn suppression_router(shared: Arc<Shared>) -> Router {
    Router::new().route("/v1/suppression", post(suppression)).with_state(shared)
}

async fn suppression(
    State(shared): State<Arc<Shared>>,
    request: Result<Json<SuppressionRequest>, JsonRejection>,
) -> Result<Json<SuppressionReply>, Failure> {
    let Json(request) = request?;
    let done = tokio::task::spawn_blocking(move || {
        shared.suppressions.handle(request, &shared.identities.directory(), crate::io::clock::now().unix)
    });
    match done.await {
        Ok(Ok(reply)) => Ok(Json(reply)),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), "look at the log".into())),
    }
}

impl From<SuppressionError> for Failure {
    fn from(error: SuppressionError) -> Failure {
        let (status, hint) = match error {
            SuppressionError::Absent(_) => {
                (StatusCode::NOT_FOUND, "`suppression list` shows what there is; --tenant names another list")
            }
            SuppressionError::Wrong(_) => (StatusCode::BAD_REQUEST, "nothing was changed"),
            SuppressionError::Disk(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "nothing was changed; look at the disk and at the log")
            }
        };
        Failure(status, error.to_string(), hint.into())
    }
}
