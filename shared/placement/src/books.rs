//! The books: what the core knows of models, hosts, engines and jobs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use berth_wire::{
    AcceleratorId, ApiError, Attempt, Class, Driver, EngineId, HostId, JobId, KeyId, ModelId, Reservation,
    Residency, SessionId, SleepCost, Timestamp,
};
use serde::Serialize;

use crate::event::ModelNeeds;
use crate::hint::Hints;
use crate::load::Load;
use crate::queue::{Queue, Waiting};
use crate::rate::Rate;
use crate::times::Times;

/// Where an engine is in its life, as the core sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EnginePhase {
    /// The start command is on its way; the host has not spoken of it yet.
    Ordered,
    /// The host is starting it.
    Starting,
    /// It serves.
    Ready,
    /// It is being put to sleep, or waits for the host RAM it takes; its memory is still taken.
    FallingAsleep,
    /// Its weights are in host RAM.
    Sleeping,
    /// It is being woken.
    Waking,
    /// It is being stopped; its memory is still taken.
    Stopping,
}

impl EnginePhase {
    /// It is on its way to serve.
    #[must_use]
    pub fn is_loading(self) -> bool {
        matches!(self, Self::Ordered | Self::Starting | Self::Waking)
    }
}

/// A job that runs on an engine without having been queued: its host took it by the express lane.
#[derive(Debug, Clone, Default)]
pub(crate) struct Express {
    /// What it was counted as when it began; `None` if only a snapshot told of it.
    pub(crate) counted: Option<Waiting>,
}

/// A job that runs on an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) attempt: Attempt,
    /// Since when, as far as this leader knows.
    pub(crate) since: Timestamp,
}

/// One engine.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) model: ModelId,
    pub(crate) host: HostId,
    pub(crate) phase: EnginePhase,
    /// What it takes while it is awake.
    pub(crate) reservations: Vec<Reservation>,
    pub(crate) concurrency: u32,
    /// What it takes asleep, if it can sleep.
    pub(crate) sleep: Option<SleepCost>,
    /// It holds host RAM: from the command to sleep until it is ready again or gone.
    pub(crate) in_ram: bool,
    /// Its accelerators' memory is free but for a residue.
    pub(crate) asleep: bool,
    /// Worth of keeping it asleep, comparable among the sleepers of its host; the least goes first.
    pub(crate) credit: f64,
    /// Where its weights were when this leader had it started or woken; `None`: an earlier one did.
    pub(crate) from: Option<Residency>,
    /// Attempts that this core dispatched, or that an earlier leader did.
    pub(crate) running: BTreeMap<JobId, Run>,
    /// Jobs that its host took by the express lane; each takes a slot as well.
    pub(crate) express: BTreeMap<JobId, Express>,
    /// Whether its host was last told to take offers; `None`: an earlier leader may have said anything.
    pub(crate) lane: Option<bool>,
    /// When the phase began.
    pub(crate) since: Timestamp,
    /// When a job last started or ended on it.
    pub(crate) last_used: Timestamp,
    /// It takes nothing new, so that this model can have its room.
    pub(crate) draining_for: Option<ModelId>,
    /// Its host is drained: it takes nothing new and goes when it is idle.
    pub(crate) leaving: bool,
    /// Jobs that it must have started before it may be drained.
    pub(crate) quota: u32,
    /// Its idle timer runs; there is one at most, however often it falls idle.
    pub(crate) idle_timer: bool,
    /// A job has been sent to it.
    pub(crate) used: bool,
    /// Its host refused a dispatch: nothing is sent to it before this.
    pub(crate) held_until: Option<Timestamp>,
}

