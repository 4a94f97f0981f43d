//! Bytes to messages and back: msgpack with field names on the hot path, JSON where people look.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A message with a schema id, sent as msgpack.
pub trait Message: Serialize + DeserializeOwned {
    /// Name and version, as in `job.submit/1`; the version changes only when an old reader would misread it.
    const SCHEMA: &'static str;
}

/// A payload that is not the message it should be.
#[derive(Debug, Error)]
#[error("cannot read a {schema} message: {reason}")]
pub struct DecodeError {
    /// The schema that was expected.
    pub schema: &'static str,
    /// What is wrong, naming the field where the decoder knows it.
    pub reason: String,
}

/// A message that cannot be written; a bug of the sender.
#[derive(Debug, Error)]
#[error("cannot write a {schema} message: {reason}")]
pub struct EncodeError {
    /// The message's schema.
    pub schema: &'static str,
    /// What is wrong.
    pub reason: String,
}

/// Writes msgpack with field names.
///
/// # Errors
/// When a value has no msgpack form.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, EncodeError> {
    rmp_serde::to_vec_named(message).map_err(|e| EncodeError { schema: M::SCHEMA, reason: e.to_string() })
}

/// Reads msgpack; unknown fields are accepted.
///
/// # Errors
/// When the payload is truncated, of another shape, or lacks a field.
pub fn decode<M: Message>(payload: &[u8]) -> Result<M, DecodeError> {
    rmp_serde::from_slice(payload).map_err(|e| DecodeError { schema: M::SCHEMA, reason: e.to_string() })
}

/// Writes JSON.
///
/// # Errors
/// When a value has no JSON form.
pub fn encode_json<M: Message>(message: &M) -> Result<Vec<u8>, EncodeError> {
    serde_json::to_vec(message).map_err(|e| EncodeError { schema: M::SCHEMA, reason: e.to_string() })
}

/// Reads JSON; unknown fields are accepted.
///
/// # Errors
/// When the payload is not JSON, of another shape, or lacks a field.
pub fn decode_json<M: Message>(payload: &[u8]) -> Result<M, DecodeError> {
    serde_json::from_slice(payload).map_err(|e| DecodeError { schema: M::SCHEMA, reason: e.to_string() })
}
