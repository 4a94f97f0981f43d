//! The harness of the end-to-end tests: the real `berth` binary on real parts, which `tests/run` provides.
//!
//! What may enter: starting, harming and watching the program from outside, as its users and operators do. What may
//! not: a stand-in for NATS, Docker or the program itself. The tests are in `tests/`, each file named as a sentence.

mod bus;
mod clients;
mod collector;
mod compose;
mod config;
#[cfg(test)]
mod docs;
mod engines;
mod external;
mod fleet;
mod gateway;
mod hosts;
mod netns;
mod parts;
mod permits;
mod role;
mod run;
pub mod scenario;
mod sockets;

pub use bus::Bus;
pub use clients::{node, python};
pub use collector::{Collector, Told, tree};
pub use compose::{Compose, docker, free_port, repository};
pub use config::{Config, Model};
pub use engines::{Engine, Engines, Watch};
pub use external::{LlamaByHand, Ollama};
pub use fleet::Berth;
pub use gateway::{Answer, Event, Gateway, Stream, chat};
pub use hosts::Hosts;
pub use netns::Islands;
pub use parts::{Part, berth, path};
pub use role::{Finished, Role, finish};
pub use run::{SOON, at_most};
pub use sockets::{Connection, connections};

pub use berth_testkit::nats::TestNats;
pub use berth_testkit::wait::{until, until_ok};
