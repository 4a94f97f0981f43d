//! One attempt: a job's way through an engine, from the dispatch to its one and only end.

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, Instant};

use async_nats::Subject;
use berth_bus::{BusError, NatsOutput, OutputSink};
use berth_telemetry::Chain;
use berth_telemetry::trace::Span;
use berth_wire::{
    ApiError, Attempt, Begin, BeginReply, Body, End, EndMarker, Ended, EngineKind, ErrorKind, Finish, Frame,
    Head, Job, Outcome, Reply, TRACEPARENT, Usage,
};
use bytes::Bytes;
use futures::FutureExt;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::adapters::{Use, lend};
use crate::ask_usage::{ask_for_usage, must_be_asked};
use crate::books::grant;
use crate::cell::EngineCell;
use crate::contexts::{Seated, seat};
use crate::external::is_refusal;
use crate::pump::{Answer, Frames, frame_limit};
use crate::rename::Rename;
use crate::rewrite::Prepare;
use crate::shared::Shared;
use crate::silence::{Awaits, silence};
use crate::slots::SlotGuard;
use crate::traced;
use crate::usage::Ends;

/// A client that has taken nothing for so long is gone, whatever its connection says.
const STALL: Duration = Duration::from_secs(300);
/// A large body must be there by then.
const FETCH: Duration = Duration::from_secs(60);
/// An answer that comes within this says by itself that its offer was taken.
const FIRST_WORD: Duration = Duration::from_millis(50);
/// Above this a body is searched for its model on another thread.
const LARGE: usize = 1 << 20;

/// All that an attempt needs.
pub(crate) struct Task {
    pub(crate) shared: Rc<Shared>,
    pub(crate) cell: Rc<EngineCell>,
    pub(crate) job: Job,
    pub(crate) attempt: Attempt,
    pub(crate) slot: SlotGuard,
    pub(crate) cancel: CancellationToken,
    pub(crate) credit: watch::Sender<u64>,
    /// Where the dispatch wants its answer.
    pub(crate) reply: Option<Subject>,
    /// What a trace tells of it, if one does.
    pub(crate) span: Option<Box<Span>>,
}

/// How an attempt ended, before it is told.
struct Verdict {
    outcome: Outcome,
    usage: Usage,
}

impl Task {
    /// Has it run to its end, which is told whatever happens.
    pub(crate) fn spawn(self) {
        // Boxed: the runtime moves what it is given several times, and this is some 12 KB.
        actix_rt::spawn(Box::pin(self.run()));
    }

    async fn run(self) {
        let (shared, cell, id, attempt) =
            (Rc::clone(&self.shared), Rc::clone(&self.cell), self.job.id, self.attempt);
        if AssertUnwindSafe(self.serve()).catch_unwind().await.is_ok() {
            return;
        }
        let error =
            ApiError::new(ErrorKind::Internal, "agent_fault", "the agent failed; send the request again");
        shared.books.borrow_mut().end(id, attempt);
        // Whether output was sent is not known any more; a gateway that has some refuses the next attempt.
        let outcome = Outcome::Failed { error, output_sent: false };
        let usage = Usage::default();
        shared.tell_ended(Ended { job: id, attempt, engine: cell.id(), outcome, usage, started: None }, true);
    }

    async fn serve(mut self) {
        if let Err(error) = self.shared.bus.reply(self.reply.take(), &Reply::Ok).await {
            debug!(error = %Chain(&error), "could not answer a dispatch");
        }
        let mut course = Course::new(&self);
        let outcome = course.run().await;
        let verdict = Verdict { outcome, usage: course.usage() };
        // A stream's events are about its tokens; what is no stream tells them at its end alone.
        course.pace(verdict.usage.completion_tokens.unwrap_or(course.counted));
        drop(course);
        self.end(verdict);
    }

    fn end(self, verdict: Verdict) {
        let Self { shared, cell, job, attempt, slot, span, .. } = self;
        if let Some(span) = span {
            traced::end(span, &verdict.outcome, &verdict.usage);
        }
        debug!(job = %job.id, %attempt, outcome = outcome_name(&verdict.outcome), "attempt ended");
        shared.books.borrow_mut().end(job.id, attempt);
        drop(slot);
        let soon = !cell.slots.gate(|gate| gate.takes_offers());
        let Verdict { outcome, usage } = verdict;
        let ended = Ended { job: job.id, attempt, engine: cell.id(), outcome, usage, started: None };
        shared.tell_ended(ended, soon);
    }
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Cancelled => "cancelled",
        Outcome::Abandoned => "abandoned",
        Outcome::Failed { .. } => "failed",
    }
}

