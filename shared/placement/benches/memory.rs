//! What a waiting job takes of memory: bytes allocated for 100,000 of them, over 1,000 models.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, dead_code, reason = "a benchmark")]

mod fleet;

use berth_placement::{Event, step};
use peak_alloc::PeakAlloc;

use fleet::{Fleet, Size};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

fn main() {
    const JOBS: usize = 100_000;
    let mut fleet = Fleet::new(Size { hosts: 0, models: 1000, jobs: JOBS });
    let before = HEAP.current_usage();
    while fleet.state.outstanding() < JOBS {
        let (_, event) = fleet.next();
        if !matches!(event, Event::JobSubmitted(_) | Event::Catalog(_) | Event::Timer) {
            continue;
        }
        drop(step(&mut fleet.state, event, fleet.now));
    }
    // The names that came with the jobs are counted too, and the books of the models.
    let bytes = HEAP.current_usage() - before;
    println!("{JOBS} jobs wait: {} bytes each", bytes / JOBS);
}
