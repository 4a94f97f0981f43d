//! Jobs of the express lane: offered, taken, or submitted to the queue after all. Nobody but the gateway and the host
//! knows of them, so the gateway itself looks whether they still run.

use std::time::{Duration, Instant};

use actix::{AsyncContext, Context, Handler, Message};
use berth_bus::BusError;
use berth_wire::{Attempt, CancelJob, JobId, ModelId, Reply, Stage, Verb};
use bytes::Bytes;
use tracing::{debug, info};

use crate::demux::{Demux, Entry, Express};
use crate::error;
use crate::flow::{Lane, Serving};
use crate::lanes::Pick;
use crate::meters;
use crate::roll::ROLL;

/// An offer that is not answered by then is given up.
const ANSWER: Duration = Duration::from_secs(1);
/// How often it is looked for such offers.
const LOOK: Duration = Duration::from_millis(100);

/// The express lane's part of a job.
pub(crate) struct Offer {
    pub(crate) pick: Pick,
    /// The job as it is submitted if nothing comes of the offer; let go of with the first output.
    payload: Bytes,
    pub(crate) taken: bool,
    pub(crate) at: Instant,
    /// How often in a row its host did not know it, or did not answer.
    pub(crate) missed: u32,
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
            // It waited for no slot: what came since the offer is the engine's own time.
            at: offer.at,
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

impl Demux {
    /// Looks after offers for as long as this actor lives.
    pub(crate) fn watch_offers(&mut self, ctx: &mut Context<Self>) {
        self.me = Some(ctx.address());
        ctx.run_interval(LOOK, |demux, _| demux.give_up_unanswered());
        ctx.run_interval(ROLL, |demux, _| demux.call_rolls());
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
    pub(crate) fn lose(&mut self, job: JobId, why: &'static str, message: &str) {
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