/// Why the pump stopped before the answer's end.
enum Break {
    Cancelled,
    Abandoned,
    Failed(ApiError),
}

/// What frame 0 and the engine, asked at the same time, have answered.
type Opened = (u64, reqwest::Response);

struct Course<'a> {
    task: &'a Task,
    began: Instant,
    awaits: Rc<Cell<Awaits>>,
    first_byte: Option<Duration>,
    ends: Ends,
    /// Tokens that its engine's pace has in it.
    counted: u64,
    frames: Frames,
    /// The answer is a stream of events.
    events: bool,
    complete: bool,
    /// The adapter that it is for stays while this is held.
    adapter: RefCell<Option<Use>>,
    /// The slot that it has on the engine, where that is to be known.
    seat: RefCell<Option<Seated>>,
}

impl<'a> Course<'a> {
    fn new(task: &'a Task) -> Self {
        let sink = NatsOutput::new(task.shared.bus.clone());
        Self {
            task,
            began: Instant::now(),
            awaits: Rc::new(Cell::new(Awaits::First(Instant::now()))),
            first_byte: None,
            ends: Ends::default(),
            counted: 0,
            frames: Frames::new(sink, task.job.gateway.clone(), task.job.id, task.attempt),
            events: false,
            complete: false,
            adapter: RefCell::default(),
            seat: RefCell::default(),
        }
    }

    fn usage(&self) -> Usage {
        let partial = self.events && !self.complete;
        let tokens = if partial { self.ends.tokens_so_far() } else { self.ends.tokens() };
        Usage {
            prompt_tokens: tokens.prompt_tokens,
            completion_tokens: tokens.completion_tokens,
            first_byte: self.first_byte,
            total: self.began.elapsed(),
        }
    }

    /// So many tokens have come.
    fn pace(&mut self, tokens: u64) {
        self.task.cell.pace.count(self.counted, tokens);
        self.counted = tokens;
    }

    async fn run(&mut self) -> Outcome {
        let (cancel, gone) = (self.task.cancel.clone(), self.task.cell.gone.clone());
        let word = first_word(self.task, self.frames.begun());
        let silent = silence(self.task, Rc::clone(&self.awaits));
        let broken = tokio::select! {
            biased;
            () = cancel.cancelled() => Break::Cancelled,
            done = self.relay() => match done {
                Ok(()) => return Outcome::Completed,
                Err(broken) => broken,
            },
            () = gone.cancelled() => Break::Failed(engine_failed(
                &self.task.job,
                "the engine ended while it served this request",
            )),
            error = silent => Break::Failed(error),
            () = word => Break::Abandoned,
        };
        let output_sent = self.frames.output_sent();
        match broken {
            Break::Abandoned => Outcome::Abandoned,
            Break::Cancelled => {
                if output_sent {
                    self.finish(Finish::Cancelled).await;
                }
                Outcome::Cancelled
            }
            Break::Failed(error) => {
                info!(job = %self.task.job.id, attempt = %self.task.attempt, output_sent, %error, "attempt failed");
                // Of an express attempt nobody but its gateway is told, who submits the job then.
                if output_sent || self.task.attempt.is_express() {
                    self.finish(Finish::Error(error.clone())).await;
                }
                Outcome::Failed { error, output_sent }
            }
        }
    }

    async fn finish(&mut self, finish: Finish) {
        let end = End { finish, usage: self.usage() };
        if let Err(error) = self.frames.send(Bytes::new(), Some(end)).await {
            debug!(error = %Chain(&error), "could not send the end of an attempt");
        }
    }

