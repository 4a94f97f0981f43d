//! The request body, whole and as it came, within the limit.

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::Payload;
use berth_wire::{ApiError, ErrorKind};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

/// How long a client may go on sending a body that is refused, so that it reads our answer instead of a reset.
const DISCARD: Duration = Duration::from_secs(10);

/// Reads the body; one that came in one piece is not copied.
pub(crate) async fn read(request: &HttpRequest, mut payload: Payload, limit: u64) -> Result<Bytes, ApiError> {
    let declared = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if let Some(declared) = declared.filter(|declared| *declared > limit) {
        discard(payload, declared, limit).await;
        return Err(too_large(Some(declared), limit));
    }
    let mut first: Option<Bytes> = None;
    let mut whole = BytesMut::new();
    let mut read = 0_u64;
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| broken_off())?;
        read = read.saturating_add(chunk.len() as u64);
        if read > limit {
            discard(payload, read, limit).await;
            return Err(too_large(None, limit));
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

/// Takes in and forgets what a client still sends, up to the limit once more and for a bounded time.
async fn discard(mut payload: Payload, expected: u64, limit: u64) {
    if expected > limit.saturating_mul(4) {
        return;
    }
    let rest = async { while let Some(Ok(_)) = payload.next().await {} };
    let _ = tokio::time::timeout(DISCARD, rest).await;
}

fn too_large(size: Option<u64>, limit: u64) -> ApiError {
    let size = size.map_or_else(|| "more".to_owned(), |size| format!("{size} bytes"));
    ApiError::new(
        ErrorKind::TooLarge,
        "request_too_large",
        format!("the body has {size}; at most {limit} bytes are taken ([gateway] body_limit)"),
    )
}

fn broken_off() -> ApiError {
    ApiError::new(ErrorKind::InvalidRequest, "incomplete_body", "the body ended before it was complete")
}
