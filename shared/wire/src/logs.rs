//! `ctl.<host>.logs`: an operator reads an engine's log.
//!
//! The command is answered at once; the lines then come to the inbox that it names, as numbered requests: the next
//! piece is sent when the last one is acknowledged, so that nothing piles up, and nobody's inbox ends it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::EngineId;

/// Asks for an engine's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLog {
    /// Which engine.
    pub engine: EngineId,
    /// Lines of the past, at most.
    pub tail: u32,
    /// Go on with what it logs from now on, until it ends.
    #[serde(default)]
    pub follow: bool,
    /// The inbox that the lines go to.
    pub to: String,
}

impl Message for ReadLog {
    const SCHEMA: &'static str = "ctl.logs/1";
}

/// Some lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPiece {
    /// Counts from 0 without a gap.
    pub seq: u64,
    /// Whole lines, each with its end. Bytes, so that whoever looks at the bus is shown their number alone: requests
    /// may be in them.
    pub lines: Bytes,
    /// Lines before these that are lost, since they came faster than they were read.
    #[serde(default)]
    pub skipped: u64,
    /// In the last piece: why there are no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
}

impl Message for LogPiece {
    const SCHEMA: &'static str = "log.piece/1";
}

/// Acknowledges a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAck {
    /// Whether the next one is wanted.
    pub more: bool,
}

impl Message for LogAck {
    const SCHEMA: &'static str = "log.ack/1";
}
