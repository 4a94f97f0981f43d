//! Request traces in virtual time: what a fleet's waits would be under Berth's own scheduling core, and under
//! the simpler rules that it has to beat.
//!
//! A trace is read ([`read_trace`]), cut to a [`Workload`] ([`Selection`]), and run by [`simulate`] under a
//! [`Policy`]. The same trace, set-up and seed give the same result on every machine.
//!
//! What may enter: traces, virtual fleets, rival rules, and what is counted of them. What may not: clocks, async,
//! files and sockets (a trace comes as a `Read`), randomness that is not seeded, and any decision of Berth's own:
//! those are the core's, which is driven here as a scheduler drives it.

mod berth;
mod outcome;
mod policy;
mod rivals;
mod select;
mod setup;
mod time;
mod trace;

pub use berth::{Estimate, Fault};
pub use outcome::Outcome;
pub use policy::{Policy, SimulateError, estimates, simulate};
pub use select::{Job, SelectError, Selection, ServiceCost, Workload};
pub use setup::{Hints, Setup, SleepTier};
pub use time::Micros;
pub use trace::{Request, TraceError, read_trace};
