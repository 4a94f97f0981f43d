//! The numbers that decisions depend on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Parameters of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Stop an engine idle for so long, where its model says nothing; `None`: only when the room is needed.
    pub idle_ttl: Option<Duration>,
    /// A model whose oldest job has waited for so long may have busy engines drained for it.
    pub max_wait: Duration,
    /// A job that breaks off before any output is tried so often in all.
    pub max_attempts: u32,
    /// A model whose engine does not start is given up after so many starts in a row.
    pub max_start_failures: u32,
    /// First delay before a failed start is tried again; doubles up to `backoff_ceiling`.
    pub retry_delay: Duration,
    /// How long a model that was given up refuses jobs at first; doubles up to `backoff_ceiling`.
    pub backoff_floor: Duration,
    /// Longest of those delays.
    pub backoff_ceiling: Duration,
    /// A new leader calls nothing impossible before hosts have had so long to report.
    pub settle: Duration,
    /// Jobs outstanding in all; more are refused.
    pub queue_limit: usize,
    /// How often waiting jobs are told their place anew.
    pub tell_every: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            idle_ttl: None,
            max_wait: Duration::from_secs(30),
            max_attempts: 3,
            max_start_failures: 2,
            retry_delay: Duration::from_secs(1),
            backoff_floor: Duration::from_secs(10),
            backoff_ceiling: Duration::from_secs(300),
            settle: Duration::from_secs(5),
            queue_limit: 100_000,
            tell_every: Duration::from_secs(5),
        }
    }
}
