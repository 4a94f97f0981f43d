//! What a gateway hears about a job on `out.<gateway>.<job>`: frames from the agent, notices from the scheduler.
//!
//! Frames of an attempt are numbered from 0. Frame 0 is sent as a request and holds [`Begin`]; its reply
//! ([`BeginReply`]) permits the rest, so that what has reached a client is never sent twice. What is at hand
//! together travels in one frame. The last one holds [`End`].
//!
//! On the express lane the gateway's offer is the permit: frames begin with number 1, within the job's own window. A
//! host that has nothing to send yet says with a frame 0, which wants no reply, that it has the job.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, EncodeError, Message};
use crate::control::Reply;
use crate::error::ApiError;
use crate::id::{Attempt, EngineId, Epoch, HostId};
use crate::report::Usage;

/// Who serves the attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The host.
    pub host: HostId,
    /// The engine.
    pub engine: EngineId,
}

/// The engine's status line and the headers that are relayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// HTTP status of the engine's answer.
    pub status: u16,
    /// Its `Content-Type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Of an answer to HEAD: the length of what GET would give, where the engine tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

impl Head {
    /// Whether the answer is of use in parts (events, sound, lines), so that it is passed on as it comes. Any other is
    /// JSON or text: collected where it fits, so that one that breaks off can still be told by a status.
    #[must_use]
    pub fn flows(&self) -> bool {
        let kind = self.content_type.as_deref().unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let whole = kind.is_empty()
            || kind.starts_with("text/")
            || kind.ends_with("/json")
            || kind.ends_with("+json");
        kind == "text/event-stream" || !whole
    }
}

/// How an attempt's output ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The engine's answer is complete.
    Stop,
    /// It broke off after output had been sent; the client is told.
    Error(ApiError),
    /// The client had gone away.
    Cancelled,
}

impl Finish {
    /// Value of the `Berth-Final` header.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Error(_) => "error",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The explicit end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How it ended.
    pub finish: Finish,
    /// Tokens and times, where the engine told them.
    #[serde(default)]
    pub usage: Usage,
}

/// One numbered message of a job's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Frames of an older attempt are dropped.
    pub attempt: Attempt,
    /// 0, 1, 2, ... without a gap.
    pub seq: u64,
    /// On frame 0.
    pub begin: Option<Begin>,
    /// Once, before or with the first data.
    pub head: Option<Head>,
    /// Bytes of the answer as the engine sent them.
    pub data: Option<Bytes>,
    /// On the last frame.
    pub end: Option<End>,
}

impl Frame {
    /// A frame that holds nothing yet.
    #[must_use]
    pub fn empty(attempt: Attempt, seq: u64) -> Self {
        Self { attempt, seq, begin: None, head: None, data: None, end: None }
    }
}

/// How far a waiting job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// In the queue.
    Queued,
    /// Its model is being started.
    Loading,
    /// An engine has it.
    Running,
}

impl Stage {
    /// The name in heartbeats and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Loading => "loading",
            Self::Running => "running",
        }
    }
}

/// What the scheduler tells a gateway of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// It waits.
    Waiting {
        /// How far it is.
        stage: Stage,
        /// Jobs of its model before it.
        position: u32,
        /// Expected wait, where something is known.
        #[serde(
            rename = "eta_ms",
            default,
            skip_serializing_if = "Option::is_none",
            with = "crate::time::option_millis"
        )]
        eta: Option<Duration>,
    },
    /// The attempt is lost with its host or engine. If any of it has reached the client, the gateway ends the
    /// job with an error and cancels it; else it waits for the next attempt.
    AttemptLost {
        /// Which attempt.
        attempt: Attempt,
        /// What happened.
        error: ApiError,
    },
    /// The job has ended without an answer.
    Failed(ApiError),
}

/// A payload on an output subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// From the agent.
    Frame(Frame),
    /// From the scheduler.
    Notice {
        /// The leader's fencing token; a notice of an older leader than already heard is dropped.
        epoch: Epoch,
        /// What it says.
        notice: Notice,
    },
    /// From a host that does not take an offer of the express lane, or in place of one that is not there.
    Declined(Reply),
}

impl Output {
    /// The schema id.
    pub const SCHEMA: &'static str = "job.output/1";

    /// Writes msgpack with field names; copies the data once, into the payload.
    ///
    /// # Errors
    /// When a value has no msgpack form.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let (wire, room) = match self {
            Self::Frame(f) => (
                OutputWire::Frame(FrameWire {
                    attempt: f.attempt,
                    seq: f.seq,
                    begin: f.begin.clone(),
                    head: f.head.clone(),
                    data: f.data.as_deref(),
                    end: f.end.clone(),
                }),
                f.data.as_ref().map_or(0, Bytes::len),
            ),
            Self::Notice { epoch, notice } => {
                (OutputWire::Notice { epoch: *epoch, notice: notice.clone() }, 0)
            }
            Self::Declined(reply) => (OutputWire::Declined(reply.clone()), 0),
        };
        let mut out = Vec::with_capacity(room + 128);
        rmp_serde::encode::write_named(&mut out, &wire)
            .map_err(|e| EncodeError { schema: Self::SCHEMA, reason: e.to_string() })?;
        Ok(out)
    }

    /// Reads what `encode` wrote; the data stays a slice of `payload`.
    ///
    /// # Errors
    /// When the payload is neither a frame nor a notice.
    pub fn decode(payload: &Bytes) -> Result<Self, DecodeError> {
        let wire: OutputWire<'_> = rmp_serde::from_slice(payload)
            .map_err(|e| DecodeError { schema: Self::SCHEMA, reason: e.to_string() })?;
        Ok(match wire {
            OutputWire::Frame(f) => Self::Frame(Frame {
                attempt: f.attempt,
                seq: f.seq,
                begin: f.begin,
                head: f.head,
                data: f.data.map(|data| payload.slice_ref(data)),
                end: f.end,
            }),
            OutputWire::Notice { epoch, notice } => Self::Notice { epoch, notice },
            OutputWire::Declined(reply) => Self::Declined(reply),
        })
    }
}

/// The shape on the wire, borrowing the data.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutputWire<'a> {
    #[serde(borrow)]
    Frame(FrameWire<'a>),
    Notice {
        epoch: Epoch,
        notice: Notice,
    },
    Declined(Reply),
}

#[derive(Serialize, Deserialize)]
struct FrameWire<'a> {
    attempt: Attempt,
    seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begin: Option<Begin>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    head: Option<Head>,
    #[serde(default, borrow, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    data: Option<&'a [u8]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<End>,
}

/// The gateway's answer to frame 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BeginReply {
    /// Send on.
    Go {
        /// Bytes of data that may be sent before more is granted.
        credit: u64,
    },
    /// The client is gone, or has already been sent output of an earlier attempt: abort.
    Refuse {
        /// Why, for the log.
        reason: String,
    },
}

impl Message for BeginReply {
    const SCHEMA: &'static str = "job.begin-reply/1";
}
