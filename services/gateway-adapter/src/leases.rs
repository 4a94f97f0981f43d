//! `/lease`, `/release`, `/leases` and `/hint`: what a session asks of the scheduler, passed on and answered.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use berth_bus::BusError;
use berth_wire::{
    ApiError, ErrorKind, LeaseReply, LeaseRequest, LeaseState, LeaseStatus, ModelId, SESSION_MAX, SessionId,
    Timestamp,
};
use serde::Serialize;
use tracing::debug;

use crate::error::Refusal;
use crate::fields::Fields;
use crate::worker::Worker;
use crate::{error, intake};

/// Bodies of these routes are small.
const BODY_LIMIT: u64 = 16 * 1024;
/// A scheduler that dies is replaced within its term of 10 s; nobody waits for all of it.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(250);
/// Seconds that a lease is asked for where nothing is said, and the most that may be asked for.
const TTL: u64 = 120;
const TTL_MOST: u64 = 3600;

/// A lease as clients see it; times are seconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Lease {
    session_key: SessionId,
    model: ModelId,
    state: LeaseState,
    /// Requests for the model that wait now.
    position: u64,
    /// Until the model is ready; null: not known.
    eta_seconds: Option<f64>,
    /// RFC 3339, by the scheduler's clock.
    expires_at: String,
    expires_in_seconds: f64,
}

/// Models that a session has no lease on any more.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Released {
    session_key: SessionId,
    released: Vec<ModelId>,
}

/// Leases, by session; `total` counts also those that did not fit.
#[derive(Debug, Serialize)]
struct List {
    leases: Vec<Lease>,
    total: u64,
}

/// A hint as it was understood.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Noted {
    session_key: SessionId,
    model: ModelId,
    in_seconds: f64,
}

impl From<LeaseStatus> for Lease {
    fn from(status: LeaseStatus) -> Self {
        Self {
            session_key: status.lease.session,
            model: status.lease.model,
            state: status.state,
            position: status.position,
            eta_seconds: status.eta.map(seconds),
            expires_at: rfc3339(status.lease.expires),
            expires_in_seconds: seconds(status.left),
        }
    }
}

fn seconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1000.0).round() / 1000.0
}

pub(crate) fn rfc3339(at: Timestamp) -> String {
    let most = Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(at.0).min(most)).to_string()
}

/// `POST /lease {sessionKey, model, ttlSeconds}`
pub(crate) async fn lease(request: HttpRequest, payload: Payload, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(grant(&request, payload, &worker).await)
}

async fn grant(request: &HttpRequest, payload: Payload, worker: &Worker) -> Result<HttpResponse, Refusal> {
    let mut fields = read(request, payload, worker).await?;
    let (session, model) = (session(&mut fields)?, fields.text("model")?);
    let ttl = fields.whole("ttlSeconds", 1..=TTL_MOST)?.unwrap_or(TTL);
    fields.end(&["sessionKey", "model", "ttlSeconds"])?;
    let model = resolve(worker, &model)?;
    let ask = LeaseRequest::Lease { session, model, key: None, ttl: Duration::from_secs(ttl) };
    match ask_leader(worker, &ask).await? {
        LeaseReply::Held(status) => Ok(HttpResponse::Ok().json(Lease::from(status))),
        other => Err(unexpected(&other).into()),
    }
}

/// `POST /release {sessionKey, model?}`
pub(crate) async fn release(
    request: HttpRequest,
    payload: Payload,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    answer(give_back(&request, payload, &worker).await)
}

async fn give_back(
    request: &HttpRequest,
    payload: Payload,
    worker: &Worker,
) -> Result<HttpResponse, Refusal> {
    let mut fields = read(request, payload, worker).await?;
    let (session, model) = (session(&mut fields)?, fields.optional_text("model")?);
    fields.end(&["sessionKey", "model"])?;
    let model = model.map(|model| resolve(worker, &model)).transpose()?;
    match ask_leader(worker, &LeaseRequest::Release { session: session.clone(), model }).await? {
        LeaseReply::Released { models } => {
            Ok(HttpResponse::Ok().json(Released { session_key: session, released: models }))
        }
        other => Err(unexpected(&other).into()),
    }
}

/// `GET /leases[?sessionKey=...]`
pub(crate) async fn list(request: HttpRequest, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(show(&request, &worker).await)
}

async fn show(request: &HttpRequest, worker: &Worker) -> Result<HttpResponse, Refusal> {
    let mut fields = Fields::of_query(request.query_string())?;
    let session = fields.optional_text("sessionKey")?.map(SessionId::from);
    fields.end(&["sessionKey"])?;
    match ask_leader(worker, &LeaseRequest::List { session }).await? {
        LeaseReply::Leases { leases, total } => {
            let leases = leases.into_iter().map(Lease::from).collect();
            Ok(HttpResponse::Ok().json(List { leases, total }))
        }
        other => Err(unexpected(&other).into()),
    }
}

