//! What an engine's container or process may use beside its accelerators.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A limit of the system for each process, as in `ulimit`; -1 is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Its name, as in `memlock`.
    pub name: String,
    /// What processes begin with.
    pub soft: i64,
    /// What they may raise it to.
    pub hard: i64,
}

/// What an engine may use; what is left out is as the agent has it for the engine's kind. Of a process `cpus`, `pids` and
/// `ram` count, where its host can limit it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Bytes of `/dev/shm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm: Option<u64>,
    /// Shared memory between processes: `private`, `shareable`, `none` or `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipc: Option<String>,
    /// Limits of its processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// CPUs that it may run on, as in `0-3,8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// Its image is read-only to it; it may write to its volumes and `/tmp`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Processes and threads that it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Bytes of RAM that it may use on a host whose accelerators are GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<u64>,
    /// How long the pull of its image may make no progress.
    #[serde(
        rename = "pull_timeout_ms",
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::time::option_millis"
    )]
    pub pull_timeout: Option<Duration>,
}

impl ContainerSpec {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
