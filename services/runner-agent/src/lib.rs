//! One per host: accelerators, engines and the token pump.
//!
//! What may enter: what touches this machine (NVML, Docker, processes) and the bytes between an engine and the
//! bus. What may not: decisions about which engine runs where; the agent does what a leader of the newest epoch
//! commands, refuses what cannot be, and reports all that happens. It runs on one thread, without locks.

mod accelerators;
mod actor;
mod ask_usage;
mod asleep;
mod attempt;
mod beat;
mod books;
mod detect;
mod docker;
mod docker_spec;
mod driver;
mod engine;
mod error;
mod fill;
mod gate;
mod heard;
mod host;
mod layers;
mod leftovers;
mod mask;
mod outbox;
mod process;
mod pump;
mod ready;
mod record;
mod records;
mod reporter;
mod rewrite;
mod run;
mod shared;
mod slots;
mod spans;
mod tail;
mod usage;
mod vllm;

pub use detect::{Found, detect};
pub use error::AgentError;
pub use run::run;
