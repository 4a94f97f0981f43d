//! How near what jobs are told is to what they wait, on the cells of docs/simulator.md:
//! `cargo run --release -p berth-simulator --example estimates TRACE_DIR`.

#![expect(clippy::unwrap_used, reason = "a measurement, which ends where it cannot be made")]

use std::path::PathBuf;
use std::time::Duration;

use berth_simulator::{Selection, Setup, SleepTier};

#[path = "../tests/simulator/quality.rs"]
mod quality;

use quality::of;

fn main() {
    let Some(traces) = std::env::args().nth(1).map(PathBuf::from) else {
        eprintln!(
            "usage: estimates TRACE_DIR (a folder with servegen_40models.csv and mooncake_azure_24models.csv)"
        );
        std::process::exit(2);
    };
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
