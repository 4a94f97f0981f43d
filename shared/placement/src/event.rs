//! What the core is told. Everything is a plain value, so that a log of events can be kept and replayed.

use std::time::Duration;

use berth_wire::{
    Accelerator, ApiError, Attempt, Class, Driver, EngineFailure, EngineId, EngineState, Estimate, HostId,
    JobId, KeyId, Lease, ModelId, ModelSpec, Profile, Reservation, SessionId, SleepCost, Timestamp, Usage,
};
use serde::{Deserialize, Serialize};

use crate::policy::Policy;

/// What placing a model takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNeeds {
    /// Which model.
    pub id: ModelId,
    /// Bytes over all its accelerators; `None`: the whole of each.
    pub memory: Option<u64>,
    /// Accelerators of one host.
    pub accelerators: u32,
    /// Slots of one engine.
    pub concurrency: u32,
    /// What runs it.
    pub driver: Driver,
    /// Labels a host must have.
    pub labels: Vec<String>,
    /// Its own idle limit.
    pub idle_ttl: Option<Duration>,
    /// Its own limit of sleeping.
    #[serde(default)]
    pub asleep_ttl: Option<Duration>,
    /// Keep one engine ready always.
    pub pin: bool,
    /// Engines at a time, at most; `None`: as many as pay.
    pub max_replicas: Option<u32>,
    /// What its engines have read of a session may be kept for a lease.
    #[serde(default)]
    pub keeps_context: bool,
    /// Hash of what it is run with: measurements of another one do not count.
    pub config: String,
}

impl From<&ModelSpec> for ModelNeeds {
    fn from(spec: &ModelSpec) -> Self {
        Self {
            max_replicas: None,
            config: String::new(),
            id: spec.id.clone(),
            memory: spec.memory,
            accelerators: spec.accelerators.max(1),
            concurrency: spec.concurrency.max(1),
            driver: spec.engine.driver,
            labels: spec.labels.clone(),
            idle_ttl: spec.idle_ttl,
            asleep_ttl: spec.asleep_ttl,
            pin: spec.pin,
            keeps_context: spec.may_keep_context(),
        }
    }
}

/// What a host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Which host.
    pub id: HostId,
    /// Which run of its agent.
    pub boot: String,
    /// Its accelerators.
    pub accelerators: Vec<Accelerator>,
    /// Drivers that work there.
    pub drivers: Vec<Driver>,
    /// Its labels.
    pub labels: Vec<String>,
    /// It takes nothing new.
    pub draining: bool,
    /// Host RAM for engines that sleep, in bytes.
    pub sleep_memory: u64,
    /// More host RAM, for the moments in which one engine falls asleep so that another can wake.
    pub sleep_spare: u64,
}

/// What an agent says of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// Which engine.
    pub id: EngineId,
    /// The model it serves.
    pub model: ModelId,
    /// Its state.
    pub state: EngineState,
    /// Memory set aside for it.
    pub reservations: Vec<Reservation>,
    /// Its slots.
    pub concurrency: u32,
    /// Why it failed.
    pub failure: Option<EngineFailure>,
    /// How long its start took.
    pub start_took: Option<Duration>,
    /// What it would take up asleep; `None`: it cannot sleep.
    pub sleep: Option<SleepCost>,
    /// Most bytes it was measured to hold, over all its accelerators.
    pub peak_memory: Option<u64>,
}

/// In logs of before every deadline was.
fn hurried() -> bool {
    true
}

/// What a job needs of the core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFacts {
    /// Which job.
    pub id: JobId,
    /// The model it asks for.
    pub model: ModelId,
    /// When the gateway took it.
    pub arrival: Timestamp,
    /// When it must have started.
    pub deadline: Option<Timestamp>,
    /// The deadline is its client's own: where it cannot be met, the client wants to hear so at once.
    #[serde(default = "hurried")]
    pub hurried: bool,
    /// The conversation it belongs to.
    pub session: Option<SessionId>,
    /// The API key it came with.
    pub key: Option<KeyId>,
    /// How much its waiting counts.
    pub class: Class,
    /// Prompt and output tokens that it is expected to take.
    pub tokens: u64,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttemptEnd {
    /// Answered.
    Completed,
    /// Cancelled on request, or nobody waits for it any more.
    Cancelled,
    /// The engine broke off.
    Failed {
        /// What happened.
        error: ApiError,
        /// The client has had output and has been told; it cannot be tried again.
        output_sent: bool,
    },
}

