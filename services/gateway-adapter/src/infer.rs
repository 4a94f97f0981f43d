//! The handler of inference requests: check what was asked, make a job of it, and hand both on to those who send it and
//! answer it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use berth_wire::{Body, Job, JobId, Route};
use bytes::Bytes;
use tracing::debug;

use crate::caller::Caller;
use crate::client::{Client, Start, now};
use crate::error::{self, Refusal};
use crate::intake;
use crate::request;
use crate::respond::{self, Terms};
use crate::send;
use crate::worker::Worker;

/// About so many bytes of a request make a token of prompt, until the engine has counted them.
const BYTES_PER_TOKEN: u64 = 4;

/// `POST /v1/chat/completions`
pub(crate) async fn chat(
    request: HttpRequest,
    payload: Payload,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    handle(Route::ChatCompletions, request, payload, caller, worker).await
}

/// `POST /v1/completions`
pub(crate) async fn completions(
    request: HttpRequest,
    payload: Payload,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    handle(Route::Completions, request, payload, caller, worker).await
}

/// `POST /v1/embeddings`
pub(crate) async fn embeddings(
    request: HttpRequest,
    payload: Payload,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    handle(Route::Embeddings, request, payload, caller, worker).await
}

async fn handle(
    route: Route,
    request: HttpRequest,
    payload: Payload,
    caller: Caller,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    match submit(route, &request, payload, &caller, worker.get_ref()).await {
        Ok((client, terms)) if terms.stream => respond::streamed(client, &terms).await,
        Ok((client, terms)) => respond::plain(client, terms.wait).await,
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
    caller: &Caller,
    worker: &Arc<Worker>,
) -> Result<(Client, Terms), Refusal> {
    let fleet = worker.fleet();
    let config = fleet.config();
    let admitted = caller.class(request.headers()).and_then(|class| Ok((class, caller.begin()?)));
    let (class, mut permit) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return Err(intake::unread(request, payload, error, config.body_limit)),
    };
    let (body, at) = intake::read(request, payload, config.into()).await?;
    if fleet.draining.load(Ordering::Acquire) {
        return Err(error::shutting_down().into());
    }
    let asked = request::look(&body)?;
    if !fleet.catalog_known() {
        return Err(error::starting().into());
    }
    let model = caller.resolve(&fleet.catalog(), &asked.model)?.id.clone();
    if let Some(permit) = &mut permit {
        permit.reserve(body.len() as u64 / BYTES_PER_TOKEN + 1, at)?;
    }
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
    let job = Job {
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
        class,
        key: caller.key(),
        content_type: None,
        target: None,
        body: Body::Inline(Bytes::new()),
    };
    let start = Start { job: id, route, model: Arc::from(model.as_str()), at, permit };
    let client = send::send(worker, job, body, start).await?;
    Ok((client, terms))
}
