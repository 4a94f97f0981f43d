//! Errors as clients see them: OpenAI error objects, as an answer or as an event of a stream.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse};
use berth_bus::BusError;
use berth_telemetry::Chain;
use berth_wire::{AdapterSpec, ApiError, ErrorKind, ModelSpec, Route};
use bytes::Bytes;
use futures::StreamExt;
use serde::Serialize;
use tracing::warn;

use crate::anthropic::Told;
use crate::openapi;

#[derive(Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: ErrorObject<'a>,
}

impl<'a> From<&'a ApiError> for ErrorObject<'a> {
    fn from(error: &'a ApiError) -> Self {
        Self {
            message: &error.message,
            kind: error.kind.openai_type(),
            param: error.param.as_deref(),
            code: Some(error.code.as_str()).filter(|code| !code.is_empty()),
        }
    }
}

/// The JSON body of an error; all four keys are always there.
pub(crate) fn body(error: &ApiError) -> Vec<u8> {
    serde_json::to_vec(&Envelope { error: error.into() }).unwrap_or_default()
}

/// The error as part of a larger answer.
pub(crate) fn object(error: &ApiError) -> serde_json::Value {
    serde_json::to_value(ErrorObject::from(error)).unwrap_or_default()
}

/// The event that ends a stream whose status line has been sent.
pub(crate) fn event(error: &ApiError) -> Bytes {
    let mut out = b"data: ".to_vec();
    out.extend_from_slice(&body(error));
    out.extend_from_slice(b"\n\n");
    out.into()
}

/// Whole seconds that clients accept: some refuse to wait for more than a minute.
fn retry_after(after: Duration) -> HeaderValue {
    HeaderValue::from(after.as_millis().div_ceil(1000).clamp(1, 60) as u64)
}

/// A request that is refused before it becomes a job.
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) error: ApiError,
    /// What was not read of its body.
    pub(crate) rest: Option<Payload>,
    /// How long that is taken in and forgotten, behind the answer.
    pub(crate) linger: Duration,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { status: status(&error), error, rest: None, linger: Duration::ZERO }
    }
}

impl Refusal {
    pub(crate) fn response(self) -> HttpResponse {
        let response = with_status(self.status, &self.error);
        match self.rest {
            None => response,
            Some(rest) => {
                let until = Box::pin(tokio::time::sleep(self.linger));
                response.map_body(|_, body| BoxBody::new(Unread { body, rest, until }))
            }
        }
    }
}

/// An answer to a request whose body may still be coming: it goes out at once, and what comes is read for a while. While
/// the body has a reader the server closes the connection behind the answer; without one it would go on reading chunks
/// for as long as they come.
struct Unread {
    body: BoxBody,
    rest: Payload,
    until: Pin<Box<tokio::time::Sleep>>,
}

impl MessageBody for Unread {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let piece = std::task::ready!(Pin::new(&mut self.body).poll_next(cx));
        if piece.is_some() {
            return Poll::Ready(piece);
        }
        while self.until.as_mut().poll(cx).is_pending() {
            match std::task::ready!(self.rest.poll_next_unpin(cx)) {
                Some(Ok(_)) => {}
                _ => break,
            }
        }
        Poll::Ready(None)
    }
}

fn status(error: &ApiError) -> StatusCode {
    StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The error as a whole answer.
pub(crate) fn response(error: &ApiError) -> HttpResponse {
    with_status(status(error), error)
}

fn with_status(status: StatusCode, error: &ApiError) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    response.insert_header((CONTENT_TYPE, "application/json"));
    if let Some(after) = error.retry_after {
        response.insert_header((RETRY_AFTER, retry_after(after)));
    }
    if is_lasting(error) {
        response.insert_header(NO_RETRY);
    }
    let mut response = response.body(body(error));
    response.extensions_mut().insert(Told(error.clone()));
    response
}

/// What SDKs take for a word not to try again by themselves.
pub(crate) const NO_RETRY: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));

/// Whether the same request fares no better in a while: SDKs take a 5xx for something that passes, and proxies of them
/// other statuses. Nobody wants an answer after its deadline.
fn is_lasting(error: &ApiError) -> bool {
    matches!(
        error.kind,
        ErrorKind::NotServed | ErrorKind::Forbidden | ErrorKind::CannotFit | ErrorKind::Expired
    )
}

