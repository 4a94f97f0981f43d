//! What routing must know of a request: the model, whether it streams, its session and its deadline. The body
//! is looked at, never changed.

use std::borrow::Cow;

use actix_web::http::header::HeaderMap;
use berth_wire::{ApiError, Dialect, ErrorKind, JobId, Route, SESSION_MAX};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;

/// The top-level fields that routing needs; values stay unparsed until one is asked for.
#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_cache_key: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    session_id: Option<&'a RawValue>,
    /// Where Anthropic's clients name the conversation, or at least its user.
    #[serde(borrow)]
    user_id: Option<&'a RawValue>,
}

/// What a body says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked<'a> {
    /// The model as the client names it.
    pub(crate) model: Cow<'a, str>,
    /// Whether the answer is to be streamed.
    pub(crate) stream: bool,
    /// Whether the client takes chunks without choices.
    pub(crate) include_usage: bool,
    /// The session that the body names.
    pub(crate) session: Option<String>,
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::InvalidRequest, "invalid_body", message)
}

pub(crate) fn missing_model() -> ApiError {
    ApiError::new(
        ErrorKind::InvalidRequest,
        "missing_model",
        "the request names no model: set `model` to one of GET /v1/models",
    )
    .param("model")
}

/// The body without the byte order mark that some editors write before JSON; engines pass over it, or do not.
pub(crate) fn unmarked(body: Bytes) -> Bytes {
    if body.starts_with(MARK) { body.slice(MARK.len()..) } else { body }
}

/// What some editors write before a text in UTF-8.
pub(crate) const MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a JSON body.
pub(crate) fn look(route: Route, body: &[u8]) -> Result<Asked<'_>, ApiError> {
    let peek: Peek<'_> = serde_json::from_slice(body).map_err(|e| malformed(body, &e))?;
    let model = match peek.model.map(|raw| text(Some(raw))) {
        None => return Err(missing_model()),
        Some(None) => return Err(invalid("`model` must be a string").param("model")),
        Some(Some(model)) => model,
    };
    let stream = match peek.stream {
        None => false,
        Some(raw) => serde_json::from_str(raw.get())
            .map_err(|_| invalid("`stream` must be true or false").param("stream"))?,
    };
    let include_usage = peek
        .stream_options
        .and_then(|raw| serde_json::from_str::<StreamOptions>(raw.get()).ok())
        .is_some_and(|options| options.include_usage);
    let session = text(peek.prompt_cache_key)
        .or_else(|| {
            let metadata = serde_json::from_str::<Metadata<'_>>(peek.metadata?.get()).ok()?;
            let user = metadata.user_id.filter(|_| route.dialect() == Dialect::Anthropic);
            text(metadata.session_id).or_else(|| text(user))
        })
        .or_else(|| text(peek.user))
        .and_then(|session| bounded(&session));
    Ok(Asked { model, stream, include_usage, session })
}

fn text(raw: Option<&RawValue>) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(raw?.get()).ok().map(|text| text.0)
}

