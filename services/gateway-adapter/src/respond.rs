//! What comes back for a job, as the HTTP answer to its client.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use actix_web::body::SizedStream;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use actix_web::{HttpResponse, HttpResponseBuilder};
use berth_telemetry::Chain;
use berth_wire::{ApiError, ErrorKind, Head};
use tracing::{info, warn};

use crate::answer::Reading;
use crate::client::{Client, Next, SILENCE};
use crate::patience::Patience;
use crate::shelf::{Fingerprint, Shelf};
use crate::stream::{EventStream, Pace, is_event_stream};
use crate::{engine_errors, error};

// Made once: a name is looked up in a table of those that are standard.
const X_BERTH_JOB: HeaderName = HeaderName::from_static("x-berth-job");
const X_BERTH_MODEL: HeaderName = HeaderName::from_static("x-berth-model");
const X_BERTH_ROUTE: HeaderName = HeaderName::from_static("x-berth-route");
const X_BERTH_ATTEMPTS: HeaderName = HeaderName::from_static("x-berth-attempts");
const X_BERTH_LANE: HeaderName = HeaderName::from_static("x-berth-lane");
const X_BERTH_HOST: HeaderName = HeaderName::from_static("x-berth-host");
const X_BERTH_QUEUE_MS: HeaderName = HeaderName::from_static("x-berth-queue-ms");
const X_BERTH_LOAD_MS: HeaderName = HeaderName::from_static("x-berth-load-ms");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What the answer needs to know of the request.
pub(crate) struct Terms {
    /// When the request was complete.
    pub(crate) at: Instant,
    pub(crate) stream: bool,
    pub(crate) chunks: bool,
    /// Chunks that tell only usage are not for this client.
    pub(crate) strip: bool,
    pub(crate) patience: Patience,
    pub(crate) grace: Duration,
    pub(crate) heartbeat: Duration,
}

/// Waits for the engine's status line.
async fn first(reading: &mut Reading) -> Result<Head, ApiError> {
    loop {
        if let Some(head) = &reading.head {
            return Ok(head.clone());
        }
        match reading.client.next().await {
            Next::Piece(piece) => reading.take(piece),
            Next::End(Err(error)) => return Err(error),
            // The relay does not end well without a status line.
            Next::End(Ok(_)) => return Err(error::lost()),
        }
    }
}

/// The whole answer. Of a client whose SDK asks again by itself, the job is kept on the `shelf` for that when the wait is
/// over.
pub(crate) async fn plain(
    reading: Reading,
    patience: Patience,
    shelf: Option<(&Shelf, Fingerprint)>,
) -> HttpResponse {
    match whole(reading, patience.wait).await {
        Ok(response) => response,
        Err((mut reading, None)) => match shelf.filter(|_| !patience.is_final()) {
            None => refused(&mut reading.client, &patience.over()),
            Some((shelf, fingerprint)) => {
                let error = error::kept(patience.wait, shelf.grace);
                let response = refused(&mut reading.client, &error);
                shelf.keep(fingerprint, reading);
                response
            }
        },
        Err((mut reading, Some(error))) => refused(&mut reading.client, &patience.said(error)),
    }
}

/// An answer that is no stream, relayed with the engine's own status; else what there is of it, with its error unless
/// only the time is over.
async fn whole(mut reading: Reading, wait: Duration) -> Result<HttpResponse, (Reading, Option<ApiError>)> {
    let read = async {
        let head = first(&mut reading).await?;
        if head.flows() && !engine_errors::is_one(reading.client.route(), &head) {
            reading.flow()?;
        } else {
            reading.read().await?;
        }
        Ok(head)
    };
    let head = match tokio::time::timeout(wait, read).await {
        Ok(Ok(head)) => head,
        Ok(Err(error)) => return Err((reading, Some(error))),
        Err(_) => return Err((reading, None)),
    };
    let head = reading.reword(head);
    let mut response = answer(&head);
    reading.client.answered(head.status);
    stamp(&mut response, &reading.client);
    if let Some(length) = head.length {
        // To HEAD: there is no body, and its length is told.
        return Ok(response.body(SizedStream::new(length, futures::stream::empty::<Result<_, Infallible>>())));
    }
    Ok(response.body(reading.body()))
}

