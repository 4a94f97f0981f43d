//! What traces tell of a request at the gateway: its server span, with the attributes of OpenTelemetry's conventions for
//! HTTP and generative AI. Without a collector none of this is reached.

use std::time::{Duration, SystemTime};

use actix_web::HttpRequest;
use berth_telemetry::trace::{Span, Tracer};
use berth_wire::{ApiError, JobId, Route, Usage};

use crate::error::Refusal;
use crate::flow::Progress;
use crate::relay::Ending;
use crate::request;

/// The span of a request that became a job, from the time it came.
pub(crate) fn begin(
    tracer: &Tracer,
    request: &HttpRequest,
    route: Route,
    (job, model): (JobId, &str),
    came: Option<SystemTime>,
) -> Option<Box<Span>> {
    let came = came?;
    let parent = request::traceparent(request.headers());
    let mut span = tracer.enter(parent.as_deref(), job.0, format!("{} {model}", route.operation()))?;
    span.began(came);
    describe(&mut span, request, route);
    span.set("gen_ai.request.model", model.to_owned());
    span.set("berth.job", job.to_string());
    Some(span)
}

/// The span of a request that became none.
pub(crate) fn refused(
    tracer: &Tracer,
    request: &HttpRequest,
    route: Route,
    came: Option<SystemTime>,
    refusal: &Refusal,
) {
    let Some(came) = came else { return };
    let parent = request::traceparent(request.headers());
    let id = uuid::Uuid::now_v7().as_u128();
    let Some(mut span) = tracer.enter(parent.as_deref(), id, route.operation()) else { return };
    span.began(came);
    describe(&mut span, request, route);
    settle(&mut span, refusal.status.as_u16(), Some(&refusal.error.code));
    span.end();
}

fn describe(span: &mut Span, request: &HttpRequest, route: Route) {
    span.set("http.request.method", request.method().to_string());
    span.set("http.route", route.path());
    span.set("url.scheme", "http");
    span.set("gen_ai.operation.name", route.operation());
}

/// A client's fault is no error of the server's.
fn settle(span: &mut Span, status: u16, code: Option<&str>) {
    if status > 0 {
        span.set("http.response.status_code", i64::from(status));
    }
    match code {
        Some(code) if (400..500).contains(&status) => span.set("error.type", code.to_owned()),
        Some(code) => span.fail(code),
        None if status >= 500 => span.fail(&status.to_string()),
        None => {}
    }
}

/// What is known of a job at its end.
pub(crate) struct Course<'a> {
    pub(crate) came: Duration,
    pub(crate) status: u16,
    pub(crate) ending: Option<&'a Ending>,
    pub(crate) usage: Option<&'a Usage>,
    pub(crate) progress: &'a Progress,
    pub(crate) queued: Option<Duration>,
    pub(crate) first_byte: Option<Duration>,
}

/// Ends the span of a job; `came` ago its request was complete.
pub(crate) fn end(mut span: Box<Span>, course: &Course<'_>) {
    let now = SystemTime::now();
    let code = match course.ending {
        Some(Err(ApiError { code, .. })) => Some(code.as_str()),
        None if course.status < 400 => Some("client_gone"),
        _ => None,
    };
    settle(&mut span, course.status, code);
    let progress = course.progress;
    span.set("berth.lane", progress.lane.as_str());
    span.set("berth.attempts", i64::from(progress.attempts));
    if let Some(serving) = &progress.serving {
        span.set("berth.host", serving.host.to_string());
        span.count("berth.load_ms", millis(serving.load));
    }
    span.count("berth.queue_ms", course.queued.and_then(millis));
    if let Some(usage) = course.usage {
        span.count("gen_ai.usage.input_tokens", usage.prompt_tokens);
        span.count("gen_ai.usage.output_tokens", usage.completion_tokens);
    }
    if let Some(first) = course.first_byte
        && let Some(at) = now.checked_sub(course.came.saturating_sub(first))
    {
        span.event("first_byte", at);
    }
    span.ended(now);
}

fn millis(span: Duration) -> Option<u64> {
    u64::try_from(span.as_millis()).ok()
}