/// The longest `Retry-After` that clients heed.
const HEEDED: Duration = Duration::from_secs(60);

/// Tells SDKs of an error that is over only after more time than their clients have, or than can be said, not to sleep for it.
pub(crate) fn spare_the_wait<B>(response: &mut HttpResponse<B>, patience: Option<Duration>) {
    let after = response.extensions().get::<Told>().and_then(|told| told.0.retry_after);
    if after.is_some_and(|after| after > patience.unwrap_or(HEEDED).min(HEEDED)) {
        response.headers_mut().insert(NO_RETRY.0, NO_RETRY.1);
    }
}

/// No such route.
pub(crate) async fn not_found(request: HttpRequest) -> HttpResponse {
    let mut message = format!("there is no {} {}", request.method(), shown(request.path()));
    if let Some(meant) = openapi::meant(request.path()) {
        message.push_str(&format!("; write {meant}"));
    }
    with_status(StatusCode::NOT_FOUND, &ApiError::new(ErrorKind::InvalidRequest, "unknown_url", message))
}

/// The route exists for another method.
pub(crate) async fn wrong_method(request: HttpRequest) -> HttpResponse {
    let message = format!("{} does not take {}", shown(request.path()), request.method());
    let error = ApiError::new(ErrorKind::InvalidRequest, "method_not_allowed", message);
    let mut response = with_status(StatusCode::METHOD_NOT_ALLOWED, &error);
    let allowed = request.match_pattern().map(|pattern| openapi::methods(&pattern)).unwrap_or_default();
    if let Ok(allowed) = HeaderValue::from_str(&allowed.join(", ")) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

fn shown(path: &str) -> String {
    path.chars().take(200).collect()
}

/// A submission that failed, for the client; the whole story goes to the log.
pub(crate) fn not_submitted(error: &BusError) -> ApiError {
    warn!(error = %Chain(error), "could not submit a job");
    match error {
        BusError::Full(_) => ApiError::new(
            ErrorKind::Overloaded,
            "queue_full",
            "too many requests are waiting already; try again in a moment",
        )
        .retry_after(Duration::from_secs(5)),
        BusError::Missing { .. } => ApiError::new(
            ErrorKind::Unavailable,
            "no_scheduler",
            "no scheduler has set up the queue yet; try again in a moment",
        )
        .retry_after(Duration::from_secs(5)),
        BusError::TooLarge { .. } => ApiError::new(
            ErrorKind::TooLarge,
            "request_too_large",
            "the request does not fit into a message of the bus",
        ),
        _ => ApiError::new(
            ErrorKind::Unavailable,
            "bus_unavailable",
            "the queue cannot be reached right now; try again in a moment",
        )
        .retry_after(Duration::from_secs(3)),
    }
}

/// The gateway lost track of a job.
pub(crate) fn lost() -> ApiError {
    ApiError::new(
        ErrorKind::Internal,
        "gateway_restarted",
        "the gateway lost track of this request; send it again",
    )
}

/// The gateway has not read the catalog yet.
pub(crate) fn starting() -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "starting",
        "the gateway has not read the catalog yet; try again in a moment",
    )
    .retry_after(Duration::from_secs(1))
}

/// The code of [`shutting_down`].
pub(crate) const SHUTTING_DOWN: &str = "shutting_down";

/// The gateway ends.
pub(crate) fn shutting_down() -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        SHUTTING_DOWN,
        "the gateway is shutting down; send the request again",
    )
    .retry_after(Duration::from_secs(2))
}

/// The model's engine does not serve the route.
pub(crate) fn not_served(model: &ModelSpec, route: Route) -> ApiError {
    let served: Vec<&str> = model.engine.routes().iter().map(|route| route.path()).collect();
    let message = format!(
        "the engine of model `{}` ({}) does not serve {}; it serves {}; GET /v1/models lists other models{}",
        model.id,
        model.engine.kind.as_str(),
        route.path(),
        served.join(", "),
        if model.is_found() { "" } else { ", and /upstream/MODEL/PATH reaches what else an engine has" }
    );
    ApiError::new(ErrorKind::NotServed, "route_not_served", message).param("model")
}

