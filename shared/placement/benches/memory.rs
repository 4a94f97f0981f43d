//! What a waiting job takes of memory: bytes allocated for 100,000 of them, over 1,000 models.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, dead_code, reason = "a benchmark")]

mod fleet;

use berth_placement::{Event, step};
use peak_alloc::PeakAlloc;

use fleet::{Fleet, Kind, Size};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

fn main() {
    const JOBS: usize = 100_000;
    let mut fleet = Fleet::new(Size { hosts: 0, models: 1000, jobs: JOBS });
    let (mut waiting, mut bytes) = (0, 0);
    while waiting < JOBS {
        let (kind, event) = fleet.next();
        if matches!(event, Event::LeaseAsked { .. } | Event::Hint { .. }) {
            continue;
        }
        // What the event brings (names that are shared from here on) counts for the job.
        let shared = HEAP.current_usage();
        let effects = step(&mut fleet.state, event, fleet.now);
        drop(effects);
        let now = HEAP.current_usage();
        if kind == Kind::JobArrives {
            waiting = fleet.state.outstanding();
        }
        bytes += now as i64 - shared as i64;
    }
    println!("{} jobs wait: {} bytes each", waiting, bytes / waiting as i64);
}
