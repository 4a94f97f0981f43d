//! What an agent reports to the scheduler on `sched.report`: an ordered, acknowledged, resent log.
//!
//! A report is kept until a leader acknowledges it. A leader that an agent has not met before (another epoch in
//! the acknowledgement, or a `status` request) is sent a [`Snapshot`], which says all that is true at that host.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::ModelSpec;
use crate::codec::Message;
use crate::error::ApiError;
use crate::host::{HostBeat, Reservation};
use crate::id::{Attempt, EngineId, Epoch, HostId, JobId, KeyId, ModelId, SessionId};
use crate::job::Class;
use crate::time::Timestamp;

/// Where an engine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    /// Being pulled, created or loaded.
    Starting,
    /// Serves jobs.
    Ready,
    /// Weights in host RAM; serves nothing.
    Sleeping,
    /// On its way from sleeping to ready.
    Waking,
    /// Being stopped; its memory is not yet free.
    Stopping,
    /// Gone, and its memory is free.
    Stopped,
    /// It did not start, or died; its memory is free.
    Failed,
}

impl EngineState {
    /// The name in tables and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Sleeping => "sleeping",
            Self::Waking => "waking",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Whether the engine is gone and holds nothing.
    #[must_use]
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

/// Why an engine failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFailure {
    /// What happened and what to do, with the engine's last log lines where there are any.
    pub message: String,
    /// Trying again will fail the same way (a missing image, a program that does not exist).
    #[serde(default)]
    pub permanent: bool,
    /// It had been ready before.
    #[serde(default)]
    pub was_ready: bool,
}

/// What an engine takes up while it sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SleepCost {
    /// Bytes of host RAM.
    pub ram: u64,
    /// Bytes that it keeps on each of its accelerators.
    #[serde(default)]
    pub residue: u64,
}

/// One engine's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    /// Which engine.
    pub engine: EngineId,
    /// The model it serves.
    pub model: ModelId,
    /// Its state.
    pub state: EngineState,
    /// Memory set aside for it.
    pub reservations: Vec<Reservation>,
    /// What it was started with; a restarted scheduler learns it from here.
    pub concurrency: u32,
    /// In state `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<EngineFailure>,
    /// How long the start took, once ready.
    #[serde(
        rename = "start_took_ms",
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::time::option_millis"
    )]
    pub start_took: Option<Duration>,
    /// Progress while starting, for those who wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What it would take up asleep; `None`: it cannot sleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<SleepCost>,
    /// Most bytes it was measured to hold, over all its accelerators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
}

/// Tokens and times of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Prompt tokens, where the engine told them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Output tokens, where the engine told them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    /// From dispatch to the engine's first byte.
    #[serde(
        rename = "first_byte_ms",
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::time::option_millis"
    )]
    pub first_byte: Option<Duration>,
    /// From dispatch to the end.
    #[serde(rename = "total_ms", default, with = "crate::time::millis")]
    pub total: Duration,
}

/// How an attempt ended, as the agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The whole answer went to the gateway, whatever its HTTP status.
    Completed,
    /// The client left, and the engine's request was aborted.
    Cancelled,
    /// The gateway refused the attempt or does not answer any more: nobody waits for it.
    Abandoned,
    /// The engine broke off.
    Failed {
        /// What happened.
        error: ApiError,
        /// Whether output had been sent, in which case the client has been told.
        output_sent: bool,
    },
}

/// The end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: Attempt,
    /// Which engine; its slot is free again.
    pub engine: EngineId,
    /// How it ended.
    pub outcome: Outcome,
    /// Tokens and times.
    #[serde(default)]
    pub usage: Usage,
    /// Of a job of the express lane whose start was not told before: it came and went between two reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Box<Started>>,
}

/// The start of a job that its host took by the express lane: what the books of a leader need of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: Attempt,
    /// On which engine.
    pub engine: EngineId,
    /// The model it asks for.
    pub model: ModelId,
    /// When its gateway took it.
    pub submitted_at: Timestamp,
    /// The conversation it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The API key it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// How much its waiting would count.
    #[serde(default)]
    pub class: Class,
    /// Bytes of its body.
    pub bytes: u64,
}

/// An attempt that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningAttempt {
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: Attempt,
    /// On which engine.
    pub engine: EngineId,
}

/// What a host reads from a model's files before it first runs there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Which model.
    pub model: ModelId,
    /// Bytes that it is to take, over all its accelerators.
    pub bytes: u64,
}

/// All that is true at a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The heartbeat as of now.
    pub beat: HostBeat,
    /// Engines that are not gone.
    pub engines: Vec<EngineReport>,
    /// What the engines were started from, by model.
    pub models: Vec<ModelSpec>,
    /// Attempts that run.
    pub running: Vec<RunningAttempt>,
    /// Attempts that ended and that no leader has acknowledged.
    pub ended: Vec<Ended>,
    /// What its files say of models that do not say what they need.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub estimates: Vec<Estimate>,
    /// Models of servers there that Berth does not run, as catalog entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<ModelSpec>,
    /// How many snapshots this run of the agent had made with this one: an older one is not news.
    #[serde(default)]
    pub number: u64,
    /// Number of the last report entry that had been sent then: what such an entry says of engines is in here.
    #[serde(default)]
    pub upto: u64,
}

impl Message for Snapshot {
    const SCHEMA: &'static str = "host.snapshot/1";
}

/// One thing that happened at a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportEntry {
    /// Everything, anew.
    Snapshot(Box<Snapshot>),
    /// An engine changed.
    Engine(EngineReport),
    /// An attempt began without the scheduler (express lane).
    Started(Box<Started>),
    /// An attempt ended.
    Ended(Ended),
    /// The agent leaves in good order; its engines are stopped.
    Goodbye,
}

/// A batch of entries, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whose.
    pub host: HostId,
    /// Which run of the agent.
    pub boot: String,
    /// Number of the first entry; a leader skips what it has already taken.
    pub first: u64,
    /// What happened.
    pub entries: Vec<ReportEntry>,
}

impl Message for Report {
    const SCHEMA: &'static str = "host.report/1";
}

/// The leader's acknowledgement of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAck {
    /// Who leads; if the agent has not sent this epoch a snapshot, it does so next.
    pub epoch: Epoch,
    /// The leader has no snapshot of this host (or of this boot) and wants one.
    #[serde(default)]
    pub want_snapshot: bool,
}

impl Message for ReportAck {
    const SCHEMA: &'static str = "host.report-ack/1";
}
