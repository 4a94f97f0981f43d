//! `/lease`, `/release`, `/leases` and `/hint`: what a session asks of the scheduler, passed on and answered.

use std::sync::Arc;

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use berth_wire::{
    ApiError, ErrorKind, HintShown, LeaseReply, LeaseRequest, LeaseShown, LeasesShown, ModelId,
    ReleasedShown, SESSION_MAX, SessionId,
};
use tracing::debug;

use crate::caller::Caller;
use crate::error::Refusal;
use crate::fields::Fields;
use crate::worker::Worker;
use crate::{error, intake, leader};

/// Bodies of these routes are small.
const BODY_LIMIT: u64 = 16 * 1024;

/// `POST /lease {sessionKey, model, ttlSeconds, keepContext}`
pub(crate) async fn lease(
    request: HttpRequest,
    payload: Payload,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    answer(grant(&request, payload, &caller, &worker).await)
}

async fn grant(
    request: &HttpRequest,
    payload: Payload,
    caller: &Caller,
    worker: &Worker,
) -> Result<HttpResponse, Refusal> {
    let mut fields = read(request, payload, worker).await?;
    let (session, model) = (session(&mut fields)?, fields.text("model")?);
    // How long is too long the scheduler says, as it does to all who ask.
    let most = worker.fleet().lease_ceiling().as_secs_f64();
    let ttl = fields.optional_seconds("ttlSeconds", 1.0, most)?;
    let keep_context = fields.optional_flag("keepContext")?;
    fields.end(&["sessionKey", "model", "ttlSeconds", "keepContext"])?;
    let model = resolve(worker, caller, &model)?;
    let ask = LeaseRequest::Lease { session, model, key: caller.key(), ttl, keep_context };
    match ask_leader(worker, &ask).await? {
        LeaseReply::Held(status) => Ok(HttpResponse::Ok().json(LeaseShown::from(status))),
        other => Err(unexpected(&other).into()),
    }
}

/// `POST /release {sessionKey, model?}`
pub(crate) async fn release(
    request: HttpRequest,
    payload: Payload,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    answer(give_back(&request, payload, &caller, &worker).await)
}

async fn give_back(
    request: &HttpRequest,
    payload: Payload,
    caller: &Caller,
    worker: &Worker,
) -> Result<HttpResponse, Refusal> {
    let mut fields = read(request, payload, worker).await?;
    let (session, model) = (session(&mut fields)?, fields.optional_text("model")?);
    fields.end(&["sessionKey", "model"])?;
    let model = model.map(|model| resolve(worker, caller, &model)).transpose()?;
    match ask_leader(worker, &LeaseRequest::Release { session: session.clone(), model, key: caller.sees() })
        .await?
    {
        LeaseReply::Released { models } => {
            Ok(HttpResponse::Ok().json(ReleasedShown { session_key: session, released: models }))
        }
        other => Err(unexpected(&other).into()),
    }
}

/// `GET /leases[?sessionKey=...]`
pub(crate) async fn list(request: HttpRequest, caller: Caller, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(show(&request, &caller, &worker).await)
}

async fn show(request: &HttpRequest, caller: &Caller, worker: &Worker) -> Result<HttpResponse, Refusal> {
    let mut fields = Fields::of_query(request.query_string())?;
    let session = fields.optional_text("sessionKey")?.map(SessionId::from);
    fields.end(&["sessionKey"])?;
    match ask_leader(worker, &LeaseRequest::List { session, key: caller.sees() }).await? {
        LeaseReply::Leases { leases, total } => Ok(HttpResponse::Ok().json(LeasesShown::new(leases, total))),
        other => Err(unexpected(&other).into()),
    }
}

/// `POST /hint {sessionKey, model, inSeconds}`
pub(crate) async fn hint(
    request: HttpRequest,
    payload: Payload,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    answer(foretell(&request, payload, &caller, &worker).await)
}

async fn foretell(
    request: &HttpRequest,
    payload: Payload,
    caller: &Caller,
    worker: &Worker,
) -> Result<HttpResponse, Refusal> {
    let mut fields = read(request, payload, worker).await?;
    let (session, model) = (session(&mut fields)?, fields.text("model")?);
    let lead = fields.seconds("inSeconds", 0.0..=86_400.0)?;
    fields.end(&["sessionKey", "model", "inSeconds"])?;
    let model = resolve(worker, caller, &model)?;
    let ask = LeaseRequest::Hint { session: session.clone(), model: model.clone(), lead, key: caller.key() };
    match ask_leader(worker, &ask).await? {
        LeaseReply::Noted => Ok(HttpResponse::Accepted().json(HintShown::new(session, model, lead))),
        other => Err(unexpected(&other).into()),
    }
}

fn answer(result: Result<HttpResponse, Refusal>) -> HttpResponse {
    result.unwrap_or_else(|refusal| {
        debug!(code = refusal.error.code, "refused what was asked of leases");
        refusal.response()
    })
}

pub(crate) async fn read(
    request: &HttpRequest,
    payload: Payload,
    worker: &Worker,
) -> Result<Fields, Refusal> {
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

pub(crate) fn resolve(worker: &Worker, caller: &Caller, name: &str) -> Result<ModelId, ApiError> {
    let fleet = worker.fleet();
    if !fleet.catalog_known() {
        return Err(error::starting());
    }
    // What keeps an adapter warm is its base's engine.
    Ok(caller.resolve(&fleet.catalog(), name)?.spec.id.clone())
}

async fn ask_leader(worker: &Worker, ask: &LeaseRequest) -> Result<LeaseReply, ApiError> {
    match leader::ask(worker, worker.bus().subjects.lease(), ask).await? {
        LeaseReply::Refused(error) => Err(error),
        reply => Ok(reply),
    }
}

/// A scheduler of another version.
fn unexpected(reply: &LeaseReply) -> ApiError {
    tracing::warn!(?reply, "the scheduler's answer does not fit what it was asked");
    ApiError::new(ErrorKind::Internal, "scheduler_answer", "the scheduler's answer does not fit the question")
}
