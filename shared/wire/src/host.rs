//! What hosts, engines and the leader publish about themselves in KV: JSON, for people as much as for services.

use serde::{Deserialize, Serialize};

use crate::catalog::{Driver, EngineKind};
use crate::codec::Message;
use crate::id::{AcceleratorId, EngineId, Epoch, HostId, ModelId};
use crate::report::EngineState;
use crate::time::Timestamp;

/// What an accelerator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AcceleratorKind {
    /// An NVIDIA GPU, seen through NVML.
    Nvidia,
    /// An AMD GPU, seen through the kernel's `amdgpu` driver.
    Amd,
    /// The CPU and RAM of a host without a GPU.
    Ram,
}

/// One accelerator of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accelerator {
    /// Its id on this host.
    pub id: AcceleratorId,
    /// What it is.
    pub kind: AcceleratorKind,
    /// The name people know it by.
    pub name: String,
    /// Bytes that engines may use of it in all: what it has, or its configured part, less what others hold.
    pub memory: u64,
    /// Bytes measured free just now, where they can be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// Bytes measured as held by this host's engines, where they can be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// Bytes of a GPU that something else holds; a person is to look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<u64>,
}

impl Accelerator {
    /// One of which nothing is measured yet.
    #[must_use]
    pub fn new(id: AcceleratorId, kind: AcceleratorKind, name: impl Into<String>, memory: u64) -> Self {
        Self { id, kind, name: name.into(), memory, free: None, held: None, unexplained: None }
    }
}

/// Memory set aside on one accelerator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Where.
    pub accelerator: AcceleratorId,
    /// Bytes.
    pub bytes: u64,
}

/// `berth_hosts/<host>`: the heartbeat, every 5 s; gone after 15 s of silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostBeat {
    /// The host.
    pub host: HostId,
    /// Identifies this run of the agent; a new value means that it was restarted.
    pub boot: String,
    /// Berth's version there.
    pub version: String,
    /// When it was written, by the host's clock.
    pub at: Timestamp,
    /// Its accelerators.
    pub accelerators: Vec<Accelerator>,
    /// Drivers that work there.
    pub drivers: Vec<Driver>,
    /// Its labels.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Attempts running now.
    pub running: u32,
    /// It takes nothing new.
    #[serde(default)]
    pub draining: bool,
    /// Host RAM for engines that sleep, in bytes.
    #[serde(default)]
    pub sleep_memory: u64,
    /// More host RAM, for the moments in which one engine falls asleep so that another can wake.
    #[serde(default)]
    pub sleep_spare: u64,
}

impl Message for HostBeat {
    const SCHEMA: &'static str = "kv.host/1";
}

/// `berth_engines/<host>.<engine>`: one engine as its agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineRecord {
    /// The engine.
    pub engine: EngineId,
    /// Its host.
    pub host: HostId,
    /// The model it serves.
    pub model: ModelId,
    /// Which server it is.
    pub kind: EngineKind,
    /// What runs it.
    pub driver: Driver,
    /// Its state.
    pub state: EngineState,
    /// Slots in use.
    pub running: u32,
    /// Slots there are.
    pub concurrency: u32,
    /// Output tokens a second over the last seconds, to one decimal; an answer that is no stream counts at its end.
    #[serde(default)]
    pub tokens_per_second: f64,
    /// Whether it takes offers on the express lane.
    #[serde(default)]
    pub lane: bool,
    /// Memory set aside for it.
    pub reservations: Vec<Reservation>,
    /// Since when it is in this state.
    pub since: Timestamp,
    /// Progress or failure, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The image that runs, by its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The LoRA adapters that it holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<ModelId>,
}

impl EngineRecord {
    /// For people and their programs. The record of an engine whose host is lost stays as the host left it, so `host_away` is
    /// added to it.
    #[must_use]
    pub fn told(&self, host_is_here: bool) -> serde_json::Value {
        let mut told = serde_json::to_value(self).unwrap_or_default();
        if let (false, Some(fields)) = (host_is_here, told.as_object_mut()) {
            fields.insert("host_away".into(), true.into());
        }
        told
    }
}

impl Message for EngineRecord {
    const SCHEMA: &'static str = "kv.engine/1";
}

/// `berth_leader/leader`: who leads; its revision is the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// The scheduler instance.
    pub instance: String,
    /// When this term began.
    pub since: Timestamp,
    /// The epoch of this term: the revision that its first write had. Zero in that first write.
    #[serde(default)]
    pub epoch: Epoch,
}

impl Message for LeaderRecord {
    const SCHEMA: &'static str = "kv.leader/1";
}
