//! The scheduler: campaigns for leadership and, while it leads, feeds what happens on the bus to
//! `shared/placement` and carries out what that decides.
//!
//! What may enter: translation between bus and core, and the books of what only this service needs (payloads,
//! stream tickets, who wants to be told). What may not: decisions; they belong to the core.

mod catalog;
mod effects;
mod entry;
mod error;
mod found;
mod hosts;
mod intake;
mod keeper;
mod leader;
mod recorder;
mod restore;
mod run;
mod translate;

pub use error::SchedulerError;
pub use run::run;
