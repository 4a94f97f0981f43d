//! NATS header names and their fixed values.

/// Media type of the payload: [`MSGPACK`] or [`JSON`].
pub const CONTENT_TYPE: &str = "Content-Type";
/// Schema id of the payload, as in `job.submit/1`.
pub const SCHEMA: &str = "Berth-Schema";
/// The job a message belongs to.
pub const JOB: &str = "Berth-Job";
/// The attempt of a dispatch or a final frame.
pub const ATTEMPT: &str = "Berth-Attempt";
/// The number of a frame within its attempt.
pub const SEQ: &str = "Berth-Seq";
/// How a job's output ended: `stop`, `error` or `cancelled`; on the final frame alone.
pub const FINAL: &str = "Berth-Final";
/// The engine a dispatch is for.
pub const ENGINE: &str = "Berth-Engine";
/// The leader's fencing token on every command.
pub const EPOCH: &str = "Berth-Epoch";
/// W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";

/// Value of [`CONTENT_TYPE`] for msgpack with field names.
pub const MSGPACK: &str = "application/msgpack";
/// Value of [`CONTENT_TYPE`] for JSON.
pub const JSON: &str = "application/json";
