//! The handler of inference requests: check, register, submit, and turn what comes back into an answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use berth_telemetry::Chain;
use berth_wire::{ApiError, Body, Head, Job, JobId, Route};
use bytes::Bytes;
use tracing::{debug, warn};

use crate::answer;
use crate::client::{Client, Next, SILENCE, Start, now};
use crate::demux::Piece;
use crate::error::{self, Refusal};
use crate::intake;
use crate::request;
use crate::stream::{EventStream, Pace, is_event_stream};
use crate::worker::Worker;

/// What a job's other fields may add to its message.
const HEADROOM: usize = 8 * 1024;

/// `POST /v1/chat/completions`
pub(crate) async fn chat(request: HttpRequest, payload: Payload, worker: Data<Arc<Worker>>) -> HttpResponse {
    handle(Route::ChatCompletions, request, payload, worker).await
}

/// `POST /v1/completions`
pub(crate) async fn completions(
    request: HttpRequest,
    payload: Payload,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    handle(Route::Completions, request, payload, worker).await
}

/// `POST /v1/embeddings`
pub(crate) async fn embeddings(
    request: HttpRequest,
    payload: Payload,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    handle(Route::Embeddings, request, payload, worker).await
}

/// What the answer needs to know of the request.
struct Terms {
    /// When the request was complete.
    at: Instant,
    stream: bool,
    chunks: bool,
    wait: Duration,
    grace: Duration,
    heartbeat: Duration,
}

async fn handle(
    route: Route,
    request: HttpRequest,
    payload: Payload,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    match submit(route, &request, payload, worker.get_ref()).await {
        Ok((client, terms)) if terms.stream => streamed(client, &terms).await,
        Ok((client, terms)) => plain(client, terms.wait).await,
        Err(refusal) => {
            debug!(route = route.path(), code = refusal.error.code, "refused a request");
            refusal.response()
        }
    }
}

async fn submit(
    route: Route,
    request: &HttpRequest,
    payload: Payload,
    worker: &Arc<Worker>,
) -> Result<(Client, Terms), Refusal> {
    let fleet = worker.fleet();
    let config = fleet.config();
    let (body, at) = intake::read(request, payload, config.into()).await?;
    if fleet.draining.load(Ordering::Acquire) {
        return Err(error::shutting_down().into());
    }
    let asked = request::look(&body)?;
    if !fleet.catalog_known() {
        return Err(error::starting().into());
    }
    let model = fleet.catalog().resolve(&asked.model)?.id.clone();
    let stream = asked.stream && route != Route::Embeddings;
    let limit = if stream { config.stream_wait_limit } else { config.wait_limit };
    let wait = request::patience(request.headers(), stream).map_or(limit, |own| own.min(limit));
    let terms = Terms {
        at,
        stream,
        chunks: asked.include_usage,
        wait,
        grace: config.grace,
        heartbeat: config.heartbeat,
    };
    let id = JobId(uuid::Uuid::now_v7().as_u128());
    let mut job = Job {
        id,
        model: model.clone(),
        route,
        gateway: worker.id().clone(),
        stream,
        session: request::session(request.headers(), &asked),
        submitted_at: now(),
        deadline: Some(now().plus(wait)),
        window: config.window,
        traceparent: request::traceparent(request.headers()),
        body: Body::Inline(Bytes::new()),
    };
    let start = Start { job: id, route, model: Arc::from(model.as_str()), at };
    let mut client =
        Client::register(Arc::clone(worker), start, config.window).await.ok_or_else(error::lost)?;
    job.body = place(worker, &mut client, body, config.inline_limit).await?;
    client.submitting();
    worker.bus().submit(&job).await.map_err(|failed| {
        if !matches!(failed, berth_bus::BusError::TimedOut { .. }) {
            client.not_submitted();
        }
        error::not_submitted(&failed)
    })?;
    debug!(job = %id, %model, route = route.path(), stream, "job submitted");
    Ok((client, terms))
}

/// The body beside the job, or in the object store when it is large.
async fn place(worker: &Worker, client: &mut Client, body: Bytes, inline: u64) -> Result<Body, ApiError> {
    let len = body.len() as u64;
    if len <= inline && body.len().saturating_add(HEADROOM) <= worker.bus().client.max_payload() {
        return Ok(Body::Inline(body));
    }
    let object = client.job().to_string();
    let bodies = worker.bodies().await.map_err(|e| error::not_submitted(&e))?;
    // Before it is stored, so that a client that leaves meanwhile leaves nothing behind.
    client.claims(bodies.clone(), object.clone());
    bodies.put(&object, &body).await.map_err(|e| error::not_submitted(&e))?;
    Ok(Body::Claim { object, len })
}