/// An answer with the engine's own status and content type.
pub(crate) fn answer(head: &Head) -> HttpResponseBuilder {
    let status = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = HttpResponse::build(status);
    response
        .insert_header((CONTENT_TYPE, kind(head).unwrap_or(HeaderValue::from_static("application/json"))));
    response
}

fn kind(head: &Head) -> Option<HeaderValue> {
    head.content_type.as_deref().and_then(|kind| HeaderValue::from_str(kind).ok())
}

pub(crate) async fn streamed(client: Box<Client>, terms: &Terms) -> HttpResponse {
    let wait = terms.patience.wait;
    let grace = terms.grace.min(wait).saturating_sub(terms.at.elapsed());
    let pace = Pace {
        heartbeat: terms.heartbeat,
        first: terms.patience,
        silence: SILENCE,
        chunks: terms.chunks,
        strip: terms.strip,
    };
    let mut reading = Reading::new(client);
    match tokio::time::timeout(grace, first(&mut reading)).await {
        Ok(Ok(head)) if is_event_stream(&head) => {
            let mut response = events(&mut reading.client);
            if let Some(kind) = kind(&head) {
                response.insert_header((CONTENT_TYPE, kind));
            }
            response.body(EventStream::begun(reading, pace))
        }
        Ok(Ok(_)) => plain(reading, terms.patience, None).await,
        Ok(Err(error)) => refused(&mut reading.client, &terms.patience.said(error)),
        // The client's patience was shorter than the grace: it still gets a real status.
        Err(_) if wait <= terms.grace => refused(&mut reading.client, &terms.patience.over()),
        // The client must hear something now, so the status can no longer be the engine's.
        Err(_) => events(&mut reading.client).body(EventStream::waiting(reading, pace, terms.at.elapsed())),
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
fn refused(client: &mut Client, error: &ApiError) -> HttpResponse {
    client.answered(error.kind.status());
    let (job, model) = (client.job(), client.model());
    if error.code == error::WAIT_LIMIT || error.kind == ErrorKind::Expired {
        info!(%job, model, error = %error, "a client has waited in vain");
    } else if error.kind.status() >= 500 {
        warn!(%job, model, error = %Chain(error), "a job failed");
    }
    let mut built = HttpResponse::Ok();
    stamp(&mut built, client);
    let mut response = error::response(error);
    for (name, value) in built.finish().headers() {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    response
}

/// What is known of the job so far.
fn stamp(response: &mut HttpResponseBuilder, client: &Client) {
    for stamp in stamps(client) {
        response.insert_header(stamp);
    }
}

/// The same as headers, to be kept.
pub(crate) fn stamps(client: &Client) -> Vec<(HeaderName, HeaderValue)> {
    let progress = client.progress();
    let millis = |span: Duration| HeaderValue::from(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    let text = |text: &str| HeaderValue::from_str(text).ok();
    let load = progress.serving.as_ref().map(|serving| millis(serving.load));
    let host = progress.serving.as_ref().and_then(|serving| text(serving.host.as_str()));
    [
        (X_BERTH_JOB, text(&client.job().to_string())),
        (X_BERTH_MODEL, text(client.model())),
        (X_BERTH_ROUTE, text(client.route().path())),
        (X_BERTH_ATTEMPTS, Some(progress.attempts.into())),
        (X_BERTH_LANE, Some(HeaderValue::from_static(progress.lane.as_str()))),
        (X_BERTH_HOST, host),
        (X_BERTH_QUEUE_MS, client.queued().map(millis)),
        (X_BERTH_LOAD_MS, load),
        (TRACEPARENT, text(client.trace())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}
