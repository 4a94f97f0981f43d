//! Commands: scheduler and gateways to agents on `ctl.<host>.<verb>`, each acknowledged at once with [`Reply`].
//!
//! A dispatch is the job's own payload, passed on as it is, with [`DispatchHeaders`] as NATS headers. An offer
//! (`ctl.<host>.offer`) is the same payload with the header `Berth-Engine` alone, and the job's output subject as its
//! reply subject: the answer is the job's first frame, or `Output::Declined`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::ModelSpec;
use crate::codec::Message;
use crate::host::Reservation;
use crate::id::{Attempt, EngineId, Epoch, JobId};

/// `ctl.<host>.start`: run an engine. Progress comes back in reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartEngine {
    /// The leader's fencing token.
    pub epoch: Epoch,
    /// The new engine's id.
    pub engine: EngineId,
    /// What to run, complete.
    pub model: ModelSpec,
    /// Memory set aside for it, per accelerator.
    pub reservations: Vec<Reservation>,
    /// The run of the agent that it was decided for: another one, of which the leader has yet to hear, has other engines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

impl Message for StartEngine {
    const SCHEMA: &'static str = "ctl.start/1";
}

/// `ctl.<host>.stop`: stop an engine that runs no job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopEngine {
    /// The leader's fencing token.
    pub epoch: Epoch,
    /// Which engine.
    pub engine: EngineId,
    /// Why, for the log and the events.
    pub reason: String,
    /// Stop it even while it serves jobs.
    #[serde(default)]
    pub force: bool,
}

impl Message for StopEngine {
    const SCHEMA: &'static str = "ctl.stop/1";
}

/// `ctl.<host>.sleep`: put an engine that runs no job to sleep, its weights in host RAM and its accelerators free.
/// An engine that sleeps already is no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepEngine {
    /// The leader's fencing token.
    pub epoch: Epoch,
    /// Which engine.
    pub engine: EngineId,
    /// Why, for the log and the events.
    pub reason: String,
}

impl Message for SleepEngine {
    const SCHEMA: &'static str = "ctl.sleep/1";
}

/// `ctl.<host>.wake`: wake an engine that sleeps. One that is awake already is no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeEngine {
    /// The leader's fencing token.
    pub epoch: Epoch,
    /// Which engine.
    pub engine: EngineId,
    /// Memory set aside for it, per accelerator.
    pub reservations: Vec<Reservation>,
}

impl Message for WakeEngine {
    const SCHEMA: &'static str = "ctl.wake/1";
}

/// What a dispatch says beside the job: NATS headers `Berth-Epoch`, `Berth-Engine`, `Berth-Attempt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DispatchHeaders {
    /// The leader's fencing token.
    pub epoch: Epoch,
    /// The engine that has a free slot.
    pub engine: EngineId,
    /// The attempt this is.
    pub attempt: Attempt,
}

/// `job.cancel.<job>` and `ctl.<host>.cancel`: nobody waits for this job any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelJob {
    /// Which job.
    pub job: JobId,
    /// Only this attempt, or whichever runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
}

impl Message for CancelJob {
    const SCHEMA: &'static str = "job.cancel/1";
}

/// `ctl.<host>.credit`: the client has taken data; more may be sent. Not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: Attempt,
    /// Bytes granted since the attempt began, in all: repeats and reordering do no harm.
    pub granted: u64,
}

impl Message for Credit {
    const SCHEMA: &'static str = "ctl.credit/1";
}

/// `ctl.<host>.lane`: opens or closes the express lane of an engine.
///
/// The acknowledgement of a close promises that no offer is taken after it until the lane is opened again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLane {
    /// The leader's fencing token.
    pub epoch: Epoch,
    /// Which engine.
    pub engine: EngineId,
    /// Counts the leader's words about lanes: a smaller number than was heard of is late and changes nothing.
    pub number: u64,
    /// Whether offers are to be taken.
    pub open: bool,
}

impl Message for SetLane {
    const SCHEMA: &'static str = "ctl.lane/1";
}

/// `ctl.<host>.roll`: a gateway asks whether its jobs of the express lane still run there. `sched.roll`: it asks whether
/// the leader still knows of others, of which it has long heard nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollCall {
    /// Jobs that somebody waits for at the gateway.
    pub jobs: Vec<JobId>,
}

impl Message for RollCall {
    const SCHEMA: &'static str = "ctl.roll/1";
}

/// The answer to [`RollCall`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollAnswer {
    /// Those of the jobs that do not run there, or that are not outstanding.
    pub missing: Vec<JobId>,
}

impl Message for RollAnswer {
    const SCHEMA: &'static str = "ctl.roll-answer/1";
}

/// `ctl.<host>.status`: asks for a `Snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRequest {
    /// The asking leader's fencing token; the agent obeys nobody older from here on.
    pub epoch: Epoch,
}

impl Message for StatusRequest {
    const SCHEMA: &'static str = "ctl.status/1";
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Taken.
    Ok,
    /// Every slot of that engine is taken: wait for the reports to catch up.
    Busy {
        /// When to try again, if the agent knows.
        #[serde(
            rename = "retry_after_ms",
            default,
            skip_serializing_if = "Option::is_none",
            with = "crate::time::option_millis"
        )]
        retry_after: Option<Duration>,
    },
    /// The command carries an older epoch than this host has seen.
    Stale {
        /// The epoch it obeys.
        epoch: Epoch,
    },
    /// Not possible, and why.
    Refused {
        /// For a person.
        message: String,
    },
}

impl Message for Reply {
    const SCHEMA: &'static str = "ctl.reply/1";
}
