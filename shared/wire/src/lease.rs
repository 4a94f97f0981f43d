//! Leases: a session's claim that a model stays warm until it expires; how it is asked for, and what is answered.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::error::ApiError;
use crate::id::{KeyId, ModelId, SessionId};
use crate::slug;
use crate::time::Timestamp;

/// Longest name of a session, in bytes.
pub const SESSION_MAX: usize = 256;

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

impl Lease {
    /// Its key in the bucket.
    #[must_use]
    pub fn key_of(session: &SessionId, model: &ModelId) -> String {
        format!("{}.{}", slug::encode(session.as_str()), slug::encode(model.as_str()))
    }
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

impl LeaseState {
    /// The name in tables and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Loading => "loading",
            Self::Queued => "queued",
        }
    }
}

/// A lease as its holder is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The lease.
    pub lease: Lease,
    /// How near its model is.
    pub state: LeaseState,
    /// Jobs of the model that wait now.
    pub position: u64,
    /// When the model is expected to be ready; `None`: not known.
    #[serde(
        rename = "eta_ms",
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::time::option_millis"
    )]
    pub eta: Option<Duration>,
    /// Until it ends, by the leader's clock: the asker's may differ.
    #[serde(rename = "left_ms", with = "crate::time::millis")]
    pub left: Duration,
}

/// `sched.lease`: what the leader is asked of leases. Models are catalog ids; aliases are resolved before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseRequest {
    /// Grant a lease, or renew the one that the session holds. Answered by [`LeaseReply::Held`].
    Lease {
        /// For whom: 1 to 256 bytes.
        session: SessionId,
        /// On what.
        model: ModelId,
        /// The API key that it is counted for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeyId>,
        /// For how long.
        #[serde(rename = "ttl_ms", with = "crate::time::millis")]
        ttl: Duration,
    },
    /// Give leases back. Answered by [`LeaseReply::Released`].
    Release {
        /// Whose.
        session: SessionId,
        /// On what; `None`: all of the session's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<ModelId>,
        /// Only those that count for this API key; `None`: whosever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeyId>,
    },
    /// Show leases. Answered by [`LeaseReply::Leases`].
    List {
        /// Whose; `None`: everybody's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<SessionId>,
        /// Only those that count for this API key; `None`: whosever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeyId>,
    },
    /// A model will be needed soon. Answered by [`LeaseReply::Noted`].
    Hint {
        /// Whose request it will be.
        session: SessionId,
        /// What it will ask for.
        model: ModelId,
        /// When.
        #[serde(rename = "in_ms", with = "crate::time::millis")]
        lead: Duration,
    },
}

impl Message for LeaseRequest {
    const SCHEMA: &'static str = "sched.lease/1";
}

/// The leader's answer to a [`LeaseRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseReply {
    /// The lease is held, and written down.
    Held(LeaseStatus),
    /// These leases have ended.
    Released {
        /// The models they were on.
        models: Vec<ModelId>,
    },
    /// Leases there are, by session.
    Leases {
        /// As many as fit into a message.
        leases: Vec<LeaseStatus>,
        /// How many there are.
        total: u64,
    },
    /// The hint is noted.
    Noted,
    /// Not done, and why.
    Refused(ApiError),
}

impl Message for LeaseReply {
    const SCHEMA: &'static str = "sched.lease-reply/1";
}
