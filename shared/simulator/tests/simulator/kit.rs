//! Workloads by hand.

use std::time::Duration;

use berth_simulator::{Job, Outcome, Policy, Setup, Workload, simulate};

/// Jobs of `(arrival in ms, model, service in ms)`; each is a session of its own.
pub fn workload(jobs: &[(u64, usize, u64)]) -> Workload {
    let mut jobs = jobs.to_vec();
    jobs.sort_unstable();
    let models = jobs.iter().map(|(_, model, _)| model + 1).max().unwrap_or(0);
    Workload {
        models: (0..models).map(|model| format!("m{model}")).collect(),
        sessions: (0..jobs.len()).map(|session| format!("s{session}")).collect(),
        jobs: jobs
            .into_iter()
            .enumerate()
            .map(|(index, (arrival, model, service))| Job {
                index,
                arrival: arrival * 1000,
                model,
                session: index,
                service: service * 1000,
                prompt_tokens: 10,
                output_tokens: 10,
                line: index as u64 + 2,
            })
            .collect(),
    }
}

/// Accelerators, slots and seconds of load; the core's books are checked after every step.
pub fn setup(accelerators: u32, slots: u32, load: u64) -> Setup {
    Setup { accelerators, slots, load: Duration::from_secs(load), audit: true, ..Setup::default() }
}

pub fn run(policy: Policy, workload: &Workload, setup: &Setup) -> Outcome {
    match simulate(policy, workload, setup, &mut |_| {}) {
        Ok(outcome) => outcome,
        Err(error) => panic!("{}: {error}", policy.name()),
    }
}
