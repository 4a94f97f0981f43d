//! The core against a fleet that does what it says.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod at_hosts;
mod draining;
mod estimates;
mod external;
mod fairness;
mod footprints;
mod invariants;
mod kit;
mod leases;
mod operating;
mod promises;
mod replay;
mod sleeping;
mod swapping;
mod world;
