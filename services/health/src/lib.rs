//! Health: watches the fleet from outside, says what is wrong in the log, in metrics, in events, to webhooks and on its
//! status subject, and keeps a day of roll-ups.
//!
//! What may enter: following what others publish about themselves, and judging it. What may not: deciding or
//! changing anything of the fleet; a fleet without health works the same.

mod alerts;
mod facts;
mod gauges;
mod jetstream;
mod picture;
mod roll_call;
mod rollup;
mod run;
mod signals;
mod watcher;
mod webhook;

pub use alerts::{Alert, Raised};
pub use picture::Finding;
pub use rollup::{Quantiles, SLOT_S, Slot, Used};
pub use run::{HealthError, run};
