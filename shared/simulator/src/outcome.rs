//! What is counted of a run.

use serde::Serialize;

use crate::time::{Micros, SECOND, seconds};

/// One run in numbers. Waits are from a job's arrival to its start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Under which policy.
    pub policy: &'static str,
    /// Jobs run.
    pub jobs: usize,
    /// Models they were for.
    pub models: usize,
    /// Mean wait.
    pub mean_s: f64,
    /// Half of the jobs waited for less.
    pub p50_s: f64,
    /// One in twenty waited for longer.
    pub p95_s: f64,
    /// One in a hundred waited for longer.
    pub p99_s: f64,
    /// The longest wait.
    pub max_s: f64,
    /// Engines loaded or woken.
    pub swaps: u64,
    /// The part of the jobs that started within ten seconds.
    pub within_10s: f64,
}

impl Outcome {
    pub(crate) fn of(policy: &'static str, models: usize, mut waits: Vec<Micros>, swaps: u64) -> Self {
        waits.sort_unstable();
        let jobs = waits.len();
        let part = |count: f64| if jobs == 0 { 0.0 } else { to_millionths(count / jobs as f64) };
        // The value at place floor(share x n): no interpolation.
        let percentile = |share: f64| {
            let place = ((share * jobs as f64) as usize).min(jobs.saturating_sub(1));
            waits.get(place).copied().map_or(0.0, seconds)
        };
        let total: u128 = waits.iter().map(|wait| u128::from(*wait)).sum();
        Self {
            policy,
            jobs,
            models,
            mean_s: part(total as f64 / SECOND as f64),
            p50_s: percentile(0.50),
            p95_s: percentile(0.95),
            p99_s: percentile(0.99),
            max_s: waits.last().copied().map_or(0.0, seconds),
            swaps,
            within_10s: part(waits.partition_point(|wait| *wait <= 10 * SECOND) as f64),
        }
    }
}

fn to_millionths(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_wait_at_that_place() {
        let waits = (0..100).map(|n| n * SECOND).collect();
        let outcome = Outcome::of("test", 1, waits, 7);
        assert_eq!((outcome.p50_s, outcome.p95_s, outcome.p99_s, outcome.max_s), (50.0, 95.0, 99.0, 99.0));
        assert_eq!((outcome.mean_s, outcome.within_10s, outcome.swaps), (49.5, 0.11, 7));
    }

    #[test]
    fn one_job_is_every_percentile() {
        let outcome = Outcome::of("test", 1, vec![3 * SECOND], 1);
        assert_eq!((outcome.p50_s, outcome.p99_s, outcome.max_s), (3.0, 3.0, 3.0));
    }
}
