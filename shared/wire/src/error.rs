//! An error that a client is told of, in the shape of an OpenAI error object.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What kind of error it is; decides the HTTP status and OpenAI's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is wrong; sending it again will not help. 400.
    InvalidRequest,
    /// No key came with the request, or none that is known. 401.
    Unauthorized,
    /// The key does not allow this. 403.
    Forbidden,
    /// The model is not in the catalog. 404.
    ModelNotFound,
    /// The body is larger than the limit. 413.
    TooLarge,
    /// The queue or a key's allowance is full. 429.
    Overloaded,
    /// No engine can serve it now; later it may. 503.
    Unavailable,
    /// The engine failed while it served the job. 502.
    EngineFailed,
    /// The job did not end before its deadline. 504.
    Expired,
    /// The model can never run on this fleet. 503, without a hint to retry.
    CannotFit,
    /// A fault in Berth. 500.
    Internal,
    /// The engine that serves the model does not serve this route. 501.
    NotServed,
    /// No host is called so. 404.
    HostNotFound,
}

impl ErrorKind {
    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::ModelNotFound | Self::HostNotFound => 404,
            Self::TooLarge => 413,
            Self::Overloaded => 429,
            Self::EngineFailed => 502,
            Self::Unavailable | Self::CannotFit => 503,
            Self::Expired => 504,
            Self::Internal => 500,
            Self::NotServed => 501,
        }
    }

    /// OpenAI's `type` of the error object.
    #[must_use]
    pub fn openai_type(self) -> &'static str {
        match self {
            Self::InvalidRequest
            | Self::ModelNotFound
            | Self::HostNotFound
            | Self::TooLarge
            | Self::NotServed => "invalid_request_error",
            Self::Unauthorized => "authentication_error",
            Self::Forbidden => "permission_error",
            Self::Overloaded => "rate_limit_error",
            Self::Unavailable | Self::CannotFit => "service_unavailable",
            Self::EngineFailed | Self::Expired | Self::Internal => "server_error",
        }
    }
}

/// An error for a client: it never holds an engine's address, a secret, or prompt content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// Decides status and type.
    pub kind: ErrorKind,
    /// OpenAI's `code`, as in `model_not_found`.
    pub code: String,
    /// For a person: what happened and what to do.
    pub message: String,
    /// The field of the request at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// When to try again; written as `Retry-After` in whole seconds, 1 to 60.
    #[serde(
        rename = "retry_after_ms",
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::time::option_millis"
    )]
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error without a field or a time to retry.
    #[must_use]
    pub fn new(kind: ErrorKind, code: &str, message: impl Into<String>) -> Self {
        Self { kind, code: code.into(), message: message.into(), param: None, retry_after: None }
    }

    /// A job has ended, and what would have told its gateway was lost.
    #[must_use]
    pub fn answer_lost() -> Self {
        let message = "the end of the answer was lost on its way here; send the request again";
        Self::new(ErrorKind::EngineFailed, "answer_lost", message)
    }

    /// Names the field of the request at fault.
    #[must_use]
    pub fn param(mut self, field: &str) -> Self {
        self.param = Some(field.into());
        self
    }

    /// Says when trying again may help.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for ApiError {}
