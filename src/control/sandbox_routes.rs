//! The part of the admin interface that shows what the sandbox took (http.rs has the table of all paths).

use super::http::{Failure, Shared};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use std::sync::Arc;

/// Its paths.
pub fn sandbox_router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/sandbox", get(sandbox_list))
        .route("/v1/sandbox/{name}", get(sandbox_show))
        .with_state(shared)
}

fn no_sandbox() -> Failure {
    Failure(
        StatusCode::NOT_FOUND,
        "the sandbox does not run".into(),
        "it runs without a configuration, or with [sandbox] enabled = true".into(),
    )
}

async fn sandbox_list(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    let sandbox = shared.sandbox.as_ref().ok_or_else(no_sandbox)?;
    Ok(Json(sandbox.list()).into_response())
}

async fn sandbox_show(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Response, Failure> {
    let sandbox = shared.sandbox.as_ref().ok_or_else(no_sandbox)?;
    match sandbox.show(&name) {
        Some(message) => Ok(Json(message).into_response()),
        None => Err(Failure(
            StatusCode::NOT_FOUND,
            format!("the sandbox has no message `{name}`"),
            "give a number of `ringpost sandbox list`, or the id it was queued under; old messages go".into(),
        )),
    }
}
