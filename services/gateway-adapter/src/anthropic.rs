//! Anthropic's conventions for errors, on the routes that are Anthropic's. Everything here says its errors in OpenAI's
//! words; on the way out those of these routes are said again in Anthropic's, so that no refusal can be forgotten.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, EitherBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use berth_wire::{ApiError, ErrorKind};
use bytes::Bytes;
use serde::Serialize;

/// An error that is a response's whole answer, kept with it.
pub(crate) struct Told(pub(crate) ApiError);

/// The id of a request, kept with it.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) HeaderValue);

impl RequestId {
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// Whether a path is Anthropic's, also one that is not served here.
pub(crate) fn owns(path: &str) -> bool {
    path.strip_prefix("/v1/messages").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct Envelope<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: ErrorObject<'a>,
    request_id: Option<&'a str>,
}

/// The error's type, and its status where Anthropic has one of its own.
fn kind(error: &ApiError) -> (&'static str, Option<u16>) {
    match error.kind {
        ErrorKind::InvalidRequest if error.code == "unknown_url" => ("not_found_error", None),
        ErrorKind::InvalidRequest | ErrorKind::NotServed => ("invalid_request_error", None),
        ErrorKind::Unauthorized => ("authentication_error", None),
        ErrorKind::Forbidden => ("permission_error", None),
        ErrorKind::ModelNotFound | ErrorKind::HostNotFound => ("not_found_error", None),
        ErrorKind::TooLarge => ("request_too_large", None),
        // A full queue is everybody's, other limits are the key's own.
        ErrorKind::Overloaded if error.code != "queue_full" => ("rate_limit_error", None),
        ErrorKind::Overloaded => ("overloaded_error", Some(529)),
        ErrorKind::Unavailable if error.code == crate::error::WAIT_LIMIT => ("overloaded_error", Some(529)),
        ErrorKind::Expired => ("timeout_error", None),
        ErrorKind::Unavailable | ErrorKind::CannotFit | ErrorKind::EngineFailed | ErrorKind::Internal => {
            ("api_error", None)
        }
    }
}

/// An error of one of Anthropic's types.
pub(crate) fn words(kind: &str, message: &str, request: Option<&str>) -> Vec<u8> {
    let error = ErrorObject { kind, message };
    serde_json::to_vec(&Envelope { kind: "error", error, request_id: request }).unwrap_or_default()
}

fn body(error: &ApiError, request: Option<&str>) -> Vec<u8> {
    words(kind(error).0, &error.message, request)
}

/// The event that ends a stream whose status line has been sent.
pub(crate) fn event(error: &ApiError, request: Option<&str>) -> Bytes {
    error_event(&body(error, request))
}

/// The event of an error that is written already.
pub(crate) fn error_event(body: &[u8]) -> Bytes {
    [b"event: error\ndata: ", body, b"\n\n"].concat().into()
}

/// What an answer on one of these routes carries, and its error, if it is one, in Anthropic's words.
pub(crate) fn speak<B: MessageBody>(
    mut response: ServiceResponse<B>,
    request: Option<&RequestId>,
) -> ServiceResponse<EitherBody<B, Said<B>>> {
    if !owns(response.request().path()) {
        return response.map_into_left_body();
    }
    if let Some(RequestId(id)) = request {
        response.headers_mut().insert(HeaderName::from_static("request-id"), id.clone());
    }
    let told = response.response().extensions().get::<Told>().map(|Told(error)| error.clone());
    let Some(error) = told else { return response.map_into_left_body() };
    if let Some(status) = kind(&error).1.and_then(|status| StatusCode::from_u16(status).ok()) {
        *response.response_mut().status_mut() = status;
    }
    let text = Bytes::from(body(&error, request.map(RequestId::as_str)));
    response.map_body(|_, rest| {
        EitherBody::right(Said { len: text.len() as u64, text: Some(text), rest: Box::pin(rest) })
    })
}

/// A text instead of a body, which is taken to its end all the same: it may have more to do than to be sent.
pub(crate) struct Said<B> {
    text: Option<Bytes>,
    len: u64,
    rest: Pin<Box<B>>,
}

impl<B: MessageBody> MessageBody for Said<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.len)
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if let Some(text) = self.text.take() {
            return Poll::Ready(Some(Ok(text)));
        }
        loop {
            match std::task::ready!(self.rest.as_mut().poll_next(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_anthropics_shape() {
        let error = ApiError::new(ErrorKind::Overloaded, "queue_full", "full");
        assert_eq!(
            event(&error, Some("req-1")),
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"full\"},\
             \"request_id\":\"req-1\"}\n\n"
        );
        assert_eq!(kind(&error).1, Some(529));
        let limit = ApiError::new(ErrorKind::Overloaded, "requests_per_minute", "slower");
        assert_eq!(kind(&limit), ("rate_limit_error", None));
    }

    #[test]
    fn only_the_routes_of_anthropic_are_anthropics() {
        assert!(owns("/v1/messages") && owns("/v1/messages/count_tokens") && owns("/v1/messages/batches"));
        assert!(!owns("/v1/messagesx") && !owns("/upstream/m/v1/messages") && !owns("/v1/models"));
    }
}
