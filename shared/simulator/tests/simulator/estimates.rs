//! What jobs are told of their wait, against what they wait.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_simulator::{Estimate, Selection, Setup, SleepTier, estimates, read_trace};

/// How good estimates are, of jobs that wait for longer than a second or are told that they will.
struct Quality {
    jobs: usize,
    /// Part of them that is told anything.
    told: f64,
    /// Mean error and mean wait of those, in seconds.
    error: f64,
    wait: f64,
    /// Part of those whose estimate is between half of their wait and twice that, or a second from it.
    within_twice: f64,
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} jobs, {:.3} told; mean error {:.1} s of {:.1} s; within twice: {:.3}",
            self.jobs, self.told, self.error, self.wait, self.within_twice
        )
    }
}

fn quality(estimates: &[Estimate]) -> Quality {
    let late: Vec<&Estimate> =
        estimates.iter().filter(|e| e.waited > 1.0 || e.told.is_some_and(|told| told > 1.0)).collect();
    let told: Vec<(f64, f64)> = late.iter().filter_map(|e| Some((e.told?, e.waited))).collect();
    let part = |sum: f64, of: usize| sum / of.max(1) as f64;
    let near = |(told, waited): &&(f64, f64)| {
        (told - waited).abs() <= 1.0 || (*told <= waited * 2.0 && *told >= waited / 2.0)
    };
    Quality {
        jobs: late.len(),
        told: part(told.len() as f64, late.len()),
        error: part(told.iter().map(|(told, waited)| (told - waited).abs()).sum(), told.len()),
        wait: part(told.iter().map(|(_, waited)| waited).sum(), told.len()),
        within_twice: part(told.iter().filter(near).count() as f64, told.len()),
    }
}

fn of(trace: &Path, selection: &Selection, setup: &Setup) -> Quality {
    let requests = read_trace(File::open(trace).unwrap()).unwrap();
    quality(&estimates(&selection.apply(&requests).unwrap(), setup).unwrap())
}

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/traces/sample.csv")
}

#[test]
fn what_jobs_are_told_is_near_what_they_wait() {
    for (accelerators, within_twice) in [(2, 0.5), (12, 0.88), (24, 0.98)] {
        let setup = Setup { accelerators, ..Setup::default() };
        let quality = of(&sample(), &Selection::default(), &setup);
        println!("{accelerators} accelerators: {quality}");
        assert!(quality.told > 0.9 && quality.within_twice > within_twice, "{quality}");
        assert!(quality.error < quality.wait / 1.5, "{quality}");
    }
}

/// The cells of docs/simulator.md, with their traces in `BERTH_TRACES`.
#[test]
#[ignore = "takes traces that are too large to be kept here"]
fn the_cells() {
    #[expect(clippy::disallowed_methods, reason = "where the traces are")]
    let traces = PathBuf::from(std::env::var("BERTH_TRACES").unwrap());
    let (servegen, mooncake) =
        (traces.join("servegen_40models.csv"), traces.join("mooncake_azure_24models.csv"));
    let half = Selection { session_share: 0.5, ..Selection::default() };
    let cells = [
        ("D1", &servegen, Selection { model_ranks: Some(9..=16), ..Selection::default() }, 1),
        ("D2", &servegen, half.clone(), 4),
        ("D3", &servegen, Selection { speed: 2.5, ..Selection::default() }, 16),
        ("D4", &mooncake, half, 16),
    ];
    for (name, trace, selection, accelerators) in cells {
        for sleep in [None, Some(SleepTier { engines: 4, wake: Duration::from_secs(3) })] {
            let setup = Setup { accelerators, sleep, ..Setup::default() };
            let quality = of(trace, &selection, &setup);
            println!("{name}, {}: {quality}", if sleep.is_some() { "sleep" } else { "no sleep" });
        }
    }
}
