//! The admin interface: HTTP on a Unix socket in the spool directory, which only its owner can open. On the loopback
//! port for monitoring there are metrics and health alone, since a port has no owner.
//!
//! | method and path | answer |
//! |---|---|
//! | GET /v1/queue | waiting messages: `domain`, `sender`, `recipient`, `tenant`, `state`, `limit`, `after` |
//! | GET /v1/queue/{id} | one message with its recipients |
//! | POST /v1/queue/{retry,hold,release,delete} | `{"changed": n}`; the body is a [`Selection`] |
//! | GET /v1/sites, /v1/status | sites with their limits; the state of the program |
//! | POST /v1/identities | an [`IdentityReply`]; the body is an [`IdentityRequest`] |
//! | POST /v1/domains | a [`DomainReply`]; the body is a [`DomainRequest`] |
//! | GET /v1/certificates | the listeners' certificates: a list of [`CertificateView`](super::certificates::CertificateView) |
//! | POST /v1/certificates/{reload,renew} | a [`Reloaded`](super::certificates::Reloaded); null: an order begins |
//! | GET /v1/sandbox, /v1/sandbox/{number or id} | what the sandbox took |
//! | GET /metrics, /healthz, /readyz | for monitoring |
//!
//! Errors are `{"error": …, "hint": …}` with 400, 404, 503 (try again) or 504 (a shard did not answer).

use super::acme::Acme;
use super::certificate_routes::certificate_router;
use super::certificates::Certificates;
use super::domain_check::DomainCheck;
use super::domain_requests::{DomainReply, DomainRequest};
use super::identities::{Identities, IdentityError};
use super::identity_requests::{IdentityReply, IdentityRequest};
use super::metrics_text::ProcessFigures;
use super::monitoring::monitoring_router;
use super::requests::{AskError, Requests};
use super::sandbox::Sandbox;
use super::sandbox_routes::sandbox_router;
use super::suppression_routes::suppression_router;
use super::suppressions::Suppressions;
use crate::id::MessageId;
use crate::limits::ADMIN_PAGE_MAX;
use crate::metrics::ShardMetrics;
use crate::shard::message::{AdminReply, AdminRequest, Filter, MessageSummary, SiteSummary};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use foldhash::HashMap;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Messages in a page when the question does not say.
pub const PAGE_DEFAULT: usize = 100;

/// Rounds of questions for one page; what is found after so many is given, with where to go on.
const ROUNDS_MAX: usize = 100;

/// Where the program is in its life.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Not all shards listen yet.
    Starting,
    /// Mail is taken.
    Running,
    /// No mail is taken any more.
    Stopping,
}

/// What the interface and the control thread's loop share.
#[derive(Debug)]
pub struct Shared {
    /// The way to the shards.
    pub requests: Requests,
    /// The sandbox, when it runs.
    pub sandbox: Option<Sandbox>,
    /// Tenants and credentials.
    pub identities: Arc<Identities>,
    /// Their domains.
    domains: DomainCheck,
    /// To whom nothing is sent any more.
    pub suppressions: Arc<Suppressions>,
    /// The listeners' certificates.
    pub certificates: Arc<Certificates>,
    /// What orders one, where that is wanted.
    pub acme: Option<Arc<Acme>>,
    phase: AtomicU8,
    /// Shards that have put all of the spool into the queue.
    pub recovered: AtomicU64,
    /// Seconds since 1970.
    started_unix_s: u64,
    /// DNS lookups: done, failed.
    pub dns: Mutex<(u64, u64)>,
}

impl Shared {
    /// At the start.
    pub fn new(
        requests: Requests,
        sandbox: Option<Sandbox>,
        identities: Arc<Identities>,
        domains: DomainCheck,
        suppressions: Arc<Suppressions>,
        certificates: Arc<Certificates>,
        acme: Option<Arc<Acme>>,
    ) -> Shared {
        Shared {
            requests,
            sandbox,
            identities,
            domains,
            suppressions,
            certificates,
            acme,
            phase: AtomicU8::new(Phase::Starting as u8),
            recovered: AtomicU64::new(0),
            started_unix_s: crate::io::clock::now().unix.as_millis() / 1000,
            dns: Mutex::default(),
        }
    }

