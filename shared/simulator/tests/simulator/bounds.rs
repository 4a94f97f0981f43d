//! What the policy guarantees however the arrivals fall: a bound on every wait, and a factor to the best there is.

use std::collections::HashMap;
use std::time::Duration;

use berth_placement::Policy as Core;
use berth_simulator::{Policy, Setup};
use proptest::prelude::*;

use crate::kit::{run, setup, workload};

/// The least possible longest wait on one accelerator, in ms, for jobs `(arrival, model)` that take no time: every
/// order of loads is tried, each begun at once or at a later arrival.
fn best_longest_wait(jobs: &[(u64, usize)], load: u64) -> u64 {
    /// The least longest wait with which a state was reached: again with no less, it leads to nothing better.
    type Seen = HashMap<(u32, u64, Option<usize>), u64>;

    #[expect(clippy::too_many_arguments, reason = "a state and what was found so far")]
    fn search(
        jobs: &[(u64, usize)],
        open: u32,
        now: u64,
        loaded: Option<usize>,
        load: u64,
        worst: u64,
        best: &mut u64,
        seen: &mut Seen,
    ) {
        // What is loaded serves those who are there; those who come while it stays wait for nothing.
        let mut open = open;
        let mut worst = worst;
        for (n, (arrival, model)) in jobs.iter().enumerate() {
            if open & (1 << n) != 0 && Some(*model) == loaded && *arrival <= now {
                worst = worst.max(now - arrival);
                open &= !(1 << n);
            }
        }
        let late = jobs.iter().enumerate().filter(|(n, _)| open & (1 << n) != 0);
        let least = late.map(|(_, (arrival, _))| now.saturating_sub(*arrival)).max().unwrap_or(0).max(worst);
        if least >= *best {
            return;
        }
        if open == 0 {
            *best = worst;
            return;
        }
        let before = seen.entry((open, now, loaded)).or_insert(u64::MAX);
        if *before <= worst {
            return;
        }
        *before = worst;
        let mut models: Vec<usize> = jobs
            .iter()
            .enumerate()
            .filter(|(n, _)| open & (1 << n) != 0)
            .map(|(_, (_, model))| *model)
            .collect();
        models.sort_unstable();
        models.dedup();
        for model in models {
            if Some(model) != loaded {
                search(jobs, open, now + load, Some(model), load, worst, best, seen);
            }
        }
        // Or stay until the next arrival.
        if let Some(next) = jobs.iter().map(|(arrival, _)| *arrival).filter(|arrival| *arrival > now).min() {
            search(jobs, open, next, loaded, load, worst, best, seen);
        }
    }
    let mut best = u64::MAX;
    search(jobs, (1 << jobs.len()) - 1, 0, None, load, 0, &mut best, &mut HashMap::new());
    best
}

#[test]
fn the_brute_force_finds_the_best_order() {
    assert_eq!(best_longest_wait(&[(0, 0)], 1000), 1000);
    assert_eq!(best_longest_wait(&[(0, 0), (0, 1)], 1000), 2000);
    // Back to the first model at the end, rather than the second model waiting for its late job.
    assert_eq!(best_longest_wait(&[(0, 0), (1, 1), (1100, 0)], 1000), 1999);
    // Loaded ahead of its arrival.
    assert_eq!(best_longest_wait(&[(5000, 0)], 1000), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    // First come, first served is 2-competitive for the longest wait where one load serves all who wait for it:
    // Chekuri, Im and Moseley, "Online scheduling to minimize maximum response time and maximum delay factor" (2012).
    #[test]
    fn by_age_alone_no_wait_is_longer_than_twice_the_best_and_a_load(
        mut jobs in prop::collection::vec((0u64..40_000, 0usize..4), 1..8),
        load in 1u64..10,
    ) {
        jobs.sort_unstable();
        let core = Core { alpha: 0.0, theta: 0.0, replica_share: 1e9, ..Core::default() };
        let fleet = Setup { core, ..setup(1, 64, load) };
        let instant: Vec<_> = jobs.iter().map(|(arrival, model)| (*arrival, *model, 1)).collect();
        let outcome = run(Policy::Berth, &workload(&instant), &fleet);
        // The simulator's time begins at the first arrival.
        let first = jobs[0].0;
        let shifted: Vec<_> = jobs.iter().map(|(arrival, model)| (arrival - first, *model)).collect();
        let best = best_longest_wait(&shifted, load * 1000) as f64 / 1000.0;
        // Each job takes a millisecond here.
        let bound = 2.0 * best + load as f64 + 0.05;
        prop_assert!(outcome.max_s <= bound, "{} s, and the best is {best} s", outcome.max_s);
    }

    #[test]
    fn nobody_waits_longer_than_the_limit_and_a_visit_of_each_other_model(
        jobs in prop::collection::vec((0u64..60_000, 0usize..5, 1u64..8_000), 1..40),
        accelerators in 1u32..4,
        slots in 1u32..4,
        load in 1u64..20,
    ) {
        let core = Core { max_wait: Duration::from_secs(10), ..Core::default() };
        let limit = core.max_wait.as_secs_f64();
        let fleet = Setup { core, ..setup(accelerators, slots, load) };
        let outcome = run(Policy::Berth, &workload(&jobs), &fleet);
        let models = 5.0;
        let longest = jobs.iter().map(|(_, _, service)| *service).max().unwrap() as f64 / 1000.0;
        let queue = (0..5).map(|m| jobs.iter().filter(|(_, model, _)| *model == m).count()).max().unwrap() as f64;
        let own = (queue / f64::from(slots)).ceil() * longest;
        let visit = load as f64 + own + longest;
        let bound = limit + (((models - 1.0) / f64::from(accelerators)).ceil() + 1.0) * visit + own;
        prop_assert!(outcome.max_s <= bound, "{} s, and the bound is {bound} s", outcome.max_s);
    }
}
