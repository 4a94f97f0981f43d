//! Jobs of the express lane: offered, taken, or submitted to the queue after all. Nobody but the gateway and the host
//! knows of them, so the gateway itself looks whether they still run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use actix::{AsyncContext, Context, Handler, Message};
use berth_bus::BusError;
use berth_wire::{Attempt, CancelJob, HostId, JobId, ModelId, Reply, RollAnswer, RollCall, Stage, Verb};
use bytes::Bytes;
use tracing::{debug, info};

use crate::demux::{Demux, Entry, Express, Lane, Serving};
use crate::error;
use crate::lanes::Pick;
use crate::meters;

/// An offer that is not answered by then is given up.
const ANSWER: Duration = Duration::from_secs(1);
/// How often it is looked for such offers.
const LOOK: Duration = Duration::from_millis(100);
/// How often hosts are asked whether they still run what they took.
const ROLL: Duration = Duration::from_secs(1);
/// How long a host may take to answer that.
const ROLL_ANSWER: Duration = Duration::from_secs(2);
/// Jobs named in one question.
const ROLL_MOST: usize = 4096;
/// A job that is missed so often in a row has ended unheard: its last frame may have crossed the first answer.
const MISSED: u32 = 2;
/// A host that is silent so often in a row is gone.
const SILENT: u32 = 4;

/// The express lane's part of a job.
pub(crate) struct Offer {
    pub(crate) pick: Pick,
    /// The job as it is submitted if nothing comes of the offer; let go of with the first output.
    payload: Bytes,
    taken: bool,
    at: Instant,
    /// How often in a row its host did not know it, or did not answer.
    missed: u32,
}

impl Offer {
    pub(crate) fn new(express: Express) -> Self {
        count("offered");
        let Express { pick, payload } = express;
        Self { pick, payload, taken: false, at: Instant::now(), missed: 0 }
    }
}

fn count(outcome: &'static str) {
    meters::offer(outcome);
}

impl Entry {
    /// Why an offer was not taken, as a label.
    pub(crate) fn declined(&self, reply: &Reply) -> &'static str {
        if let Some(offer) = &self.offer {
            offer.pick.was_busy();
        }
        if matches!(reply, Reply::Busy { .. }) { "busy" } else { "refused" }
    }

    /// Its host has it.
    pub(crate) fn taken(&mut self) {
        let Some(offer) = self.offer.as_mut().filter(|offer| !offer.taken) else { return };
        count("taken");
        offer.taken = true;
        let serving = Serving {
            attempt: Attempt::EXPRESS,
            host: offer.pick.host.clone(),
            at: Instant::now(),
            load: Duration::ZERO,
        };
        self.progress.send_modify(|progress| {
            progress.stage = Stage::Running;
            progress.attempts += 1;
            progress.serving = Some(serving);
        });
    }
}

/// A job could not be submitted.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct NotSubmitted {
    job: JobId,
    error: BusError,
}

/// What a host said of the jobs that it was asked for.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Rolled {
    host: HostId,
    jobs: Vec<JobId>,
    answer: Result<RollAnswer, BusError>,
}

impl Demux {
    /// Looks after offers for as long as this actor lives.
    pub(crate) fn watch_offers(&mut self, ctx: &mut Context<Self>) {
        self.me = Some(ctx.address());
        ctx.run_interval(LOOK, |demux, _| demux.give_up_unanswered());
        ctx.run_interval(ROLL, |demux, _| demux.call_roll());
    }

    fn give_up_unanswered(&mut self) {
        while let Some((at, job)) = self.offers.front().copied() {
            if at.elapsed() < ANSWER {
                return;
            }
            self.offers.pop_front();
            let offer = self.jobs.get(&job).and_then(|entry| entry.offer.as_ref());
            if offer.is_some_and(|offer| !offer.taken) {
                self.lose(job, "unanswered", "the host did not answer");
            }
        }
    }

    /// An express attempt is given up: the job is submitted, or ends if its client has had some of it.
    fn lose(&mut self, job: JobId, why: &'static str, message: &str) {
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let host = entry.relay.host().cloned();
        info!(%job, ?host, why, "a job of the express lane is lost");
        let step = entry.relay.lost("host_lost", message);
        if step.fall_back {
            self.fall_back(job, "lost");
        }
        self.carry_out(job, host, step, None);
    }