    /// Where the program is.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Running,
            _ => Phase::Stopping,
        }
    }

    /// It is here now.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub(super) fn figures(&self) -> ProcessFigures {
        let (dns_lookups, dns_failures) = *self.dns.lock().unwrap_or_else(PoisonError::into_inner);
        ProcessFigures {
            shards: self.requests.shards().len() as u64,
            started_unix_s: self.started_unix_s,
            dns_lookups,
            dns_failures,
            sandbox_taken: self.sandbox.as_ref().map_or(0, Sandbox::taken),
            ..ProcessFigures::default()
        }
        .measure()
    }

    /// The figures of all shards together.
    pub(super) async fn total(&self) -> Result<ShardMetrics, AskError> {
        let replies = self.requests.ask(AdminRequest::Metrics).await?;
        let mut total = ShardMetrics::default();
        for reply in replies {
            if let AdminReply::Metrics(metrics) = reply {
                total.merge(&metrics);
            }
        }
        Ok(total)
    }
}

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Failure(pub(super) StatusCode, pub(super) String, pub(super) String);

impl Failure {
    pub(super) fn bad(error: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure(StatusCode::BAD_REQUEST, error.into(), hint.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1, "hint": self.2 }))).into_response()
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Failure {
        let (status, hint) = match error {
            AskError::TooMany | AskError::Full { .. } => (StatusCode::SERVICE_UNAVAILABLE, "try again in a moment"),
            AskError::Silent { .. } => {
                (StatusCode::GATEWAY_TIMEOUT, "what was asked may have been done in part; look before asking again")
            }
        };
        Failure(status, error.to_string(), hint.into())
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Failure {
        let (status, hint) = match error {
            IdentityError::Absent(..) => (StatusCode::NOT_FOUND, "the command `list` shows what there is"),
            IdentityError::Present(..) | IdentityError::Wrong(_) => (StatusCode::BAD_REQUEST, "nothing was changed"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "nothing was changed; look at the disk and at the log"),
        };
        Failure(status, error.to_string(), hint.into())
    }
}

impl From<QueryRejection> for Failure {
    fn from(error: QueryRejection) -> Failure {
        Failure::bad(error.body_text(), "known keys: domain, sender, recipient, tenant, state, limit, after")
    }
}

impl From<JsonRejection> for Failure {
    fn from(error: JsonRejection) -> Failure {
        Failure::bad(error.body_text(), "send a JSON object with Content-Type: application/json")
    }
}

/// Which messages an act is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// This one message, as in "queued as".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A recipient's domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The reverse path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// A recipient's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// One of [`STATES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// All messages; needed when nothing else is given.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// The states that can be asked for.
pub const STATES: [&str; 7] = ["waiting", "unrouted", "resolving", "scheduled", "ready", "in_flight", "held"];

impl Selection {
    /// In the shards' form.
    fn filter(self) -> Result<Filter, Failure> {
        let id = match self.id {
            Some(id) => {
                let id = id.parse::<MessageId>();
                Some(id.map_err(|error| Failure::bad(error.to_string(), "`ringpost queue list` shows ids"))?.0)
            }
            None => None,
        };
        if let Some(state) = &self.state
            && !STATES.contains(&state.as_str())
        {
            return Err(Failure::bad(format!("`{state}` is not a state"), format!("one of {}", STATES.join(", "))));
        }
        let Selection { domain, sender, recipient, tenant, state, all, .. } = self;
        Ok(Filter { id, domain, sender, recipient, tenant, state, all })
    }
}

/// A question for a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListQuery {
    /// A recipient's domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The reverse path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// A recipient's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// One of [`STATES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// At most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Those after this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A page of waiting messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePage {
    /// In the order of ids, which is that of arrival.
    pub messages: Vec<MessageSummary>,
    /// Where the next page begins: give it as `after`. None on the last page.
    pub next: Option<String>,
}

/// What an act came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// How many recipients were changed.
    pub changed: u64,
}

/// The state of the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// "starting", "running", "stopping".
    pub state: String,
    /// How many shards run.
    pub shards: u64,
    /// How many of them have read the whole spool.
    pub recovered: u64,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Messages that wait.
    pub messages: u64,
    /// Recipients that wait, by state.
    pub scheduled: u64,
    /// Recipients that wait for a connection.
    pub ready: u64,
    /// Recipients in a transaction.
    pub in_flight: u64,
    /// Recipients that are held.
    pub held: u64,
    /// Recipients being routed.
    pub routing: u64,
    /// Incoming sessions open.
    pub sessions_open: u64,
    /// Outgoing connections open.
    pub outgoing_open: u64,
    /// Messages received since the start.
    pub received: u64,
    /// Recipients delivered since the start.
    pub delivered: u64,
    /// Deferrals since the start.
    pub deferred: u64,
    /// Recipients that failed for good since the start.
    pub bounced: u64,
    /// Recipients whose time ran out since the start.
    pub expired: u64,
    /// Recipients to whom nothing was sent since the start.
    #[serde(default)]
    pub suppressed: u64,
    /// Resident memory in octets.
    pub resident_octets: u64,
}

