//! The handler of inference requests: check what was asked, make a job of it, and hand both on to those who send it and
//! answer it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use berth_wire::{Body, Class, Job, JobId, Route};
use bytes::Bytes;
use tracing::debug;

use crate::client::{Start, now};
use crate::course::{self, Order, Wish};
use crate::error::{self, Refusal};
use crate::patience::Patience;
use crate::respond::Terms;
use crate::worker::Worker;
use crate::{intake, request, strip};

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

async fn handle(
    route: Route,
    request: HttpRequest,
    payload: Payload,
    worker: Data<Arc<Worker>>,
) -> HttpResponse {
    let response = match prepare(route, &request, payload, worker.get_ref()).await {
        Ok(order) => course::run(worker.get_ref(), order).await,
        Err(refusal) => Err(refusal),
    };
    response.unwrap_or_else(|refusal| {
        debug!(route = route.path(), code = refusal.error.code, "refused a request");
        refusal.response()
    })
}

/// Makes a job of a request, or says why not.
async fn prepare(
    route: Route,
    request: &HttpRequest,
    payload: Payload,
    worker: &Arc<Worker>,
) -> Result<Order, Refusal> {
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
    let headers = request.headers();
    let wish = Wish::of(headers, stream)?;
    let limit = if stream { config.stream_wait_limit } else { config.wait_limit };
    let patience = Patience::of(headers, stream, limit)?;
    let apart = strip::tells_usage_apart(route);
    let terms = Terms {
        at,
        stream,
        chunks: apart && asked.include_usage,
        strip: apart && stream && !asked.include_usage,
        patience,
        grace: config.grace,
        heartbeat: config.heartbeat,
    };
    let id = JobId(uuid::Uuid::now_v7().as_u128());
    let trace = request::trace(headers, id);
    let job = Job {
        id,
        model: model.clone(),
        route,
        gateway: worker.id().clone(),
        stream,
        session: request::session(headers, &asked),
        submitted_at: now(),
        deadline: Some(now().plus(wish.life(patience, config))),
        window: config.window,
        traceparent: Some(trace.clone()),
        class: Class::default(),
        key: request::caller(request),
        content_type: None,
        target: None,
        body: Body::Inline(Bytes::new()),
    };
    let start = Start { job: id, route, model: Arc::from(model.as_str()), at, trace };
    Ok(Order { job, body, start, terms, wish })
}
