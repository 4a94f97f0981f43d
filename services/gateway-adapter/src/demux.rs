//! The actor of one worker that hears all output for its jobs and hands each job its own.
//!
//! It never waits for a client: what a job's channel has no room for ends that job alone.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, ResponseFuture,
    StreamHandler, WrapFuture,
};
use async_nats::Subject;
use berth_actors::{Drain, Life, Vital};
use berth_bus::{Bus, Delivery, NatsOutput};
use berth_wire::{
    ApiError, Attempt, BeginReply, CancelJob, ErrorKind, Frame, GatewayId, HostId, JobId, Notice, Output,
    Stage, Usage, Verb,
};
use bytes::Bytes;
use futures::channel::mpsc;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::error;
use crate::flow::{Flow, Lane, Piece, Progress, Serving};
use crate::lanes::{Lanes, Pick, Waits};
use crate::meters;
use crate::offers::Offer;
use crate::relay::{Relay, Step};
use crate::roll::Quiet;

/// Pieces that may wait for one client. The credit window bounds their bytes; this bounds their number.
const PIECES: usize = 8192;
/// Jobs that are remembered for the usage that their end tells.
const LEFT: usize = 1024;

/// A job's way into the demux.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Register {
    job: JobId,
    entry: Entry,
}

/// A job's way out of the demux.
pub(crate) struct Outlet {
    pub(crate) pieces: mpsc::Receiver<Piece>,
    pub(crate) progress: watch::Receiver<Progress>,
    pub(crate) flow: Arc<Flow>,
}

/// What a job of the express lane has with it.
pub(crate) struct Express {
    pub(crate) pick: Pick,
    /// The job as it is submitted if nothing comes of the offer.
    pub(crate) payload: Bytes,
}

/// The two ends for a new job; one that is not `express` waits for its model from here on.
pub(crate) fn outlet(
    job: JobId,
    model: Arc<str>,
    window: u64,
    express: Option<Express>,
    waits: Option<Waits>,
) -> (Register, Outlet) {
    // A channel that takes memory only for what is in it: most of its life it is empty.
    let (sender, pieces) = mpsc::channel(PIECES);
    let mut first = Progress::default();
    let relay = match &express {
        Some(express) => {
            first.lane = Lane::Express;
            Relay::express(window, express.pick.host.clone())
        }
        None => Relay::new(window),
    };
    let (publish, progress) = watch::channel(first);
    let flow = Arc::new(Flow::default());
    let entry = Entry {
        relay,
        model,
        pieces: sender,
        progress: publish,
        flow: Arc::clone(&flow),
        offer: express.map(Offer::new),
        waits,
        quiet: Quiet::default(),
    };
    (Register { job, entry }, Outlet { pieces, progress, flow })
}

/// Nobody waits for the job any more.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub(crate) struct Leave {
    pub(crate) job: JobId,
    /// The host that serves it, should the demux itself have forgotten.
    pub(crate) host: Option<HostId>,
}

/// Ends the jobs that no engine has begun to serve: the gateway is about to end.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct DismissWaiting;

/// Answered once the actor hears its gateway's output.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Listening;

pub(crate) struct Entry {
    pub(crate) relay: Relay,
    model: Arc<str>,
    pieces: mpsc::Sender<Piece>,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) flow: Arc<Flow>,
    /// While it is on the express lane.
    pub(crate) offer: Option<Offer>,
    /// While it waits for its model.
    pub(crate) waits: Option<Waits>,
    pub(crate) quiet: Quiet,
}

pub(crate) struct Demux {
    life: Life,
    pub(crate) bus: Bus,
    gateway: GatewayId,
    pub(crate) jobs: HashMap<JobId, Entry>,
    pub(crate) lanes: Arc<Lanes>,
    /// Offers in the order in which they were made, to find those that nobody answers.
    pub(crate) offers: VecDeque<(Instant, JobId)>,
    /// Hosts that are being asked what they run.
    pub(crate) asked: BTreeSet<HostId>,
    /// Nothing is submitted any more.
    pub(crate) closing: bool,
    pub(crate) me: Option<Addr<Self>>,
    /// Jobs whose client has left and whose end, with its usage, may still come; the oldest first.
    left: VecDeque<(JobId, Arc<str>)>,
    /// Its gateway's output is heard; who registers with it need not wait for that.
    listening: Arc<AtomicBool>,
    refused: u64,
}

impl Demux {
    pub(crate) fn new(
        life: Life,
        bus: Bus,
        gateway: GatewayId,
        lanes: Arc<Lanes>,
        listening: Arc<AtomicBool>,
    ) -> Self {
        listening.store(false, Ordering::Release);
        Self {
            life,
            bus,
            gateway,
            jobs: HashMap::new(),
            lanes,
            left: VecDeque::new(),
            offers: VecDeque::new(),
            asked: BTreeSet::new(),
            closing: false,
            me: None,
            listening,
            refused: 0,
        }
    }