/// Everything, for the Unix socket.
pub fn admin_router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/queue", get(list))
        .route("/v1/queue/{name}", get(show))
        .route("/v1/queue/retry", post(retry))
        .route("/v1/queue/hold", post(hold))
        .route("/v1/queue/release", post(release))
        .route("/v1/queue/delete", post(delete))
        .route("/v1/sites", get(sites))
        .route("/v1/status", get(status))
        .route("/v1/identities", post(identities))
        .route("/v1/domains", post(domains))
        .with_state(Arc::clone(&shared))
        .merge(certificate_router(Arc::clone(&shared)))
        .merge(suppression_router(Arc::clone(&shared)))
        .merge(sandbox_router(Arc::clone(&shared)))
        .merge(monitoring_router(shared))
}

async fn identities(
    State(shared): State<Arc<Shared>>,
    request: Result<Json<IdentityRequest>, JsonRejection>,
) -> Result<Json<IdentityReply>, Failure> {
    let Json(request) = request?;
    let changed = tokio::task::spawn_blocking(move || shared.identities.handle(request, crate::io::clock::now().unix));
    match changed.await {
        Ok(Ok(reply)) => Ok(Json(reply)),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), "nothing was changed".into())),
    }
}

async fn domains(
    State(shared): State<Arc<Shared>>,
    request: Result<Json<DomainRequest>, JsonRejection>,
) -> Result<Json<DomainReply>, Failure> {
    let Json(request) = request?;
    Ok(Json(shared.domains.handle(request).await?))
}

async fn list(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<QueuePage>, Failure> {
    let Query(ListQuery { domain, sender, recipient, tenant, state, limit, after }) = query?;
    let filter = Selection { domain, sender, recipient, tenant, state, ..Selection::default() }.filter()?;
    let limit = limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=ADMIN_PAGE_MAX).contains(&limit) {
        return Err(Failure::bad(format!("a page of {limit}"), format!("limit: 1 to {ADMIN_PAGE_MAX}")));
    }
    let after = match after {
        Some(after) => {
            let after = after.parse::<MessageId>();
            Some(after.map_err(|error| Failure::bad(error.to_string(), "after: the `next` of the page before"))?.0)
        }
        None => None,
    };
    Ok(Json(page(&shared, &filter, after, limit).await?))
}

/// Gathers a page. Shards look at a bounded number of messages for each question, so that it can take several rounds.
async fn page(shared: &Shared, filter: &Filter, mut after: Option<u64>, limit: usize) -> Result<QueuePage, Failure> {
    let mut messages = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let request = AdminRequest::List { filter: filter.clone(), after, limit: limit - messages.len() };
        let mut round = Vec::new();
        // Up to this id every shard has said all; beyond it some have not.
        let mut complete_to: Option<u64> = None;
        for reply in shared.requests.ask(request).await? {
            if let AdminReply::Messages { messages, next } = reply {
                round.extend(messages);
                complete_to = [complete_to, next].into_iter().flatten().min();
            }
        }
        if let Some(last) = complete_to {
            round.retain(|message| message.id <= MessageId(last).to_string());
        }
        // Ids have the same length and sort as text.
        round.sort_by(|a, b| a.id.cmp(&b.id));
        let room = limit - messages.len();
        let cut = round.len() > room;
        round.truncate(room);
        messages.append(&mut round);
        if cut || messages.len() == limit {
            let next = messages.last().map(|message| message.id.clone());
            return Ok(QueuePage { next: next.filter(|_| cut || complete_to.is_some()), messages });
        }
        match complete_to {
            Some(last) => after = Some(last),
            None => return Ok(QueuePage { messages, next: None }),
        }
    }
    Ok(QueuePage { messages, next: after.map(|after| MessageId(after).to_string()) })
}

