//! Random tiny traces under every policy.

use std::time::Duration;

use berth_simulator::{Hints, Policy, Setup, SleepTier, simulate};
use proptest::prelude::*;

use crate::kit::{run, setup, workload};

fn jobs() -> impl Strategy<Value = Vec<(u64, usize, u64)>> {
    prop::collection::vec((0u64..120_000, 0usize..5, 1u64..40_000), 1..24)
}

fn fleets() -> impl Strategy<Value = Setup> {
    (1u32..4, 1u32..4, 0u64..40, 1u32..4, any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |(accelerators, slots, load, per_host, sleeps, told, seed)| Setup {
            per_host,
            sleep: sleeps.then_some(SleepTier { engines: 2, wake: Duration::from_secs(2) }),
            hints: told.then_some(Hints { lead: Duration::from_secs(20), share: 0.5, seed }),
            ..setup(accelerators, slots, load)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    // A start before the arrival or a second one is an error or a failed debug assertion of the simulator itself.
    #[test]
    fn every_job_starts_exactly_once_and_not_before_it_arrives(jobs in jobs(), fleet in fleets()) {
        let jobs = workload(&jobs);
        for policy in Policy::ALL {
            let outcome = simulate(policy, &jobs, &fleet, &mut |_| {});
            match outcome {
                Ok(outcome) => prop_assert_eq!(outcome.jobs, jobs.jobs.len(), "{}", policy.name()),
                Err(error) => prop_assert!(false, "{}: {}", policy.name(), error),
            }
        }
    }

    // Only jobs of one length: with others, an order other than that of arrival may have the smaller mean.
    #[test]
    fn nobody_is_better_than_the_bound(jobs in jobs(), fleet in fleets(), service in 1u64..20_000) {
        let jobs: Vec<_> = jobs.into_iter().map(|(arrival, model, _)| (arrival, model, service)).collect();
        let jobs = workload(&jobs);
        let bound = run(Policy::Bound, &jobs, &fleet);
        for policy in Policy::ALL {
            let outcome = run(policy, &jobs, &fleet);
            prop_assert!(bound.mean_s <= outcome.mean_s, "{}: {:?} {:?}", policy.name(), bound, outcome);
        }
    }

    #[test]
    fn the_same_trace_gives_the_same_result(jobs in jobs(), fleet in fleets()) {
        let jobs = workload(&jobs);
        for policy in Policy::ALL {
            prop_assert_eq!(run(policy, &jobs, &fleet), run(policy, &jobs, &fleet));
        }
    }
}