impl Engine {
    /// Slots that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.running.len() + self.express.len()
    }

    /// Which attempt of a job runs on it.
    pub(crate) fn attempt_of(&self, job: JobId) -> Option<Attempt> {
        self.running.get(&job).map(|run| run.attempt)
    }

    /// It runs nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.express.is_empty()
    }

    pub(crate) fn free_slots(&self) -> u32 {
        self.concurrency.saturating_sub(u32::try_from(self.taken()).unwrap_or(u32::MAX))
    }

    pub(crate) fn admits(&self) -> bool {
        self.phase == EnginePhase::Ready
            && self.draining_for.is_none()
            && !self.leaving
            && self.held_until.is_none()
            && self.free_slots() > 0
    }

    /// It will serve its model, now or soon.
    pub(crate) fn serves(&self) -> bool {
        match self.phase {
            _ if self.leaving => false,
            _ if self.phase.is_loading() => true,
            EnginePhase::Ready => self.draining_for.is_none(),
            _ => false,
        }
    }

    /// Bytes that it takes of an accelerator as it is now.
    pub(crate) fn bytes_on(&self, accelerator: &AcceleratorId) -> u64 {
        match self.phase {
            // Also one that is stopped in its sleep.
            EnginePhase::Sleeping | EnginePhase::Stopping if self.asleep => self.asleep_on(accelerator),
            _ => self.awake_on(accelerator),
        }
    }

    /// Bytes that it takes of an accelerator while it is awake.
    pub(crate) fn awake_on(&self, accelerator: &AcceleratorId) -> u64 {
        self.reservations.iter().filter(|r| r.accelerator == *accelerator).map(|r| r.bytes).sum()
    }

    /// Bytes that it keeps of an accelerator while it sleeps.
    pub(crate) fn asleep_on(&self, accelerator: &AcceleratorId) -> u64 {
        let residue = self.sleep.map_or(0, |sleep| sleep.residue);
        self.awake_on(accelerator).min(residue)
    }

    /// Bytes of host RAM that it takes asleep.
    pub(crate) fn ram(&self) -> u64 {
        self.sleep.map_or(0, |sleep| sleep.ram)
    }
}

/// Room that a model will have once its victims are gone.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) host: HostId,
    pub(crate) reservations: Vec<Reservation>,
    pub(crate) victims: BTreeSet<EngineId>,
    /// The sleeping engine that is woken then; `None`: a new one is started.
    pub(crate) wake: Option<EngineId>,
    /// The victims are stopped: asleep they would keep too much.
    pub(crate) stops: bool,
    /// Why there.
    pub(crate) why: String,
}

/// One catalog entry with its queue.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) needs: ModelNeeds,
    /// Waiting jobs.
    pub(crate) queue: Queue,
    pub(crate) rate: Rate,
    /// Mean weight of its jobs (EWMA).
    pub(crate) weight: f64,
    /// Sessions that hold a lease on it.
    pub(crate) leases: BTreeSet<SessionId>,
    pub(crate) hints: Hints,
    /// An operator wants an engine of it.
    pub(crate) load: Option<Load>,
    /// Which engine served a session last; the oldest are forgotten.
    pub(crate) affinity: Affinity,
    /// When it is looked at again, if a timer is set for that.
    pub(crate) looked_at: Option<Timestamp>,
    pub(crate) engines: BTreeSet<EngineId>,
    pub(crate) plan: Option<Plan>,
    /// Starts that failed in a row.
    pub(crate) start_failures: u32,
    /// Why its last engine failed, if no job has been answered since.
    pub(crate) last_failure: Option<String>,
    /// Times it was given up in a row.
    pub(crate) given_up: u32,
    /// No start before this.
    pub(crate) not_before: Option<Timestamp>,
    /// Given up until this, for this reason.
    pub(crate) blocked: Option<(Timestamp, ApiError)>,
    /// How long a start takes, once measured.
    pub(crate) start_took: Option<Duration>,
    /// How long a job takes, once measured (EWMA).
    pub(crate) service: Option<Duration>,
    /// Bytes that it is to take by its files, over all its accelerators.
    pub(crate) estimate: Option<u64>,
    /// How long jobs have taken that this leader saw.
    pub(crate) times: Times,
    /// Tokens that a job takes, once measured (EWMA).
    pub(crate) tokens: Option<u64>,
    /// Hosts on which it may have failed to start.
    pub(crate) failed_on: BTreeSet<HostId>,
    /// Hosts on which it ran, the last ones first: its weights are there.
    pub(crate) ran_on: VecDeque<HostId>,
    /// Where the search that leaves nobody out is in the fleet.
    pub(crate) turn: u32,
}

impl Model {
    pub(crate) fn new(needs: ModelNeeds) -> Self {
        Self {
            needs,
            queue: Queue::default(),
            rate: Rate::default(),
            weight: 1.0,
            leases: BTreeSet::new(),
            hints: Hints::default(),
            load: None,
            affinity: Affinity::default(),
            looked_at: None,
            engines: BTreeSet::new(),
            plan: None,
            start_failures: 0,
            last_failure: None,
            given_up: 0,
            not_before: None,
            blocked: None,
            start_took: None,
            service: None,
            estimate: None,
            times: Times::default(),
            tokens: None,
            failed_on: BTreeSet::new(),
            ran_on: VecDeque::new(),
            turn: 0,
        }
    }

