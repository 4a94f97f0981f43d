//! How the program ends: one list of statuses, and the errors that lead to them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use berth_bus::BusError;
use berth_bus::server::ServerError;
use berth_config::{ConfigError, ModelFileError};
use berth_telemetry::LogError;
use thiserror::Error;

/// The exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All went well, or it was told to stop and did.
    Done = 0,
    /// Something failed; standard error says what.
    Failed = 1,
    /// The command line or the configuration says something wrong.
    Usage = 2,
    /// It was told twice to stop and did so at once.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why the program cannot do what it was asked.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A model file.
    #[error(transparent)]
    ModelFile(#[from] ModelFileError),
    /// An environment variable or option.
    #[error("{0}")]
    Option(String),
    /// Log set-up.
    #[error(transparent)]
    Logs(#[from] LogError),
    /// Metrics set-up.
    #[error("cannot record metrics: {0}")]
    Metrics(String),
    /// NATS.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The nats-server of one's own.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Somebody else listens there.
    #[error("{address} is in use by another program; choose another with --listen")]
    InUse {
        /// Where.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; choose another with --listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A role broke off or did not start.
    #[error("{role}: {why}")]
    Role {
        /// Which.
        role: &'static str,
        /// What it said.
        why: String,
    },
    /// A file cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What was read is not what it should be.
    #[error("{0}")]
    Input(String),
    /// Anything of the system.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Failure {
    /// The status that tells of it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::ModelFile(_) | Self::Option(_) | Self::Logs(_) => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}
