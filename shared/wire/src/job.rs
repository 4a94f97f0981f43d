//! A job as the gateway submits it and the agent receives it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, EncodeError};
use crate::id::{GatewayId, JobId, KeyId, ModelId};
use crate::route::{Route, Target};
use crate::time::Timestamp;

/// How much a second of a job's waiting counts, against other jobs'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A person waits for it: four times the standard.
    Interactive,
    /// What nobody says anything else of.
    #[default]
    Standard,
    /// Nobody waits for it: a quarter of the standard.
    Batch,
}

impl Class {
    // For serde, which passes a reference.
    #[expect(clippy::trivially_copy_pass_by_ref)]
    fn is_standard(&self) -> bool {
        *self == Self::Standard
    }

    /// The name in configuration and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Standard => "standard",
            Self::Batch => "batch",
        }
    }

    /// Its weight in quarters, so that sums are exact.
    #[must_use]
    pub fn quarters(self) -> u64 {
        match self {
            Self::Interactive => 16,
            Self::Standard => 4,
            Self::Batch => 1,
        }
    }
}

/// A request body: beside the job, or in the object store when it is large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The bytes as the client sent them.
    Inline(Bytes),
    /// The name of the object in `berth_bodies` that holds them (claim check).
    Claim {
        /// Object name.
        object: String,
        /// Its size in bytes.
        len: u64,
    },
}

impl Body {
    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Claim { len, .. } => *len,
        }
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One inference request on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id, also its `Nats-Msg-Id`.
    pub id: JobId,
    /// Catalog id (aliases are resolved before).
    pub model: ModelId,
    /// The adapter of that model that it is for.
    pub adapter: Option<ModelId>,
    /// Where it goes on the engine.
    pub route: Route,
    /// Whom its frames go to.
    pub gateway: GatewayId,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// The conversation it belongs to.
    pub session: Option<String>,
    /// When the gateway took it.
    pub submitted_at: Timestamp,
    /// When it must have started its answer.
    pub deadline: Option<Timestamp>,
    /// The deadline is its client's own, and not only the end of what a gateway lets it wait.
    pub hurried: bool,
    /// Bytes of output the gateway takes before it grants more.
    pub window: u64,
    /// W3C Trace Context of the request.
    pub traceparent: Option<String>,
    /// How much its waiting counts.
    pub class: Class,
    /// The API key it came with.
    pub key: Option<KeyId>,
    /// The `Content-Type` of its body, where that is not JSON; on [`Route::Upstream`] whatever the client said.
    pub content_type: Option<String>,
    /// Of a job on [`Route::Upstream`].
    pub target: Option<Target>,
    /// The request body.
    pub body: Body,
}

impl Job {
    /// The schema id.
    pub const SCHEMA: &'static str = "job.submit/1";

    /// Writes msgpack with field names; copies the body once, into the payload.
    ///
    /// # Errors
    /// When a value has no msgpack form.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let (inline, claim) = match &self.body {
            Body::Inline(bytes) => (Some(bytes.as_ref()), None),
            Body::Claim { object, len } => (None, Some(ClaimWire { object, len: *len })),
        };
        let wire = JobWire {
            id: self.id,
            model: self.model.clone(),
            adapter: self.adapter.clone(),
            route: self.route,
            gateway: self.gateway.clone(),
            stream: self.stream,
            session: self.session.as_deref(),
            submitted_at: self.submitted_at,
            deadline: self.deadline,
            hurried: self.hurried,
            window: self.window,
            traceparent: self.traceparent.as_deref(),
            class: self.class,
            key: self.key.clone(),
            content_type: self.content_type.as_deref(),
            target: self.target.clone(),
            claim,
            body: inline,
        };
        let mut out = Vec::with_capacity(inline.map_or(0, <[u8]>::len) + 512);
        rmp_serde::encode::write_named(&mut out, &wire)
            .map_err(|e| EncodeError { schema: Self::SCHEMA, reason: e.to_string() })?;
        Ok(out)
    }

    /// Reads what `encode` wrote; the body stays a slice of `payload`.
    ///
    /// # Errors
    /// When the payload is no job or has no body.
    pub fn decode(payload: &Bytes) -> Result<Self, DecodeError> {
        let bad = |reason: String| DecodeError { schema: Self::SCHEMA, reason };
        let wire: JobWire<'_> = rmp_serde::from_slice(payload).map_err(|e| bad(e.to_string()))?;
        let body = match (wire.body, wire.claim) {
            (Some(bytes), _) => Body::Inline(payload.slice_ref(bytes)),
            (None, Some(claim)) => Body::Claim { object: claim.object.to_owned(), len: claim.len },
            (None, None) => return Err(bad("field `body` or `claim` is missing".into())),
        };
        Ok(Self {
            id: wire.id,
            model: wire.model,
            adapter: wire.adapter,
            route: wire.route,
            gateway: wire.gateway,
            stream: wire.stream,
            session: wire.session.map(str::to_owned),
            submitted_at: wire.submitted_at,
            deadline: wire.deadline,
            hurried: wire.hurried,
            window: wire.window,
            traceparent: wire.traceparent.map(str::to_owned),
            class: wire.class,
            key: wire.key,
            content_type: wire.content_type.map(str::to_owned),
            target: wire.target,
            body,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct ClaimWire<'a> {
    object: &'a str,
    len: u64,
}

/// The shape on the wire, borrowing what is large.
#[derive(Serialize, Deserialize)]
struct JobWire<'a> {
    id: JobId,
    model: ModelId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adapter: Option<ModelId>,
    route: Route,
    gateway: GatewayId,
    #[serde(default)]
    stream: bool,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    submitted_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hurried: bool,
    window: u64,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(default, skip_serializing_if = "Class::is_standard")]
    class: Class,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<KeyId>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    claim: Option<ClaimWire<'a>>,
    #[serde(default, borrow, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    body: Option<&'a [u8]>,
}