/// Why a host did not take a dispatch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Its slots are taken.
    Busy,
    /// It said no.
    Failed(String),
    /// It did not answer: it is lost, or will be back.
    Silent(String),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The catalog, whole.
    Catalog(Vec<ModelNeeds>),
    /// All that is true at a host.
    HostSnapshot {
        /// What it offers.
        host: HostFacts,
        /// Its engines that are not gone.
        engines: Vec<EngineFacts>,
        /// What runs there.
        running: Vec<(JobId, Attempt, EngineId)>,
    },
    /// A host is gone, with all that ran there.
    HostLost {
        /// Which.
        host: HostId,
        /// Why we think so.
        reason: String,
    },
    /// A person has a host drained, or takes that back; it may be away.
    Drain {
        /// Which.
        host: HostId,
        /// Whether it takes nothing new from now on.
        on: bool,
    },
    /// An engine changed.
    EngineChanged {
        /// Where.
        host: HostId,
        /// How it is now.
        engine: EngineFacts,
    },
    /// The host did not take a start command.
    StartRefused {
        /// Which engine.
        engine: EngineId,
        /// Why.
        failure: EngineFailure,
        /// It did not answer: it is lost, or will be back.
        #[serde(default)]
        silent: bool,
    },
    /// A job was submitted; repeats are ignored.
    JobSubmitted(JobFacts),
    /// Nobody waits for a job any more.
    JobCancelled(JobId),
    /// A host took a job by the express lane.
    JobStarted {
        /// Which job.
        job: JobFacts,
        /// On which engine.
        engine: EngineId,
    },
    /// An attempt ended.
    AttemptEnded {
        /// Which job.
        job: JobId,
        /// Which attempt.
        attempt: Attempt,
        /// On which engine.
        engine: EngineId,
        /// How.
        end: AttemptEnd,
        /// Its tokens and times, where they are known.
        usage: Usage,
    },
    /// A host did not take a dispatch.
    DispatchRefused {
        /// Which job.
        job: JobId,
        /// Which attempt.
        attempt: Attempt,
        /// Why.
        why: Refusal,
    },
    /// A host did not put an engine to sleep.
    SleepRefused {
        /// Which engine.
        engine: EngineId,
        /// Why.
        why: String,
    },
    /// What earlier leaders measured.
    Profiles(Vec<Profile>),
    /// What models that do not say what they need are to take, by their files.
    Estimates(Vec<Estimate>),
    /// A session asks for a lease, or to renew its own.
    LeaseAsked {
        /// Whose.
        session: SessionId,
        /// On what.
        model: ModelId,
        /// The API key it came with.
        key: Option<KeyId>,
        /// For how long.
        ttl: Duration,
        /// Whether its context is to be kept; `None`: as the lease has it already, else no.
        #[serde(default)]
        keep_context: Option<bool>,
    },
    /// A session gives a lease back, or all of its.
    LeaseReleased {
        /// Whose.
        session: SessionId,
        /// On what; `None`: all of them.
        model: Option<ModelId>,
    },
    /// Leases that an earlier leader granted.
    LeasesRestored(Vec<Lease>),
    /// A session says that it will need a model soon. Said again, it replaces what was said before.
    Hint {
        /// Whose.
        session: SessionId,
        /// What.
        model: ModelId,
        /// When.
        due: Timestamp,
        /// The API key it came with.
        #[serde(default)]
        key: Option<KeyId>,
    },
    /// A session takes a hint back, or all of its.
    HintWithdrawn {
        /// Whose.
        session: SessionId,
        /// Of what; `None`: all of them.
        model: Option<ModelId>,
    },
    /// An operator wants an engine of a model.
    LoadAsked {
        /// Of which.
        model: ModelId,
        /// Where; `None`: wherever it is best.
        host: Option<HostId>,
    },
    /// An operator wants the engines of a model stopped.
    UnloadAsked {
        /// Of which.
        model: ModelId,
        /// Where; `None`: everywhere.
        host: Option<HostId>,
        /// Also where leases keep them, jobs wait for them or run on them.
        force: bool,
    },
    /// The numbers that decisions depend on are others from here on.
    Policy(Box<Policy>),
    /// Time has passed: something is due.
    Timer,
}
