//! What can go wrong on the bus.

use berth_wire::{DecodeError, EncodeError};
use thiserror::Error;

/// A failed exchange with NATS.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BusError {
    /// No server could be reached.
    #[error(
        "no NATS server answers at {urls}: start one (`nats-server -js`), correct [bus] urls or --nats-url, \
         or run `berth up`, which brings its own"
    )]
    Unreachable {
        /// Where we looked.
        urls: String,
        /// What the last try said.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The server refused our credentials.
    #[error(
        "the NATS server at {urls} refused our credentials: name the key of this role or host by nkey_file under [bus] or \
         BERTH_NATS_NKEY (`berth nats init` and `berth nats add-host` make them), or correct token or credentials there; \
         a token is given by token_file or BERTH_NATS_TOKEN, and not in the address"
    )]
    Denied {
        /// Which server.
        urls: String,
        /// What it said.
        #[source]
        source: async_nats::ConnectError,
    },
    /// TLS could not be agreed on.
    #[error(
        "no TLS with the NATS server at {urls}: name the certificate of its authority by ca under [bus] or BERTH_NATS_CA, and \
         the server as its certificate does"
    )]
    Tls {
        /// Which server.
        urls: String,
        /// What was wrong.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The server's permissions do not have it.
    #[error(
        "the NATS server does not let us {action} `{subject}`: this process has the key of another role or host, or the \
         server's configuration is older than this berth; correct nkey_file under [bus], or run `berth nats update` and \
         reload the server (`nats-server --signal reload`)"
    )]
    Forbidden {
        /// `publish` or `subscribe`.
        action: &'static str,
        /// What.
        subject: String,
    },
    /// Credentials could not be read.
    #[error("cannot read the NATS credentials file {path}")]
    Credentials {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The subject root is not made of tokens.
    #[error("[bus] root `{0}` must be dot-separated tokens of letters, digits, `-` and `_`")]
    Root(String),
    /// The server is older than Berth needs.
    #[error("the NATS server is version {version}; Berth needs 2.11 or newer")]
    TooOld {
        /// What it says it is.
        version: String,
    },
    /// The server keeps no streams.
    #[error("JetStream is not enabled on NATS at {urls}: start nats-server with -js")]
    NoJetStream {
        /// Which server.
        urls: String,
    },
    /// A payload above the server's limit.
    #[error("a message of {size} bytes on {subject} exceeds the server's max_payload of {limit} bytes")]
    TooLarge {
        /// Where it was to go.
        subject: String,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Nobody listens there.
    #[error("nobody answers on {subject}")]
    NoResponders {
        /// Where we asked.
        subject: String,
    },
    /// Nobody answered in time.
    #[error("no answer on {subject} in time")]
    TimedOut {
        /// Where we asked.
        subject: String,
    },
    /// A stream is at its limit.
    #[error("the queue is full: {0}")]
    Full(String),
    /// A stream or bucket is missing.
    #[error("{asset} does not exist on the NATS server yet; a scheduler creates it when it starts")]
    Missing {
        /// Which.
        asset: String,
    },
    /// Somebody else changed a key first.
    #[error("the key {key} was changed by somebody else")]
    Conflict {
        /// Which key.
        key: String,
    },
    /// A payload that is not what it should be.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message that cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Anything else that NATS reports.
    #[error("NATS: cannot {what}")]
    Nats {
        /// What was being done.
        what: String,
        /// What NATS said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BusError {
    /// Wraps an error of the client library.
    pub(crate) fn nats(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Nats { what: what.into(), source: source.into() }
    }
}