    /// Submits a job that the express lane did not serve: once, since the queue gives none back to it.
    pub(crate) fn fall_back(&mut self, job: JobId, outcome: &'static str) {
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let Some(offer) = entry.offer.take() else { return };
        count(outcome);
        debug!(%job, engine = %offer.pick.engine, outcome, "an offer came to nothing");
        if self.closing {
            let _ = entry.flow.ending.set(Err(error::shutting_down()));
            self.jobs.remove(&job);
            return;
        }
        let model = offer.pick.model().clone();
        entry.waits = Some(self.lanes.wait(&model));
        entry.progress.send_modify(|progress| {
            progress.stage = Stage::Queued;
            progress.serving = None;
            progress.lane = Lane::Queue;
        });
        self.submit(job, model, offer.payload);
    }

    fn submit(&self, job: JobId, model: ModelId, payload: Bytes) {
        let (bus, me) = (self.bus.clone(), self.me.clone());
        actix_rt::spawn(async move {
            let submitted = bus.submit_payload(job, &model, payload).await;
            if let (Err(error), Some(me)) = (submitted, me) {
                me.do_send(NotSubmitted { job, error });
            }
        });
    }

    /// Asks every host for the jobs that it took a while ago.
    fn call_roll(&mut self) {
        let mut by_host: BTreeMap<HostId, Vec<JobId>> = BTreeMap::new();
        for (job, entry) in &self.jobs {
            let old = |offer: &&Offer| offer.taken && offer.at.elapsed() >= ROLL;
            if let Some(offer) = entry.offer.as_ref().filter(old) {
                by_host.entry(offer.pick.host.clone()).or_default().push(*job);
            }
        }
        for (host, mut jobs) in by_host {
            if !self.asked.insert(host.clone()) {
                continue;
            }
            jobs.truncate(ROLL_MOST);
            let (bus, me) = (self.bus.clone(), self.me.clone());
            actix_rt::spawn(async move {
                let question = RollCall { jobs: jobs.clone() };
                let subject = bus.subjects.ctl(&host, Verb::Roll);
                let answer = bus.request(subject, &question, ROLL_ANSWER).await;
                if let Some(me) = me {
                    me.do_send(Rolled { host, jobs, answer });
                }
            });
        }
    }

    /// A frame of an express job that nobody waits for: its cancel was lost, and with the job its host.
    pub(crate) fn stop_express(&self, job: JobId) {
        let (bus, hosts) = (self.bus.clone(), self.lanes.hosts());
        actix_rt::spawn(async move {
            let cancel = CancelJob { job, attempt: Some(Attempt::EXPRESS) };
            for host in hosts {
                let subject = bus.subjects.ctl(&host, Verb::Cancel);
                if let Err(error) = bus.publish(subject, &cancel).await {
                    debug!(%job, %error, "could not stop an attempt");
                }
            }
        });
    }
}

impl Handler<NotSubmitted> for Demux {
    type Result = ();

    fn handle(&mut self, NotSubmitted { job, error }: NotSubmitted, _: &mut Self::Context) {
        let Some(entry) = self.jobs.remove(&job) else { return };
        let _ = entry.flow.ending.set(Err(error::not_submitted(&error)));
        if matches!(error, BusError::TimedOut { .. }) {
            // It may have been taken all the same.
            self.cancel(job, None, &entry.relay);
        }
    }
}

impl Handler<Rolled> for Demux {
    type Result = ();

    fn handle(&mut self, Rolled { host, jobs, answer }: Rolled, _: &mut Self::Context) {
        self.asked.remove(&host);
        // Nobody listens there any more: while the client has had nothing, nothing is lost by trying elsewhere at once.
        let (missing, unserved, served) = match answer {
            Ok(RollAnswer { missing }) => (missing, MISSED, MISSED),
            Err(BusError::NoResponders { .. }) => (jobs.clone(), 1, MISSED),
            Err(_) => (jobs.clone(), SILENT, SILENT),
        };
        for job in jobs {
            let missed = missing.contains(&job);
            let Some(entry) = self.jobs.get_mut(&job) else { continue };
            let forwarded = entry.relay.has_forwarded();
            let Some(offer) = entry.offer.as_mut() else { continue };
            offer.missed = if missed { offer.missed + 1 } else { 0 };
            if offer.missed >= if forwarded { served } else { unserved } {
                self.lose(job, "missed", "the host that served this request was lost");
            }
        }
    }
}
