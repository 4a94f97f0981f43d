//! Processor time and memory of processes, from Linux' `/proc`.

use std::time::Duration;

/// These processes and what they have started, but for engines.
pub fn tree(roots: &[u32]) -> Vec<u32> {
    let mut all = roots.to_vec();
    let mut at = 0;
    while at < all.len() {
        let path = format!("/proc/{0}/task/{0}/children", all[at]);
        let children = std::fs::read_to_string(path).unwrap_or_default();
        all.extend(
            children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| !is_engine(*pid)),
        );
        at += 1;
    }
    all
}

fn is_engine(pid: u32) -> bool {
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ.split(|b| *b == 0).any(|variable| variable.starts_with(b"BERTH_TEST_MODEL="))
}

/// Of all its threads, in user and system mode.
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, so what follows it is counted from its end.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    // USER_HZ is 100 wherever Rust's Linux targets run.
    Duration::from_millis(ticks * 10)
}

/// A line of its status, in MiB.
pub fn memory(pid: u32, line: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kib(&status, line) / 1024.0
}

/// Its share of what it holds, in MiB.
pub fn proportional(pid: u32) -> f64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kib(&rollup, "Pss:") / 1024.0
}

fn kib(text: &str, line: &str) -> f64 {
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.split_whitespace().next()?.parse().ok());
    found.unwrap_or(0.0)
}
