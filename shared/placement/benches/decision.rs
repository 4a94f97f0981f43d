//! What a decision costs: 1,000 hosts, 1,000 models, 100,000 jobs that wait.
//!
//! `cargo bench -p berth-placement --bench decision` prints a table by kind of event, then criterion's mean.
//! `BERTH_BENCH_SIZE=HOSTS,MODELS,JOBS` and `BERTH_BENCH_EVENTS=WARM,MEASURED` set other sizes.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark stops where something is wrong"
)]

mod fleet;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use berth_placement::step;
use criterion::Criterion;
use nix::time::{ClockId, clock_gettime};

use fleet::{Fleet, Kind, Size};

#[expect(clippy::disallowed_methods, reason = "a benchmark may be told its size")]
fn numbers<const N: usize>(name: &str, default: [usize; N]) -> [usize; N] {
    let given = std::env::var(name).ok();
    let parsed: Vec<usize> = given.iter().flat_map(|text| text.split(',')).flat_map(str::parse).collect();
    parsed.try_into().unwrap_or(default)
}

/// The thread's own time: on a machine with other work it says what the core takes, not what the others do.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// One event: how long the core took for it.
fn one(fleet: &mut Fleet) -> (Kind, Duration) {
    let (kind, event) = fleet.next();
    let begin = cpu();
    let effects = step(&mut fleet.state, event, fleet.now);
    let took = cpu() - begin;
    fleet.carry_out(effects);
    (kind, took)
}

fn row(name: &str, took: &mut [Duration]) {
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let mean = took.iter().sum::<Duration>().as_secs_f64() * 1e6 / took.len() as f64;
    println!(
        "{name:<16} {:>8} {mean:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
        took.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}

fn main() {
    let [hosts, models, jobs] = numbers("BERTH_BENCH_SIZE", [1000, 1000, 100_000]);
    let [warm, measured] = numbers("BERTH_BENCH_EVENTS", [1_500_000, 300_000]);
    let mut fleet = Fleet::new(Size { hosts, models, jobs });
    let begin = Instant::now();
    for _ in 0..warm {
        one(&mut fleet);
    }
    let (before, from) = (fleet.seen, fleet.now);
    println!("{warm} events to warm up took {:.1} s", begin.elapsed().as_secs_f64());
    let mut took: BTreeMap<Kind, Vec<Duration>> = BTreeMap::new();
    let mut all = Vec::new();
    for _ in 0..measured {
        let (kind, time) = one(&mut fleet);
        took.entry(kind).or_default().push(time);
        all.push(time);
    }
    let (seen, span) = (fleet.seen, fleet.now.since(from).as_secs_f64());
    println!(
        "{hosts} hosts, {models} models, {} jobs outstanding, {} of them running; {span:.1} s of virtual time",
        fleet.state.outstanding(),
        fleet.state.running()
    );
    let [engines, busy, taken, accelerators] = fleet.census();
    println!("{engines} engines, {busy} of them busy, on {taken} of {accelerators} accelerators");
    println!(
        "in it {} dispatches, {} starts, {} stops, {} to sleep, {} woken, {} told (at most {} at once)",
        seen.dispatched - before.dispatched,
        seen.started - before.started,
        seen.stopped - before.stopped,
        seen.slept - before.slept,
        seen.woken - before.woken,
        seen.told - before.told,
        seen.most_told
    );
    let dispatched = seen.dispatched - before.dispatched;
    println!(
        "mean wait {:.1} s; digest {:016x}",
        (seen.waited_ms - before.waited_ms) as f64 / 1000.0 / dispatched.max(1) as f64,
        seen.digest
    );
    println!(
        "\n{:<16} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "us", "events", "mean", "p50", "p99", "p99.9", "max"
    );
    for (kind, took) in &mut took {
        row(&format!("{kind:?}"), took);
    }
    // Effects that one event causes are paid for by those that come with them: a mean of a hundred at a time.
    let mut hundreds: Vec<Duration> =
        all.chunks_exact(100).map(|chunk| chunk.iter().sum::<Duration>() / 100).collect();
    row("all", &mut all);
    row("by the hundred", &mut hundreds);
    println!();

    let mut criterion = Criterion::default()
        .configure_from_args()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(3));
    criterion.bench_function("an event of the mix", |bencher| {
        bencher.iter_custom(|events| (0..events).map(|_| one(&mut fleet).1).sum());
    });
    criterion.final_summary();
}
