//! The simulator from outside: traces, selections, rivals by hand, and all policies on random traces.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]

mod bounds;
mod estimates;
mod kit;
mod properties;
mod quality;
mod rivals;
mod sample;
mod selections;
mod the_core;
mod traces;
