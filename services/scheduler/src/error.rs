//! Why a scheduler ends.

use std::path::PathBuf;

use berth_bus::BusError;
use thiserror::Error;

/// The scheduler could not start or go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The bus failed.
    #[error("the scheduler cannot use the bus")]
    Bus(#[from] BusError),
    /// The listener for metrics.
    #[error(transparent)]
    Probes(#[from] berth_probes::ProbeError),
    /// Traces are configured and cannot be had.
    #[error(transparent)]
    Traces(#[from] berth_telemetry::trace::TraceError),
    /// The log of decisions cannot be written.
    #[error("cannot write to {} ([scheduler] record)", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
