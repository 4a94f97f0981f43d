//! What jobs are told of their wait, against what they wait.

use std::path::{Path, PathBuf};

use berth_simulator::{Selection, Setup};

use crate::quality::of;

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
