//! The ways that a request may take to its answer: waited for by its client, kept for its retry, done once for a key, or
//! fetched later.

use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::HeaderMap;
use berth_config::GatewayConfig;
use berth_wire::{ApiError, Job};
use bytes::Bytes;

use crate::answer::Reading;
use crate::client::Start;
use crate::error::Refusal;
use crate::patience::{self, Patience};
use crate::respond::{self, Terms};
use crate::shelf::Fingerprint;
use crate::worker::Worker;
use crate::{later, ledger, send};

/// A request that is about to become a job.
pub(crate) struct Order {
    /// Its body is beside it.
    pub(crate) job: Job,
    pub(crate) body: Bytes,
    pub(crate) start: Start,
    pub(crate) terms: Terms,
    pub(crate) wish: Wish,
}

/// What a client wants beside its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Nothing.
    Answer,
    /// Its SDK asks again by itself; it has done so this often.
    Again(u32),
    /// That it is done once for this key.
    Once(String),
    /// To come back for it.
    Later,
}

impl Wish {
    /// As the headers say it.
    pub(crate) fn of(headers: &HeaderMap, stream: bool) -> Result<Self, ApiError> {
        let retries = patience::retries(headers);
        let key = patience::idempotency_key(headers)?.filter(|_| !stream);
        Ok(match (key, retries) {
            // A preference need not be followed: a job of its own for each repeat would break the promise of the key.
            (Some(key), _) => Self::Once(key),
            _ if patience::prefers_async(headers) => Self::Later,
            // A stream that breaks off is over: its client has seen some of it.
            (None, Some(retries)) if !stream => Self::Again(retries),
            (None, _) => Self::Answer,
        })
    }

    /// How long a job may wait for its answer to begin.
    pub(crate) fn life(&self, patience: Patience, config: &GatewayConfig) -> Duration {
        match (patience.deadline, self) {
            (deadline, Self::Later) => deadline.map_or(later::LIFE, |deadline| deadline.min(later::LIFE)),
            (Some(deadline), _) => deadline,
            (None, Self::Answer) => patience.wait,
            // The job may be waited for by several requests one after the other.
            (None, Self::Again(_) | Self::Once(_)) => patience.wait.max(config.stream_wait_limit),
        }
    }
}

/// Answers a request. What is done before the wait, or instead of it, takes no memory while a client waits.
pub(crate) async fn run(worker: &Arc<Worker>, order: Box<Order>) -> Result<HttpResponse, Refusal> {
    if let Wish::Once(key) = &order.wish {
        let key = key.clone();
        return Box::pin(ledger::answer(worker, *order, key)).await;
    }
    if order.wish == Wish::Later {
        return Box::pin(later::accept(worker, *order)).await;
    }
    let Order { job, body, start, terms, wish } = *order;
    match wish {
        Wish::Answer | Wish::Once(_) | Wish::Later => {
            let client = Box::pin(send::send(worker, job, body, start)).await?;
            if terms.stream {
                return Ok(respond::streamed(client, &terms).await);
            }
            Ok(respond::plain(Reading::new(client), terms.patience, None).await)
        }
        Wish::Again(retries) => {
            let fingerprint = Fingerprint::of(&job, &body);
            let shelf = &worker.fleet().shelf;
            let kept = if retries > 0 { shelf.take(&fingerprint) } else { None };
            let reading = match kept {
                Some(reading) => reading,
                None => Reading::new(Box::pin(send::send(worker, job, body, start)).await?),
            };
            Ok(respond::plain(reading, terms.patience, Some((shelf, fingerprint))).await)
        }
    }
}
