//! `/api/v1`: jobs, models, engines and hints, shown and changed. The leader answers; a user's key sees its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use berth_bus::{Since, Story};
use berth_wire::{
    ApiError, ErrorKind, HostId, JobId, ModelId, OperateReply, OperateRequest, SessionId, encode_json,
};
use bytes::Bytes;
use futures::Stream;
use serde_json::json;
use tracing::debug;

use crate::caller::{Admin, Caller};
use crate::error::{self, Refusal};
use crate::fields::Fields;
use crate::leader;
use crate::leases::{read, resolve};
use crate::troubles::in_short;
use crate::worker::Worker;

/// Jobs in an answer.
const LISTED: u32 = 1000;
/// A stream of events that has nothing to tell says that it lives.
const ALIVE: Duration = Duration::from_secs(10);

fn answer(result: Result<HttpResponse, Refusal>) -> HttpResponse {
    result.unwrap_or_else(|refusal| {
        debug!(code = refusal.error.code, "refused what was asked of the fleet");
        refusal.response()
    })
}

/// `GET /api/v1/models`
pub(crate) async fn models(caller: Caller, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(show_models(&caller, &worker).await)
}

async fn show_models(caller: &Caller, worker: &Worker) -> Result<HttpResponse, Refusal> {
    let OperateReply::Models(mut models) = ask(worker, &OperateRequest::Models).await? else {
        return Err(unexpected().into());
    };
    let engines = worker.fleet().engines.entries();
    for model in &mut models {
        model.note_adapters(engines.values().map(AsRef::as_ref));
    }
    if !caller.is_admin() {
        let catalog = worker.fleet().catalog();
        models.retain(|model| caller.resolve(&catalog, model.model.as_str()).is_ok());
        for model in &mut models {
            // Where it runs, and what its engines said, is for operators.
            model.hosts.clear();
            model.engines.clear();
            model.error = model.error.take().map(|_| in_short(&model.state).into());
            model.adapters.retain(|adapter| caller.resolve(&catalog, adapter.model.as_str()).is_ok());
            model.adapters.iter_mut().for_each(|adapter| adapter.engines.clear());
        }
    }
    Ok(HttpResponse::Ok().json(json!({ "models": models })))
}

/// `GET /api/v1/queue`
pub(crate) async fn queue(caller: Caller, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(show_jobs(&caller, &worker, true).await)
}

/// `GET /api/v1/jobs`
pub(crate) async fn jobs(caller: Caller, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(show_jobs(&caller, &worker, false).await)
}

async fn show_jobs(caller: &Caller, worker: &Worker, waiting: bool) -> Result<HttpResponse, Refusal> {
    let request = OperateRequest::Jobs { waiting, limit: LISTED, key: caller.sees() };
    let OperateReply::Jobs { mut jobs, total } = ask(worker, &request).await? else {
        return Err(unexpected().into());
    };
    if !caller.is_admin() {
        for job in &mut jobs {
            // It names others' models and hosts.
            (job.why, job.host, job.engine) = (None, None, None);
        }
    }
    Ok(HttpResponse::Ok().json(json!({ "jobs": jobs, "total": total })))
}

/// `GET /api/v1/explain/{id}`
pub(crate) async fn explain(caller: Caller, id: Path<String>, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(show_why(&caller, &id, &worker).await)
}

async fn show_why(caller: &Caller, id: &str, worker: &Worker) -> Result<HttpResponse, Refusal> {
    let job: JobId = id.parse().map_err(|_| unknown_job())?;
    let request = OperateRequest::Explain { job, key: caller.sees() };
    let now = match ask(worker, &request).await {
        Ok(OperateReply::Explained(why)) => Some(why),
        Ok(_) => return Err(unexpected().into()),
        Err(error) if error.code == "job_not_found" => None,
        Err(error) => return Err(error.into()),
    };
    if !caller.is_admin() {
        let mut why = now.ok_or_else(unknown_job)?;
        (why.job.why, why.job.host, why.job.engine) = (None, None, None);
        why.places.clear();
        return Ok(HttpResponse::Ok().json(json!({ "now": why, "story": [] })));
    }
    let mut story = Vec::new();
    let subject = worker.bus().subjects.event("job", &job.to_string());
    if let Ok(mut facts) = worker.bus().story(Since::Beginning, [subject]).await {
        while let Some(fact) = facts.past().await.map_err(|e| error::not_submitted(&e))? {
            story.push(fact);
        }
    }
    if now.is_none() && story.is_empty() {
        return Err(unknown_job());
    }
    Ok(HttpResponse::Ok().json(json!({ "now": now, "story": story })))
}

