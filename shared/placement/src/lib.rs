//! The scheduling core: a deterministic state machine, `step(state, event, now) -> effects`.
//!
//! It knows hosts, accelerators, engines, models, queues and jobs, and decides which job runs where and which
//! engine is started or stopped for it. The scheduler service feeds it what happens on the bus and carries out
//! its effects; a simulator feeds it a trace in virtual time. The same events in the same order give the same
//! decisions, so a recorded log can be replayed.
//!
//! What may enter: decisions and the books they are made from. What may not: I/O, clocks, randomness that is not
//! passed in, async, NATS, HTTP. Collections are ordered wherever they are iterated.

mod admit;
mod books;
mod catalog;
mod effect;
mod engines;
mod event;
mod explain;
mod hosts;
mod invariants;
mod jobs;
mod place;
mod policy;
mod state;
mod timers;

pub use books::{EnginePhase, JobPhase, JobView, ModelView};
pub use effect::{Effect, Verdict};
pub use event::{AttemptEnd, EngineFacts, Event, HostFacts, JobFacts, ModelNeeds, Refusal};
pub use invariants::Violation;
pub use policy::Policy;
pub use state::{State, step};
