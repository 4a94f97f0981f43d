//! The request body, whole and as it came, within the limits.

use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use actix_web::web::Payload;
use actix_web::{HttpMessage, HttpRequest};
use berth_config::GatewayConfig;
use berth_wire::{ApiError, ErrorKind};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use crate::error::Refusal;

/// How long a client that was refused may go on sending its body, so that it reads our answer instead of a reset.
const DISCARD: Duration = Duration::from_secs(10);

/// When a request was complete, for what is timed from then on: an upload is the client's own time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Complete(pub(crate) Instant);

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Its most bytes.
    pub(crate) bytes: u64,
    /// How long none of it may come.
    pub(crate) silence: Duration,
}

impl From<&GatewayConfig> for Limits {
    fn from(config: &GatewayConfig) -> Self {
        Self { bytes: config.body_limit, silence: config.body_timeout }
    }
}

/// Reads the body; one that came in one piece is not copied.
pub(crate) async fn read(
    request: &HttpRequest,
    mut payload: Payload,
    limits: Limits,
) -> Result<(Bytes, Instant), Refusal> {
    let body = match whole(request, &mut payload, limits).await {
        Ok(body) => body,
        Err(refusal) => return Err(Refusal { rest: Some(payload), ..refusal }),
    };
    let complete = Instant::now();
    request.extensions_mut().insert(Complete(complete));
    Ok((body, complete))
}

async fn whole(request: &HttpRequest, payload: &mut Payload, limits: Limits) -> Result<Bytes, Refusal> {
    let limit = limits.bytes;
    let declared = declared(request);
    if let Some(encoding) = request.headers().get(CONTENT_ENCODING).filter(|v| !plain(v.as_bytes())) {
        let encoding: String = String::from_utf8_lossy(encoding.as_bytes()).chars().take(50).collect();
        return Err(Refusal { linger: linger(declared.unwrap_or(0), limit), ..encoded(&encoding) });
    }
    if let Some(declared) = declared.filter(|declared| *declared > limit) {
        return Err(Refusal { linger: linger(declared, limit), ..too_large(Some(declared), limit).into() });
    }
    let mut first: Option<Bytes> = None;
    let mut whole = BytesMut::new();
    let mut read = 0_u64;
    loop {
        let next = tokio::time::timeout(limits.silence, payload.next()).await;
        let Some(chunk) = next.map_err(|_| silent(limits.silence))? else { break };
        let chunk = chunk.map_err(|_| broken_off())?;
        read = read.saturating_add(chunk.len() as u64);
        if read > limit {
            return Err(Refusal { linger: DISCARD, ..too_large(None, limit).into() });
        }
        match first.take() {
            None if whole.is_empty() => first = Some(chunk),
            None => whole.extend_from_slice(&chunk),
            Some(earlier) => {
                let room = declared.and_then(|n| usize::try_from(n).ok()).unwrap_or(64 * 1024);
                whole.reserve(room.max(earlier.len() + chunk.len()));
                whole.extend_from_slice(&earlier);
                whole.extend_from_slice(&chunk);
            }
        }
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}

/// What is answered before any of the body is read.
pub(crate) fn unread(request: &HttpRequest, rest: Payload, error: ApiError, limit: u64) -> Refusal {
    Refusal { rest: Some(rest), linger: linger(declared(request).unwrap_or(0), limit), ..error.into() }
}

fn declared(request: &HttpRequest) -> Option<u64> {
    request.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// How long to take in and forget what a client still sends: not what is far beyond the limit.
fn linger(expected: u64, limit: u64) -> Duration {
    if expected > limit.saturating_mul(4) { Duration::ZERO } else { DISCARD }
}

fn too_large(size: Option<u64>, limit: u64) -> ApiError {
    let size = size.map_or_else(|| "more".to_owned(), |size| format!("{size} bytes"));
    ApiError::new(
        ErrorKind::TooLarge,
        "request_too_large",
        format!("the body has {size}; at most {limit} bytes are taken ([gateway] body_limit)"),
    )
}

fn plain(encoding: &[u8]) -> bool {
    encoding.trim_ascii().is_empty() || encoding.trim_ascii().eq_ignore_ascii_case(b"identity")
}

fn encoded(encoding: &str) -> Refusal {
    let message = format!("content-encoding `{encoding}` is not taken: send the body as plain JSON");
    let error = ApiError::new(ErrorKind::InvalidRequest, "unsupported_encoding", message);
    Refusal { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, ..error.into() }
}

fn silent(limit: Duration) -> Refusal {
    let message = format!(
        "nothing of the body came for {}; send the request again ([gateway] body_timeout)",
        berth_config::show_duration(limit)
    );
    let error = ApiError::new(ErrorKind::InvalidRequest, "body_timeout", message);
    Refusal { status: StatusCode::REQUEST_TIMEOUT, ..error.into() }
}

fn broken_off() -> ApiError {
    ApiError::new(ErrorKind::InvalidRequest, "incomplete_body", "the body ended before it was complete")
}
