//! Jobs that a client comes back for (`Prefer: respond-async`): followed by the gateway that took them, recorded so that
//! any gateway can tell of them, and kept so that another can take them over (`adopt`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::{LOCATION, RETRY_AFTER};
use async_nats::jetstream::kv;
use berth_bus::{Bodies, Bus, BusError, amend_json, get_json, put_json, watch_json};
use berth_telemetry::Chain;
use berth_wire::{ApiError, AsyncJob, Body, ErrorKind, Job, JobId, JobStatus, ResultNote, Stage, Usage};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::client::{Client, now};
use crate::course::Order;
use crate::demux;
use crate::error::{self, Refusal};
use crate::flow::{Flow, Lane, Progress};
use crate::pursuit::{self, Outcome, Room};
use crate::send;
use crate::worker::Worker;

/// Jobs that one gateway follows at once.
const MOST: usize = 256;
/// Bytes of answers that are read at once, before they are stored.
const ROOM: u64 = 256 << 20;
/// A job, with its result, takes no longer: its body is kept for so long.
pub(crate) const LIFE: Duration = Duration::from_secs(3600);
/// How long the last frame of a job that is given up may take.
const LAST_WORD: Duration = Duration::from_secs(2);
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

    /// Writes the record of a new job; its revision.
    async fn write(&self, record: &AsyncJob) -> Result<u64, BusError> {
        put_json(&self.records, &record.id.to_string(), record).await
    }

    /// Every record as it is and as it changes.
    pub(crate) async fn watch(
        &self,
    ) -> Result<impl futures::Stream<Item = Result<(String, Option<AsyncJob>), BusError>> + use<>, BusError>
    {
        watch_json(&self.records).await
    }

    /// The record of a job, with its revision.
    pub(crate) async fn read(&self, id: JobId) -> Result<Option<(AsyncJob, u64)>, BusError> {
        get_json(&self.records, &id.to_string()).await
    }

    /// Writes a record unless it has changed since; its new revision.
    pub(crate) async fn amend(&self, record: &AsyncJob, revision: u64) -> Result<Option<u64>, BusError> {
        amend_json(&self.records, &record.id.to_string(), record, revision).await
    }
}

