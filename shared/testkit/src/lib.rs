//! What tests, demonstrations and benchmarks run Berth against: the engine simulator, a real nats-server started
//! for a test, a fault proxy to put before a real server, and a wait that says what it waited for.
//!
//! What may enter: things that stand in for an engine or harm a real part. What may not: a mock of NATS or Docker,
//! and anything that a service needs to do its work (only `berth sim-engine` ships from here).

pub mod nats;
pub mod proxy;
pub mod sim_engine;
pub mod wait;
