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
mod asleep;
mod books;
mod catalog;
mod demand;
mod drain;
mod effect;
mod engines;
mod event;
mod explain;
mod express;
mod forecast;
mod hint;
mod hosts;
mod invariants;
mod jobs;
mod learn;
mod lease;
mod line;
mod load;
pub mod log;
mod place;
mod policy;
mod queue;
mod rate;
mod scene;
mod shown;
mod site;
mod small;
mod state;
mod tally;
mod timers;
mod times;
mod wanting;
mod watch;
mod yard;

pub use books::{EnginePhase, JobPhase, JobView, ModelView};
pub use drain::DrainView;
pub use effect::{Effect, Verdict};
pub use event::{AttemptEnd, EngineFacts, Event, HostFacts, JobFacts, ModelNeeds, Refusal};
pub use explain::{Explanation, Place};
pub use invariants::Violation;
pub use lease::LeaseView;
pub use policy::Policy;
pub use shown::ModelFacts;
pub use state::{State, step};
