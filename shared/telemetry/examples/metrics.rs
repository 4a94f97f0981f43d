//! Writes `docs/metrics.md` to standard output.

fn main() {
    print!("{}", berth_telemetry::metrics_page());
}
