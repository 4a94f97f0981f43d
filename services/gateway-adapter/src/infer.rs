//! The handler of inference requests: check what was asked, make a job of it, and hand both on to those who send it and
//! answer it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use actix_web::body::{self, BodySize, BoxBody, MessageBody};
use actix_web::http::Method;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Data, Payload};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use berth_wire::{ApiError, Body, ErrorKind, Job, JobId, Route, Target, multipart};
use bytes::Bytes;
use tracing::debug;

use crate::anthropic::RequestId;
use crate::caller::Caller;
use crate::catalog::{Catalog, Named};
use crate::client::{Start, now};
use crate::course::{self, Order, Wish};
use crate::error::{self, Refusal};
use crate::patience::Patience;
use crate::request::{self, Asked};
use crate::respond::Terms;
use crate::worker::Worker;
use crate::{form, intake, spans, strip, upstream};

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
    // Nobody looks at a clock for traces that nobody takes.
    let came = worker.fleet().tracer.is_on().then(SystemTime::now);
    // Boxed, and gone before the wait: what is set aside here a client that waits takes up all the time.
    let prepared = Box::pin(prepare(route, &request, payload, &caller, worker.get_ref(), came)).await;
    let response = match prepared {
        Ok(order) => course::run(worker.get_ref(), order).await,
        Err(refusal) => {
            spans::refused(&worker.fleet().tracer, &request, route, came, &refusal);
            Err(refusal)
        }
    };
    let response = response.unwrap_or_else(|refusal| {
        debug!(route = route.path(), code = refusal.error.code, "refused a request");
        refusal.response()
    });
    if request.method() == Method::HEAD && response.body().size() == BodySize::Sized(0) {
        // The engine told no length, which is not that of no body.
        return response.set_body(BoxBody::new(body::None::new()));
    }
    response
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
    let wrong = |code: &str, message: String| {
        Err(ApiError::new(ErrorKind::InvalidRequest, code, message).param("content-type"))
    };
    let (path, is_object) = (route.path(), body.trim_ascii_start().starts_with(b"{"));
    match form {
        Some(_) if is_object && route.takes_form() => {
            let message = "the body is JSON, and its content-type says that it is a form; let your HTTP client write \
                           the form and its header (curl -F, `files=` of a Python client)";
            wrong("invalid_form", message.into())
        }
        Some(_) if !route.takes_form() => wrong(
            "invalid_body",
            format!("{path} takes a JSON object, and the content-type says that this is a form"),
        ),
        Some(kind) => Ok((form::look(&kind, body)?, Some(kind), None)),
        None if route.takes_form() && body.starts_with(b"--") => {
            let message = "the body is a form, and its content-type says something else; leave this header to your \
                           HTTP client, which writes multipart/form-data with the boundary there";
            wrong("invalid_form", message.into())
        }
        None if route.takes_form() && !is_object => wrong(
            "invalid_form",
            format!("{path} takes multipart/form-data, as HTTP clients write for files"),
        ),
        None => Ok((request::look(route, body)?, None, None)),
    }
}

/// The model that is asked, if the caller may use it, and for this.
fn allowed(
    caller: &Caller,
    catalog: &Catalog,
    model: &str,
    target: Option<&Target>,
) -> Result<Named, ApiError> {
    let named = caller.resolve(catalog, model)?.clone();
    if let Some(target) = target {
        upstream::permit(caller, catalog, &named, target)?;
    }
    Ok(named)
}

/// Makes a job of a request, or says why not.
async fn prepare(
    route: Route,
    request: &HttpRequest,
    payload: Payload,
    caller: &Caller,
    worker: &Arc<Worker>,
    came: Option<SystemTime>,
) -> Result<Box<Order>, Refusal> {
    let fleet = worker.fleet();
    let config = fleet.config();
    let begun = caller.class(request.headers()).map(|class| (class, caller.begin()));
    let (class, mut permit, used_up) = match begun {
        Ok((class, Ok(permit))) => (class, permit, None),
        // What it may not do at all it is told first; whether it is that, its body says.
        Ok((class, Err(error))) if caller.is_bounded(route) => (class, None, Some(error)),
        Ok((_, Err(error))) | Err(error) => {
            return Err(intake::unread(request, payload, error, config.body_limit));
        }
    };
    let (body, at) = intake::read(request, payload, config.into()).await?;
    let body = if route == Route::Upstream { body } else { request::unmarked(body) };
    if fleet.draining.load(Ordering::Acquire) {
        return Err(error::shutting_down().into());
    }
    let first = |error: ApiError| match &used_up {
        Some(used_up) if error.kind != ErrorKind::Forbidden => used_up.clone(),
        _ => error,
    };
    let (asked, content_type, target) = look(route, request, &body, &fleet.catalog()).map_err(first)?;
    if !fleet.catalog_known() {
        return Err(error::starting().into());
    }
    let allowed = allowed(caller, &fleet.catalog(), &asked.model, target.as_ref());
    let named = allowed.map_err(first).inspect_err(|error| {
        // What a key may not do does not count as one of its requests.
        if error.kind == ErrorKind::Forbidden
            && let Some(permit) = permit.take()
        {
            permit.forgive(at);
        }
    })?;
    if let Some(used_up) = used_up {
        return Err(used_up.into());
    }
    let (spec, adapter) = (&named.spec, named.adapter.as_ref());
    if !spec.engine.serves(route) {
        return Err(error::not_served(spec, route).into());
    }
    if let Some(adapter) = adapter.filter(|_| !spec.engine.serves_adapter(route)) {
        return Err(error::not_served_by_adapter(spec, adapter, route).into());
    }
    if let Some(permit) = &mut permit {
        permit.reserve(body.len() as u64 / BYTES_PER_TOKEN + 1, at)?;
    }
    let stream = asked.stream && route.streams();
    let headers = request.headers();
    let wish = Wish::of(headers, stream)?;
    let limit = if stream { config.stream_wait_limit } else { config.wait_limit };
    let patience = Patience::of(headers, stream, limit)?;
    let terms = Terms {
        at,
        stream,
        chunks: asked.include_usage && strip::tells_usage_apart(route),
        strip: strip::needed(route, stream, asked.include_usage),
        patience,
        grace: config.grace,
        heartbeat: config.heartbeat,
    };
    let id = JobId(uuid::Uuid::now_v7().as_u128());
    let span = spans::begin(&fleet.tracer, request, route, (id, named.id().as_str()), came);
    let trace = span.as_ref().map_or_else(|| request::trace(headers, id), |span| span.traceparent());
    let job = Job {
        id,
        model: spec.id.clone(),
        adapter: adapter.map(|adapter| adapter.id.clone()),
        route,
        gateway: worker.id().clone(),
        stream,
        session: request::session(headers, &asked),
        submitted_at: now(),
        deadline: Some(now().plus(wish.life(patience, config))),
        hurried: patience.deadline.is_some(),
        window: config.window,
        traceparent: Some(trace.clone()),
        class,
        key: caller.key(),
        content_type,
        target,
        body: Body::Inline(Bytes::new()),
    };
    let start = Start {
        job: id,
        route,
        model: Arc::from(named.id().as_str()),
        base: adapter.map(|_| spec.id.clone()),
        at,
        permit,
        request: request.extensions().get::<RequestId>().cloned(),
        trace,
        span,
    };
    Ok(Box::new(Order { job, body, start, terms, wish }))
}
