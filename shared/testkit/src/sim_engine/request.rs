//! What the simulator reads of a request body, and how it says that it cannot.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::SimOptions;

/// The fields of all three routes that matter here; all others are ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Request<'a> {
    pub(super) model: Option<String>,
    #[serde(borrow)]
    pub(super) messages: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) prompt: Option<&'a RawValue>,
    pub(super) input: Option<serde_json::Value>,
    pub(super) encoding_format: Option<String>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    sim: Option<Overrides>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: Option<bool>,
}

/// The `"sim"` object: this request's own pace and faults.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Overrides {
    tokens: Option<u32>,
    first_token_ms: Option<u64>,
    per_token_ms: Option<u64>,
    /// End the process after so many tokens.
    crash_after_tokens: Option<u32>,
    /// Cut the connection after so many tokens.
    cut_after_tokens: Option<u32>,
    /// Answer with this status and an error object instead.
    status: Option<u16>,
    /// Answer with the request body itself as the text, in one token.
    #[serde(default)]
    echo: bool,
}

/// How one request is to be answered.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Tokens to produce.
    pub(super) tokens: u32,
    /// Whether `max_tokens` cut it short.
    pub(super) cut_short: bool,
    pub(super) first_token: Duration,
    pub(super) per_token: Duration,
    pub(super) crash_after: Option<u32>,
    pub(super) cut_after: Option<u32>,
    pub(super) status: Option<u16>,
    pub(super) echo: bool,
}

impl Request<'_> {
    pub(super) fn parse(body: &[u8]) -> Result<Request<'_>, Refusal> {
        serde_json::from_slice(body)
            .map_err(|e| Refusal::bad(format!("the body is not a request: {e}"), None))
    }

    pub(super) fn plan(&self, options: &SimOptions) -> Plan {
        let own = self.sim.clone().unwrap_or_default();
        let wanted = if own.echo { 1 } else { own.tokens.unwrap_or(options.tokens) };
        let limit = self.max_completion_tokens.or(self.max_tokens).unwrap_or(u32::MAX);
        Plan {
            tokens: wanted.min(limit),
            cut_short: limit < wanted,
            first_token: own.first_token_ms.map_or(options.first_token, Duration::from_millis),
            per_token: own.per_token_ms.map_or(options.per_token, Duration::from_millis),
            crash_after: own.crash_after_tokens.or(options.crash_after_tokens),
            cut_after: own.cut_after_tokens,
            status: own.status,
            echo: own.echo,
        }
    }

    /// The model must be named and be the one that is served.
    pub(super) fn check_model(&self, served: &str) -> Result<(), Refusal> {
        match self.model.as_deref() {
            Some(model) => Refusal::unless_served(model, served),
            None => Err(Refusal::bad("`model` is missing".into(), Some("model"))),
        }
    }

    pub(super) fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|o| o.include_usage).unwrap_or(false)
    }
}

/// An answer with an error object.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
    pub(super) code: Option<&'static str>,
}

impl Refusal {
    pub(super) fn bad(message: String, param: Option<&'static str>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message, param, code: None }
    }

    pub(super) fn unless_served(model: &str, served: &str) -> Result<(), Self> {
        if model == served {
            return Ok(());
        }
        Err(Self {
            status: StatusCode::NOT_FOUND,
            message: format!("the model `{model}` does not exist here; this simulator serves `{served}`"),
            param: Some("model"),
            code: Some("model_not_found"),
        })
    }

    pub(super) fn loading() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            message: "loading the simulated model".into(),
            param: None,
            code: Some("loading"),
        }
    }

    pub(super) fn asked_for(status: u16) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            message: "this error is simulated by Berth, as the request asked".into(),
            param: None,
            code: Some("simulated"),
        }
    }

    pub(super) fn response(self) -> HttpResponse {
        let kind = if self.status.is_client_error() { "invalid_request_error" } else { "server_error" };
        HttpResponse::build(self.status).json(json!({
            "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code }
        }))
    }
}
