//! What comes back for a job, as the HTTP answer to its client.

use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use actix_web::{HttpResponse, HttpResponseBuilder};
use berth_telemetry::Chain;
use berth_wire::{ApiError, Head};
use bytes::Bytes;
use tracing::warn;

use crate::answer;
use crate::client::{Client, Next, SILENCE};
use crate::demux::Piece;
use crate::error;
use crate::stream::{EventStream, Pace, is_event_stream};

/// What the answer needs to know of the request.
pub(crate) struct Terms {
    /// When the request was complete.
    pub(crate) at: Instant,
    pub(crate) stream: bool,
    pub(crate) chunks: bool,
    pub(crate) wait: Duration,
    pub(crate) grace: Duration,
    pub(crate) heartbeat: Duration,
}

/// Waits for the engine's status line.
async fn first(client: &mut Client) -> Result<(Head, Option<Bytes>), ApiError> {
    loop {
        match client.next().await {
            Next::Piece(Piece { head: Some(head), data }) => return Ok((head, data)),
            Next::Piece(_) => {}
            Next::End(Err(error)) => return Err(error),
            // The relay does not end well without a status line.
            Next::End(Ok(_)) => return Err(error::lost()),
        }
    }
}

pub(crate) async fn plain(mut client: Client, wait: Duration) -> HttpResponse {
    let deadline = tokio::time::Instant::now() + wait;
    match tokio::time::timeout_at(deadline, first(&mut client)).await {
        Ok(Ok((head, data))) => whole(client, &head, data, deadline).await,
        Ok(Err(error)) => refused(client, &error),
        Err(_) => refused(client, &error::waited(wait)),
    }
}

/// An answer that is no stream, relayed with the engine's own status.
async fn whole(
    mut client: Client,
    head: &Head,
    data: Option<Bytes>,
    deadline: tokio::time::Instant,
) -> HttpResponse {
    let status = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    client.answered(status.as_u16());
    let mut response = HttpResponse::build(status);
    stamp(&mut response, &client);
    let kind = head.content_type.as_deref().and_then(|kind| HeaderValue::from_str(kind).ok());
    response.insert_header((CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/json"))));
    match tokio::time::timeout_at(deadline, answer::read(client, data)).await {
        Ok(Ok(answer)) => response.body(answer),
        Ok(Err(error)) => error::response(&error),
        Err(_) => error::response(&error::waited(Duration::ZERO)),
    }
}

pub(crate) async fn streamed(mut client: Client, terms: &Terms) -> HttpResponse {
    let grace = terms.grace.min(terms.wait).saturating_sub(terms.at.elapsed());
    let pace = Pace { heartbeat: terms.heartbeat, first: terms.wait, silence: SILENCE, chunks: terms.chunks };
    match tokio::time::timeout(grace, first(&mut client)).await {
        Ok(Ok((head, data))) if is_event_stream(&head) => {
            let mut response = events(&mut client);
            if let Some(kind) = head.content_type.as_deref().and_then(|kind| HeaderValue::from_str(kind).ok())
            {
                response.insert_header((CONTENT_TYPE, kind));
            }
            response.body(EventStream::begun(client, pace, data))
        }
        Ok(Ok((head, data))) => {
            let deadline = tokio::time::Instant::now() + terms.wait;
            whole(client, &head, data, deadline).await
        }
        Ok(Err(error)) => refused(client, &error),
        // The client must hear something now, so the status can no longer be the engine's.
        Err(_) => events(&mut client).body(EventStream::waiting(client, pace, terms.at.elapsed())),
    }
}

fn events(client: &mut Client) -> HttpResponseBuilder {
    client.answered(200);
    let mut response = HttpResponse::Ok();
    stamp(&mut response, client);
    response.insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"));
    response.insert_header((CACHE_CONTROL, "no-cache"));
    response.insert_header(("x-accel-buffering", "no"));
    response
}

/// An error as the whole answer to a job.
fn refused(mut client: Client, error: &ApiError) -> HttpResponse {
    client.answered(error.kind.status());
    if error.kind.status() >= 500 {
        warn!(job = %client.job(), model = client.model(), error = %Chain(error), "a job failed");
    }
    let mut built = HttpResponse::Ok();
    stamp(&mut built, &client);
    let mut response = error::response(error);
    for (name, value) in built.finish().headers() {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    response
}

/// What is known of the job so far.
fn stamp(response: &mut HttpResponseBuilder, client: &Client) {
    let progress = client.progress();
    response.insert_header(("x-berth-job", client.job().to_string()));
    if let Ok(model) = HeaderValue::from_str(client.model()) {
        response.insert_header(("x-berth-model", model));
    }
    response.insert_header(("x-berth-attempts", progress.attempts));
    response.insert_header(("x-berth-lane", progress.lane.as_str()));
    if let Some(serving) = progress.serving {
        response.insert_header(("x-berth-host", serving.host.as_str()));
    }
    if let Some(queued) = client.queued() {
        let ms = u64::try_from(queued.as_millis()).unwrap_or(u64::MAX);
        response.insert_header(("x-berth-queue-ms", ms));
    }
}
