//! The rivals on traces small enough to work out by hand.

use berth_simulator::{Outcome, Policy};

use crate::kit::{run, setup, workload};

/// Waits in all and swaps.
fn sums(outcome: &Outcome) -> (f64, u64) {
    ((outcome.mean_s * outcome.jobs as f64).round(), outcome.swaps)
}

#[test]
fn one_accelerator_goes_back_and_forth_in_order_or_serves_a_model_to_its_end() {
    // A, B, A within two seconds; 5 s each, one slot, 10 s of load.
    let jobs = workload(&[(0, 0, 5000), (1000, 1, 5000), (2000, 0, 5000)]);
    for (policy, expected) in [
        // A loads until 10, B from 15 until 25, A again from 30 until 40.
        (Policy::Fifo, (10.0 + 24.0 + 38.0, 3)),
        (Policy::Ollama, (10.0 + 24.0 + 38.0, 3)),
        // Both A at 10 and 15, then B loads from 20 until 30.
        (Policy::LlamaSwap, (10.0 + 29.0 + 13.0, 2)),
        (Policy::Pooled, (10.0 + 29.0 + 13.0, 2)),
        (Policy::Clairvoyant, (10.0 + 29.0 + 13.0, 2)),
        // At 0, 5 and 10.
        (Policy::Bound, (0.0 + 4.0 + 8.0, 0)),
    ] {
        assert_eq!(sums(&run(policy, &jobs, &setup(1, 1, 10))), expected, "{}", policy.name());
    }
}

#[test]
fn a_job_that_needs_a_load_holds_up_those_behind_it_under_ollamas_rule_only() {
    // A and B serve until 110; C comes at 20, and at 21 an A for which there is a free slot.
    let jobs = workload(&[(0, 0, 100_000), (0, 1, 100_000), (20_000, 2, 1000), (21_000, 0, 1000)]);
    for (policy, expected) in [
        // At 110 C and A are loaded side by side, and start at 120.
        (Policy::Ollama, (10.0 + 10.0 + 100.0 + 99.0, 4)),
        // Even B waits for A, C for the first to end, and the second A for C.
        (Policy::Fifo, (10.0 + 20.0 + 100.0 + 109.0, 4)),
        (Policy::Pooled, (10.0 + 10.0 + 100.0 + 0.0, 3)),
        (Policy::LlamaSwap, (10.0 + 10.0 + 100.0 + 0.0, 3)),
    ] {
        assert_eq!(sums(&run(policy, &jobs, &setup(2, 2, 10))), expected, "{}", policy.name());
    }
}

#[test]
fn a_model_with_a_home_waits_for_it_and_one_without_takes_what_is_idle() {
    // By work A has a home of its own, B and C share the other; B comes while C serves there.
    let jobs = workload(&[(0, 0, 10_000), (0, 2, 100_000), (50_000, 1, 1000), (1_000_000, 0, 200_000)]);
    let fleet = setup(2, 1, 10);
    // B waits from 50 until C ends at 110 and 10 s more; A is still there at 1000.
    assert_eq!(sums(&run(Policy::LlamaSwap, &jobs, &fleet)), (10.0 + 10.0 + 70.0 + 0.0, 3));
    // B takes the place of A, which has to be loaded again.
    assert_eq!(sums(&run(Policy::Pooled, &jobs, &fleet)), (10.0 + 10.0 + 10.0 + 10.0, 4));
}

#[test]
fn the_clairvoyant_loads_what_will_be_asked_for() {
    let jobs = workload(&[(0, 0, 1000), (100_000, 1, 1000)]);
    assert_eq!(sums(&run(Policy::Clairvoyant, &jobs, &setup(1, 1, 10))), (10.0, 2));
    assert_eq!(sums(&run(Policy::Pooled, &jobs, &setup(1, 1, 10))), (20.0, 2));
}

#[test]
fn the_clairvoyant_lets_a_job_wait_where_evicting_would_cost_more() {
    // B waits while A serves until 20; five more of A come at 21.
    let mut jobs = vec![(0, 0, 10_000), (15_000, 1, 1000)];
    jobs.extend((0..5).map(|_| (21_000, 0, 1000)));
    let jobs = workload(&jobs);
    let fleet = setup(1, 8, 10);
    // B loads from 20 and ends at 31; the five wait for that and for their own load.
    assert_eq!(sums(&run(Policy::Pooled, &jobs, &fleet)), (10.0 + 15.0 + 5.0 * 20.0, 3));
    // The five first, at once; B loads as they end at 22.
    assert_eq!(sums(&run(Policy::Clairvoyant, &jobs, &fleet)), (10.0 + 17.0, 2));
}

#[test]
fn what_arrives_as_an_engine_falls_idle_is_still_served_by_it() {
    // A ends at 20, just as another A comes; B has waited since 5 and loads from 21 on.
    let jobs = workload(&[(0, 0, 10_000), (5000, 1, 1000), (20_000, 0, 1000)]);
    for policy in [Policy::LlamaSwap, Policy::Pooled] {
        assert_eq!(sums(&run(policy, &jobs, &setup(1, 1, 10))), (10.0 + 26.0 + 0.0, 2));
    }
}

#[test]
fn slots_are_all_used_and_no_more() {
    let jobs = workload(&[(0, 0, 5000); 5]);
    for policy in Policy::ALL.into_iter().filter(|policy| !matches!(policy, Policy::Bound)) {
        // Two at 10, two at 15, one at 20.
        let outcome = run(policy, &jobs, &setup(1, 2, 10));
        assert_eq!(sums(&outcome), (2.0 * 10.0 + 2.0 * 15.0 + 20.0, 1), "{}", policy.name());
    }
}
