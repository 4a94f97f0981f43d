//! One job from its client's side: what has come for it, what has been taken, and the cancel when the client
//! leaves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use berth_bus::Bodies;
use berth_telemetry::metric;
use berth_wire::{Credit, JobId, Route, Timestamp, Usage, Verb};
use bytes::Bytes;
use tracing::debug;

use crate::demux::{Express, Leave, Outlet, Piece, Progress, Register, Serving, outlet};
use crate::error;
use crate::relay::Ending;
use crate::worker::Worker;

/// An answer that has begun and says nothing for so long is given up: its end was lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(300);

/// What is known of a job when it is made.
pub(crate) struct Start {
    pub(crate) job: JobId,
    pub(crate) route: Route,
    /// As in the catalog, so that it may label metrics.
    pub(crate) model: Arc<str>,
    pub(crate) at: Instant,
}

/// A job and its client. Dropped before the end, it cancels the job: it is held by the handler's future and then
/// by the answer's body, whichever of them the server drops when the client leaves.
pub(crate) struct Client {
    worker: Arc<Worker>,
    start: Start,
    outlet: Outlet,
    window: u64,
    /// Bytes that the running attempt has been granted in all.
    granted: u64,
    consumed: u64,
    /// The body's object, deleted here if no agent will.
    claim: Option<(Bodies, String)>,
    submitted: bool,
    ending: Option<Ending>,
    first_byte: Option<Duration>,
    status: u16,
}

/// The next that has come for a client.
#[derive(Debug)]
pub(crate) enum Next {
    Piece(Piece),
    End(Ending),
}

impl Client {
    /// Makes the job known to the demux, before it is submitted.
    pub(crate) async fn register(
        worker: Arc<Worker>,
        start: Start,
        window: u64,
        express: Option<Express>,
    ) -> Option<Self> {
        let waits = express.is_none().then(|| worker.fleet().lanes.wait(&start.model.as_ref().into()));
        let (register, outlet): (Register, Outlet) = outlet(start.job, window, express, waits);
        worker.fleet().running.fetch_add(1, Ordering::AcqRel);
        let client = Self {
            worker,
            start,
            outlet,
            window,
            granted: window,
            consumed: 0,
            claim: None,
            submitted: false,
            ending: None,
            first_byte: None,
            status: 0,
        };
        client.worker.demux().send(register).await.ok()?;
        Some(client)
    }

    pub(crate) fn job(&self) -> JobId {
        self.start.job
    }

    pub(crate) fn route(&self) -> Route {
        self.start.route
    }

    pub(crate) fn model(&self) -> &str {
        &self.start.model
    }

    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// From here on a cancel is owed if the client leaves.
    pub(crate) fn submitting(&mut self) {
        self.submitted = true;
    }

    /// The job was never taken: nothing to cancel.
    pub(crate) fn not_submitted(&mut self) {
        self.submitted = false;
    }

    pub(crate) fn claims(&mut self, bodies: Bodies, object: String) {
        self.claim = Some((bodies, object));
    }

