//! Health: watches the fleet from outside, says what is wrong in the log, in metrics and on its status subject.
//!
//! What may enter: following what others publish about themselves, and judging it. What may not: deciding or
//! changing anything; health only reads, and a fleet without it works the same.

mod http;
mod picture;
mod roll_call;
mod run;
mod watcher;

pub use picture::{Alert, Finding};
pub use run::{HealthError, RenderMetrics, run};