/// The engine of an adapter's base serves a route, and cannot be told there which adapter is meant.
pub(crate) fn not_served_by_adapter(model: &ModelSpec, adapter: &AdapterSpec, route: Route) -> ApiError {
    let message = if route == Route::Upstream {
        format!("`{}` is an adapter: write the path as in /upstream/{}/PATH, its base", adapter.id, model.id)
    } else {
        format!(
            "an engine {} serves no adapters on {}; ask `{}`, the base of `{}`, or another model",
            model.engine.kind.as_str(),
            route.path(),
            model.id,
            adapter.id
        )
    };
    ApiError::new(ErrorKind::NotServed, "route_not_served", message).param("model")
}

/// A span as it is said to clients: 250 ms, 1.5 s, 240 s.
pub(crate) fn span(span: Duration) -> String {
    if span < Duration::from_secs(1) {
        return format!("{} ms", span.as_micros().div_ceil(1000));
    }
    // One digit behind the point, and none where it would be 0.
    let tenths = span.as_millis().div_ceil(100);
    if tenths.is_multiple_of(10) {
        format!("{} s", tenths / 10)
    } else {
        format!("{}.{} s", tenths / 10, tenths % 10)
    }
}

/// The code of [`waited`] and [`kept`].
pub(crate) const WAIT_LIMIT: &str = "wait_limit";

/// Nothing came in time.
pub(crate) fn waited(limit: Duration) -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        WAIT_LIMIT,
        format!("no answer within {}; try again, or ask for a stream, which may wait longer", span(limit)),
    )
    .retry_after(Duration::from_secs(10))
}

/// The code of [`cancelled`].
pub(crate) const CANCELLED: &str = "cancelled";

/// Somebody cancelled the job.
pub(crate) fn cancelled() -> ApiError {
    ApiError::new(ErrorKind::Unavailable, CANCELLED, "the job was cancelled")
}

/// The code of a job whose time is over.
pub(crate) const DEADLINE_EXCEEDED: &str = "deadline_exceeded";

/// The client's own deadline has passed.
pub(crate) fn expired(limit: Duration) -> ApiError {
    ApiError::new(
        ErrorKind::Expired,
        DEADLINE_EXCEEDED,
        format!("no answer within {}, the time that this request had", span(limit)),
    )
}

/// Nothing came in time, and the job goes on for a while without its client.
pub(crate) fn kept(limit: Duration, grace: Duration) -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        WAIT_LIMIT,
        format!(
            "no answer within {}; the request keeps its place for {}: send it again",
            span(limit),
            span(grace)
        ),
    )
    .retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_object_has_all_four_keys() {
        let error = ApiError::new(ErrorKind::Internal, "", "m");
        assert_eq!(
            String::from_utf8(body(&error)).unwrap(),
            r#"{"error":{"message":"m","type":"server_error","param":null,"code":null}}"#
        );
    }

    #[test]
    fn an_error_is_one_event_whatever_is_in_it() {
        let error = ApiError::new(ErrorKind::Unavailable, "x", "m\n\nx");
        assert!(event(&error).starts_with(b"data: {\"error\":{\"message\":\"m\\n\\nx\""));
    }

    #[test]
    fn a_span_is_said_in_the_unit_that_it_is_long_enough_for() {
        let said = |ms| span(Duration::from_millis(ms));
        assert_eq!([said(0), said(250), said(1000), said(1500)], ["0 ms", "250 ms", "1 s", "1.5 s"]);
        assert_eq!(
            [span(Duration::from_micros(10)), said(58_000), said(240_001)],
            ["1 ms", "58 s", "240.1 s"]
        );
        for error in [waited(Duration::from_millis(250)), expired(Duration::from_millis(250))] {
            assert!(error.message.contains("within 250 ms"), "{}", error.message);
        }
        let kept = kept(Duration::from_millis(900), Duration::from_secs(21));
        assert!(
            kept.message.contains("within 900 ms; the request keeps its place for 21 s"),
            "{}",
            kept.message
        );
    }

    #[test]
    fn retry_after_is_whole_seconds_between_1_and_60() {
        let seconds = |ms| retry_after(Duration::from_millis(ms)).to_str().unwrap().to_owned();
        assert_eq!([seconds(0), seconds(1001), seconds(3_600_000)], ["1", "2", "60"]);
    }
}
