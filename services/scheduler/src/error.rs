//! Why a scheduler ends.

use berth_bus::BusError;
use thiserror::Error;

/// The scheduler could not start or go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The bus failed.
    #[error("the scheduler cannot use the bus")]
    Bus(#[from] BusError),
}
