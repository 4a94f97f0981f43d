//! How near what jobs are told of their wait is to what they wait.

use std::fmt;
use std::fs::File;
use std::path::Path;

use berth_simulator::{Estimate, Selection, Setup, estimates, read_trace};

/// How good estimates are, of jobs that wait for longer than a second or are told that they will.
pub(crate) struct Quality {
    pub(crate) jobs: usize,
    /// Part of them that is told anything.
    pub(crate) told: f64,
    /// Mean error and mean wait of those, in seconds.
    pub(crate) error: f64,
    pub(crate) wait: f64,
    /// Part of those whose estimate is between half of their wait and twice that, or a second from it.
    pub(crate) within_twice: f64,
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

pub(crate) fn of(trace: &Path, selection: &Selection, setup: &Setup) -> Quality {
    let requests = read_trace(File::open(trace).unwrap()).unwrap();
    quality(&estimates(&selection.apply(&requests).unwrap(), setup).unwrap())
}
