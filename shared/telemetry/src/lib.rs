//! How Berth is observed: log set-up, the one list of metric names, and errors written with their causes.
//!
//! What may enter: names, buckets, subscribers and recorders. What may not: prompt content, secrets, or labels
//! whose values are unbounded (job ids, sessions, keys).

mod chain;
mod logs;
pub mod metric;
pub mod samples;
mod table;

pub use chain::Chain;
pub use logs::{LogError, LogFormat, init_logs};
pub use table::page as metrics_page;
