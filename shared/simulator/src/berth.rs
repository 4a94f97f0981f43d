//! Berth's own policy: the scheduling core, driven in virtual time as a scheduler drives it.
//!
//! What may enter: turning a workload into the core's events, and carrying out its effects. What may not: a decision.

mod facts;
mod fault;
mod fleet;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use berth_placement::{AttemptEnd, Effect, Event, Policy, State, Verdict, step};
use berth_wire::{Attempt, EngineId, Epoch, JobId, Timestamp, Usage};

pub use fault::Fault;

use self::facts::Facts;
use self::fleet::Fleet;
use crate::policy::describe;
use crate::select::{Job, Workload};
use crate::setup::Setup;
use crate::time::{Micros, millis};

/// The trace begins a day after the core's time does, so that nothing looks younger than it is.
const BEGIN: u64 = 24 * 3600 * 1000;
/// Steps at one and the same millisecond, beyond those that events of that time explain: more is a loop.
const STEPS: u32 = 100_000;

/// Waits of all jobs in order, and how many loads it took; or when and why it went wrong.
pub(crate) fn run(
    workload: &Workload,
    setup: &Setup,
    started: &mut dyn FnMut(usize),
) -> Result<(Vec<Micros>, u64), (Micros, Fault)> {
    let mut drive = Drive::new(workload, setup);
    match drive.run(started) {
        Ok(()) => Ok((drive.waits(), drive.fleet.loads())),
        Err(fault) => Err((drive.now.0.saturating_sub(BEGIN).saturating_mul(1000), fault)),
    }
}

/// What one job was told when it arrived, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Seconds that it was told it would wait; `None`: it was not told.
    pub told: Option<f64>,
    /// Seconds that it waited.
    pub waited: f64,
}

/// What every job was told and what it waited.
pub(crate) fn estimates(workload: &Workload, setup: &Setup) -> Result<Vec<Estimate>, (Micros, Fault)> {
    let mut drive = Drive::new(workload, setup);
    drive.told = Some(Vec::new());
    if let Err(fault) = drive.run(&mut |_| {}) {
        return Err((drive.now.0.saturating_sub(BEGIN).saturating_mul(1000), fault));
    }
    let told = drive.told.take().unwrap_or_default();
    let waited = drive.waits().into_iter().map(crate::time::seconds);
    Ok(told.into_iter().zip(waited).map(|(told, waited)| Estimate { told, waited }).collect())
}

/// What happens of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Ready { engine: EngineId, turn: u32 },
    Ended { job: usize, attempt: Attempt, engine: EngineId },
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Running(Timestamp),
    Answered(Timestamp),
    /// The core has taken its end in.
    Over(Timestamp),
}

struct Drive<'a> {
    workload: &'a Workload,
    facts: Facts<'a>,
    state: State,
    fleet: Fleet,
    now: Timestamp,
    audit: bool,
    progress: Vec<Progress>,
    /// Jobs started, and jobs over.
    started: usize,
    over: usize,
    /// What happens at once, in order.
    at_once: VecDeque<Event>,
    /// By time; at equal times in the order in which they were set.
    due: BinaryHeap<Reverse<(Timestamp, u64, Due)>>,
    sequence: u64,
    steps_now: u32,
    /// What jobs are told when they arrive, if somebody wants to know.
    told: Option<Vec<Option<f64>>>,
}

impl<'a> Drive<'a> {
    fn new(workload: &'a Workload, setup: &'a Setup) -> Self {
        let policy = Policy {
            settle: Duration::ZERO,
            // Nobody reads along: `Tell` would only be work.
            tell_every: Duration::from_secs(100 * 365 * 24 * 3600),
            queue_limit: usize::MAX,
            model_queue_limit: usize::MAX,
            key_queue_limit: usize::MAX,
            ..setup.core.clone()
        };
        let now = Timestamp(0);
        Self {
            workload,
            facts: Facts { workload, setup },
            state: State::new(policy, Epoch(1), now),
            fleet: Fleet::new(workload, setup),
            now,
            audit: setup.audit,
            progress: vec![Progress::Waiting; workload.jobs.len()],
            started: 0,
            over: 0,
            at_once: VecDeque::new(),
            due: BinaryHeap::new(),
            sequence: 0,
            steps_now: 0,
            told: None,
        }
    }

