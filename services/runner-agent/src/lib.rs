//! One per host: accelerators, engines and the token pump.
//!
//! What may enter: what touches this machine (NVML, Docker, processes) and the bytes between an engine and the
//! bus. What may not: decisions about which engine runs where; the agent does what a leader of the newest epoch
//! commands, refuses what cannot be, and reports all that happens. It runs on one thread, without locks.

mod accelerators;
mod actor;
mod adapters;
mod amd;
mod ask_usage;
mod asleep;
mod attempt;
mod beat;
mod books;
mod cell;
mod cgroup;
mod container;
mod contexts;
mod detect;
mod docker;
mod docker_paths;
mod docker_spec;
mod driver;
mod engine;
mod error;
mod estimate;
mod external;
mod fill;
mod gate;
mod gauge;
mod heard;
mod host;
mod late;
mod layers;
mod ledger;
mod leftovers;
mod loaded;
mod logs;
mod mask;
mod network;
mod nvidia;
mod outbox;
mod pace;
mod process;
mod procs;
mod pull;
mod pump;
mod ready;
mod record;
mod records;
mod registry;
mod rename;
mod reporter;
mod rewrite;
mod run;
mod share;
mod shared;
mod shortage;
mod silence;
mod slots;
mod spans;
mod tail;
mod traced;
mod usage;
mod vllm;
mod watch;

pub use detect::{Found, detect};
pub use error::AgentError;
pub use run::run;
