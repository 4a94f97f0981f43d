//! The story of the fleet on `evt.<kind>.<id>`: JSON, one line a fact, without prompt content.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::{Attempt, EngineId, Epoch, HostId, JobId, ModelId};
use crate::time::Timestamp;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the field names are the documentation; they are what people read")]
pub enum EventBody {
    LeaderElected { instance: String, epoch: Epoch },
    HostJoined { host: HostId, accelerators: u32, memory: u64 },
    HostLost { host: HostId, reason: String },
    HostLeft { host: HostId },
    HostDraining { host: HostId },
    HostUndrained { host: HostId },
    EngineStarting { engine: EngineId, host: HostId, model: ModelId, why: String },
    EngineReady { engine: EngineId, host: HostId, model: ModelId, took_ms: Option<u64> },
    EngineSleeping { engine: EngineId, host: HostId, model: ModelId, why: String },
    EngineWaking { engine: EngineId, host: HostId, model: ModelId, why: String },
    EngineStopping { engine: EngineId, host: HostId, model: ModelId, why: String },
    EngineStopped { engine: EngineId, host: HostId, model: ModelId },
    EngineFailed { engine: EngineId, host: HostId, model: ModelId, message: String },
    JobQueued { job: JobId, model: ModelId, why: String },
    JobDispatched { job: JobId, attempt: Attempt, engine: EngineId, host: HostId, queue_ms: u64 },
    JobRetried { job: JobId, why: String },
    JobEnded { job: JobId, model: ModelId, outcome: String },
    CatalogApplied { models: u32 },
    ModelPinned { model: ModelId, pin: bool },
    ModelsFound { host: HostId, models: Vec<ModelId> },
    ModelsGone { host: HostId, models: Vec<ModelId> },
    ModelRefused { host: HostId, model: ModelId, why: String },
    AlertRaised { alert: String, about: String, message: String },
    AlertResolved { alert: String, about: String, message: String, after_s: u64 },
}

impl EventBody {
    /// The `<kind>` token of its subject.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::LeaderElected { .. } => "leader",
            Self::HostJoined { .. }
            | Self::HostLost { .. }
            | Self::HostLeft { .. }
            | Self::HostDraining { .. }
            | Self::HostUndrained { .. } => "host",
            Self::EngineStarting { .. }
            | Self::EngineReady { .. }
            | Self::EngineSleeping { .. }
            | Self::EngineWaking { .. }
            | Self::EngineStopping { .. }
            | Self::EngineStopped { .. }
            | Self::EngineFailed { .. } => "engine",
            Self::JobQueued { .. }
            | Self::JobDispatched { .. }
            | Self::JobRetried { .. }
            | Self::JobEnded { .. } => "job",
            Self::CatalogApplied { .. }
            | Self::ModelPinned { .. }
            | Self::ModelsFound { .. }
            | Self::ModelsGone { .. }
            | Self::ModelRefused { .. } => "catalog",
            Self::AlertRaised { .. } | Self::AlertResolved { .. } => "alert",
        }
    }

    /// The `<id>` token of its subject.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::LeaderElected { epoch, .. } => epoch.to_string(),
            Self::HostJoined { host, .. }
            | Self::HostLost { host, .. }
            | Self::HostLeft { host }
            | Self::HostDraining { host }
            | Self::HostUndrained { host } => host.to_string(),
            Self::EngineStarting { engine, .. }
            | Self::EngineReady { engine, .. }
            | Self::EngineSleeping { engine, .. }
            | Self::EngineWaking { engine, .. }
            | Self::EngineStopping { engine, .. }
            | Self::EngineStopped { engine, .. }
            | Self::EngineFailed { engine, .. } => engine.to_string(),
            Self::JobQueued { job, .. }
            | Self::JobDispatched { job, .. }
            | Self::JobRetried { job, .. }
            | Self::JobEnded { job, .. } => job.to_string(),
            Self::CatalogApplied { .. } => "catalog".into(),
            Self::ModelPinned { model, .. } => crate::slug::encode(model.as_str()),
            Self::ModelsFound { host, .. }
            | Self::ModelsGone { host, .. }
            | Self::ModelRefused { host, .. } => host.to_string(),
            Self::AlertRaised { alert, .. } | Self::AlertResolved { alert, .. } => alert.clone(),
        }
    }
}

/// A fact with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When the service knew of it.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub body: EventBody,
}

impl Message for Event {
    const SCHEMA: &'static str = "event/1";
}
