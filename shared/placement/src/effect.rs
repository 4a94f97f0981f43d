//! What the core wants done.

use std::time::Duration;

use berth_wire::{
    ApiError, Attempt, EngineId, EventBody, HostId, JobId, Lease, ModelId, Profile, Reservation, SessionId,
    Stage,
};
use serde::{Deserialize, Serialize};

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Answered.
    Completed,
    /// Nobody waited for it any more.
    Cancelled,
    /// Failed; `told` if its client has heard of it from the agent already.
    Failed {
        /// What the client is to be told.
        error: ApiError,
        /// Whether it knows.
        told: bool,
    },
}

/// Something to be done. Effects of one step are carried out in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Have a host run a job.
    Dispatch {
        /// Which job.
        job: JobId,
        /// The attempt it is.
        attempt: Attempt,
        /// On which engine.
        engine: EngineId,
        /// Where.
        host: HostId,
    },
    /// Have a host start an engine.
    Start {
        /// The new engine.
        engine: EngineId,
        /// What it serves.
        model: ModelId,
        /// Where.
        host: HostId,
        /// Memory set aside for it.
        reservations: Vec<Reservation>,
    },
    /// Have a host stop an engine that runs nothing, or that a person wants gone.
    Stop {
        /// Which engine.
        engine: EngineId,
        /// Where.
        host: HostId,
        /// Why.
        reason: String,
        /// Also if something runs on it: a person wants it so.
        #[serde(default)]
        force: bool,
    },
    /// Have a host put an engine that runs nothing to sleep: weights to RAM, the memory of its accelerators free.
    Sleep {
        /// Which engine.
        engine: EngineId,
        /// Where.
        host: HostId,
        /// Why.
        reason: String,
    },
    /// Have a host wake an engine that sleeps.
    Wake {
        /// Which engine.
        engine: EngineId,
        /// What it serves.
        model: ModelId,
        /// Where.
        host: HostId,
        /// Memory set aside for it.
        reservations: Vec<Reservation>,
    },
    /// Have a host take offers for an engine on the express lane, or take none.
    Lane {
        /// Which engine.
        engine: EngineId,
        /// Where.
        host: HostId,
        /// Whether it takes them.
        open: bool,
    },
    /// Have a host abort an attempt.
    CancelAttempt {
        /// Which job.
        job: JobId,
        /// Which attempt.
        attempt: Attempt,
        /// Where.
        host: HostId,
    },
    /// Tell a waiting job how far it is.
    Tell {
        /// Which job.
        job: JobId,
        /// How far.
        stage: Stage,
        /// Jobs of its model before it.
        position: u32,
        /// Expected wait.
        eta: Option<Duration>,
    },
    /// Tell a job's gateway that an attempt is lost.
    AttemptLost {
        /// Which job.
        job: JobId,
        /// Which attempt.
        attempt: Attempt,
        /// What happened.
        error: ApiError,
    },
    /// The job has ended: take it off the stream and tell its gateway what it does not know.
    End {
        /// Which job.
        job: JobId,
        /// How.
        verdict: Verdict,
    },
    /// A lease was granted or carried on: keep it.
    LeaseKept(Lease),
    /// A lease has ended: forget it.
    LeaseEnded {
        /// Whose.
        session: SessionId,
        /// On what.
        model: ModelId,
    },
    /// A lease was not granted, or a hint not taken.
    LeaseRefused {
        /// Whose.
        session: SessionId,
        /// On what.
        model: ModelId,
        /// Why.
        error: ApiError,
    },
    /// What an operator asked is not done.
    AskRefused(ApiError),
    /// Something was measured: keep it for later leaders.
    Learned(Profile),
    /// A fact for the decision log.
    Record(EventBody),
}