    fn hear(&mut self, delivery: Delivery) {
        let Delivery { job, output, reply } = delivery;
        let usage = match &output {
            Output::Frame(Frame { end: Some(end), .. }) => Some(end.usage),
            _ => None,
        };
        if let Some(usage) = &usage {
            self.count(job, usage);
        }
        let Some(entry) = self.jobs.get_mut(&job) else {
            self.unknown(job, &output, reply);
            return;
        };
        if entry.flow.gone.load(Ordering::Acquire) {
            // Its `Leave` is on the way.
            self.refuse(job, reply, "the client has left");
            return;
        }
        entry.quiet = Quiet::default();
        let host = entry.relay.host().cloned();
        let declined = match &output {
            Output::Declined(reply) => entry.declined(reply),
            _ => "failed",
        };
        let step = entry.relay.step(output, entry.flow.consumed.load(Ordering::Acquire));
        if let (Some(_), Some(usage)) = (&step.end, usage) {
            let _ = entry.flow.usage.set(usage);
        }
        if step.fall_back {
            self.fall_back(job, declined);
        }
        self.carry_out(job, host, step, reply);
    }

    /// Counts the tokens that an end tells of, whoever still waits for it.
    fn count(&mut self, job: JobId, usage: &Usage) {
        let model = match self.jobs.get(&job) {
            Some(entry) => Arc::clone(&entry.model),
            None => match self.left.iter().position(|(left, _)| *left == job) {
                Some(at) => match self.left.remove(at) {
                    Some((_, model)) => model,
                    None => return,
                },
                None => return,
            },
        };
        meters::of(&model).used(usage);
    }

    pub(crate) fn carry_out(&mut self, job: JobId, host: Option<HostId>, step: Step, reply: Option<Subject>) {
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let Step { reply: answer, begun, head, data, waiting, mut end, mut cancel, obsolete, .. } = step;
        if step.taken {
            entry.taken();
        }
        if let Some((attempt, begin)) = begun {
            entry.waits = None;
            entry.progress.send_modify(|progress| {
                progress.stage = Stage::Running;
                progress.position = 0;
                progress.expected = None;
                progress.attempts += 1;
                let at = Instant::now();
                let load = progress.loading.take().map_or(Duration::ZERO, |since| at - since);
                progress.serving = Some(Serving { attempt, host: begin.host, at, load });
            });
        }
        if let Some((stage, position, eta)) = waiting {
            entry.progress.send_modify(|progress| {
                progress.stage = stage;
                progress.position = position;
                progress.expected = eta.and_then(|eta| Instant::now().checked_add(eta));
                if stage == Stage::Loading && progress.loading.is_none() {
                    progress.loading = Some(Instant::now());
                }
            });
        }
        if head.is_some() || data.is_some() {
            match entry.pieces.try_send(Piece { head, data }) {
                Err(full) if full.is_full() => {
                    warn!(%job, "a client is too slow for the many small pieces of its answer; cancelled");
                    cancel = true;
                    end = Some(Err(ApiError::new(
                        ErrorKind::Internal,
                        "client_too_slow",
                        "the answer was not read fast enough",
                    )));
                }
                // Closed: the client has just left, and its `Leave` is on the way.
                Ok(()) | Err(_) => {}
            }
        }
        if let Some(answer) = answer {
            self.answer(job, reply, answer);
        }
        if let Some(ending) = end
            && let Some(entry) = self.jobs.remove(&job)
        {
            // Before the sender is dropped: the client looks for it when the channel is closed.
            let _ = entry.flow.ending.set(ending);
            if let Some(offer) = &entry.offer {
                offer.pick.ended();
            }
            if cancel {
                self.cancel(job, host, &entry.relay);
            }
        }
        if let Some((attempt, host)) = obsolete {
            self.stop_attempt(job, attempt, host);
        }
    }

    /// Ends some jobs because the gateway ends, and cancels them.
    fn dismiss(&mut self, which: impl Fn(&Entry) -> bool) -> ResponseFuture<()> {
        let left: Vec<_> = self
            .jobs
            .extract_if(|_, entry| which(entry))
            .map(|(job, entry)| {
                let _ = entry.flow.ending.set(Err(error::shutting_down()));
                (job, entry.relay.host().cloned(), entry.relay.is_express())
            })
            .collect();
        let bus = self.bus.clone();
        Box::pin(async move {
            for (job, host, express) in left {
                publish_cancel(&bus, job, host, express).await;
            }
            let _ = bus.client.flush().await;
        })
    }

    /// Messages of a job that nobody here waits for: its client has left, or this actor was made anew.
    fn unknown(&mut self, job: JobId, output: &Output, reply: Option<Subject>) {
        if reply.is_some() {
            self.refuse(job, reply, "no client waits for this job here");
            return;
        }
        let still_wanted = match output {
            Output::Notice { notice: Notice::Waiting { .. }, .. } => true,
            Output::Frame(frame) if frame.attempt.is_express() => {
                if frame.end.is_none() {
                    self.stop_express(job);
                }
                false
            }
            Output::Frame(frame) => frame.end.is_none(),
            Output::Notice { .. } | Output::Declined(_) => false,
        };
        if still_wanted {
            // It is still queued or run: the cancel was not heard, which core NATS may lose.
            let bus = self.bus.clone();
            actix_rt::spawn(async move { publish_cancel(&bus, job, None, false).await });
        }
    }

