//! The books: what the core knows of models, hosts, engines and jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_wire::{
    AcceleratorId, ApiError, Attempt, Driver, EngineId, HostId, JobId, ModelId, Reservation, Timestamp,
};
use serde::Serialize;

use crate::event::ModelNeeds;

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
    /// It is being stopped; its memory is still taken.
    Stopping,
}

/// One engine.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) model: ModelId,
    pub(crate) host: HostId,
    pub(crate) phase: EnginePhase,
    pub(crate) reservations: Vec<Reservation>,
    pub(crate) concurrency: u32,
    /// Every attempt that takes a slot, express ones too.
    pub(crate) running: BTreeMap<JobId, Attempt>,
    /// When the phase began.
    pub(crate) since: Timestamp,
    /// When a job last started or ended on it.
    pub(crate) last_used: Timestamp,
    /// It takes nothing new, so that this model can have its room.
    pub(crate) draining_for: Option<ModelId>,
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
    pub(crate) fn free_slots(&self) -> u32 {
        let taken = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        self.concurrency.saturating_sub(taken)
    }

    pub(crate) fn admits(&self) -> bool {
        self.phase == EnginePhase::Ready
            && self.draining_for.is_none()
            && self.held_until.is_none()
            && self.free_slots() > 0
    }

    /// It will serve its model, now or soon.
    pub(crate) fn serves(&self) -> bool {
        match self.phase {
            EnginePhase::Ordered | EnginePhase::Starting => true,
            EnginePhase::Ready => self.draining_for.is_none(),
            EnginePhase::Stopping => false,
        }
    }

    pub(crate) fn bytes_on(&self, accelerator: &AcceleratorId) -> u64 {
        self.reservations.iter().filter(|r| r.accelerator == *accelerator).map(|r| r.bytes).sum()
    }
}

/// Room that a model will have once its victims are gone.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) host: HostId,
    pub(crate) reservations: Vec<Reservation>,
    pub(crate) victims: BTreeSet<EngineId>,
}

/// One catalog entry with its queue.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) needs: ModelNeeds,
    /// Waiting jobs, oldest first.
    pub(crate) queue: BTreeSet<(Timestamp, JobId)>,
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
    /// Places in the queue have changed since they were told.
    pub(crate) stale_places: bool,
}

impl Model {
    pub(crate) fn new(needs: ModelNeeds) -> Self {
        Self {
            needs,
            queue: BTreeSet::new(),
            engines: BTreeSet::new(),
            plan: None,
            start_failures: 0,
            last_failure: None,
            given_up: 0,
            not_before: None,
            blocked: None,
            start_took: None,
            service: None,
            stale_places: false,
        }
    }

    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.queue.first().map(|(arrival, _)| *arrival)
    }
}

/// One accelerator of a host.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) id: AcceleratorId,
    pub(crate) memory: u64,
}

/// One host that is alive.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) boot: String,
    pub(crate) devices: Vec<Device>,
    pub(crate) drivers: Vec<Driver>,
    pub(crate) labels: Vec<String>,
    pub(crate) draining: bool,
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
}
