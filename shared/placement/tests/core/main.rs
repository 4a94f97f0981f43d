//! The core against a fleet that does what it says.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod invariants;
mod promises;
mod replay;
mod world;
