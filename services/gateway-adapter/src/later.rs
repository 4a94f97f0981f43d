//! Jobs that a client comes back for (`Prefer: respond-async`): followed by the gateway that took them, recorded so that
//! any gateway can tell of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::{LOCATION, RETRY_AFTER};
use async_nats::jetstream::kv;
use berth_bus::{Bodies, Bus, BusError, amend_json, get_json, put_json};
use berth_telemetry::Chain;
use berth_wire::{ApiError, AsyncJob, ErrorKind, JobId, JobStatus, ResultNote, Stage};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::client::{Client, now};
use crate::course::Order;
use crate::demux::Progress;
use crate::error::{self, Refusal};
use crate::pursuit::{self, Outcome, Room};
use crate::send;
use crate::worker::Worker;

/// Jobs that one gateway follows at once.
const MOST: usize = 256;
/// Bytes of answers that are read at once, before they are stored.
const ROOM: u64 = 256 << 20;
/// A job, with its result, takes no longer: its body is kept for so long.
pub(crate) const LIFE: Duration = Duration::from_secs(3600);
/// The record follows the job's progress no faster.
const PACE: Duration = Duration::from_secs(1);

/// The records and results, wherever their jobs ran.
#[derive(Clone)]
pub(crate) struct Store {
    records: kv::Store,
    pub(crate) results: Bodies,
}

impl Store {
    pub(crate) async fn open(bus: &Bus) -> Result<Self, BusError> {
        Ok(Self { records: bus.bucket("async_jobs").await?, results: Bodies::results(bus).await? })
    }

    async fn write(&self, record: &AsyncJob) -> Result<(), BusError> {
        put_json(&self.records, &record.id.to_string(), record).await.map(drop)
    }

    /// The record of a job, with its revision.
    pub(crate) async fn read(&self, id: JobId) -> Result<Option<(AsyncJob, u64)>, BusError> {
        get_json(&self.records, &id.to_string()).await
    }

    /// Writes a record unless it has changed since.
    pub(crate) async fn amend(&self, record: &AsyncJob, revision: u64) -> Result<bool, BusError> {
        amend_json(&self.records, &record.id.to_string(), record, revision).await
    }
}

/// A job that is followed here.
pub(crate) struct Live {
    record: Mutex<AsyncJob>,
    progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
    /// Its end is recorded.
    ended: CancellationToken,
}

impl Live {
    /// How it is now.
    pub(crate) fn record(&self) -> AsyncJob {
        let progress = self.progress.borrow().clone();
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        if !record.status.is_final() {
            note(&mut record, &progress);
        }
        record.clone()
    }

    /// Cancels it and waits until that is recorded.
    pub(crate) async fn cancel(&self) {
        self.cancel.cancel();
        self.ended.cancelled().await;
    }
}

/// All that are followed here.
pub(crate) struct Later {
    live: Mutex<HashMap<JobId, Arc<Live>>>,
    seats: Arc<Semaphore>,
    room: Arc<Room>,
}

impl Default for Later {
    fn default() -> Self {
        Self { live: Mutex::default(), seats: Arc::new(Semaphore::new(MOST)), room: Room::new(ROOM) }
    }
}