fn unknown_job() -> Refusal {
    let message = "nothing is known of such a job: it ended more than 72 hours ago, or took the express lane, or came \
                   with another key";
    let error = ApiError::new(ErrorKind::InvalidRequest, "job_not_found", message);
    Refusal { status: StatusCode::NOT_FOUND, ..error.into() }
}

/// `POST /api/v1/load {model, host?}`
pub(crate) async fn load(
    request: HttpRequest,
    payload: Payload,
    _: Admin,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    let known = &["model", "host"];
    answer(
        order(&request, payload, &caller, &worker, known, |order| OperateRequest::Load {
            model: order.model,
            host: order.host,
        })
        .await,
    )
}

/// `POST /api/v1/unload {model, host?, force?}`
pub(crate) async fn unload(
    request: HttpRequest,
    payload: Payload,
    _: Admin,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    let known = &["model", "host", "force"];
    answer(
        order(&request, payload, &caller, &worker, known, |order| OperateRequest::Unload {
            model: order.model,
            host: order.host,
            force: order.force,
        })
        .await,
    )
}

/// `POST /api/v1/pin {model}`
pub(crate) async fn pin(
    request: HttpRequest,
    payload: Payload,
    _: Admin,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    let known = &["model"];
    answer(
        order(&request, payload, &caller, &worker, known, |order| OperateRequest::Pin {
            model: order.model,
            pin: true,
        })
        .await,
    )
}

/// `POST /api/v1/unpin {model}`
pub(crate) async fn unpin(
    request: HttpRequest,
    payload: Payload,
    _: Admin,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    let known = &["model"];
    answer(
        order(&request, payload, &caller, &worker, known, |order| OperateRequest::Pin {
            model: order.model,
            pin: false,
        })
        .await,
    )
}

/// What an operator wants of a model.
struct Order {
    model: ModelId,
    host: Option<HostId>,
    force: bool,
}

impl Order {
    async fn read(
        request: &HttpRequest,
        payload: Payload,
        caller: &Caller,
        worker: &Worker,
        known: &[&str],
    ) -> Result<Self, Refusal> {
        let mut fields = read(request, payload, worker).await?;
        let model = fields.text("model")?;
        let host = if known.contains(&"host") { fields.optional_text("host")? } else { None };
        let force = known.contains(&"force") && fields.flag("force")?;
        fields.end(known)?;
        Ok(Self { model: resolve(worker, caller, &model)?, host: host.map(HostId::from), force })
    }
}

/// Reads an order of the fields that are `known`, and has the leader carry out what it amounts to.
async fn order(
    request: &HttpRequest,
    payload: Payload,
    caller: &Caller,
    worker: &Worker,
    known: &[&str],
    of: impl FnOnce(Order) -> OperateRequest,
) -> Result<HttpResponse, Refusal> {
    let asked = of(Order::read(request, payload, caller, worker, known).await?);
    match ask(worker, &asked).await? {
        OperateReply::Done { engines, already } => {
            let mut response = if already { HttpResponse::Ok() } else { HttpResponse::Accepted() };
            Ok(response.json(json!({ "engines": engines, "already": already })))
        }
        _ => Err(unexpected().into()),
    }
}

/// `GET /api/v1/hints[?sessionKey=...]`
pub(crate) async fn hints(request: HttpRequest, caller: Caller, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(show_hints(&request, &caller, &worker).await)
}

async fn show_hints(
    request: &HttpRequest,
    caller: &Caller,
    worker: &Worker,
) -> Result<HttpResponse, Refusal> {
    let mut fields = Fields::of_query(request.query_string())?;
    let session = fields.optional_text("sessionKey")?.map(SessionId::from);
    fields.end(&["sessionKey"])?;
    match ask(worker, &OperateRequest::Hints { session, key: caller.sees() }).await? {
        OperateReply::Hints(hints) => Ok(HttpResponse::Ok().json(json!({ "hints": hints }))),
        _ => Err(unexpected().into()),
    }
}

/// `DELETE /api/v1/hints?sessionKey=...[&model=...]`
pub(crate) async fn withdraw(
    request: HttpRequest,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    answer(take_back(&request, &caller, &worker).await)
}

async fn take_back(request: &HttpRequest, caller: &Caller, worker: &Worker) -> Result<HttpResponse, Refusal> {
    let mut fields = Fields::of_query(request.query_string())?;
    let session = SessionId::from(fields.text("sessionKey")?);
    let model = fields.optional_text("model")?;
    fields.end(&["sessionKey", "model"])?;
    let model = model.map(|model| resolve(worker, caller, &model)).transpose()?;
    match ask(worker, &OperateRequest::Withdraw { session, model, key: caller.sees() }).await? {
        OperateReply::Withdrawn { models } => Ok(HttpResponse::Ok().json(json!({ "withdrawn": models }))),
        _ => Err(unexpected().into()),
    }
}