/// Says where and what, without a word of the body itself.
fn malformed(body: &[u8], error: &serde_json::Error) -> ApiError {
    if body.iter().all(u8::is_ascii_whitespace) {
        return invalid("the request has no body; send a JSON object");
    }
    if body.starts_with(b"--") {
        return invalid("the body is a form, and this route takes a JSON object");
    }
    let reason = error.to_string();
    match error.classify() {
        Category::Data if reason.starts_with("duplicate field") => {
            invalid(format!("the body is not acceptable: {reason}"))
        }
        Category::Data => invalid("the body must be a JSON object"),
        // Messages of these kinds are fixed texts with the line and column.
        Category::Syntax | Category::Eof | Category::Io => {
            invalid(format!("the body is not valid JSON: {reason}"))
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
}

/// Longer session keys travel as their hash.
pub(crate) fn bounded(session: &str) -> Option<String> {
    match session.len() {
        0 => None,
        1..=SESSION_MAX => Some(session.into()),
        _ => Some(blake3::hash(session.as_bytes()).to_hex().to_string()),
    }
}

/// The conversation that a request belongs to: headers say it before the body does.
pub(crate) fn session(headers: &HeaderMap, asked: &Asked<'_>) -> Option<String> {
    if let Some(session) = header(headers, "x-berth-session") {
        return bounded(session);
    }
    if let Some(session) = header(headers, "x-session-affinity").or_else(|| header(headers, "session_id")) {
        // `<session>:<n>` counts the requests of one session.
        let whole = match session.rsplit_once(':') {
            Some((whole, n)) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => whole,
            _ => session,
        };
        return bounded(whole);
    }
    asked.session.clone()
}

/// A W3C trace context that looks like one.
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<String> {
    header(headers, "traceparent")
        .filter(|text| text.len() == 55 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'))
        .map(str::to_owned)
}

/// The trace context of a job: its request's, or else one of its own, so that engines and answers can name it.
pub(crate) fn trace(headers: &HeaderMap, job: JobId) -> String {
    traceparent(headers).unwrap_or_else(|| format!("00-{job}-{:016x}-00", job.0 as u64))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn only_the_top_level_is_looked_at() {
        let body =
            br#"{"messages":[{"model":"inner","stream":true}],"tools":{"model":1},"model":"a\/b","x":null}"#;
        let asked = look(Route::ChatCompletions, body).unwrap();
        assert_eq!(asked.model, "a/b");
        assert!(!asked.stream);
    }

    #[test]
    fn a_malformed_body_is_placed_and_not_quoted() {
        let error =
            look(Route::ChatCompletions, b"{\"model\": \"m\",\n \"messages\": [secret]}").unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
        assert!(error.message.contains("line 2 column"), "{}", error.message);
        assert!(!error.message.contains("secret"), "{}", error.message);
        for body in [
            &br#""secret""#[..],
            br#"["secret"]"#,
            br#"{"model":{"secret":1}}"#,
            br#"{"model":"m","stream":"secret"}"#,
            b"{\"secret",
            b"",
        ] {
            let error = look(Route::ChatCompletions, body).unwrap_err();
            assert!(!error.message.contains("secret"), "{}", error.message);
        }
    }

    #[test]
    fn a_missing_model_is_named_as_the_field_at_fault() {
        for body in [&b"{}"[..], br#"{"model":null}"#] {
            assert_eq!(look(Route::ChatCompletions, body).unwrap_err().param.as_deref(), Some("model"));
        }
    }

    #[test]
    fn session_keys_are_taken_in_their_order() {
        let body = br#"{"model":"m","user":"u","metadata":{"session_id":"meta"},"prompt_cache_key":"cache"}"#;
        let asked = look(Route::ChatCompletions, body).unwrap();
        let key = |pairs| session(&headers(pairs), &asked);
        assert_eq!(key(&[]).as_deref(), Some("cache"));
        assert_eq!(key(&[("x-session-affinity", "abc:12")]).as_deref(), Some("abc"));
        assert_eq!(key(&[("session_id", "abc:x")]).as_deref(), Some("abc:x"));
        assert_eq!(key(&[("session_id", "a"), ("x-berth-session", "b:1")]).as_deref(), Some("b:1"));
        let body = br#"{"model":"m","user":"u","metadata":{"session_id":"meta"}}"#;
        assert_eq!(
            session(&headers(&[]), &look(Route::ChatCompletions, body).unwrap()).as_deref(),
            Some("meta")
        );
        let body = br#"{"model":"m","user":"u","metadata":{"user_id":"user_1_session_2"}}"#;
        let asked = look(Route::Messages, body).unwrap();
        assert_eq!(session(&headers(&[]), &asked).as_deref(), Some("user_1_session_2"));
        let body = br#"{"model":"m","user":"u","metadata":{"session_id":7,"user_id":"no session here"}}"#;
        assert_eq!(
            session(&headers(&[]), &look(Route::ChatCompletions, body).unwrap()).as_deref(),
            Some("u")
        );
    }
}
