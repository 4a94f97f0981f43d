//! A job's way out: known to the demux, its body beside it or in the object store, and into the queue.

use std::sync::Arc;

use berth_wire::{ApiError, Body, Job};
use bytes::Bytes;
use tracing::debug;

use crate::client::{Client, Start};
use crate::error;
use crate::worker::Worker;

/// What a job's other fields may add to its message.
const HEADROOM: usize = 8 * 1024;

/// Sends `job` with `body`; what comes for it is heard from then on.
pub(crate) async fn send(
    worker: &Arc<Worker>,
    mut job: Job,
    body: Bytes,
    start: Start,
) -> Result<Client, ApiError> {
    let mut client = Client::register(Arc::clone(worker), start, job.window).await.ok_or_else(error::lost)?;
    job.body = place(worker, &mut client, body, worker.fleet().config().inline_limit).await?;
    client.submitting();
    worker.bus().submit(&job).await.map_err(|failed| {
        if !matches!(failed, berth_bus::BusError::TimedOut { .. }) {
            client.not_submitted();
        }
        error::not_submitted(&failed)
    })?;
    debug!(job = %job.id, model = %job.model, route = job.route.path(), stream = job.stream, "job submitted");
    Ok(client)
}

/// The body beside the job, or in the object store when it is large.
async fn place(worker: &Worker, client: &mut Client, body: Bytes, inline: u64) -> Result<Body, ApiError> {
    let len = body.len() as u64;
    if len <= inline && body.len().saturating_add(HEADROOM) <= worker.bus().client.max_payload() {
        return Ok(Body::Inline(body));
    }
    let object = client.job().to_string();
    let bodies = worker.bodies().await.map_err(|e| error::not_submitted(&e))?;
    // Before it is stored, so that a client that leaves meanwhile leaves nothing behind.
    client.claims(bodies.clone(), object.clone());
    bodies.put(&object, &body).await.map_err(|e| error::not_submitted(&e))?;
    Ok(Body::Claim { object, len })
}