/// A job that is followed here.
pub(crate) struct Live {
    record: Mutex<AsyncJob>,
    /// Attempts begun at gateways before this one.
    before: u32,
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
            note(&mut record, &progress, self.before);
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

fn note(record: &mut AsyncJob, progress: &Progress, before: u32) {
    record.status = match progress.stage {
        Stage::Queued => JobStatus::Queued,
        Stage::Loading => JobStatus::Loading,
        Stage::Running => JobStatus::Running,
    };
    record.position = progress.position;
    record.eta = progress.eta_s().map(Duration::from_secs);
    record.attempts = before + progress.attempts;
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

/// A place among the jobs that one gateway follows.
pub(crate) fn seat(worker: &Worker) -> Option<OwnedSemaphorePermit> {
    Arc::clone(&worker.fleet().later.seats).try_acquire_owned().ok()
}

/// Takes a job, and answers where to ask for it.
pub(crate) async fn accept(worker: &Arc<Worker>, order: Order) -> Result<HttpResponse, Refusal> {
    let Order { mut job, body, start, terms, .. } = order;
    let seat = seat(worker).ok_or_else(too_many)?;
    let store = worker.later().await.map_err(|e| error::not_submitted(&e))?.clone();
    let mut record = AsyncJob {
        id: job.id,
        model: job.adapter.as_ref().unwrap_or(&job.model).clone(),
        route: job.route,
        gateway: job.gateway.clone(),
        run: None,
        moves: 0,
        kept: None,
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
        usage: Usage::default(),
        error: None,
    };
    let begin_by = Instant::now() + terms.patience.deadline.unwrap_or(LIFE).min(LIFE);
    // Kept first: from the moment at which the client knows of the job, any gateway can make it anew.
    job.body = Body::Inline(body.clone());
    let kept = keep(worker, &record.kept_as(), &job).await.map_err(|e| error::not_submitted(&e))?;
    record.kept = Some(kept);
    let sent = async {
        let mut client = send::send(worker, job, body, start).await?;
        client.answered(202);
        // Before the client hears of it: any gateway may be asked next.
        let revision = store.write(&record).await.map_err(|e| error::not_submitted(&e))?;
        Ok::<_, ApiError>((client, revision))
    };
    match sent.await {
        Ok((client, revision)) => {
            let accepted = accepted(&record);
            follow(worker, store, record, revision, client, terms.strip, begin_by, seat);
            Ok(accepted)
        }
        Err(error) => {
            forget(worker, &record).await;
            Err(error.into())
        }
    }
}

/// Keeps a job with its body, so that another gateway can submit it; its size.
async fn keep(worker: &Worker, name: &str, job: &Job) -> Result<u64, BusError> {
    let job = Bytes::from(job.encode()?);
    worker.bodies().await?.put(name, &job).await?;
    Ok(job.len() as u64)
}

/// What was kept of a job is not needed any more.
pub(crate) async fn forget(worker: &Worker, record: &AsyncJob) {
    if record.kept.is_some()
        && let Ok(bodies) = worker.bodies().await
    {
        bodies.delete(&record.kept_as()).await;
    }
}

/// Follows a job that is submitted and whose record has this revision.
#[expect(clippy::too_many_arguments, reason = "one place each to take a job and to take it over")]
pub(crate) fn follow(
    worker: &Arc<Worker>,
    store: Store,
    record: AsyncJob,
    revision: u64,
    client: Box<Client>,
    strip: bool,
    begin_by: Instant,
    seat: OwnedSemaphorePermit,
) {
    let live = Arc::new(Live {
        before: record.attempts,
        progress: client.follow(),
        cancel: CancellationToken::new(),
        ended: CancellationToken::new(),
        record: Mutex::new(record),
    });
    let id = live.record().id;
    worker.fleet().later.with(|all| all.insert(id, Arc::clone(&live)));
    let follower = Follower {
        worker: Arc::clone(worker),
        live,
        store,
        strip,
        revision: AtomicU64::new(revision),
        _seat: seat,
    };
    actix_rt::spawn(follower.follow(client, begin_by));
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
    /// Of the record as this gateway wrote it last.
    revision: AtomicU64,
    _seat: OwnedSemaphorePermit,
}

/// Another gateway follows the job now.
struct TakenOver;

impl Follower {
    async fn follow(self, client: Box<Client>, begin_by: Instant) {
        // The gateway ends after the record says how.
        let _running = self.worker.fleet().count();
        let id = self.live.record().id;
        let flow = client.flow();
        match self.outcome(client, &flow, begin_by).await {
            // Left as it is: the next gateway makes it anew.
            Ok(Err(error)) if error.code == error::SHUTTING_DOWN && self.ends() => {
                debug!(job = %id, "left to another gateway");
            }
            Ok(outcome) => {
                if self.conclude(outcome, flow.usage.get()).await.is_err() {
                    debug!(job = %id, "another gateway has taken over");
                }
            }
            Err(TakenOver) => debug!(job = %id, "another gateway has taken over"),
        }
        self.worker.fleet().later.with(|all| all.remove(&id));
        self.live.ended.cancel();
    }

    fn ends(&self) -> bool {
        self.worker.fleet().draining.load(Ordering::Acquire)
    }

    /// Ends what runs of a job that is given up, for `why`. Where an engine is answering it, its host tells with its last
    /// frame how much it has done: that is waited for.
    async fn give_up(
        &self,
        job: JobId,
        flow: &Flow,
        course: impl Future<Output = Outcome>,
        why: ApiError,
    ) -> Outcome {
        let Progress { serving, lane, .. } = self.live.progress.borrow().clone();
        if let Some(serving) = serving
            && flow.consumed.load(Ordering::Acquire) > 0
        {
            let express = lane == Lane::Express;
            demux::publish_cancel(self.worker.bus(), job, Some(serving.host), express).await;
            let _ = tokio::time::timeout(LAST_WORD, course).await;
        }
        Err(why)
    }

    /// How the job ends; dropping its client cancels what runs of it.
    async fn outcome(
        &self,
        client: Box<Client>,
        flow: &Flow,
        begin_by: Instant,
    ) -> Result<Outcome, TakenOver> {
        let job = client.job();
        let id = self.live.record().id;
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
                outcome = &mut course => return Ok(outcome),
                () = self.live.cancel.cancelled() => {
                    return Ok(self.give_up(job, flow, course, error::cancelled()).await);
                }
                () = &mut heard => return Ok(self.give_up(job, flow, course, error::cancelled()).await),
                () = tokio::time::sleep_until(if begun { end_by } else { begin_by }) => {
                    let why = error::expired(submitted.elapsed());
                    return Ok(self.give_up(job, flow, course, why).await);
                }
                Ok(()) = progress.changed() => changed = true,
                () = tokio::time::sleep_until(written + PACE), if changed => {
                    (written, changed) = (Instant::now(), false);
                    self.write(&self.live.record()).await?;
                }
            }
        }
    }

