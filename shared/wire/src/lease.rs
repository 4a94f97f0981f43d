//! Leases: a session's claim that a model stays warm until it expires; how it is asked for, and what is answered.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::error::ApiError;
use crate::id::{KeyId, ModelId, SessionId};
use crate::slug;
use crate::time::Timestamp;

/// Longest name of a session, in bytes.
pub const SESSION_MAX: usize = 256;

/// How long a lease lasts where nothing is said, if the ceiling allows it.
pub const LEASE_TTL: Duration = Duration::from_secs(120);

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
    /// What the model's engine has read of the session is to outlast a stop of the engine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_context: bool,
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
    /// Who goes before: jobs of the model that wait and, while it has no engine, models that have room before it.
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
        /// For how long; `None`: [`LEASE_TTL`], or the ceiling if that is shorter. More than the ceiling is refused.
        #[serde(
            rename = "ttl_ms",
            default,
            skip_serializing_if = "Option::is_none",
            with = "crate::time::option_millis"
        )]
        ttl: Option<Duration>,
        /// Whether the session's context is to be kept; `None`: as the lease has it already, else no.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep_context: Option<bool>,
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
    /// A model will be needed soon; said again, it replaces what was said before. Answered by [`LeaseReply::Noted`].
    Hint {
        /// Whose request it will be.
        session: SessionId,
        /// What it will ask for.
        model: ModelId,
        /// When.
        #[serde(rename = "in_ms", with = "crate::time::millis")]
        lead: Duration,
        /// The API key it comes with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeyId>,
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

/// A lease as it is shown outside the bus, over HTTP and by `berth lease --json`. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseShown {
    /// Whose.
    pub session_key: SessionId,
    /// On what.
    pub model: ModelId,
    /// How near its model is.
    pub state: LeaseState,
    /// Who goes before: requests for the model that wait and, while it is queued, models that have room before it.
    pub position: u64,
    /// Until the model is ready; `None`: not known.
    pub eta_seconds: Option<f64>,
    /// When it ends, in RFC 3339, by the scheduler's clock.
    pub expires_at: String,
    /// Until it ends.
    pub expires_in_seconds: f64,
    /// What the engine has read of the session outlasts a stop of the engine.
    pub keep_context: bool,
}

impl From<LeaseStatus> for LeaseShown {
    fn from(status: LeaseStatus) -> Self {
        Self {
            session_key: status.lease.session,
            model: status.lease.model,
            state: status.state,
            position: status.position,
            eta_seconds: status.eta.map(seconds),
            expires_at: rfc3339(status.lease.expires),
            expires_in_seconds: seconds(status.left),
            keep_context: status.lease.keep_context,
        }
    }
}

/// Leases that were given back, as it is shown outside the bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleasedShown {
    /// Whose they were.
    pub session_key: SessionId,
    /// The models they were on.
    pub released: Vec<ModelId>,
}

/// Leases as they are shown outside the bus, by session.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeasesShown {
    /// As many as fitted into a message.
    pub leases: Vec<LeaseShown>,
    /// How many there are.
    pub total: u64,
}

impl LeasesShown {
    /// From the leader's answer.
    #[must_use]
    pub fn new(leases: Vec<LeaseStatus>, total: u64) -> Self {
        Self { leases: leases.into_iter().map(LeaseShown::from).collect(), total }
    }
}

/// A hint as it was understood, as it is shown outside the bus.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HintShown {
    /// Whose request it will be.
    pub session_key: SessionId,
    /// What it will ask for.
    pub model: ModelId,
    /// When, in seconds.
    pub in_seconds: f64,
}

impl HintShown {
    /// Of a hint that was noted.
    #[must_use]
    pub fn new(session: SessionId, model: ModelId, lead: Duration) -> Self {
        Self { session_key: session, model, in_seconds: seconds(lead) }
    }
}

/// To the millisecond.
fn seconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1000.0).round() / 1000.0
}

/// A time as people and programs outside read it (RFC 3339), to the millisecond.
#[must_use]
pub fn rfc3339(at: Timestamp) -> String {
    // The end of the year 9999: beyond it there is no such form.
    let most = Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(at.0).min(most)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> LeaseStatus {
        let lease = Lease {
            session: "s".into(),
            model: "m".into(),
            key: None,
            since: Timestamp(0),
            ttl: Duration::from_secs(120),
            expires: Timestamp(1_795_238_762_250),
            keep_context: true,
        };
        let eta = Some(Duration::from_micros(4_100_400));
        let left = Duration::from_millis(119_500);
        LeaseStatus { lease, state: LeaseState::Loading, position: 2, eta, left }
    }

    #[test]
    fn a_lease_is_shown_in_seconds_and_rfc_3339() {
        let shown = r#"{"sessionKey":"s","model":"m","state":"loading","position":2,"etaSeconds":4.1,"#
            .to_owned()
            + r#""expiresAt":"2026-11-21T05:26:02.250Z","expiresInSeconds":119.5,"keepContext":true}"#;
        assert_eq!(serde_json::to_string(&LeaseShown::from(status())).unwrap(), shown);
        let all = LeasesShown::new(vec![status()], 7);
        assert_eq!(serde_json::to_string(&all).unwrap(), format!(r#"{{"leases":[{shown}],"total":7}}"#));
    }

    #[test]
    fn times_beyond_every_calendar_are_shown_as_its_end() {
        assert_eq!(rfc3339(Timestamp(u64::MAX)), "9999-12-31T23:59:59.000Z");
    }
}
