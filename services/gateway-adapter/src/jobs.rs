//! `/api/v1/jobs/{id}`: how far an asynchronous job is, its result, and its cancel. Any gateway answers.

use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::RETRY_AFTER;
use actix_web::web::{Data, Path};
use berth_wire::{ApiError, AsyncJob, CancelJob, ErrorKind, JobId, JobStatus, rfc3339};
use serde::Serialize;
use serde_json::{Value, json};

use crate::adopt;
use crate::caller::Caller;
use crate::error::{self, NO_RETRY, Refusal};
use crate::later::{self, Store};
use crate::respond;
use crate::worker::Worker;

/// How long a cancel may take to be recorded by another gateway.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);

/// A job as clients see it.
#[derive(Serialize)]
pub(crate) struct Shown {
    id: String,
    object: &'static str,
    status: &'static str,
    model: String,
    route: &'static str,
    position: Option<u32>,
    eta_s: Option<u64>,
    submitted_at: String,
    began_at: Option<String>,
    ended_at: Option<String>,
    attempts: u32,
    host: Option<String>,
    result: Option<Value>,
    usage: Value,
    error: Option<Value>,
}

impl Shown {
    pub(crate) fn of(record: &AsyncJob) -> Self {
        let result = record.result.as_ref().filter(|_| record.status.is_final()).map(|note| {
            json!({
                "url": format!("/api/v1/jobs/{}/result", record.id),
                "status": note.status,
                "content_type": note.content_type,
                "bytes": note.len,
            })
        });
        let waits = matches!(record.status, JobStatus::Queued | JobStatus::Loading);
        Self {
            id: record.id.to_string(),
            object: "berth.job",
            status: record.status.as_str(),
            model: record.model.to_string(),
            route: record.route.path(),
            position: waits.then_some(record.position),
            eta_s: record.eta.map(|eta| eta.as_secs()),
            submitted_at: rfc3339(record.submitted_at),
            began_at: record.began_at.map(rfc3339),
            ended_at: record.ended_at.map(rfc3339),
            attempts: record.attempts,
            host: record.host.as_ref().map(ToString::to_string),
            result,
            usage: json!({
                "prompt_tokens": record.usage.prompt_tokens,
                "completion_tokens": record.usage.completion_tokens,
            }),
            error: record.error.as_ref().map(error::object),
        }
    }
}

fn answer(result: Result<HttpResponse, Refusal>) -> HttpResponse {
    result.unwrap_or_else(Refusal::response)
}

/// `GET /api/v1/jobs/{id}`
pub(crate) async fn show(caller: Caller, id: Path<String>, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(find(&caller, &id, &worker).await.map(|record| told(StatusCode::OK, &record)))
}

fn told(status: StatusCode, record: &AsyncJob) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    if !record.status.is_final() {
        response.insert_header((RETRY_AFTER, later::wait_of(record)));
    }
    response.insert_header(("x-berth-job", record.id.to_string()));
    response.json(Shown::of(record))
}

/// `GET /api/v1/jobs/{id}/result`
pub(crate) async fn result(caller: Caller, id: Path<String>, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(fetch(&caller, &id, &worker).await)
}

async fn fetch(caller: &Caller, id: &str, worker: &Worker) -> Result<HttpResponse, Refusal> {
    let record = find(caller, id, worker).await?;
    if !record.status.is_final() {
        return Ok(told(StatusCode::ACCEPTED, &record));
    }
    if let Some(note) = &record.result {
        let store = open(worker).await?;
        let body = store.results.get(&record.id.to_string(), note.len).await.map_err(|_| gone())?;
        let head =
            berth_wire::Head { status: note.status, content_type: note.content_type.clone(), length: None };
        let mut response = respond::answer(&head);
        response.insert_header(("x-berth-job", record.id.to_string()));
        response.insert_header(("x-berth-model", record.model.to_string()));
        return Ok(response.body(body));
    }
    // How it ended stays: asking for its result again changes nothing.
    let error = ApiError { retry_after: None, ..record.error.clone().unwrap_or_else(error::lost) };
    let mut refusal = Refusal::from(error);
    if record.status == JobStatus::Cancelled {
        refusal.status = StatusCode::CONFLICT;
    }
    let mut response = refusal.response();
    response.headers_mut().insert(NO_RETRY.0, NO_RETRY.1);
    Ok(response)
}

/// `DELETE /api/v1/jobs/{id}`
pub(crate) async fn cancel(caller: Caller, id: Path<String>, worker: Data<Arc<Worker>>) -> HttpResponse {
    answer(end(&caller, &id, &worker).await)
}

async fn end(caller: &Caller, id: &str, worker: &Worker) -> Result<HttpResponse, Refusal> {
    let mut record = find(caller, id, worker).await?;
    if record.status.is_final() {
        return Ok(told(StatusCode::OK, &record));
    }
    let ended = async {
        if let Some(live) = worker.fleet().later.get(record.id) {
            live.cancel().await;
            return live.record();
        }
        let bus = worker.bus();
        if let Some(ended) = adopt::cancelled(worker, &record).await {
            return ended;
        }
        loop {
            let message = CancelJob { job: record.id, attempt: None };
            let _ = bus.publish(bus.subjects.cancel(record.id), &message).await;
            tokio::time::sleep(AGAIN).await;
            if let Ok(now) = find(caller, id, worker).await
                && now.status.is_final()
            {
                return now;
            }
        }
    };
    match tokio::time::timeout(PATIENCE, ended).await {
        Ok(ended) => {
            record = ended;
            Ok(told(StatusCode::OK, &record))
        }
        Err(_) => Ok(told(StatusCode::ACCEPTED, &record)),
    }
}

async fn open(worker: &Worker) -> Result<&Store, ApiError> {
    worker.later().await.map_err(|e| error::not_submitted(&e))
}

/// The record of a job that the caller may see.
async fn find(caller: &Caller, id: &str, worker: &Worker) -> Result<AsyncJob, Refusal> {
    let id: JobId = id.parse().map_err(|_| unknown())?;
    let sees = caller.sees();
    let mine = |record: &AsyncJob| sees.is_none() || record.key == sees;
    if let Some(live) = worker.fleet().later.get(id) {
        return Some(live.record()).filter(mine).ok_or_else(unknown);
    }
    let store = open(worker).await?;
    let read = store.read(id).await.map_err(|e| error::not_submitted(&e))?;
    read.map(|(record, _)| record).filter(mine).ok_or_else(unknown)
}

fn unknown() -> Refusal {
    let message = "there is no such job; jobs are known for two hours, to the key that they came with";
    let error = ApiError::new(ErrorKind::InvalidRequest, "job_not_found", message);
    Refusal { status: StatusCode::NOT_FOUND, ..error.into() }
}

fn gone() -> Refusal {
    let message = "the result of this job is no longer kept; results are kept for an hour";
    let error = ApiError::new(ErrorKind::InvalidRequest, "result_expired", message);
    Refusal { status: StatusCode::GONE, ..error.into() }
}