    /// Relays the whole answer.
    async fn relay(&mut self) -> Result<(), Break> {
        let (credit, response) = self.open().await?;
        grant(&self.task.credit, credit);
        let mut granted = self.task.credit.subscribe();
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let events = content_type.is_some_and(|kind| kind.starts_with("text/event-stream"));
        let mut marker = EndMarker::of(self.task.job.route);
        // Without a length or chunks an answer ends with its connection, whoever cut it.
        let framed = response.content_length().is_some()
            || response.headers().contains_key(reqwest::header::TRANSFER_ENCODING);
        self.events = events;
        let status = response.status();
        let content_type = content_type.map(str::to_owned);
        let head = Head { status: status.as_u16(), content_type, length: self.announced(&response) };
        let flows = head.flows();
        self.frames.set_head(head);
        let limit = frame_limit(self.task.shared.bus.client.max_payload(), flows);
        let model = self.task.cell.model();
        let mut answer = match &self.task.job.adapter {
            Some(name) if model.engine.kind == EngineKind::LlamaCpp => {
                let rename = Rename::new(&model.engine.served_name, name.as_str());
                Answer::new(rename.over(response.bytes_stream()))
            }
            _ => Answer::new(response.bytes_stream()),
        };
        loop {
            let mut room = limit;
            if *granted.borrow() <= self.frames.sent {
                // No more than one piece is read ahead of the credit; the end needs none.
                answer.peek().await;
            }
            if !answer.is_over() {
                let awaits = self.awaits.replace(Awaits::Client);
                room = self.room(&mut granted, limit).await?;
                self.awaits.set(match awaits {
                    Awaits::First(since) => Awaits::First(since),
                    Awaits::More(_) | Awaits::Client => Awaits::More(Instant::now()),
                });
            }
            let piece = answer.piece(room, flows).await;
            if !piece.data.is_empty() {
                self.awaits.set(Awaits::More(Instant::now()));
                self.first_byte.get_or_insert_with(|| self.began.elapsed());
                self.ends.push(&piece.data);
                self.pace(self.ends.events());
                if events && !framed {
                    marker.see(&piece.data);
                }
            }
            let end = match piece.end {
                None => None,
                Some(Ok(())) if !framed && events && status.is_success() && !marker.seen() => {
                    self.pass(piece.data, None).await?;
                    return Err(self.broke("its connection ended before the answer did"));
                }
                Some(Ok(())) => {
                    self.complete = true;
                    Some(End { finish: Finish::Stop, usage: self.usage() })
                }
                Some(Err(error)) => {
                    self.pass(piece.data, None).await?;
                    return Err(self.broke(&plain(error)));
                }
            };
            let last = end.is_some();
            if last || !piece.data.is_empty() {
                self.frames.send(piece.data, end).await.map_err(|error| self.lost(&error))?;
            }
            if last {
                return Ok(());
            }
        }
    }

