//! Drained hosts: how a person has one drained, and how far it is.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::error::ApiError;
use crate::id::HostId;
use crate::slug;
use crate::time::Timestamp;

/// `berth_drains/<host>`: a host that takes nothing new until a person has it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Which.
    pub host: HostId,
    /// Since when.
    pub since: Timestamp,
}

impl Drain {
    /// Its key in the bucket.
    #[must_use]
    pub fn key_of(host: &HostId) -> String {
        slug::encode(host.as_str())
    }
}

impl Message for Drain {
    const SCHEMA: &'static str = "kv.drain/1";
}

/// How far a drained host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Which.
    pub host: HostId,
    /// It takes nothing new.
    pub draining: bool,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Its agent is there.
    pub present: bool,
    /// Jobs that run there.
    pub running: u64,
    /// Engines that are not gone.
    pub engines: u64,
    /// Engines that stay until another one of their model is ready elsewhere.
    #[serde(default)]
    pub staying: u64,
    /// Nothing is left there.
    pub empty: bool,
}

/// `sched.drain`: what the leader is asked about drained hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainRequest {
    /// Have a host finish what it runs and take nothing new.
    Drain {
        /// Which.
        host: HostId,
    },
    /// Have it back.
    Undrain {
        /// Which.
        host: HostId,
    },
    /// How far it is.
    Look {
        /// Which.
        host: HostId,
    },
}

impl DrainRequest {
    /// The host that it is about.
    #[must_use]
    pub fn host(&self) -> &HostId {
        match self {
            Self::Drain { host } | Self::Undrain { host } | Self::Look { host } => host,
        }
    }
}

impl Message for DrainRequest {
    const SCHEMA: &'static str = "sched.drain/1";
}

/// The answer to a [`DrainRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainReply {
    /// How the host is; what was asked is written down.
    Host(DrainStatus),
    /// Why nothing was done.
    Refused(ApiError),
}

impl Message for DrainReply {
    const SCHEMA: &'static str = "sched.drain-reply/1";
}
