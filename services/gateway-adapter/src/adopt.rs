//! Asynchronous jobs whose gateway is gone: found by their records, claimed by compare-and-set, and submitted anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use berth_bus::{BusError, NatsOutput};
use berth_wire::{ApiError, AsyncJob, ErrorKind, GatewayId, Job, JobId, JobStatus};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use crate::client::{Client, Start, now};
use crate::demux::publish_cancel;
use crate::later::{self, Store};
use crate::worker::Worker;
use crate::{error, request, send, strip};

/// Between two looks whether gateways are there.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row at which one is not heard before it counts as gone: after a restart of NATS some are back sooner than
/// others.
const GONE: u32 = 3;
/// How often what a claimed job needs is tried.
const TRIES: u32 = 4;
/// A job that has outlived so many gateways may be what ends them.
const MOVES: u32 = 3;

/// Looks after the jobs of gateways that are gone, until this one ends.
pub(crate) async fn watch(worker: Arc<Worker>) {
    while !worker.fleet().draining.load(Ordering::Acquire) {
        let followed = tokio::select! {
            followed = follow(&worker) => followed,
            // The bucket may have been made anew with its server.
            () = worker.bus().reconnected() => Ok(()),
        };
        if let Err(error) = followed {
            debug!(%error, "cannot look after the jobs of other gateways yet");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Jobs that have not ended, with who follows them, and who of those was not heard how often.
#[derive(Default)]
struct Others {
    jobs: HashMap<JobId, GatewayId>,
    silent: HashMap<GatewayId, u32>,
}

impl Others {
    fn take_in(&mut self, key: &str, record: Option<AsyncJob>, own: &str) {
        let Ok(id) = key.parse::<JobId>() else { return };
        match record.filter(|record| !record.status.is_final() && !record.gateway.as_str().starts_with(own)) {
            Some(record) => drop(self.jobs.insert(id, record.gateway)),
            None => drop(self.jobs.remove(&id)),
        }
    }

    /// Jobs whose gateways have not been heard for long enough.
    async fn orphans(&mut self, output: &NatsOutput) -> Vec<JobId> {
        let mut asked: HashMap<GatewayId, u32> = HashMap::new();
        for gateway in self.jobs.values() {
            if !asked.contains_key(gateway) {
                let before = self.silent.get(gateway).copied().unwrap_or(0);
                let count = if output.is_heard(gateway).await { 0 } else { before + 1 };
                asked.insert(gateway.clone(), count);
            }
        }
        self.silent = asked;
        let gone = |gateway: &GatewayId| self.silent.get(gateway).is_some_and(|count| *count >= GONE);
        self.jobs.iter().filter(|(_, gateway)| gone(gateway)).map(|(id, _)| *id).collect()
    }
}

async fn follow(worker: &Arc<Worker>) -> Result<(), BusError> {
    let store = worker.later().await?.clone();
    let own = format!("{}-", worker.fleet().id);
    let output = NatsOutput::new(worker.bus().clone());
    let mut changes = std::pin::pin!(store.watch().await?);
    let mut others = Others::default();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(change) => {
                    let (key, record) = change?;
                    others.take_in(&key, record, &own);
                }
                None => return Ok(()),
            },
            _ = look.tick() => {
                if worker.fleet().draining.load(Ordering::Acquire) {
                    return Ok(());
                }
                for id in others.orphans(&output).await {
                    // On its own: one that ends with this look after its claim would leave a job that nobody follows.
                    let (worker, store) = (Arc::clone(worker), store.clone());
                    let taken = actix_rt::spawn(async move { take_over(&worker, &store, id).await });
                    if let Ok(taken) = taken.await {
                        taken?;
                    }
                }
            }
        }
    }
}

/// Takes one job over, or says why it cannot be; another gateway may be quicker.
async fn take_over(worker: &Arc<Worker>, store: &Store, id: JobId) -> Result<(), BusError> {
    let Some((mut record, revision)) = store.read(id).await? else { return Ok(()) };
    if record.status.is_final() || NatsOutput::new(worker.bus().clone()).is_heard(&record.gateway).await {
        return Ok(());
    }
    if let Some(note) = record.result.clone() {
        // The engine has answered: it is not asked once more, whatever became of its answer.
        let whole = store.results.get(&id.to_string(), note.len).await.is_ok();
        let ended = if whole { Ok(()) } else { Err(lost("ended while it stored the answer")) };
        return settle(worker, store, record, revision, ended).await;
    }
    let Some(kept) = record.kept.filter(|_| record.moves < MOVES) else {
        return settle(worker, store, record, revision, Err(lost("has ended"))).await;
    };
    let Some(seat) = later::seat(worker) else { return Ok(()) };
    let (old, host) = (record.running_as(), record.host.take());
    let run = JobId(uuid::Uuid::now_v7().as_u128());
    let gone = std::mem::replace(&mut record.gateway, worker.id().clone());
    (record.run, record.moves) = (Some(run), record.moves + 1);
    (record.status, record.position, record.eta) = (JobStatus::Queued, 0, None);
    let Some(revision) = store.amend(&record, revision).await? else { return Ok(()) };
    info!(job = %id, %run, gateway = %gone, "took over the job of a gateway that is gone");
    // What is left of it waits or runs for nobody.
    publish_cancel(worker.bus(), old, host, false).await;
    let job = match fetch(worker, &record, kept).await {
        Ok(job) => {
            Job { id: run, gateway: worker.id().clone(), window: worker.fleet().config().window, ..job }
        }
        Err(failed) => {
            debug!(job = %id, error = %failed, "what was kept of a job is gone");
            return settle(worker, store, record, revision, Err(lost("has ended"))).await;
        }
    };
    let (worker, store) = (Arc::clone(worker), store.clone());
    // Not awaited here: a queue that is full would keep the others waiting.
    actix_rt::spawn(async move {
        let (strip, begin_by) = (strips(&job), begin_by(&job));
        match submit(&worker, job, begin_by).await {
            Ok(client) => later::follow(&worker, store, record, revision, client, strip, begin_by, seat),
            // Left as it is, as at any end of a gateway.
            Err(failed) if failed.code == error::SHUTTING_DOWN => {}
            Err(failed) => {
                if let Err(error) = settle(&worker, &store, record, revision, Err(failed)).await {
                    warn!(job = %id, %error, "could not record how a job ended");
                }
            }
        }
    });
    Ok(())
}

