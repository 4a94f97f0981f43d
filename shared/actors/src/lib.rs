//! Supervision on actix: an actor that stops unasked is made anew after a back-off, publishes what it does, and
//! is drained in order when its service ends.
//!
//! What may enter: what every actor of every service needs. What may not: any service's own messages or state.

mod backoff;
mod supervise;
mod vitals;

pub use backoff::Backoff;
pub use supervise::{Down, Drain, Supervised, Vital, supervise};
pub use vitals::{Life, VitalSigns, Vitals};
