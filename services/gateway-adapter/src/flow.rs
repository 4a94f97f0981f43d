//! What the demux tells a job's client: pieces of its answer, how far it is, and what the two share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use berth_wire::{Attempt, Head, HostId, Stage, Usage};
use bytes::Bytes;

use crate::relay::Ending;

/// Part of an answer, as one frame brought it.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) head: Option<Head>,
    pub(crate) data: Option<Bytes>,
}

/// How far a job is.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) stage: Stage,
    pub(crate) position: u32,
    /// When its wait is expected to end, where something is known.
    pub(crate) expected: Option<Instant>,
    pub(crate) serving: Option<Serving>,
    pub(crate) lane: Lane,
    /// Attempts begun so far.
    pub(crate) attempts: u32,
    /// Since when its model loads, of a job that waits for that.
    pub(crate) loading: Option<Instant>,
}

/// A wait that was to be over so long ago is one of which nothing is known.
const OVERDUE: Duration = Duration::from_secs(1);

impl Progress {
    /// Whole seconds that the wait is expected to take from now on. It is told only when places change, so it is counted
    /// down here, and is unknown once it has turned out to be wrong.
    pub(crate) fn eta_s(&self) -> Option<u64> {
        let expected = self.expected?;
        let left = expected.saturating_duration_since(Instant::now());
        (expected.elapsed() < OVERDUE).then(|| left.as_millis().div_ceil(1000) as u64)
    }
}

/// The way that a job takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Lane {
    /// Straight to a host.
    Express,
    /// Through the stream and the scheduler.
    #[default]
    Queue,
}

impl Lane {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Express => "express",
            Self::Queue => "queue",
        }
    }
}

/// Who serves a job.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) attempt: Attempt,
    pub(crate) host: HostId,
    /// Since when.
    pub(crate) at: Instant,
    /// How long the job waited for its model to load before.
    pub(crate) load: Duration,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            stage: Stage::Queued,
            position: 0,
            expected: None,
            serving: None,
            lane: Lane::default(),
            attempts: 0,
            loading: None,
        }
    }
}

/// What the demux and a job's client share.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Bytes that the client has taken.
    pub(crate) consumed: AtomicU64,
    /// What the end told of tokens and times, whatever the end was.
    pub(crate) usage: OnceLock<Usage>,
    /// Set once, before the channel of pieces is closed.
    pub(crate) ending: OnceLock<Ending>,
    /// The client has left.
    pub(crate) gone: AtomicBool,
}
