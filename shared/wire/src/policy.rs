//! The fleet's policy in `berth_policy`: what of `[scheduler]` every leader follows, and may be changed while it leads.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::time::Timestamp;

/// Numbers that decisions depend on, as in `[scheduler]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySettings {
    /// Put engines idle for so long to sleep or stop them; `None`: only when the room is needed.
    #[serde(rename = "idle_ttl_ms", default, with = "crate::time::option_millis")]
    pub idle_ttl: Option<Duration>,
    /// Stop engines asleep for so long; `None`: only when RAM is needed.
    #[serde(rename = "asleep_ttl_ms", default, with = "crate::time::option_millis")]
    pub asleep_ttl: Option<Duration>,
    /// A model whose oldest job has waited for so long goes first.
    #[serde(rename = "max_wait_ms", with = "crate::time::millis")]
    pub max_wait: Duration,
    /// Jobs that may be outstanding in all.
    pub queue_limit: u64,
    /// Jobs of one model that may wait.
    pub model_queue_limit: u64,
    /// Jobs of one API key that may be outstanding.
    pub key_queue_limit: u64,
    /// Longest lease granted.
    #[serde(rename = "lease_ceiling_ms", with = "crate::time::millis")]
    pub lease_ceiling: Duration,
    /// Leases that one session may hold.
    pub leases_per_session: u64,
    /// Leases that one API key may hold.
    pub leases_per_key: u64,
}

/// `berth_policy/current`: the policy, and what the catalog was last configured from. Its revision guards the catalog:
/// who changes that writes this first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Names the configuration that a scheduler published last. While a scheduler starts with the same one, what was
    /// applied since stays.
    pub configured: String,
    /// When it was written.
    pub at: Timestamp,
    /// The numbers.
    pub policy: PolicySettings,
}

impl PolicyRecord {
    /// Its key in the bucket.
    pub const KEY: &'static str = "current";
}

impl Message for PolicyRecord {
    const SCHEMA: &'static str = "kv.policy/1";
}