/// Waits for the engine's status line.
async fn first(client: &mut Client) -> Result<(Head, Option<Bytes>), ApiError> {
    loop {
        match client.next().await {
            Next::Piece(Piece { head: Some(head), data }) => return Ok((head, data)),
            Next::Piece(_) => {}
            Next::End(Err(error)) => return Err(error),
            // The relay does not end well without a status line.
            Next::End(Ok(_)) => return Err(error::lost()),
        }
    }
}

async fn plain(mut client: Client, wait: Duration) -> HttpResponse {
    let deadline = tokio::time::Instant::now() + wait;
    match tokio::time::timeout_at(deadline, first(&mut client)).await {
        Ok(Ok((head, data))) => whole(client, &head, data, deadline).await,
        Ok(Err(error)) => refused(client, &error),
        Err(_) => refused(client, &error::waited(wait)),
    }
}

/// An answer that is no stream, relayed with the engine's own status.
async fn whole(
    mut client: Client,
    head: &Head,
    data: Option<Bytes>,
    deadline: tokio::time::Instant,
) -> HttpResponse {
    let status = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    client.answered(status.as_u16());
    let mut response = HttpResponse::build(status);
    stamp(&mut response, &client);
    let kind = head.content_type.as_deref().and_then(|kind| HeaderValue::from_str(kind).ok());
    response.insert_header((CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/json"))));
    match tokio::time::timeout_at(deadline, answer::read(client, data)).await {
        Ok(Ok(answer)) => response.body(answer),
        Ok(Err(error)) => error::response(&error),
        Err(_) => error::response(&error::waited(Duration::ZERO)),
    }
}

async fn streamed(mut client: Client, terms: &Terms) -> HttpResponse {
    let grace = terms.grace.min(terms.wait).saturating_sub(terms.at.elapsed());
    let pace = Pace { heartbeat: terms.heartbeat, first: terms.wait, silence: SILENCE, chunks: terms.chunks };
    match tokio::time::timeout(grace, first(&mut client)).await {
        Ok(Ok((head, data))) if is_event_stream(&head) => {
            let mut response = events(&mut client);
            if let Some(kind) = head.content_type.as_deref().and_then(|kind| HeaderValue::from_str(kind).ok())
            {
                response.insert_header((CONTENT_TYPE, kind));
            }
            response.body(EventStream::begun(client, pace, data))
        }
        Ok(Ok((head, data))) => {
            let deadline = tokio::time::Instant::now() + terms.wait;
            whole(client, &head, data, deadline).await
        }
        Ok(Err(error)) => refused(client, &error),
        // The client must hear something now, so the status can no longer be the engine's.
        Err(_) => events(&mut client).body(EventStream::waiting(client, pace, terms.at.elapsed())),
    }
}

fn events(client: &mut Client) -> HttpResponseBuilder {
    client.answered(200);
    let mut response = HttpResponse::Ok();
    stamp(&mut response, client);
    response.insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"));
    response.insert_header((CACHE_CONTROL, "no-cache"));
    response.insert_header(("x-accel-buffering", "no"));
    response
}

/// An error as the whole answer to a job.
fn refused(mut client: Client, error: &ApiError) -> HttpResponse {
    client.answered(error.kind.status());
    if error.kind.status() >= 500 {
        warn!(job = %client.job(), model = client.model(), error = %Chain(error), "a job failed");
    }
    let mut built = HttpResponse::Ok();
    stamp(&mut built, &client);
    let mut response = error::response(error);
    for (name, value) in built.finish().headers() {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    response
}

/// What is known of the job so far.
fn stamp(response: &mut HttpResponseBuilder, client: &Client) {
    let progress = client.progress();
    response.insert_header(("x-berth-job", client.job().to_string()));
    if let Ok(model) = HeaderValue::from_str(client.model()) {
        response.insert_header(("x-berth-model", model));
    }
    response.insert_header(("x-berth-attempts", progress.attempts));
    if let Some(serving) = progress.serving {
        response.insert_header(("x-berth-host", serving.host.as_str()));
    }
    if let Some(queued) = client.queued() {
        let ms = u64::try_from(queued.as_millis()).unwrap_or(u64::MAX);
        response.insert_header(("x-berth-queue-ms", ms));
    }
}
