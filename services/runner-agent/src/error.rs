//! Why an agent does not run.

use std::path::PathBuf;

use berth_bus::BusError;
use thiserror::Error;

/// The agent cannot run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AgentError {
    /// NATS.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The listener for metrics.
    #[error(transparent)]
    Probes(#[from] berth_probes::ProbeError),
    /// Traces are configured and cannot be had.
    #[error(transparent)]
    Traces(#[from] berth_telemetry::trace::TraceError),
    /// The client that talks to engines.
    #[error("cannot make an HTTP client for engines")]
    Http(#[source] reqwest::Error),
    /// The folder for its state.
    #[error("cannot use {}: correct [host] state_dir", path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}
