//! An agent on a real nats-server, with real processes and containers as its engines.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed; clippy.toml frees only functions marked as tests"
)]

mod asleep;
mod containers;
mod dockerd;
mod engines;
mod faults;
mod fixture;
mod gateway;
mod jobs;
mod leaders;
mod logs;
mod pulls;
mod registry;
mod restarts;
