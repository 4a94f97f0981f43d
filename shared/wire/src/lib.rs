//! Everything that crosses a process boundary over NATS: ids, messages, subjects, headers and schema ids.
//!
//! What may enter: plain types with serde, the subject grammar, and the codecs. What may not: I/O, clocks,
//! NATS clients, decisions. Byte snapshots in `tests/` pin every message; fields may be added (readers accept
//! unknown ones), never renamed or given another meaning under the same schema id.

mod async_job;
mod catalog;
mod codec;
mod container;
mod control;
mod controls;
mod drain;
mod error;
mod event;
mod frame;
mod header;
mod host;
mod id;
mod job;
mod key;
mod lease;
mod logs;
mod marker;
pub mod multipart;
mod operate;
mod policy;
mod profile;
mod report;
mod route;
mod serves;
pub mod slug;
mod subject;
mod time;

pub use async_job::{AsyncJob, JobStatus, ResultNote};
pub use catalog::{AdapterSpec, Driver, EngineKind, EngineSpec, ModelSpec, Silence, SleepLevel, SleepSpec};
pub use codec::{DecodeError, EncodeError, Message, decode, decode_json, encode, encode_json};
pub use container::{ContainerSpec, Ulimit};
pub use control::{
    CancelJob, Credit, DispatchHeaders, Reply, RollAnswer, RollCall, SetLane, SleepEngine, StartEngine,
    StatusRequest, StopEngine, WakeEngine,
};
pub use controls::Control;
pub use drain::{Drain, DrainReply, DrainRequest, DrainStatus};
pub use error::{ApiError, ErrorKind};
pub use event::{Event, EventBody};
pub use frame::{Begin, BeginReply, End, Finish, Frame, Head, Notice, Output, Stage};
pub use header::{ATTEMPT, CONTENT_TYPE, ENGINE, EPOCH, FINAL, JOB, JSON, MSGPACK, SCHEMA, SEQ, TRACEPARENT};
pub use host::{Accelerator, AcceleratorKind, EngineRecord, HostBeat, LeaderRecord, Reservation};
pub use id::{
    AcceleratorId, Attempt, EngineId, Epoch, GatewayId, HostId, IdError, JobId, KeyId, ModelId, SessionId,
};
pub use job::{Body, Class, Job};
pub use key::{KEY_NAME_MAX, KEY_PREFIX, KeyHash, KeyLimits, KeyRecord, Scope, is_key_name};
pub use lease::{
    HintShown, LEASE_TTL, Lease, LeaseReply, LeaseRequest, LeaseShown, LeaseState, LeaseStatus, LeasesShown,
    ReleasedShown, SESSION_MAX, rfc3339,
};
pub use logs::{LogAck, LogPiece, ReadLog};
pub use marker::EndMarker;
pub use operate::{
    AdapterView, HintView, JobView, JobWhy, LOAD_KEPT, ModelView, OperateReply, OperateRequest, PlaceView,
};
pub use policy::{PolicyRecord, PolicySettings};
pub use profile::{Profile, Residency};
pub use report::{
    Ended, EngineFailure, EngineReport, EngineState, Estimate, Outcome, Report, ReportAck, ReportEntry,
    RunningAttempt, SleepCost, Snapshot, Started, Usage,
};
pub use route::{Dialect, Route, Target};
pub use subject::{Subjects, Verb};
pub use time::{Timestamp, millis, option_millis};