/// `GET /api/v1/hosts`
pub(crate) async fn hosts(_: Admin, worker: Data<Arc<Worker>>) -> HttpResponse {
    let hosts = worker.fleet().hosts.entries();
    HttpResponse::Ok().json(json!({ "hosts": hosts.values().collect::<Vec<_>>() }))
}

/// `GET /api/v1/engines`
pub(crate) async fn engines(_: Admin, worker: Data<Arc<Worker>>) -> HttpResponse {
    let (hosts, engines) = (worker.fleet().hosts.entries(), worker.fleet().engines.entries());
    let told = engines.values().map(|engine| engine.told(hosts.contains_key(engine.host.as_str())));
    HttpResponse::Ok().json(json!({ "engines": told.collect::<Vec<_>>() }))
}

/// `GET /api/v1/events[?sinceSeconds=...]`: what happened since, and on as it happens, as server-sent events.
pub(crate) async fn events(
    request: HttpRequest,
    _: Admin,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    answer(tell(&request, caller, &worker).await)
}

async fn tell(
    request: &HttpRequest,
    caller: Caller,
    worker: &Data<Arc<Worker>>,
) -> Result<HttpResponse, Refusal> {
    let mut fields = Fields::of_query(request.query_string())?;
    let back = fields.optional_text("sinceSeconds")?;
    fields.end(&["sinceSeconds"])?;
    let seconds = back.map(|text| text.parse::<u64>().ok().filter(|seconds| *seconds <= 259_200));
    let since = match seconds {
        None => Since::Now,
        Some(Some(seconds)) => {
            SystemTime::now().checked_sub(Duration::from_secs(seconds)).map_or(Since::Beginning, Since::Time)
        }
        Some(None) => {
            let message = "`sinceSeconds` must be a whole number of seconds from 0 to 259200";
            let error = ApiError::new(ErrorKind::InvalidRequest, "invalid_value", message);
            return Err(error.param("sinceSeconds").into());
        }
    };
    let story = worker.bus().story(since, [worker.bus().subjects.event_all()]).await;
    let story = story.map_err(|e| error::not_submitted(&e))?;
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .streaming(as_events(story, caller, Arc::clone(worker))))
}

/// Ends with the gateway, and with the right to hear it: it would have no end of its own.
fn as_events(
    story: Story,
    caller: Caller,
    worker: Arc<Worker>,
) -> impl Stream<Item = Result<Bytes, actix_web::Error>> {
    let begun = Some(Bytes::from_static(b": berth events\n\n"));
    futures::stream::unfold((story, begun), move |(mut story, begun)| {
        let (caller, worker) = (caller.clone(), Arc::clone(&worker));
        async move {
            if let Some(begun) = begun {
                return Some((Ok(begun), (story, None)));
            }
            let next = tokio::time::timeout(ALIVE, story.next()).await;
            let fleet = worker.fleet();
            if fleet.draining.load(Ordering::Acquire) || !fleet.keys.is_admin_still(&caller) {
                return None;
            }
            let piece = match next {
                Err(_) => Bytes::from_static(b": berth alive\n\n"),
                Ok(Ok(Some(event))) => {
                    let mut piece = b"data: ".to_vec();
                    piece.extend(encode_json(&event).unwrap_or_default());
                    piece.extend_from_slice(b"\n\n");
                    piece.into()
                }
                Ok(Ok(None) | Err(_)) => return None,
            };
            Some((Ok(piece), (story, None)))
        }
    })
}

async fn ask(worker: &Worker, ask: &OperateRequest) -> Result<OperateReply, ApiError> {
    match leader::ask(worker, worker.bus().subjects.operate(), ask).await? {
        OperateReply::Refused(error) => Err(error),
        reply => Ok(reply),
    }
}

/// A scheduler of another version.
fn unexpected() -> ApiError {
    ApiError::new(ErrorKind::Internal, "scheduler_answer", "the scheduler's answer does not fit the question")
}

/// The page that shows all of it; what it shows it asks for with the key that is typed into it.
const DASHBOARD: &str = include_str!("dashboard.html");

/// `GET /dashboard`
pub(crate) async fn dashboard() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .insert_header((
            "content-security-policy",
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ))
        .insert_header(("x-content-type-options", "nosniff"))
        .insert_header(("referrer-policy", "no-referrer"))
        .body(DASHBOARD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for outside in ["http://", "https://", "src=", "@import", "innerHTML", "url("] {
            assert!(!DASHBOARD.contains(outside), "{outside}");
        }
        assert!(DASHBOARD.contains("/api/v1/events") && DASHBOARD.contains("sessionStorage"));
    }
}
