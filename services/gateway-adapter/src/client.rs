//! One job from its client's side: what has come for it, what has been taken, and the cancel when the client
//! leaves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix::prelude::SendError;
use berth_bus::Bodies;
use berth_telemetry::metric;
use berth_telemetry::trace::Span;
use berth_wire::{ApiError, Credit, Dialect, JobId, ModelId, Route, Stage, Timestamp, Usage, Verb};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::watch;
use tracing::debug;

use crate::allowance::Permit;
use crate::anthropic::{self, RequestId};
use crate::demux::{Express, Leave, Outlet, Register, outlet};
use crate::flow::{Flow, Lane, Piece, Progress, Serving};
use crate::relay::Ending;
use crate::spans::Course;
use crate::worker::Worker;
use crate::{error, events, meters, spans};

/// An answer that has begun and says nothing for so long is given up: its end was lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(300);

/// What is known of a job when it is made.
pub(crate) struct Start {
    pub(crate) job: JobId,
    pub(crate) route: Route,
    /// As in the catalog, so that it may label metrics.
    pub(crate) model: Arc<str>,
    /// Whose engines serve it, where `model` is an adapter.
    pub(crate) base: Option<ModelId>,
    pub(crate) at: Instant,
    /// Its place within its key's limits.
    pub(crate) permit: Option<Permit>,
    /// The request's id, for errors that tell it.
    pub(crate) request: Option<RequestId>,
    /// W3C Trace Context.
    pub(crate) trace: String,
    /// What a trace tells of it, if one does.
    pub(crate) span: Option<Box<Span>>,
}