    /// It was started on a host.
    pub(crate) fn ran_on(&mut self, host: &HostId) {
        const KEPT: usize = 8;
        self.ran_on.retain(|other| other != host);
        self.ran_on.push_front(host.clone());
        self.ran_on.truncate(KEPT);
    }

    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.queue.oldest()
    }

    /// Somebody waits for it, holds a lease on it, said that it will be needed, or wants it loaded.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.queue.is_empty() || !self.leases.is_empty() || self.hints.count() > 0 || self.load.is_some()
    }
}

/// A bounded memory of which engine served which session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Affinity {
    engines: BTreeMap<SessionId, EngineId>,
    order: VecDeque<SessionId>,
}

impl Affinity {
    const KEPT: usize = 4096;

    pub(crate) fn served(&mut self, session: &SessionId, engine: EngineId) {
        if self.engines.insert(session.clone(), engine).is_none() {
            self.order.push_back(session.clone());
            if self.order.len() > Self::KEPT
                && let Some(oldest) = self.order.pop_front()
            {
                self.engines.remove(&oldest);
            }
        }
    }

    pub(crate) fn of(&self, session: &SessionId) -> Option<EngineId> {
        self.engines.get(session).copied()
    }
}

/// One accelerator of a host.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) id: AcceleratorId,
    /// What it is called; measurements belong to it.
    pub(crate) name: String,
    pub(crate) memory: u64,
}

/// One host that is alive.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) boot: String,
    pub(crate) devices: Vec<Device>,
    pub(crate) drivers: Vec<Driver>,
    pub(crate) labels: Vec<String>,
    /// It takes nothing new, for either reason that there is.
    pub(crate) draining: bool,
    /// Its agent says so: it is about to end.
    pub(crate) leaving: bool,
    /// Host RAM for engines that sleep.
    pub(crate) sleep_memory: u64,
    /// More of it, while one engine is exchanged for another.
    pub(crate) sleep_spare: u64,
    /// The credit of the sleeper that was given up last.
    pub(crate) credit_floor: f64,
    /// Models that ran here: their weights are on its disk.
    pub(crate) ran: BTreeSet<ModelId>,
    /// Models whose start failed here: how often in a row, and not again before.
    pub(crate) failed: BTreeMap<ModelId, (u32, Timestamp)>,
    pub(crate) engines: BTreeSet<EngineId>,
    /// Models whose plan is on this host.
    pub(crate) plans: BTreeSet<ModelId>,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobPhase {
    /// In its model's queue.
    Queued,
    /// At an engine.
    Running {
        /// Which.
        engine: EngineId,
        /// Which attempt.
        attempt: Attempt,
    },
}

/// One job.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) model: ModelId,
    pub(crate) arrival: Timestamp,
    pub(crate) deadline: Option<Timestamp>,
    /// The deadline is its client's own.
    pub(crate) hurried: bool,
    pub(crate) key: Option<KeyId>,
    pub(crate) session: Option<SessionId>,
    pub(crate) class: Class,
    pub(crate) tokens: u64,
    pub(crate) attempts: u32,
    pub(crate) phase: JobPhase,
    /// When the running attempt began.
    pub(crate) started: Timestamp,
    /// Cancelled while it ran; the end of its attempt ends it.
    pub(crate) cancelled: bool,
}

/// A job as people see it.
#[derive(Debug, Clone, Serialize)]
pub struct JobView {
    /// Which job.
    pub job: JobId,
    /// The model it asks for.
    pub model: ModelId,
    /// Where it is.
    pub phase: JobPhase,
    /// How long since the gateway took it.
    pub age_ms: u64,
}

/// A model as people see it.
#[derive(Debug, Clone, Serialize)]
pub struct ModelView {
    /// Which model.
    pub model: ModelId,
    /// Jobs that wait.
    pub queued: usize,
    /// Jobs that run.
    pub running: usize,
    /// Its engines and their phases.
    pub engines: Vec<(EngineId, EnginePhase)>,
    /// Why it is given up for now.
    pub error: Option<String>,
    /// What a job submitted now may expect to wait, in seconds.
    pub wait_estimate_s: Option<f64>,
    /// Sessions with a lease on it.
    pub leases: usize,
}
