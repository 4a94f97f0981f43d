//! Where a request goes: the routes of the endpoint, which are those of the engines.

use serde::{Deserialize, Serialize};

/// A route that engines serve. New ones are added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/rerank`
    Rerank,
    /// `POST /v1/audio/speech`
    Speech,
    /// `POST /v1/audio/transcriptions`, multipart
    Transcriptions,
    /// `POST /v1/audio/translations`, multipart
    Translations,
    /// `POST /v1/images/generations`
    ImageGenerations,
    /// `POST /v1/images/edits`, multipart
    ImageEdits,
    /// `POST /v1/moderations`
    Moderations,
    /// `POST /tokenize`
    Tokenize,
    /// `POST /detokenize`
    Detokenize,
    /// `POST /v1/messages` of Anthropic
    Messages,
    /// `POST /v1/messages/count_tokens` of Anthropic
    CountTokens,
    /// Anything else that an engine serves; the job's [`Target`] says what.
    Upstream,
}

/// Whose conventions a route follows: the shape of its errors and of its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `{"error": {"message", "type", "param", "code"}}`; chat streams end with `[DONE]`.
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}}`; streams end with the event `message_stop`.
    Anthropic,
}

impl Route {
    /// Every route with a path of its own.
    pub const ALL: [Self; 15] = [
        Self::ChatCompletions,
        Self::Completions,
        Self::Embeddings,
        Self::Responses,
        Self::Rerank,
        Self::Speech,
        Self::Transcriptions,
        Self::Translations,
        Self::ImageGenerations,
        Self::ImageEdits,
        Self::Moderations,
        Self::Tokenize,
        Self::Detokenize,
        Self::Messages,
        Self::CountTokens,
    ];

    /// The path at the gateway. `/upstream` stands for all that has none of its own.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
            Self::Rerank => "/v1/rerank",
            Self::Speech => "/v1/audio/speech",
            Self::Transcriptions => "/v1/audio/transcriptions",
            Self::Translations => "/v1/audio/translations",
            Self::ImageGenerations => "/v1/images/generations",
            Self::ImageEdits => "/v1/images/edits",
            Self::Moderations => "/v1/moderations",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
            Self::Upstream => "/upstream",
        }
    }

    /// What it does, in the words of OpenTelemetry's conventions for generative AI where they have one.
    #[must_use]
    pub fn operation(self) -> &'static str {
        match self {
            Self::ChatCompletions | Self::Responses | Self::Messages => "chat",
            Self::Completions => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
            Self::Speech => "speech",
            Self::Transcriptions => "transcription",
            Self::Translations => "translation",
            Self::ImageGenerations => "image_generation",
            Self::ImageEdits => "image_edit",
            Self::Moderations => "moderation",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
            Self::CountTokens => "count_tokens",
            Self::Upstream => "upstream",
        }
    }

    /// Other paths at which the gateway takes it, for clients of services that name it otherwise.
    #[must_use]
    pub fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Rerank => &["/rerank", "/v2/rerank"],
            _ => &[],
        }
    }

    /// The route of a path, as written in a configuration.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.path() == path || route.aliases().contains(&path))
    }

    /// Whether its body is a form with files.
    #[must_use]
    pub fn takes_form(self) -> bool {
        matches!(self, Self::Transcriptions | Self::Translations | Self::ImageEdits)
    }

    /// Whether `"stream": true` makes its answer a stream of server-sent events.
    #[must_use]
    pub fn streams(self) -> bool {
        matches!(
            self,
            Self::ChatCompletions
                | Self::Completions
                | Self::Responses
                | Self::Messages
                | Self::Transcriptions
                | Self::ImageGenerations
                | Self::ImageEdits
        )
    }

    /// Whose conventions it follows.
    #[must_use]
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Messages | Self::CountTokens => Dialect::Anthropic,
            _ => Dialect::OpenAi,
        }
    }
}

/// What an upstream request asks of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The HTTP method.
    pub method: String,
    /// The engine's path with its query, from the first `/`.
    pub path: String,
}