/// A job and its client. Dropped before the end, it cancels the job: it is held by the handler's future and then
/// by the answer's body, whichever of them the server drops when the client leaves. It is handed on in a box: each
/// function that it passes through would set room for it aside.
pub(crate) struct Client {
    worker: Arc<Worker>,
    start: Start,
    outlet: Outlet,
    window: u64,
    /// Bytes that the running attempt has been granted in all.
    granted: u64,
    consumed: u64,
    /// Bytes of its answer that have come.
    received: u64,
    /// The body's object, deleted here if no agent will. Few have one, so it takes no room in the others.
    claim: Option<Box<(Bodies, String)>>,
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
    ) -> Option<Box<Self>> {
        let waits = express.is_none().then(|| {
            let lanes = &worker.fleet().lanes;
            start
                .base
                .as_ref()
                .map_or_else(|| lanes.wait(&start.model.as_ref().into()), |base| lanes.wait(base))
        });
        let (register, outlet): (Register, Outlet) =
            outlet(start.job, Arc::clone(&start.model), window, express, waits);
        worker.fleet().running.fetch_add(1, Ordering::AcqRel);
        let client = Box::new(Self {
            worker,
            start,
            outlet,
            window,
            granted: window,
            consumed: 0,
            received: 0,
            claim: None,
            submitted: false,
            ending: None,
            first_byte: None,
            status: 0,
        });
        // Mail is read before output is, so nothing of the job can come before this has been. Only a full mailbox, or an
        // actor that is being made anew and hears nothing yet, is waited for.
        let addr = client.worker.demux().addr().ok().filter(|_| client.worker.is_listening());
        let unsent = match addr {
            Some(addr) => match addr.try_send(register) {
                Ok(()) => return Some(client),
                Err(SendError::Full(register) | SendError::Closed(register)) => register,
            },
            None => register,
        };
        client.worker.demux().send(unsent).await.ok()?;
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

    /// An error as the last event of its stream.
    pub(crate) fn error_event(&self, error: &ApiError) -> Bytes {
        match self.start.route.dialect() {
            Dialect::OpenAi => error::event(error),
            Dialect::Anthropic => anthropic::event(error, self.request().map(RequestId::as_str)),
        }
    }

    /// The id that the request is known by.
    pub(crate) fn request(&self) -> Option<&RequestId> {
        self.start.request.as_ref()
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
        self.claim = Some(Box::new((bodies, object)));
    }

    /// The status that the client was given.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = status;
    }

    pub(crate) fn progress(&self) -> Progress {
        self.outlet.progress.borrow().clone()
    }

    pub(crate) fn trace(&self) -> &str {
        &self.start.trace
    }

    /// The job's progress, to follow.
    pub(crate) fn follow(&self) -> watch::Receiver<Progress> {
        self.outlet.progress.clone()
    }

    /// What the demux and this share.
    pub(crate) fn flow(&self) -> Arc<Flow> {
        Arc::clone(&self.outlet.flow)
    }

    /// What is said to a client that waits, between other events.
    pub(crate) fn heartbeat(&self, chunks: bool) -> Bytes {
        let progress = self.progress();
        let loading = progress.stage == Stage::Loading;
        let detail = if loading { self.worker.fleet().loading_detail(self.model()) } else { None };
        let comment = events::comment(&progress, detail.as_deref());
        let job = self.job().to_string();
        match events::sign(self.route(), &job, self.model(), now().0 / 1000, &progress, chunks) {
            Some(sign) => [comment, sign].concat().into(),
            None => comment,
        }
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
        match self.outlet.pieces.poll_next_unpin(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(piece)) => {
                self.received += piece.data.as_ref().map_or(0, |data| data.len() as u64);
                if self.first_byte.is_none() {
                    let took = self.start.at.elapsed();
                    self.first_byte = Some(took);
                    if let Some(permit) = &mut self.start.permit {
                        permit.served();
                    }
                    let progress = self.progress();
                    // The express lane has no queue: its host's yes comes with the first output.
                    let queued = match progress.lane {
                        Lane::Express => Some(Duration::ZERO),
                        Lane::Queue => self.queued(),
                    };
                    let load = progress.serving.map_or(Duration::ZERO, |serving| serving.load);
                    meters::of(&self.start.model).began(took, queued, load);
                }
                Poll::Ready(Next::Piece(piece))
            }
            Poll::Ready(None) => {
                // Closed without an end: the demux was made anew and has forgotten the job.
                let told = self.outlet.flow.ending.get().cloned();
                let ending = told.unwrap_or_else(|| Err(error::lost()));
                if let Some(usage) = self.outlet.flow.usage.get().copied() {
                    self.settle(&usage);
                }
                self.ending = Some(ending.clone());
                Poll::Ready(Next::End(ending))
            }
        }
    }

    /// What the key's limits set aside for it and it did not need is given back.
    fn settle(&mut self, usage: &Usage) {
        if let Some(permit) = &mut self.start.permit {
            permit.settle(usage, Instant::now());
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
        // Agents read bodies and may not touch them. Of a gateway that was killed they expire.
        if let Some(claim) = self.claim.take() {
            actix_rt::spawn(async move {
                let (bodies, object) = *claim;
                bodies.delete(&object).await;
            });
        }
        let (route, took) = (self.start.route.path(), self.start.at.elapsed());
        if let Some(span) = self.start.span.take() {
            let flow = &self.outlet.flow;
            let course = Course {
                came: took,
                status: self.status,
                ending: flow.ending.get(),
                usage: flow.usage.get(),
                progress: &self.progress(),
                queued: self.queued(),
                first_byte: self.first_byte,
            };
            spans::end(span, &course);
        }
        meters::of(&self.start.model).ended(route, self.status, took, self.received);
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

    /// All of it in one piece; none is left.
    pub(crate) fn join(&mut self) -> Bytes {
        let mut whole = bytes::BytesMut::with_capacity(usize::try_from(self.len).unwrap_or(0));
        while let Some(bytes) = self.pop() {
            whole.extend_from_slice(&bytes);
        }
        whole.freeze()
    }

    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let bytes = self.pieces.pop_front()?;
        self.len -= bytes.len() as u64;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::EventStream;

    #[test]
    fn a_client_that_waits_takes_little_room_of_its_own() {
        // Ten thousand may wait; the server's own buffers are 16 KiB for each.
        let (client, stream) = (size_of::<Client>(), size_of::<EventStream>());
        assert!(client <= 768 && stream <= 512, "a client has {client} bytes, its stream {stream}");
    }
}