    fn run(&mut self, started: &mut dyn FnMut(usize)) -> Result<(), Fault> {
        self.at_once.extend(self.facts.at_first());
        self.settle()?;
        let hints = self.facts.hints();
        let mut hints = hints.iter().peekable();
        let mut arrivals = self.workload.jobs.iter().peekable();
        let last = self.workload.jobs.last().map_or(Timestamp(BEGIN), arrival);
        let patience = last.plus(self.facts.patience());
        let mut moved = self.now;
        while self.over < self.workload.jobs.len() {
            let due = self.due.peek().map(|Reverse((at, ..))| *at);
            let hint = hints.peek().map(|(at, _)| *at);
            let job = arrivals.peek().map(|job| arrival(job));
            let timer = self.state.next_timer();
            let Some(next) = [due, hint, job, timer].into_iter().flatten().min() else {
                return Err(self.stuck());
            };
            self.at(next.max(self.now))?;
            // A timer that has to run alone is the last of its time: each step runs those that are due.
            let event = if hint == Some(next) {
                hints.next().map(|(_, job)| self.facts.hint(job))
            } else if job == Some(next) {
                arrivals.next().map(|job| self.facts.submitted(job))
            } else if due == Some(next) {
                self.due.pop().and_then(|Reverse((_, _, due))| self.happen(due))
            } else {
                Some(Event::Timer)
            };
            if due.is_some() || hint.is_some() || job.is_some() {
                moved = self.now;
            }
            self.at_once.extend(event);
            self.settle()?;
            started(self.started);
            let waits_for_nothing = self.now.since(moved) > self.facts.stillness();
            if self.now > patience || waits_for_nothing {
                return Err(self.stuck());
            }
        }
        Ok(())
    }

    fn at(&mut self, now: Timestamp) -> Result<(), Fault> {
        if now > self.now {
            self.now = now;
            self.steps_now = 0;
        }
        self.steps_now += 1;
        if self.steps_now > STEPS + 10 * u32::try_from(self.workload.jobs.len()).unwrap_or(u32::MAX / 20) {
            return Err(Fault::Endless { job: self.oldest() });
        }
        Ok(())
    }