    /// Writes the record over the one that this gateway wrote last. One that cannot be written now is written with
    /// the next change.
    async fn write(&self, record: &AsyncJob) -> Result<bool, TakenOver> {
        for _ in 0..3 {
            match self.store.amend(record, self.revision.load(Ordering::Acquire)).await {
                Ok(Some(revision)) => {
                    self.revision.store(revision, Ordering::Release);
                    return Ok(true);
                }
                // A write of our own whose acknowledgement was lost looks the same.
                Ok(None) => match self.store.read(record.id).await {
                    Ok(Some((now, revision))) if now.gateway == record.gateway && now.run == record.run => {
                        self.revision.store(revision, Ordering::Release);
                    }
                    Ok(_) => return Err(TakenOver),
                    Err(error) => {
                        debug!(%error, "could not read how far a job is");
                        return Ok(false);
                    }
                },
                Err(error) => {
                    debug!(%error, "could not record how far a job is");
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    /// The same, for what must be written.
    async fn insist(&self, record: &AsyncJob) -> Result<(), TakenOver> {
        for _ in 0..10 {
            if self.write(record).await? {
                return Ok(());
            }
            tokio::time::sleep(PACE).await;
        }
        warn!(job = %record.id, status = record.status.as_str(), "could not record how a job ended");
        Ok(())
    }

    /// Records how the job ended, with what its end told of `usage`.
    async fn conclude(&self, outcome: Outcome, usage: Option<&Usage>) -> Result<(), TakenOver> {
        let mut record = self.live.record();
        if let Some(usage) = usage {
            record.usage = *usage;
        }
        let ended = match outcome {
            Ok(answered) => {
                let note = ResultNote {
                    status: answered.head.status,
                    content_type: answered.head.content_type.clone(),
                    len: answered.body.len() as u64,
                };
                // Said before it is stored: whoever takes over then must not ask the engine once more.
                record.result = Some(note);
                self.insist(&record).await?;
                self.store.results.put(&record.id.to_string(), &answered.body).await.map_err(|failed| {
                    warn!(job = %record.id, error = %Chain(&failed), "could not store a result");
                    not_stored()
                })
            }
            Err(error) => Err(error),
        };
        conclude(&mut record, ended);
        self.insist(&record).await?;
        forget(&self.worker, &record).await;
        debug!(job = %record.id, status = record.status.as_str(), "an asynchronous job has ended");
        *self.live.record.lock().unwrap_or_else(PoisonError::into_inner) = record;
        Ok(())
    }
}

/// Enters how a job ended: with the answer that is stored for it, or without one.
pub(crate) fn conclude(record: &mut AsyncJob, ended: Result<(), ApiError>) {
    record.status = match &ended {
        Ok(()) if record.result.as_ref().is_some_and(|note| note.status < 400) => JobStatus::Completed,
        Ok(()) => JobStatus::Failed,
        Err(error) => {
            record.result = None;
            match error.kind {
                ErrorKind::Expired => JobStatus::Expired,
                _ if error.code == error::CANCELLED => JobStatus::Cancelled,
                _ => JobStatus::Failed,
            }
        }
    };
    record.error = ended.err();
    (record.position, record.eta) = (0, None);
    record.ended_at = Some(now());
}

fn not_stored() -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "result_not_stored",
        "the answer could not be stored (is the object store `berth_results` full?); send the request again",
    )
}