    /// What the engine says of the length of an answer to HEAD; of any other its bytes tell.
    fn announced(&self, response: &reqwest::Response) -> Option<u64> {
        let target = self.task.job.target.as_ref();
        target.filter(|target| target.method == Method::HEAD.as_str())?;
        response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// Sends what came before a break. Held back where nothing has been sent yet: then another attempt may do
    /// better.
    async fn pass(&mut self, data: Bytes, end: Option<End>) -> Result<(), Break> {
        if data.is_empty() || !self.frames.output_sent() {
            return Ok(());
        }
        self.frames.send(data, end).await.map_err(|error| self.lost(&error))
    }

    /// Waits for credit: without it nothing is read from the engine.
    async fn room(&self, granted: &mut watch::Receiver<u64>, limit: usize) -> Result<usize, Break> {
        let sent = self.frames.sent;
        let more = tokio::time::timeout(STALL, granted.wait_for(|granted| *granted > sent));
        let granted = match more.await {
            Ok(Ok(granted)) => *granted,
            _ => {
                info!(job = %self.task.job.id, "gave up an answer that nobody takes");
                return Err(Break::Abandoned);
            }
        };
        Ok(usize::try_from(granted - sent).unwrap_or(usize::MAX).min(limit))
    }

    /// Asks the gateway for its permit and the engine for its answer, at the same time.
    async fn open(&self) -> Result<Opened, Break> {
        if self.task.attempt.is_express() {
            // The offer was the permit.
            return Ok((self.task.job.window, self.ask().await?));
        }
        let permit = async {
            let Task { shared, job, attempt, cell, .. } = self.task;
            let mut frame = Frame::empty(*attempt, 0);
            frame.begin = Some(Begin { host: shared.host.clone(), engine: cell.id() });
            let sink = NatsOutput::new(shared.bus.clone());
            match sink.begin(&job.gateway, job.id, frame).await {
                Ok(BeginReply::Go { credit }) => Ok(credit),
                Ok(BeginReply::Refuse { reason }) => {
                    debug!(job = %job.id, %attempt, reason, "the gateway refused the attempt");
                    Err(Break::Abandoned)
                }
                Err(error) => {
                    info!(job = %job.id, %attempt, error = %Chain(&error), "the gateway does not answer");
                    Err(Break::Abandoned)
                }
            }
        };
        // Either failure ends both: dropping the engine's request closes its connection, which aborts it.
        tokio::try_join!(permit, self.ask())
    }

    async fn ask(&self) -> Result<reqwest::Response, Break> {
        let Task { shared, job, cell, .. } = self.task;
        match lend(shared, cell, job).await {
            Ok(adapter) => *self.adapter.borrow_mut() = adapter,
            Err(refusal) => return Ok(refusal),
        }
        let seat = seat(shared, cell, job).await;
        let slot = seat.as_ref().and_then(Seated::slot);
        *self.seat.borrow_mut() = seat;
        let body = match &job.body {
            Body::Inline(bytes) => bytes.clone(),
            Body::Claim { object, len } => self.fetch(object, *len).await?,
        };
        let (prepared, ask) = (Prepare::of(job, cell.model()), must_be_asked(job.route, job.stream));
        let large = body.len() > LARGE;
        let prepare = move || {
            let body = slot.into_iter().fold(prepared.body(body), |body, slot| Seated::name(slot, body));
            if ask { ask_for_usage(body) } else { body }
        };
        let body = if large {
            let prepared = tokio::task::spawn_blocking(prepare).await;
            prepared.map_err(|_| self.broke("its request could not be prepared"))?
        } else {
            prepare()
        };
        let (method, url) = match &job.target {
            None => (Method::POST, cell.route_url(cell.model().engine.kind.path(job.route))),
            Some(target) => {
                let method = Method::from_bytes(target.method.as_bytes());
                let method = method.map_err(|_| self.broke("its method is not one of HTTP"))?;
                (method, cell.url(&target.path).parse().ok())
            }
        };
        let url = url.ok_or_else(|| self.broke("its address is none of HTTP"))?;
        let mut request = shared.http.request(method, url);
        if let Some(key) = cell.key() {
            request = request.header(AUTHORIZATION, key);
        }
        let kind = match &job.content_type {
            Some(kind) => HeaderValue::from_str(kind).ok(),
            None => job.target.is_none().then_some(HeaderValue::from_static("application/json")),
        };
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        // Servers may refuse a GET that announces a body, be it an empty one.
        if job.target.is_none() || !body.is_empty() {
            request = request.body(body);
        }
        if let Some(traceparent) = &job.traceparent {
            request = request.header(TRACEPARENT, traceparent);
        }
        let answer = request.send().await.map_err(|error| {
            if error.is_connect() {
                shared.external.doubt(cell.id());
            }
            self.broke(&plain(error))
        })?;
        // Of what lets Berth in at a server of others its clients know nothing.
        if cell.model().is_found() && is_refusal(answer.status()) {
            return Err(self.broke("its server refuses the key that Berth has for it"));
        }
        Ok(answer)
    }

    async fn fetch(&self, object: &str, len: u64) -> Result<Bytes, Break> {
        // An object that is removed while it is read never ends.
        let fetched = tokio::time::timeout(FETCH, self.task.shared.bodies.get(object, len)).await;
        let why = match fetched {
            Ok(Ok(body)) => return Ok(body),
            Ok(Err(error)) => Chain(&error).to_string(),
            Err(_) => "it does not come".into(),
        };
        info!(job = %self.task.job.id, why, "cannot fetch a request body");
        Err(Break::Failed(ApiError::new(
            ErrorKind::Internal,
            "body_lost",
            "the request's body could not be fetched from the object store; send it again",
        )))
    }

    fn broke(&self, why: &str) -> Break {
        Break::Failed(engine_failed(&self.task.job, &format!("the engine broke off: {why}")))
    }

    fn lost(&self, error: &BusError) -> Break {
        info!(job = %self.task.job.id, error = %Chain(error), "cannot send output");
        Break::Abandoned
    }
}

/// Says that an express job was taken, unless its first frame says so before; then waits for ever.
async fn first_word(task: &Task, begun: Rc<Cell<bool>>) {
    if task.attempt.is_express() {
        tokio::time::sleep(FIRST_WORD).await;
        if !begun.get() {
            let mut frame = Frame::empty(task.attempt, 0);
            frame.begin = Some(Begin { host: task.shared.host.clone(), engine: task.cell.id() });
            let sink = NatsOutput::new(task.shared.bus.clone());
            if let Err(error) = sink.send(&task.job.gateway, task.job.id, frame).await {
                debug!(error = %Chain(&error), "could not say that an offer was taken");
            }
        }
    }
    std::future::pending::<()>().await;
}

pub(crate) fn engine_failed(job: &Job, what: &str) -> ApiError {
    ApiError::new(
        ErrorKind::EngineFailed,
        "engine_failed",
        format!("{what} (model `{}`); send the request again", job.model),
    )
}

/// An error of the engine's connection, without the engine's address.
fn plain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut deepest: &dyn std::error::Error = &error;
    while let Some(cause) = deepest.source() {
        deepest = cause;
    }
    deepest.to_string()
}