impl Later {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<JobId, Arc<Live>>) -> T) -> T {
        act(&mut self.live.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A job that is followed here.
    pub(crate) fn get(&self, id: JobId) -> Option<Arc<Live>> {
        self.with(|live| live.get(&id).cloned())
    }
}

fn note(record: &mut AsyncJob, progress: &Progress) {
    record.status = match progress.stage {
        Stage::Queued => JobStatus::Queued,
        Stage::Loading => JobStatus::Loading,
        Stage::Running => JobStatus::Running,
    };
    record.position = progress.position;
    record.eta = progress.eta;
    record.attempts = progress.attempts;
    if let Some(serving) = &progress.serving {
        record.host = Some(serving.host.clone());
        let ago = u64::try_from(serving.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Told once for each attempt, so that it does not waver.
        let began = now().0.saturating_sub(ago);
        if record.began_at.is_none_or(|known| known.0.abs_diff(began) > 1000) {
            record.began_at = Some(berth_wire::Timestamp(began));
        }
    }
}

/// Takes a job, and answers where to ask for it.
pub(crate) async fn accept(worker: &Arc<Worker>, order: Order) -> Result<HttpResponse, Refusal> {
    let Order { job, body, start, terms, .. } = order;
    let later = &worker.fleet().later;
    let seat = Arc::clone(&later.seats).try_acquire_owned().map_err(|_| too_many())?;
    let store = worker.later().await.map_err(|e| error::not_submitted(&e))?.clone();
    let record = AsyncJob {
        id: job.id,
        model: job.model.clone(),
        route: job.route,
        gateway: job.gateway.clone(),
        key: job.key.clone(),
        status: JobStatus::Queued,
        position: 0,
        eta: None,
        submitted_at: job.submitted_at,
        began_at: None,
        ended_at: None,
        attempts: 0,
        host: None,
        result: None,
        usage: berth_wire::Usage::default(),
        error: None,
    };
    let begin_by = Instant::now() + terms.patience.deadline.unwrap_or(LIFE).min(LIFE);
    let mut client = send::send(worker, job, body, start).await?;
    client.answered(202);
    // Before the client hears of it: any gateway may be asked next.
    store.write(&record).await.map_err(|e| error::not_submitted(&e))?;
    let live = Arc::new(Live {
        record: Mutex::new(record.clone()),
        progress: client.follow(),
        cancel: CancellationToken::new(),
        ended: CancellationToken::new(),
    });
    later.with(|all| all.insert(record.id, Arc::clone(&live)));
    let follower = Follower { worker: Arc::clone(worker), live, store, strip: terms.strip, _seat: seat };
    actix_rt::spawn(follower.follow(client, begin_by));
    Ok(accepted(&record))
}

/// 202 with where to ask.
pub(crate) fn accepted(record: &AsyncJob) -> HttpResponse {
    let mut response = HttpResponse::Accepted();
    response.insert_header((LOCATION, format!("/api/v1/jobs/{}", record.id)));
    response.insert_header(("preference-applied", "respond-async"));
    response.insert_header((RETRY_AFTER, wait_of(record)));
    response.insert_header(("x-berth-job", record.id.to_string()));
    response.json(crate::jobs::Shown::of(record))
}

/// Seconds after which asking again may tell more.
pub(crate) fn wait_of(record: &AsyncJob) -> u64 {
    record.eta.map_or(2, |eta| eta.as_secs().clamp(1, 60))
}

fn too_many() -> ApiError {
    let message = format!("this gateway follows {MOST} asynchronous jobs already; try again in a moment");
    ApiError::new(ErrorKind::Overloaded, "too_many_async_jobs", message).retry_after(Duration::from_secs(5))
}

struct Follower {
    worker: Arc<Worker>,
    live: Arc<Live>,
    store: Store,
    strip: bool,
    _seat: OwnedSemaphorePermit,
}

impl Follower {
    async fn follow(self, client: Box<Client>, begin_by: Instant) {
        // The gateway ends after the record says how.
        let _running = self.worker.fleet().count();
        let outcome = self.outcome(client, begin_by).await;
        let mut record = self.live.record();
        self.conclude(&mut record, outcome).await;
        *self.live.record.lock().unwrap_or_else(PoisonError::into_inner) = record.clone();
        let mut tries = 0;
        while let Err(error) = self.store.write(&record).await {
            tries += 1;
            if tries == 10 {
                warn!(job = %record.id, error = %Chain(&error), "could not record how a job ended");
                break;
            }
            tokio::time::sleep(PACE).await;
        }
        debug!(job = %record.id, status = record.status.as_str(), "an asynchronous job has ended");
        self.worker.fleet().later.with(|all| all.remove(&record.id));
        self.live.ended.cancel();
    }

    async fn outcome(&self, client: Box<Client>, begin_by: Instant) -> Outcome {
        let id = client.job();
        let bus = self.worker.bus();
        // Other gateways cancel it there, where the scheduler hears it too.
        let mut cancels = bus.subscribe(bus.subjects.cancel(id)).await.ok();
        let heard = async {
            match &mut cancels {
                Some(cancels) => drop(cancels.next().await),
                None => std::future::pending().await,
            }
        };
        tokio::pin!(heard);
        let room = Arc::clone(&self.worker.fleet().later.room);
        let mut progress = client.follow();
        let submitted = Instant::now();
        let end_by = submitted + LIFE;
        // Dropped before its end, it cancels the job.
        let mut course = Box::pin(pursuit::collect(client, self.strip, room));
        // The first change is recorded at once.
        let mut written = Instant::now().checked_sub(PACE).unwrap_or_else(Instant::now);
        let mut changed = false;
        loop {
            let begun = progress.borrow().serving.is_some();
            tokio::select! {
                biased;
                outcome = &mut course => return outcome,
                () = self.live.cancel.cancelled() => return Err(error::cancelled()),
                () = &mut heard => return Err(error::cancelled()),
                () = tokio::time::sleep_until(if begun { end_by } else { begin_by }) => {
                    return Err(error::expired(submitted.elapsed()));
                }
                Ok(()) = progress.changed() => changed = true,
                () = tokio::time::sleep_until(written + PACE), if changed => {
                    (written, changed) = (Instant::now(), false);
                    self.write_progress().await;
                }
            }
        }
    }

    async fn write_progress(&self) {
        if let Err(error) = self.store.write(&self.live.record()).await {
            debug!(%error, "could not record how far a job is");
        }
    }

    async fn conclude(&self, record: &mut AsyncJob, outcome: Outcome) {
        let ended = match outcome {
            Ok(answered) => {
                let note = ResultNote {
                    status: answered.head.status,
                    content_type: answered.head.content_type.clone(),
                    len: answered.body.len() as u64,
                };
                record.usage = answered.usage;
                match self.store.results.put(&record.id.to_string(), &answered.body).await {
                    Ok(()) => {
                        record.status =
                            if note.status < 400 { JobStatus::Completed } else { JobStatus::Failed };
                        record.result = Some(note);
                        Ok(())
                    }
                    Err(failed) => {
                        warn!(job = %record.id, error = %Chain(&failed), "could not store a result");
                        Err(not_stored())
                    }
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            record.status = match error.kind {
                ErrorKind::Expired => JobStatus::Expired,
                _ if error.code == error::CANCELLED => JobStatus::Cancelled,
                _ => JobStatus::Failed,
            };
            record.error = Some(error);
        }
        (record.position, record.eta) = (0, None);
        record.ended_at = Some(now());
    }
}

fn not_stored() -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "result_not_stored",
        "the answer could not be stored (is the object store `berth_results` full?); send the request again",
    )
}

/// The gateway that followed a job is gone, and the job with it.
pub(crate) fn orphaned(record: &mut AsyncJob) {
    record.status = JobStatus::Failed;
    record.ended_at = Some(now());
    record.error = Some(ApiError::new(
        ErrorKind::Internal,
        "gateway_lost",
        "the gateway that followed this job has ended; send the request again",
    ));
}
