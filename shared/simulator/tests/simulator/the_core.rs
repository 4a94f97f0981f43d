//! Berth's own core in the simulator.

use std::time::Duration;

use berth_simulator::{Hints, Policy, Selection, Setup, SimulateError, SleepTier, read_trace, simulate};

use crate::kit::{run, setup, workload};

#[test]
fn a_job_waits_for_the_load_and_the_next_one_for_nothing() {
    let jobs = workload(&[(500, 0, 2000), (60_000, 0, 2000)]);
    let outcome = run(Policy::Berth, &jobs, &setup(1, 1, 30));
    assert_eq!((outcome.jobs, outcome.swaps, outcome.max_s, outcome.p50_s), (2, 1, 30.0, 30.0));
    assert_eq!((outcome.mean_s, outcome.within_10s), (15.0, 0.5));
}

#[test]
fn accelerators_of_one_host_serve_as_many_models_as_hosts_of_one() {
    let jobs = workload(&[(0, 0, 900_000), (0, 1, 900_000), (0, 2, 900_000)]);
    for per_host in [1, 2, 3, 8] {
        let outcome = run(Policy::Berth, &jobs, &Setup { per_host, ..setup(3, 1, 30) });
        assert_eq!((outcome.max_s, outcome.swaps), (30.0, 3), "{per_host} on a host");
    }
}

#[test]
fn jobs_under_a_millisecond_and_loads_of_no_time_come_to_an_end() {
    let mut jobs = workload(&[(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]);
    for job in &mut jobs.jobs {
        job.service = 3;
    }
    for policy in Policy::ALL {
        assert_eq!(run(policy, &jobs, &setup(1, 1, 0)).jobs, 4, "{}", policy.name());
    }
}

#[test]
fn the_same_seed_gives_the_same_result() {
    let mut jobs = Vec::new();
    for n in 0..200 {
        jobs.push((n * 3_700 % 400_000, (n * 7 % 5) as usize, 1000 + n * 37 % 9000));
    }
    let jobs = workload(&jobs);
    let told = |seed| Setup {
        sleep: Some(SleepTier { engines: 2, wake: Duration::from_secs(3) }),
        hints: Some(Hints { lead: Duration::from_secs(20), share: 0.5, seed }),
        ..setup(2, 4, 30)
    };
    assert_eq!(run(Policy::Berth, &jobs, &told(7)), run(Policy::Berth, &jobs, &told(7)));
}

#[test]
fn an_empty_fleet_is_an_error() {
    let jobs = workload(&[(0, 0, 1)]);
    for empty in [setup(0, 1, 1), setup(1, 0, 1), Setup { per_host: 0, ..setup(1, 1, 1) }] {
        for policy in Policy::ALL {
            let error = simulate(policy, &jobs, &empty, &mut |_| {}).unwrap_err();
            assert!(matches!(error, SimulateError::Zero { .. }), "{error}");
        }
    }
}

#[test]
fn progress_ends_with_all_jobs_started() {
    let jobs = workload(&[(0, 0, 1000), (10, 1, 1000), (20, 0, 1000)]);
    for policy in Policy::ALL {
        let mut last = 0;
        let outcome = simulate(policy, &jobs, &setup(1, 1, 1), &mut |started| last = started);
        assert!(outcome.is_ok());
        assert_eq!(last, 3, "{}", policy.name());
    }
}

#[test]
fn behind_jobs_that_take_months_nobody_is_looked_at_for_months() {
    let mut trace = String::from("arrival_s,session,model,prompt_tokens,output_tokens\n");
    for n in 0..24 {
        trace.push_str(&format!("{n},s{n},m{},10,1000000000\n", n % 4));
    }
    let jobs = Selection::default().apply(&read_trace(trace.as_bytes()).unwrap()).unwrap();
    for accelerators in [1, 2] {
        let mut turns = 0;
        let outcome = simulate(Policy::Berth, &jobs, &setup(accelerators, 2, 30), &mut |_| {
            turns += 1;
            assert!(turns < 20_000, "it does not come to its end");
        })
        .unwrap();
        assert_eq!(outcome.jobs, 24);
        assert!(outcome.max_s > 1e7, "each takes 257 days: {}", outcome.max_s);
    }
}