    fn refuse(&mut self, job: JobId, reply: Option<Subject>, reason: &str) {
        self.refused += 1;
        self.answer(job, reply, BeginReply::Refuse { reason: reason.into() });
    }

    fn answer(&self, job: JobId, reply: Option<Subject>, answer: BeginReply) {
        let bus = self.bus.clone();
        actix_rt::spawn(async move {
            if let Err(error) = bus.reply(reply, &answer).await {
                debug!(%job, %error, "could not answer frame 0");
            }
        });
    }

    /// Stops one attempt at its host; the job goes on with another.
    fn stop_attempt(&self, job: JobId, attempt: Attempt, host: HostId) {
        let bus = self.bus.clone();
        actix_rt::spawn(async move {
            let subject = bus.subjects.ctl(&host, Verb::Cancel);
            if let Err(error) = bus.publish(subject, &CancelJob { job, attempt: Some(attempt) }).await {
                debug!(%job, %attempt, %error, "could not stop an attempt");
            }
        });
    }

    pub(crate) fn cancel(&self, job: JobId, host: Option<HostId>, relay: &Relay) {
        let (bus, express) = (self.bus.clone(), relay.is_express());
        actix_rt::spawn(async move { publish_cancel(&bus, job, host, express).await });
    }
}

/// Nobody waits for a job any more: its host is told, and the scheduler if it knows the job.
pub(crate) async fn publish_cancel(bus: &Bus, job: JobId, host: Option<HostId>, express: bool) {
    let message = CancelJob { job, attempt: None };
    let mut subjects = Vec::with_capacity(2);
    if !express {
        subjects.push(bus.subjects.cancel(job));
    }
    subjects.extend(host.map(|host| bus.subjects.ctl(&host, Verb::Cancel)));
    for subject in subjects {
        if let Err(error) = bus.publish(subject, &message).await {
            warn!(%job, %error, "could not publish a cancel");
        }
    }
}

impl Actor for Demux {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.watch_offers(ctx);
        let output = NatsOutput::new(self.bus.clone());
        let gateway = self.gateway.clone();
        let listen = async move { output.listen(&gateway).await };
        // Nothing is handled before the subscription stands, so no job can be submitted before either.
        ctx.wait(listen.into_actor(self).map(|source, actor, ctx| match source {
            Ok(source) => {
                actor.listening.store(true, Ordering::Release);
                ctx.add_stream(source.into_stream());
            }
            Err(error) => {
                warn!(gateway = %actor.gateway, %error, "cannot hear output; starting anew");
                ctx.stop();
            }
        }));
    }
}

impl Vital for Demux {
    fn life(&self) -> &Life {
        &self.life
    }

    fn observe(&self) -> serde_json::Value {
        serde_json::json!({
            "gateway": self.gateway,
            "listening": self.listening.load(Ordering::Acquire),
            "jobs": self.jobs.len(),
            "refused": self.refused,
        })
    }
}

impl StreamHandler<Delivery> for Demux {
    fn handle(&mut self, delivery: Delivery, _: &mut Self::Context) {
        self.hear(delivery);
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        info!(gateway = %self.gateway, "the output subscription has ended");
        ctx.stop();
    }
}

impl Handler<Listening> for Demux {
    type Result = ();
    fn handle(&mut self, _: Listening, _: &mut Self::Context) {}
}

impl Handler<Register> for Demux {
    type Result = ();
    fn handle(&mut self, Register { job, entry }: Register, _: &mut Self::Context) {
        if !entry.flow.gone.load(Ordering::Acquire) {
            if entry.offer.is_some() {
                self.offers.push_back((Instant::now(), job));
            }
            self.jobs.insert(job, entry);
        }
    }
}

impl Handler<Leave> for Demux {
    type Result = ();
    fn handle(&mut self, Leave { job, host }: Leave, _: &mut Self::Context) {
        let entry = self.jobs.remove(&job);
        let express = entry.as_ref().is_some_and(|entry| entry.relay.is_express());
        let known = entry.and_then(|entry| {
            let host = entry.relay.host().cloned()?;
            if self.left.len() == LEFT {
                self.left.pop_front();
            }
            self.left.push_back((job, entry.model));
            Some(host)
        });
        let (bus, host) = (self.bus.clone(), known.or(host));
        actix_rt::spawn(async move { publish_cancel(&bus, job, host, express).await });
    }
}

impl Handler<DismissWaiting> for Demux {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, _: DismissWaiting, _: &mut Self::Context) -> Self::Result {
        self.closing = true;
        self.dismiss(|entry| entry.relay.host().is_none())
    }
}

impl Handler<Drain> for Demux {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        ctx.stop();
        self.dismiss(|_| true)
    }
}
