//! The numbers that decisions depend on.

use std::time::Duration;

use berth_wire::Class;
use serde::{Deserialize, Serialize};

/// Parameters of the policy. `docs/scheduling.md` says what each is for and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Put an engine idle for so long to sleep or stop it, where its model says nothing; `None`: only when the room is needed.
    pub idle_ttl: Option<Duration>,
    /// Stop an engine asleep for so long, where its model says nothing; `None`: only when its host's RAM is needed.
    pub asleep_ttl: Option<Duration>,
    /// A model without an engine whose oldest job has waited for so long goes first, and may have busy engines
    /// drained for it. Four times as long where only batch jobs wait.
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
    /// Jobs of one model that wait; more are refused.
    pub model_queue_limit: usize,
    /// Jobs of one API key outstanding; more are refused.
    pub key_queue_limit: usize,
    /// How often waiting jobs are told their place anew.
    pub tell_every: Duration,
    /// How much the number of those who wait counts against the age of the oldest, in the order of models: 0: age
    /// alone, 1: as much.
    pub alpha: f64,
    /// Where most models have waited past their limits, only those go first that have waited for so many times as
    /// long as is usual.
    pub aged_factor: f64,
    /// An engine for which its own jobs wait serves for so many times `max_wait` before it is drained, if several
    /// models wait for an engine.
    pub visit_factor: f64,
    /// An idle engine is evicted once the waiting of those who want its room is this share of what its own
    /// model is expected to lose.
    pub theta: f64,
    /// A model gets a further engine when its queue takes longer than this share of a start.
    pub replica_share: f64,
    /// A further engine takes another model's room once what it spares is this share of what that loses.
    pub replica_theta: f64,
    /// Part of a start that those who wait for a further engine are expected to wait for anyway.
    pub replica_start: f64,
    /// And longer than this, so that a start of milliseconds is not reason enough.
    pub replica_backlog: Duration,
    /// What a start takes until it was measured.
    pub start_guess: Duration,
    /// What waking a sleeping engine takes until it was measured.
    pub wake_guess: Duration,
    /// What a job takes until one was measured.
    pub service_guess: Duration,
    /// Time constants of the two arrival rates.
    pub rate_taus: [Duration; 2],
    /// Weight of the first of them; the second has the rest.
    pub rate_mix: f64,
    /// What a lease adds to the loss of its model, in starts: its weight times the chance that its session returns.
    pub lease_weight: f64,
    /// Longest lease granted.
    pub lease_ceiling: Duration,
    /// Share of the accelerators that leases may keep, rounded up.
    pub lease_share: f64,
    /// A lease starts its model in place of another one only when that has not been used for so long.
    pub lease_yield: Duration,
    /// Leases of one session at a time.
    pub leases_per_session: usize,
    /// Leases of one API key at a time.
    pub leases_per_key: usize,
    /// A hint is forgotten so long after it was due.
    pub hint_grace: Duration,
    /// Hints of one session at a time.
    pub hints_per_session: usize,
    /// In a fleet of so many accelerators a search for a place weighs every one, in a larger one the likely ones.
    pub searched_whole: usize,
    /// So many models that want an engine are put in order anew whenever room becomes free, of more some at a time.
    pub ordered_whole: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            idle_ttl: None,
            asleep_ttl: None,
            max_wait: Duration::from_secs(300),
            max_attempts: 3,
            max_start_failures: 2,
            retry_delay: Duration::from_secs(1),
            backoff_floor: Duration::from_secs(10),
            backoff_ceiling: Duration::from_secs(300),
            settle: Duration::from_secs(5),
            queue_limit: 100_000,
            model_queue_limit: 20_000,
            key_queue_limit: 20_000,
            tell_every: Duration::from_secs(5),
            alpha: 0.5,
            aged_factor: 2.0,
            visit_factor: 4.0,
            theta: 0.3,
            replica_share: 0.3,
            replica_theta: 0.4,
            replica_start: 0.25,
            replica_backlog: Duration::from_secs(2),
            start_guess: Duration::from_secs(30),
            wake_guess: Duration::from_secs(3),
            service_guess: Duration::from_secs(5),
            rate_taus: [Duration::from_secs(300), Duration::from_secs(7200)],
            rate_mix: 0.9,
            lease_weight: 4.0 * 0.5,
            lease_ceiling: Duration::from_secs(3600),
            lease_share: 0.5,
            lease_yield: Duration::from_secs(120),
            leases_per_session: 8,
            leases_per_key: 256,
            hint_grace: Duration::from_secs(60),
            hints_per_session: 32,
            searched_whole: 64,
            ordered_whole: 64,
        }
    }
}

impl Policy {
    /// How long a job of the class waits before its model goes first.
    #[must_use]
    pub fn max_wait_of(&self, class: Class) -> Duration {
        match class {
            Class::Interactive | Class::Standard => self.max_wait,
            Class::Batch => self.max_wait.saturating_mul(4),
        }
    }
}
