//! A job that its client comes back for, as gateways keep record of it. No content is in it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::error::ApiError;
use crate::id::{GatewayId, HostId, JobId, KeyId, ModelId};
use crate::report::Usage;
use crate::route::Route;
use crate::time::Timestamp;

/// How far such a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// In the queue.
    Queued,
    /// Its model is being started.
    Loading,
    /// An engine has it.
    Running,
    /// The engine has answered it.
    Completed,
    /// It ended without an answer, or the engine answered with an error.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// It did not end in its time.
    Expired,
}

impl JobStatus {
    /// The name in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Loading => "loading",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Whether it changes no more.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Loading | Self::Running)
    }
}

/// What the engine answered; the bytes are in the object store `berth_results`, under the job's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultNote {
    /// HTTP status of the engine's answer.
    pub status: u16,
    /// Its `Content-Type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Its size in bytes.
    pub len: u64,
}

/// `berth_async_jobs/<job>`: written by the gateway that follows the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsyncJob {
    /// The job.
    pub id: JobId,
    /// Its model.
    pub model: ModelId,
    /// What was asked.
    pub route: Route,
    /// The gateway worker that follows it. One that is gone is followed by another: whoever writes its own name here
    /// over the revision it has read.
    pub gateway: GatewayId,
    /// The job that runs for it, where that is another: each gateway that takes it over submits it anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<JobId>,
    /// Gateways that it was taken over from.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub moves: u32,
    /// Bytes of the job as it was submitted, in `berth_bodies` under [`AsyncJob::kept_as`], until it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<u64>,
    /// The API key that it came with; others do not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// How far it is.
    pub status: JobStatus,
    /// Jobs of its model before it, while it waits.
    #[serde(default)]
    pub position: u32,
    /// Expected wait, where something is known.
    #[serde(
        rename = "eta_ms",
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::time::option_millis"
    )]
    pub eta: Option<Duration>,
    /// When it was taken.
    pub submitted_at: Timestamp,
    /// When an engine got it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Attempts begun.
    #[serde(default)]
    pub attempts: u32,
    /// The host that has it, or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// What the engine answered; of a job that has not ended, the answer that was being stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultNote>,
    /// Tokens and times, where the engine told them.
    #[serde(default)]
    pub usage: Usage,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

// For serde, which passes a reference.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_zero(moves: &u32) -> bool {
    *moves == 0
}

impl AsyncJob {
    /// The job that runs for it now.
    #[must_use]
    pub fn running_as(&self) -> JobId {
        self.run.unwrap_or(self.id)
    }

    /// The name of the object that keeps what was submitted.
    #[must_use]
    pub fn kept_as(&self) -> String {
        format!("later-{}", self.id)
    }
}

impl Message for AsyncJob {
    const SCHEMA: &'static str = "kv.async-job/1";
}
