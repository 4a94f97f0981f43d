//! The core against a fleet that does what it says.

mod first_policy;
mod invariants;
mod world;
