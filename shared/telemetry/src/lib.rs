//! How Berth is observed: log set-up, the one list of metric names, traces, and errors written with their causes.
//!
//! What may enter: names, buckets, subscribers, recorders, and what posts to servers of observers. What may not: prompt
//! content, secrets, or labels whose values are unbounded (job ids, sessions, keys).

mod chain;
mod logs;
pub mod metric;
pub mod post;
pub mod samples;
mod table;
pub mod trace;

pub use chain::Chain;
pub use logs::{LogError, LogFormat, init_logs};
pub use table::page as metrics_page;