/// `POST /hint {sessionKey, model, inSeconds}`
pub(crate) async fn hint(request: HttpRequest, payload: Payload, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(foretell(&request, payload, &worker).await)
}

async fn foretell(request: &HttpRequest, payload: Payload, worker: &Worker) -> Result<HttpResponse, Refusal> {
    let mut fields = read(request, payload, worker).await?;
    let (session, model) = (session(&mut fields)?, fields.text("model")?);
    let lead = fields.seconds("inSeconds", 0.0..=86_400.0)?;
    fields.end(&["sessionKey", "model", "inSeconds"])?;
    let model = resolve(worker, &model)?;
    let ask = LeaseRequest::Hint { session: session.clone(), model: model.clone(), lead };
    match ask_leader(worker, &ask).await? {
        LeaseReply::Noted => {
            let noted = Noted { session_key: session, model, in_seconds: seconds(lead) };
            Ok(HttpResponse::Accepted().json(noted))
        }
        other => Err(unexpected(&other).into()),
    }
}

fn answer(result: Result<HttpResponse, Refusal>) -> HttpResponse {
    result.unwrap_or_else(|refusal| {
        debug!(code = refusal.error.code, "refused what was asked of leases");
        refusal.response()
    })
}

async fn read(request: &HttpRequest, payload: Payload, worker: &Worker) -> Result<Fields, Refusal> {
    let fleet = worker.fleet();
    let limits = intake::Limits { bytes: BODY_LIMIT, ..fleet.config().into() };
    let (body, _) = intake::read(request, payload, limits).await?;
    Ok(Fields::of_body(&body)?)
}

/// The session as requests name it too: by header or body, up to the same length.
fn session(fields: &mut Fields) -> Result<SessionId, ApiError> {
    let session = fields.text("sessionKey")?;
    if (1..=SESSION_MAX).contains(&session.len()) {
        return Ok(session.into());
    }
    let message = format!("`sessionKey` must have 1 to {SESSION_MAX} bytes, and has {}", session.len());
    Err(ApiError::new(ErrorKind::InvalidRequest, "invalid_value", message).param("sessionKey"))
}

fn resolve(worker: &Worker, name: &str) -> Result<ModelId, ApiError> {
    let fleet = worker.fleet();
    if !fleet.catalog_known() {
        return Err(error::starting());
    }
    Ok(fleet.catalog().resolve(name)?.id.clone())
}

/// Asks whoever leads; while nobody does, again and again for a while.
async fn ask_leader(worker: &Worker, ask: &LeaseRequest) -> Result<LeaseReply, ApiError> {
    let began = Instant::now();
    loop {
        let left = PATIENCE.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(nobody_leads());
        }
        let bus = worker.bus();
        match bus.request::<_, LeaseReply>(bus.subjects.lease(), ask, left).await {
            Ok(LeaseReply::Refused(error)) => return Err(error),
            Ok(reply) => return Ok(reply),
            Err(BusError::NoResponders { .. }) => tokio::time::sleep(AGAIN.min(left)).await,
            Err(BusError::TimedOut { .. }) => return Err(nobody_leads()),
            Err(failed) => return Err(error::not_submitted(&failed)),
        }
    }
}

fn nobody_leads() -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "no_scheduler",
        "no scheduler leads right now; leases that were granted are kept; try again in a moment",
    )
    .retry_after(Duration::from_secs(5))
}

/// A scheduler of another version.
fn unexpected(reply: &LeaseReply) -> ApiError {
    tracing::warn!(?reply, "the scheduler's answer does not fit what it was asked");
    ApiError::new(ErrorKind::Internal, "scheduler_answer", "the scheduler's answer does not fit the question")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_told_in_seconds_and_rfc_3339() {
        let lease = berth_wire::Lease {
            session: "s".into(),
            model: "m".into(),
            key: None,
            since: Timestamp(0),
            ttl: Duration::from_secs(120),
            expires: Timestamp(1_795_238_762_250),
        };
        let eta = Some(Duration::from_micros(4_100_400));
        let left = Duration::from_millis(119_500);
        let status = LeaseStatus { lease, state: LeaseState::Loading, position: 2, eta, left };
        assert_eq!(
            serde_json::to_string(&Lease::from(status)).unwrap(),
            r#"{"sessionKey":"s","model":"m","state":"loading","position":2,"etaSeconds":4.1,"#.to_owned()
                + r#""expiresAt":"2026-11-21T05:26:02.250Z","expiresInSeconds":119.5}"#
        );
    }
}