    /// The status that the client was given.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = status;
    }

    pub(crate) fn progress(&self) -> Progress {
        self.outlet.progress.borrow().clone()
    }

    /// How long the job waited until an attempt began, once one has.
    pub(crate) fn queued(&self) -> Option<Duration> {
        let begun = self.outlet.progress.borrow().serving.as_ref()?.at;
        Some(begun.saturating_duration_since(self.start.at))
    }

    /// What comes next; after the end, the end again.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Some(ending) = &self.ending {
            return Poll::Ready(Next::End(ending.clone()));
        }
        match self.outlet.pieces.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(piece)) => {
                if self.first_byte.is_none() {
                    let took = self.start.at.elapsed();
                    self.first_byte = Some(took);
                    metrics::histogram!(metric::TIME_TO_FIRST_TOKEN, "model" => Arc::clone(&self.start.model))
                        .record(took.as_secs_f64());
                }
                Poll::Ready(Next::Piece(piece))
            }
            Poll::Ready(None) => {
                // Closed without an end: the demux was made anew and has forgotten the job.
                let told = self.outlet.flow.ending.get().cloned();
                let ending = told.unwrap_or_else(|| Err(error::lost()));
                if let Ok(usage) = &ending {
                    self.count(usage);
                }
                self.ending = Some(ending.clone());
                Poll::Ready(Next::End(ending))
            }
        }
    }

    fn count(&self, usage: &Usage) {
        for (kind, tokens) in [("input", usage.prompt_tokens), ("output", usage.completion_tokens)] {
            let model = Arc::clone(&self.start.model);
            metrics::counter!(metric::TOKENS, "model" => model, "type" => kind)
                .increment(tokens.unwrap_or_default());
        }
    }

    /// As [`Client::poll_next`], to await.
    pub(crate) async fn next(&mut self) -> Next {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The client has taken `bytes`: more may be sent once half of the window is used up.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.consumed = self.consumed.saturating_add(bytes as u64);
        self.outlet.flow.consumed.store(self.consumed, Ordering::Release);
        let grant = self.consumed.saturating_add(self.window);
        if grant.saturating_sub(self.granted) < (self.window / 2).max(1) || self.ended() {
            return;
        }
        let Some(Serving { attempt, host, .. }) = self.outlet.progress.borrow().serving.clone() else {
            return;
        };
        self.granted = grant;
        let bus = self.worker.bus().clone();
        let credit = Credit { job: self.start.job, attempt, granted: grant };
        actix_rt::spawn(async move {
            let subject = bus.subjects.ctl(&host, Verb::Credit);
            if let Err(error) = bus.publish(subject, &credit).await {
                debug!(job = %credit.job, %error, "could not grant credit");
            }
        });
    }

    fn ended(&self) -> bool {
        self.outlet.flow.ending.get().is_some()
    }

    fn leave(&mut self) {
        let progress = self.progress();
        let stage = if self.first_byte.is_some() { "streaming" } else { progress.stage.as_str() };
        metrics::counter!(metric::CLIENTS_GONE, "stage" => stage).increment(1);
        debug!(job = %self.start.job, stage, "the client has left; cancelling");
        let leave = Leave { job: self.start.job, host: progress.serving.map(|serving| serving.host) };
        self.forget(leave);
    }

    /// Tells the demux; a full mailbox or an actor that is being made anew is waited for.
    fn forget(&self, leave: Leave) {
        let demux = self.worker.demux().clone();
        let sent = demux.addr().is_ok_and(|addr| addr.try_send(leave.clone()).is_ok());
        if !sent {
            actix_rt::spawn(async move {
                if demux.send(leave).await.is_err() {
                    debug!("the demux ended before a cancel; it has cancelled all it had");
                }
            });
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.outlet.flow.gone.store(true, Ordering::Release);
        let ended = self.ended();
        if !ended {
            self.leave();
        }
        // An agent that ran the job deletes its body; a job that never ran has nobody else.
        if let Some((bodies, object)) = self.claim.take()
            && (!self.submitted || !ended)
        {
            actix_rt::spawn(async move { bodies.delete(&object).await });
        }
        let status = if self.status == 0 { "gone".to_owned() } else { self.status.to_string() };
        metrics::histogram!(
            metric::REQUEST_DURATION,
            "model" => Arc::clone(&self.start.model),
            "route" => self.start.route.path(),
            "status" => status
        )
        .record(self.start.at.elapsed().as_secs_f64());
        self.worker.fleet().running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Now, as it travels.
pub(crate) fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

/// Bytes that wait, with their sum.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) pieces: std::collections::VecDeque<Bytes>,
    pub(crate) len: u64,
}

impl Held {
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len() as u64;
            self.pieces.push_back(bytes);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let bytes = self.pieces.pop_front()?;
        self.len -= bytes.len() as u64;
        Some(bytes)
    }
}
