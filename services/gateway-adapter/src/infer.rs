//! The handler of inference requests: check what was asked, make a job of it, and hand both on to those who send it and
//! answer it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Data, Payload};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use berth_wire::{ApiError, Body, ErrorKind, Job, JobId, Route, Target, multipart};
use bytes::Bytes;
use tracing::debug;

use crate::anthropic::RequestId;
use crate::caller::Caller;
use crate::catalog::Catalog;
use crate::client::{Client, Start, now};
use crate::error::{self, Refusal};
use crate::request::{self, Asked};
use crate::respond::{self, Terms};
use crate::worker::Worker;
use crate::{form, intake, send, upstream};

/// About so many bytes of a request make a token of prompt, until the engine has counted them.
const BYTES_PER_TOKEN: u64 = 4;

/// A request on any route that goes to an engine.
pub(crate) async fn handle(
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

/// What a request says, the `Content-Type` that its body keeps, and what an upstream request is for.
fn look<'a>(
    route: Route,
    request: &HttpRequest,
    body: &'a [u8],
    catalog: &Catalog,
) -> Result<(Asked<'a>, Option<String>, Option<Target>), ApiError> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).map(str::to_owned);
    if route == Route::Upstream {
        let (asked, target) = upstream::look(request, catalog)?;
        return Ok((asked, kind, Some(target)));
    }
    let form = kind.filter(|kind| multipart::is_form(kind));
    match form {
        Some(kind) => Ok((form::look(&kind, body)?, Some(kind), None)),
        None if route.takes_form() && !body.trim_ascii_start().starts_with(b"{") => {
            let message =
                format!("{} takes multipart/form-data, as HTTP clients write for files", route.path());
            Err(ApiError::new(ErrorKind::InvalidRequest, "invalid_form", message).param("content-type"))
        }
        None => Ok((request::look(route, body)?, None, None)),
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
    let (asked, content_type, target) = look(route, request, &body, &fleet.catalog())?;
    if !fleet.catalog_known() {
        return Err(error::starting().into());
    }
    let spec = Arc::clone(caller.resolve(&fleet.catalog(), &asked.model)?);
    if !spec.engine.serves(route) {
        return Err(error::not_served(&spec, route).into());
    }
    if let Some(permit) = &mut permit {
        permit.reserve(body.len() as u64 / BYTES_PER_TOKEN + 1, at)?;
    }
    let model = spec.id.clone();
    let stream = asked.stream && route.streams();
    let limit = if stream { config.stream_wait_limit } else { config.wait_limit };
    let wait = request::patience(request.headers(), stream).map_or(limit, |own| own.min(limit));
    let terms = Terms {
        at,
        stream,
        chunks: asked.include_usage && matches!(route, Route::ChatCompletions | Route::Completions),
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
        content_type,
        target,
        body: Body::Inline(Bytes::new()),
    };
    let start = Start {
        job: id,
        route,
        model: Arc::from(model.as_str()),
        at,
        permit,
        request: request.extensions().get::<RequestId>().cloned(),
    };
    let client = send::send(worker, job, body, start).await?;
    Ok((client, terms))
}
