//! A job's way out: known to the demux, its body beside it or in the object store, and to a host that has a slot or into the queue.

use std::sync::Arc;

use berth_wire::{ApiError, Body, Job};
use bytes::Bytes;
use tracing::debug;

use crate::client::{Client, Start};
use crate::demux::Express;
use crate::error;
use crate::lanes::Pick;
use crate::worker::Worker;

/// What a job's other fields may add to its message.
const HEADROOM: usize = 8 * 1024;

/// Sends `job` with `body`; what comes for it is heard from then on.
pub(crate) async fn send(
    worker: &Arc<Worker>,
    mut job: Job,
    body: Bytes,
    start: Start,
) -> Result<Box<Client>, ApiError> {
    let inline = worker.fleet().config().inline_limit;
    let limit = worker.bus().client.max_payload();
    if body.len() as u64 <= inline && body.len().saturating_add(HEADROOM) <= limit {
        job.body = Body::Inline(body);
        return match worker.fleet().lanes.pick(&job.model) {
            Some(pick) => offer(worker, &job, start, pick).await,
            None => {
                let client = Client::register(Arc::clone(worker), start, job.window, None).await;
                submit(worker, &job, client.ok_or_else(error::lost)?).await
            }
        };
    }
    let client = Client::register(Arc::clone(worker), start, job.window, None).await;
    let mut client = client.ok_or_else(error::lost)?;
    job.body = claim(worker, &mut client, body).await?;
    submit(worker, &job, client).await
}

/// Offers the job straight to a host. Whatever comes of that is heard by the demux, which submits it if need be.
async fn offer(worker: &Arc<Worker>, job: &Job, start: Start, pick: Pick) -> Result<Box<Client>, ApiError> {
    let (host, engine) = (pick.host.clone(), pick.engine);
    let payload = Bytes::from(job.encode().map_err(|e| error::not_submitted(&e.into()))?);
    let express = Express { pick, payload: payload.clone() };
    let client = Client::register(Arc::clone(worker), start, job.window, Some(express)).await;
    let mut client = client.ok_or_else(error::lost)?;
    client.submitting();
    if let Err(failed) = worker.bus().offer(&host, engine, worker.id(), job.id, payload).await {
        // It is found unanswered.
        debug!(job = %job.id, error = %failed, "could not offer a job");
    }
    Ok(client)
}

/// Puts the job into the queue.
async fn submit(worker: &Arc<Worker>, job: &Job, mut client: Box<Client>) -> Result<Box<Client>, ApiError> {
    client.submitting();
    worker.bus().submit(job).await.map_err(|failed| {
        if !matches!(failed, berth_bus::BusError::TimedOut { .. }) {
            client.not_submitted();
        }
        let error = error::not_submitted(&failed);
        client.answered(error.kind.status());
        error
    })?;
    debug!(job = %job.id, model = %job.model, route = job.route.path(), stream = job.stream, "job submitted");
    Ok(client)
}

/// A large body, in the object store.
async fn claim(worker: &Worker, client: &mut Client, body: Bytes) -> Result<Body, ApiError> {
    let len = body.len() as u64;
    let object = client.job().to_string();
    let bodies = worker.bodies().await.map_err(|e| error::not_submitted(&e))?;
    // Before it is stored, so that a client that leaves meanwhile leaves nothing behind.
    client.claims(bodies.clone(), object.clone());
    bodies.put(&object, &body).await.map_err(|e| error::not_submitted(&e))?;
    Ok(Body::Claim { object, len })
}
