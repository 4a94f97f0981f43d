//! Looks whether anybody still knows of what clients wait for. What ends a job may be lost with a connection, and who
//! would have said it again with its process; a client must not wait for that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use actix::{Handler, Message};
use berth_bus::BusError;
use berth_wire::{ApiError, HostId, JobId, RollAnswer, RollCall, Verb};
use tracing::warn;

use crate::demux::Demux;
use crate::offers::Offer;

/// How often hosts are asked whether they still run what they took.
pub(crate) const ROLL: Duration = Duration::from_secs(1);
/// How long a host may take to answer that.
const ROLL_ANSWER: Duration = Duration::from_secs(2);
/// Jobs named in one question.
const ROLL_MOST: usize = 4096;
/// A job that is missed so often in a row has ended unheard: its last frame may have crossed the first answer.
const MISSED: u32 = 2;
/// A host that is silent so often in a row is gone.
const SILENT: u32 = 4;
/// After so many seconds without a word of a job, the leader is asked whether it still knows it.
const QUIET: u32 = 8;

/// How long nothing has been heard of a job of the queue.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    seconds: u32,
    /// How often in a row the leader did not know it.
    missed: u32,
}

/// What a host said of the jobs that it was asked for.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Rolled {
    host: HostId,
    jobs: Vec<JobId>,
    answer: Result<RollAnswer, BusError>,
}

/// What the leader said of the jobs that it was asked for.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Known {
    jobs: Vec<JobId>,
    answer: Result<RollAnswer, BusError>,
}

impl Demux {
    /// Asks hosts for the jobs that they took of the express lane, and the leader for others, both only for what has
    /// been quiet for a while.
    pub(crate) fn call_rolls(&mut self) {
        self.call_hosts();
        self.call_leader();
    }

    /// Asks every host for the jobs that it took a while ago.
    fn call_hosts(&mut self) {
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

    fn call_leader(&mut self) {
        let mut quiet: Vec<JobId> = Vec::new();
        for (job, entry) in &mut self.jobs {
            if entry.offer.is_none() {
                entry.quiet.seconds += 1;
                if entry.quiet.seconds.is_multiple_of(QUIET) {
                    quiet.push(*job);
                }
            }
        }
        for jobs in quiet.chunks(ROLL_MOST).map(<[JobId]>::to_vec) {
            let (bus, me) = (self.bus.clone(), self.me.clone());
            actix_rt::spawn(async move {
                let question = RollCall { jobs: jobs.clone() };
                let answer = bus.request(bus.subjects.scheduler_roll(), &question, ROLL_ANSWER).await;
                if let Some(me) = me {
                    me.do_send(Known { jobs, answer });
                }
            });
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
impl Handler<Known> for Demux {
    type Result = ();

    fn handle(&mut self, Known { jobs, answer }: Known, _: &mut Self::Context) {
        // Nobody leads for the moment, or not all is read yet: it is asked again.
        let Ok(RollAnswer { missing }) = answer else { return };
        let missing: BTreeSet<JobId> = missing.into_iter().collect();
        for job in jobs {
            let Some(entry) = self.jobs.get_mut(&job) else { continue };
            if entry.offer.is_some() || entry.quiet.seconds < QUIET || !missing.contains(&job) {
                entry.quiet.missed = 0;
                continue;
            }
            entry.quiet.missed += 1;
            // One that has just been submitted may have crossed the question.
            if entry.quiet.missed >= MISSED {
                warn!(%job, "nobody knows of a job any more; telling its client");
                let host = entry.relay.host().cloned();
                let step = entry.relay.forgotten(ApiError::answer_lost());
                self.carry_out(job, host, step, None);
            }
        }
    }
}