    /// Feeds what happens at once, and what comes of it at once.
    fn settle(&mut self) -> Result<(), Fault> {
        while let Some(event) = self.at_once.pop_front() {
            let submitted = match &event {
                Event::JobSubmitted(job) if self.told.is_some() => Some(job.id),
                _ => None,
            };
            let effects = step(&mut self.state, event, self.now);
            if let (Some(job), Some(told)) = (submitted, &mut self.told) {
                told.push(self.state.explain(job, self.now).and_then(|why| why.eta_s));
            }
            if self.audit {
                self.state.check().map_err(|violation| Fault::Broken(violation.to_string()))?;
            }
            for effect in effects {
                self.carry_out(effect)?;
            }
            self.at(self.now)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), Fault> {
        let now = self.now;
        match effect {
            Effect::Dispatch { job, attempt, engine, host } => self.dispatch(job, attempt, engine, &host)?,
            Effect::Start { engine, model, host, reservations } => {
                let (event, turn) = self.fleet.start(engine, model, host, reservations, now)?;
                self.at_once.push_back(event);
                self.set(now.plus(self.facts.load()), Due::Ready { engine, turn });
            }
            Effect::Wake { engine, model, host, reservations } => {
                let (event, turn) = self.fleet.wake(engine, &model, &host, reservations, now)?;
                self.at_once.push_back(event);
                self.set(now.plus(self.facts.wake()), Due::Ready { engine, turn });
            }
            Effect::Stop { engine, .. } => {
                let event = self.fleet.stop(engine)?;
                self.at_once.push_back(event);
            }
            Effect::Sleep { engine, .. } => {
                let event = self.fleet.sleep(engine)?;
                self.at_once.push_back(event);
            }
            Effect::End { job, verdict } => self.ended(job, &verdict)?,
            // No job is cancelled and no host is lost here.
            Effect::CancelAttempt { job, .. } => {
                return Err(Fault::GivenUp { job: self.name(job), why: "its attempt is cancelled".into() });
            }
            Effect::AttemptLost { job, error, .. } => {
                return Err(Fault::GivenUp { job: self.name(job), why: error.message });
            }
            // Nothing is offered here.
            Effect::Lane { .. }
            | Effect::Tell { .. }
            | Effect::LeaseKept(_)
            | Effect::LeaseEnded { .. }
            | Effect::LeaseRefused { .. }
            | Effect::AskRefused(_)
            | Effect::Learned(_)
            | Effect::Record(_) => {}
        }
        Ok(())
    }

    fn set(&mut self, at: Timestamp, due: Due) {
        self.sequence += 1;
        self.due.push(Reverse((at, self.sequence, due)));
    }

    fn dispatch(
        &mut self,
        id: JobId,
        attempt: Attempt,
        engine: EngineId,
        host: &berth_wire::HostId,
    ) -> Result<(), Fault> {
        let (name, now) = (self.name(id), self.now);
        let job = self.job(id).ok_or_else(|| Fault::Unknown(name.clone()))?;
        match self.progress.get_mut(job.index) {
            Some(progress @ Progress::Waiting) if now >= arrival(&job) => *progress = Progress::Running(now),
            _ => return Err(Fault::Twice { job: name }),
        }
        self.fleet.run(engine, host, job.model).map_err(|why| Fault::NoSlot { job: name, why })?;
        self.started += 1;
        self.set(now.plus(service(&job)), Due::Ended { job: job.index, attempt, engine });
        Ok(())
    }

    fn happen(&mut self, due: Due) -> Option<Event> {
        match due {
            Due::Ready { engine, turn } => self.fleet.ready(engine, turn, self.now),
            Due::Ended { job: index, attempt, engine } => {
                let job = self.workload.jobs.get(index)?;
                if let Some(progress) = self.progress.get_mut(index)
                    && let Progress::Running(start) = *progress
                {
                    *progress = Progress::Answered(start);
                }
                self.fleet.done(engine);
                let usage = Usage {
                    prompt_tokens: Some(job.prompt_tokens),
                    completion_tokens: Some(job.output_tokens),
                    total: service(job),
                    ..Usage::default()
                };
                let end = AttemptEnd::Completed;
                Some(Event::AttemptEnded { job: job_id(index), attempt, engine, end, usage })
            }
        }
    }

    fn ended(&mut self, id: JobId, verdict: &Verdict) -> Result<(), Fault> {
        let name = self.name(id);
        let progress = self.job(id).and_then(|job| self.progress.get_mut(job.index));
        match (progress, verdict) {
            (Some(progress), Verdict::Completed) if matches!(progress, Progress::Answered(_)) => {
                if let Progress::Answered(start) = *progress {
                    *progress = Progress::Over(start);
                    self.over += 1;
                }
                Ok(())
            }
            (_, Verdict::Failed { error, .. }) => {
                Err(Fault::GivenUp { job: name, why: error.message.clone() })
            }
            (_, Verdict::Cancelled) => {
                Err(Fault::GivenUp { job: name, why: "it was cancelled, which nobody asked for".into() })
            }
            (_, Verdict::Completed) => Err(Fault::GivenUp {
                job: name,
                why: "it was called completed before it was answered".into(),
            }),
        }
    }

    fn job(&self, id: JobId) -> Option<Job> {
        let index = usize::try_from(id.0).ok()?.checked_sub(1)?;
        self.workload.jobs.get(index).copied()
    }

    fn name(&self, id: JobId) -> String {
        self.job(id).map_or_else(|| format!("job {id}"), |job| describe(&job, self.workload))
    }

    fn stuck(&self) -> Fault {
        Fault::NeverEnds { job: self.oldest() }
    }

    /// The oldest job that is not over.
    fn oldest(&self) -> String {
        let mut jobs = self.workload.jobs.iter().zip(&self.progress);
        let oldest = jobs.find(|(_, progress)| !matches!(progress, Progress::Over(_)));
        oldest.map_or_else(|| "no job".into(), |(job, _)| describe(job, self.workload))
    }

    fn waits(&self) -> Vec<Micros> {
        let jobs = self.workload.jobs.iter().zip(&self.progress);
        jobs.filter_map(|(job, progress)| match progress {
            Progress::Running(start) | Progress::Answered(start) | Progress::Over(start) => {
                Some(start.0.saturating_sub(arrival(job).0).saturating_mul(1000))
            }
            Progress::Waiting => None,
        })
        .collect()
    }
}

fn job_id(index: usize) -> JobId {
    // Jobs of one millisecond are in the order of the trace.
    JobId(index as u128 + 1)
}

fn arrival(job: &Job) -> Timestamp {
    Timestamp(BEGIN.saturating_add(millis(job.arrival)))
}

fn service(job: &Job) -> Duration {
    Duration::from_millis(millis(job.service).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_can_never_run_is_an_error_that_names_it() {
        let job = Job {
            index: 0,
            arrival: 5_000_000,
            model: 0,
            session: 0,
            service: 1,
            prompt_tokens: 1,
            output_tokens: 1,
            line: 2,
        };
        let workload = Workload { jobs: vec![job], models: vec!["m".into()], sessions: vec!["s".into()] };
        let nowhere = Setup { accelerators: 0, ..Setup::default() };
        let (at, fault) = run(&workload, &nowhere, &mut |_| {}).unwrap_err();
        assert!(at >= 5_000_000, "{at}");
        let named = "the job of line 2 (model m, session s, arrived at 5 s)";
        assert!(fault.to_string().starts_with(named), "{fault}");
    }
}