async fn show(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Json<MessageSummary>, Failure> {
    let id: MessageId =
        name.parse().map_err(|error| Failure::bad(format!("{error}"), "`ringpost queue list` shows ids"))?;
    let replies = shared.requests.ask(AdminRequest::Show { id: id.0 }).await?;
    let found = replies.into_iter().find_map(|reply| match reply {
        AdminReply::Message(found) => found,
        _ => None,
    });
    match found {
        Some(message) => Ok(Json(*message)),
        None => Err(Failure(
            StatusCode::NOT_FOUND,
            format!("no message {id} waits here"),
            "it may be delivered or bounced: look for its id in the log".into(),
        )),
    }
}

type ActBody = Result<Json<Selection>, JsonRejection>;

async fn retry(State(shared): State<Arc<Shared>>, body: ActBody) -> Result<Json<Changed>, Failure> {
    act(&shared, body, |filter, after| AdminRequest::Retry { filter, after }).await
}

async fn hold(State(shared): State<Arc<Shared>>, body: ActBody) -> Result<Json<Changed>, Failure> {
    act(&shared, body, |filter, after| AdminRequest::Hold { filter, after }).await
}

async fn release(State(shared): State<Arc<Shared>>, body: ActBody) -> Result<Json<Changed>, Failure> {
    act(&shared, body, |filter, after| AdminRequest::Release { filter, after }).await
}

async fn delete(State(shared): State<Arc<Shared>>, body: ActBody) -> Result<Json<Changed>, Failure> {
    act(&shared, body, |filter, after| AdminRequest::Delete { filter, after }).await
}

async fn act(
    shared: &Shared,
    body: ActBody,
    request: fn(Filter, Option<u64>) -> AdminRequest,
) -> Result<Json<Changed>, Failure> {
    let Json(selection) = body?;
    let filter = selection.filter()?;
    if filter == Filter::default() {
        return Err(Failure::bad(
            "no message is named",
            "give an id or a filter; or \"all\": true for the whole queue",
        ));
    }
    let mut changed = 0;
    // Each shard acts on a bounded number of messages at a time and says where to go on.
    let mut open: Vec<(u8, Option<u64>)> =
        (0..shared.requests.shards().len()).map(|shard| (shard as u8, None)).collect();
    while !open.is_empty() {
        let questions = open.drain(..).map(|(shard, after)| (shard, request(filter.clone(), after))).collect();
        for (shard, reply) in shared.requests.ask_each(questions).await? {
            if let AdminReply::Changed { recipients, next } = reply {
                changed += recipients;
                open.extend(next.map(|next| (shard, Some(next))));
            }
        }
    }
    Ok(Json(Changed { changed }))
}

async fn sites(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<SiteSummary>>, Failure> {
    let replies = shared.requests.ask(AdminRequest::Sites).await?;
    // There may be a hundred thousand of them.
    let mut by_name: HashMap<String, SiteSummary> = HashMap::default();
    for reply in replies {
        let AdminReply::Sites(some) = reply else { continue };
        for site in some {
            match by_name.get_mut(&site.name) {
                Some(known) => {
                    known.ready += site.ready;
                    // Counted over all shards already.
                    known.connections = known.connections.max(site.connections);
                    if known.state == "up" {
                        known.state = site.state;
                    }
                }
                None => {
                    by_name.insert(site.name.clone(), site);
                }
            }
        }
    }
    let mut merged: Vec<SiteSummary> = by_name.into_values().collect();
    merged.sort_by(|a, b| b.ready.cmp(&a.ready).then_with(|| a.name.cmp(&b.name)));
    Ok(Json(merged))
}

async fn status(State(shared): State<Arc<Shared>>) -> Result<Json<Status>, Failure> {
    let total = shared.total().await?;
    let figures = shared.figures();
    let now = crate::io::clock::now().unix.as_millis() / 1000;
    let state = match shared.phase() {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
    };
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        state: state.into(),
        shards: figures.shards,
        recovered: shared.recovered.load(Ordering::Relaxed),
        uptime_s: now.saturating_sub(figures.started_unix_s),
        messages: total.queue.messages,
        scheduled: total.queue.scheduled,
        ready: total.queue.ready,
        in_flight: total.queue.in_flight,
        held: total.queue.held,
        routing: total.queue.unrouted + total.queue.resolving,
        sessions_open: total.sessions_open,
        outgoing_open: total.outgoing_open,
        received: total.messages_received,
        delivered: total.delivered,
        deferred: total.deferred,
        bounced: total.bounced,
        expired: total.expired,
        suppressed: total.suppressed,
        resident_octets: figures.resident_octets,
    }))
}