/// Records how a job has ended, unless somebody else has.
async fn settle(
    worker: &Worker,
    store: &Store,
    mut record: AsyncJob,
    revision: u64,
    ended: Result<(), ApiError>,
) -> Result<(), BusError> {
    later::conclude(&mut record, ended);
    if insist(async || store.amend(&record, revision).await).await?.is_some() {
        info!(job = %record.id, status = record.status.as_str(), "ended the job of a gateway that is gone");
        later::forget(worker, &record).await;
    }
    Ok(())
}

/// Tries again what failed, since a NATS that is away for a moment must not cost a job.
async fn insist<T>(attempt: impl AsyncFn() -> Result<T, BusError>) -> Result<T, BusError> {
    for _ in 1..TRIES {
        if let Ok(done) = attempt().await {
            return Ok(done);
        }
        tokio::time::sleep(LOOK).await;
    }
    attempt().await
}

/// A job as its first gateway submitted it.
async fn fetch(worker: &Worker, record: &AsyncJob, kept: u64) -> Result<Job, BusError> {
    let name = record.kept_as();
    let bytes: Bytes = insist(async || worker.bodies().await?.get(&name, kept).await).await?;
    Ok(Job::decode(&bytes)?)
}

/// Until when an engine must have begun it.
fn begin_by(job: &Job) -> Instant {
    let left = job
        .deadline
        .map_or(later::LIFE, |deadline| Duration::from_millis(deadline.0.saturating_sub(now().0)));
    Instant::now() + left.min(later::LIFE)
}

/// Whether its client asked for a stream and not for the usage in it.
fn strips(job: &Job) -> bool {
    let berth_wire::Body::Inline(body) = &job.body else { return false };
    let asked = request::look(job.route, body).is_ok_and(|asked| asked.include_usage);
    strip::needed(job.route, job.stream, asked)
}

/// Submits it, as long as there is time: a queue that is full now is not for ever.
async fn submit(worker: &Arc<Worker>, mut job: Job, begin_by: Instant) -> Result<Box<Client>, ApiError> {
    let berth_wire::Body::Inline(body) =
        std::mem::replace(&mut job.body, berth_wire::Body::Inline(Bytes::new()))
    else {
        return Err(lost("has ended"));
    };
    loop {
        let began = Instant::now();
        if began >= begin_by {
            return Err(error::expired(Duration::from_millis(now().0.saturating_sub(job.submitted_at.0))));
        }
        let start = Start {
            job: job.id,
            route: job.route,
            model: Arc::from(job.adapter.as_ref().unwrap_or(&job.model).as_str()),
            base: job.adapter.as_ref().map(|_| job.model.clone()),
            at: began.into_std(),
            // It was let in when it came.
            permit: None,
            request: None,
            trace: job.traceparent.clone().unwrap_or_default(),
            // Of the gateway that took the request.
            span: None,
        };
        match send::send(worker, job.clone(), body.clone(), start).await {
            Ok(mut client) => {
                client.answered(202);
                return Ok(client);
            }
            Err(_) if worker.fleet().draining.load(Ordering::Acquire) => return Err(error::shutting_down()),
            Err(failed) => {
                debug!(job = %job.id, error = %failed, "could not submit a job that was taken over yet");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn lost(what: &str) -> ApiError {
    let message = format!(
        "the gateway that followed this job {what}, and it could not be taken over; send the request again"
    );
    ApiError::new(ErrorKind::Internal, "gateway_lost", message)
}

/// Cancels a job whose gateway is gone, in its place; none: it is there, or has just been taken over.
pub(crate) async fn cancelled(worker: &Worker, record: &AsyncJob) -> Option<AsyncJob> {
    if NatsOutput::new(worker.bus().clone()).is_heard(&record.gateway).await {
        return None;
    }
    let store = worker.later().await.ok()?;
    let (mut record, revision) = store.read(record.id).await.ok()??;
    if !record.status.is_final() {
        let (run, host) = (record.running_as(), record.host.clone());
        later::conclude(&mut record, Err(error::cancelled()));
        store.amend(&record, revision).await.ok()??;
        publish_cancel(worker.bus(), run, host, false).await;
        later::forget(worker, &record).await;
    }
    Some(record)
}
