//! An engine's own errors on Anthropic's routes. Engines serve these routes and do not all have their errors: llama.cpp
//! says OpenAI's object there, vLLM Anthropic's with types of its own. Clients branch on the type, so both are said in
//! Anthropic's words; what is said in them already passes as it is.

use berth_wire::{Dialect, Head, Route};
use bytes::{Bytes, BytesMut};
use serde_json::Value;

use crate::{anthropic, strip};

/// The types that Anthropic's clients know.
const TYPES: [&str; 10] = [
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "overloaded_error",
    "api_error",
];

/// Whether an answer with this head is such an error.
pub(crate) fn is_one(route: Route, head: &Head) -> bool {
    route.dialect() == Dialect::Anthropic && head.status >= 400
}

/// A whole answer of the engine, its error in the words of the route.
pub(crate) fn in_words(route: Route, head: Head, body: Bytes, request: Option<&str>) -> (Head, Bytes) {
    let said = if is_one(route, &head) { reworded(&body, Some(head.status), request) } else { None };
    match said {
        None => (head, body),
        Some(said) => (Head { content_type: Some("application/json".into()), ..head }, said.into()),
    }
}

/// The same as the event that ends a stream whose status line has been sent.
pub(crate) fn event(body: &[u8], status: u16, request: Option<&str>) -> Bytes {
    match reworded(body, Some(status), request) {
        Some(said) => anthropic::error_event(&said),
        // Lines end data, and JSON may have some.
        None => anthropic::error_event(&one_line(body)),
    }
}

/// Whole events of the engine, those of errors in the words of the route. What has none is not copied.
pub(crate) fn events(events: Bytes, request: Option<&str>) -> Bytes {
    if !strip::contains(&events, b"error") {
        return events;
    }
    let mut out: Option<BytesMut> = None;
    let mut at = 0;
    for event in strip::each(&events) {
        let said = error_data(event).and_then(|data| reworded(&data, None, request));
        match (said, &mut out) {
            (Some(said), _) => out
                .get_or_insert_with(|| BytesMut::from(events.get(..at).unwrap_or_default()))
                .extend_from_slice(&anthropic::error_event(&said)),
            (None, Some(out)) => out.extend_from_slice(event),
            (None, None) => {}
        }
        at += event.len();
    }
    out.map_or(events, BytesMut::freeze)
}

/// The data of an event that is called an error.
fn error_data(event: &[u8]) -> Option<Vec<u8>> {
    let lines = || event.split(|byte| matches!(byte, b'\n' | b'\r'));
    let name = lines().find_map(|line| line.strip_prefix(b"event:"))?;
    (name.trim_ascii() == b"error").then(|| {
        let data: Vec<&[u8]> = lines().filter_map(|line| line.strip_prefix(b"data:")).collect();
        data.join(&b'\n')
    })
}

/// An engine's error in Anthropic's words; none: it is already.
fn reworded(body: &[u8], status: Option<u16>, request: Option<&str>) -> Option<Vec<u8>> {
    let whole: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let inner = whole.get("error").filter(|error| error.is_object()).unwrap_or(&whole);
    let own = text(inner, "type").filter(|kind| TYPES.contains(&kind.as_str()));
    let message = text(inner, "message");
    if text(&whole, "type").as_deref() == Some("error") && own.is_some() && message.is_some() {
        return None;
    }
    let kind = own.as_deref().unwrap_or_else(|| of_status(status.unwrap_or(500)));
    let message = message.or_else(|| text(&whole, "error")).or_else(|| text(&whole, "detail"));
    let message = message.unwrap_or_else(|| match status {
        Some(status) => format!("the engine answered with status {status}"),
        None => "the engine failed".into(),
    });
    Some(anthropic::words(kind, &message, request))
}

fn one_line(json: &[u8]) -> Vec<u8> {
    // Within a string JSON has no line ends.
    json.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect()
}

fn of_status(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        408 | 504 => "timeout_error",
        529 => "overloaded_error",
        // As of a route that an engine does not serve.
        400..=499 | 501 => "invalid_request_error",
        _ => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, body: &str) -> String {
        let head = Head { status, content_type: Some("text/plain".into()), length: None };
        let (head, body) = in_words(Route::Messages, head, Bytes::from(body.to_owned()), Some("r"));
        assert_eq!(head.status, status);
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[test]
    fn errors_of_any_engine_have_anthropics_shape_and_types() {
        let is = |kind: &str, message: &str| {
            format!(
                r#"{{"type":"error","error":{{"type":"{kind}","message":"{message}"}},"request_id":"r"}}"#
            )
        };
        for (status, body, kind, message) in [
            (
                400,
                r#"{"error":{"code":400,"message":"long","type":"exceed_context_size_error"}}"#,
                "invalid_request_error",
                "long",
            ),
            (500, r#"{"error":{"message":"m","type":"not_found_error"}}"#, "not_found_error", "m"),
            (
                404,
                r#"{"type":"error","error":{"type":"NotFoundError","message":"no"}}"#,
                "not_found_error",
                "no",
            ),
            (429, r#"{"detail":"slower"}"#, "rate_limit_error", "slower"),
            (503, r#"{"error":"busy"}"#, "api_error", "busy"),
            (500, "Internal Server Error", "api_error", "the engine answered with status 500"),
            (501, "", "invalid_request_error", "the engine answered with status 501"),
        ] {
            assert_eq!(said(status, body), is(kind, message), "{body}");
        }
    }

    #[test]
    fn what_is_in_anthropics_words_is_not_touched() {
        let own = r#"{ "type":"error", "error":{"type":"overloaded_error","message":"m","details":{}} }"#;
        assert_eq!(said(529, own), own);
        let head = Head { status: 400, content_type: None, length: None };
        let (_, body) = in_words(Route::ChatCompletions, head, Bytes::from_static(b"{}"), None);
        assert_eq!(body, "{}");
    }

    #[test]
    fn an_error_in_a_stream_is_reworded_and_its_other_events_are_not() {
        let ping = "event: ping\ndata: {\"type\":\"ping\",\"about\":\"error\"}\n\n";
        let text = format!(
            "{ping}event: error\ndata: {{\"code\":500,\"message\":\"m\",\"type\":\"server_error\"}}\n\n{ping}"
        );
        let wanted = format!(
            "{ping}event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\",\"message\":\"m\"}},\
             \"request_id\":null}}\n\n{ping}"
        );
        assert_eq!(events(text.into(), None), wanted);
        let plain = Bytes::from(ping);
        assert_eq!(events(plain.clone(), None).as_ptr(), plain.as_ptr());
    }
}
