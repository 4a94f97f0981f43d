//! The trace that ships with the project: its rows as an independent program computes them.

use std::fs::File;
use std::path::Path;

use berth_simulator::{Policy, Selection, Setup, Workload, read_trace};

use crate::kit::run;

fn sample() -> Workload {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/traces/sample.csv");
    let trace = read_trace(File::open(path).unwrap()).unwrap();
    Selection::default().apply(&trace).unwrap()
}

#[test]
fn the_rivals_rows_are_those_of_the_reference_study() {
    let jobs = sample();
    assert_eq!((jobs.jobs.len(), jobs.models.len(), jobs.sessions.len()), (1495, 50, 709));
    // Mean, median, p95, p99 and longest wait in seconds, swaps, the part within 10 s.
    for (accelerators, policy, row) in [
        (12, Policy::Fifo, "8267.7 8411.7 15399.5 15878.1 16111.3 577 0.000"),
        (12, Policy::Ollama, "356.6 350.8 675.0 710.5 730.9 637 0.004"),
        (12, Policy::LlamaSwap, "37.4 24.1 126.0 165.9 226.6 297 0.435"),
        (12, Policy::Pooled, "35.1 36.1 72.2 82.5 87.6 397 0.207"),
        (12, Policy::Clairvoyant, "26.7 12.8 88.1 115.4 131.1 318 0.489"),
        (2, Policy::Clairvoyant, "481.7 458.5 996.5 1069.6 1108.3 99 0.013"),
        (12, Policy::Bound, "0.0 0.0 0.0 0.0 0.0 0 1.000"),
    ] {
        let o = run(policy, &jobs, &Setup { accelerators, ..Setup::default() });
        let ours = format!(
            "{:.1} {:.1} {:.1} {:.1} {:.1} {} {:.3}",
            o.mean_s, o.p50_s, o.p95_s, o.p99_s, o.max_s, o.swaps, o.within_10s
        );
        assert_eq!(ours, row, "{} on {accelerators}", policy.name());
    }
}

#[test]
fn the_core_answers_every_job_of_it() {
    let jobs = sample();
    for per_host in [1, 4] {
        let fleet = Setup { accelerators: 12, per_host, audit: true, ..Setup::default() };
        assert_eq!(run(Policy::Berth, &jobs, &fleet).jobs, 1495);
    }
}
