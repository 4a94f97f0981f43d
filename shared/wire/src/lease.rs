//! Leases: a session's claim that a model stays warm until it expires.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::{KeyId, ModelId, SessionId};
use crate::time::Timestamp;

/// `berth_leases/<session>.<model>`: one claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose.
    pub session: SessionId,
    /// On what.
    pub model: ModelId,
    /// The API key that it is counted for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// When it was first asked for.
    pub since: Timestamp,
    /// How far a request of the session carries it.
    #[serde(rename = "ttl_ms", with = "crate::time::millis")]
    pub ttl: Duration,
    /// When it ends unless it is renewed.
    pub expires: Timestamp,
}

impl Message for Lease {
    const SCHEMA: &'static str = "kv.lease/1";
}

/// How near its model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// An engine serves it.
    Ready,
    /// An engine is starting or waking.
    Loading,
    /// There is no room for it yet.
    Queued,
}
