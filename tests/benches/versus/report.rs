//! From what was seen to figures: percentiles of each round, what they add to the direct way in the same round, and
//! medians over rounds.

use serde_json::{Value, json};

use crate::Turn;

/// Percentiles of a round that others are compared with, in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    p50: f64,
    p99: f64,
    first50: f64,
    first99: f64,
}

/// What one contender did at one load, round by round.
#[derive(Debug, Default)]
pub struct Rounds {
    name: String,
    rate: Vec<f64>,
    times: [Vec<f64>; 2],
    added: [Vec<f64>; 2],
    first: [Vec<f64>; 2],
    first_added: [Vec<f64>; 2],
    gap: [Vec<f64>; 2],
    cpu: Vec<f64>,
    engine_cpu: Vec<f64>,
    each: std::collections::BTreeMap<&'static str, Vec<f64>>,
    wrong: usize,
    queued: usize,
    answers: usize,
}

impl Rounds {
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Takes a round in; `direct` is that of the direct way, which comes first. Returns it for the next.
    pub fn add(&mut self, turn: Turn, direct: Option<Times>) -> Times {
        let Turn { mut seen, cpu, each, engine_cpu } = turn;
        let (count, took) = (seen.answers.len().max(1) as f64, seen.took.as_secs_f64());
        let at = |list: &mut Vec<u64>, percent| at_percentile(list, percent) as f64;
        let own = Times {
            p50: at(&mut seen.answers, 50),
            p99: at(&mut seen.answers, 99),
            first50: at(&mut seen.first, 50),
            first99: at(&mut seen.first, 99),
        };
        let base = direct.unwrap_or(own);
        self.rate.push(count / took);
        push(&mut self.times, own.p50, own.p99);
        push(&mut self.added, own.p50 - base.p50, own.p99 - base.p99);
        push(&mut self.first, own.first50, own.first99);
        push(&mut self.first_added, own.first50 - base.first50, own.first99 - base.first99);
        push(&mut self.gap, at(&mut seen.gaps, 50), at(&mut seen.gaps, 99));
        self.cpu.push(cpu.as_secs_f64() * 1e3 / count);
        self.engine_cpu.push(engine_cpu.as_secs_f64() * 1e3 / count);
        for (name, cpu) in each {
            self.each.entry(name).or_default().push(cpu.as_secs_f64() * 1e3 / count);
        }
        self.wrong += seen.wrong.len();
        self.queued += seen.queued;
        self.answers += seen.answers.len();
        base
    }

    fn row(&self) -> Value {
        let us = |values: &Vec<f64>| (median(values) / 1e3).round();
        let mut row = json!({
            "requests_per_s": median(&self.rate).round(),
            "p50_us": us(&self.times[0]), "p99_us": us(&self.times[1]),
            "added_p50_us": us(&self.added[0]), "added_p99_us": us(&self.added[1]),
            "cpu_ms": thousandths(median(&self.cpu)), "engine_cpu_ms": thousandths(median(&self.engine_cpu)),
            "answers": self.answers, "wrong": self.wrong, "queued": self.queued,
        });
        for (name, values) in &self.each {
            row["cpu_ms_of"][*name] = thousandths(median(values)).into();
        }
        if median(&self.first[0]) > 0.0 {
            for (name, values) in [
                ("first_p50_us", &self.first[0]),
                ("first_p99_us", &self.first[1]),
                ("first_added_p50_us", &self.first_added[0]),
                ("first_added_p99_us", &self.first_added[1]),
                ("gap_p50_us", &self.gap[0]),
                ("gap_p99_us", &self.gap[1]),
            ] {
                row[name] = us(values).into();
            }
        }
        row
    }
}

fn push(pair: &mut [Vec<f64>; 2], one: f64, other: f64) {
    pair[0].push(one);
    pair[1].push(other);
}

/// One load, all contenders.
pub fn table(all: &[Rounds]) -> Value {
    all.iter().map(|rounds| (rounds.name.clone(), rounds.row())).collect::<serde_json::Map<_, _>>().into()
}

pub fn at_percentile(times: &mut [u64], percent: usize) -> u64 {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0)
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

pub fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Tables for people.
pub fn print(report: &Value) {
    println!(
        "{} cores, load average {} before and {} after",
        report["cores"], report["load_average_before"], report["load_average_after"]
    );
    for (kind, title) in [("plain", "answers"), ("stream", "streams")] {
        let mut levels: Vec<_> = report[kind].as_object().into_iter().flatten().collect();
        levels.sort_by_key(|(clients, _)| clients.parse::<usize>().unwrap_or(0));
        for (clients, rows) in levels {
            rows_of(&format!("{title} of the simulator without delays, {clients} clients"), rows);
        }
    }
    for (kind, title) in
        [("plain", "one client, one token"), ("stream", "four clients, streams of 64 tokens")]
    {
        if let Some(rows) = report["real"].get(kind) {
            rows_of(&format!("llama-server, {title}"), rows);
        }
    }
    if let Some(rows) = report.get("many") {
        rows_of("1,000 streams of 200 tokens at 20 a second", rows);
    }
    if let Some(rows) = report.get("memory_mib") {
        rows_of("memory, all processes (MiB)", rows);
    }
    println!("\nBerth idle, all services and nats-server (MiB): {}", report["berth_idle_mib"]);
}

/// Contenders as lines, their figures as columns.
fn rows_of(title: &str, rows: &Value) {
    println!("\n{title}");
    let Some(rows) = rows.as_object() else { return };
    let first = rows.values().next().and_then(Value::as_object);
    let columns = first.into_iter().flatten().map(|(column, _)| column);
    let columns: Vec<&String> = columns.filter(|column| *column != "cpu_ms_of").collect();
    let widths: Vec<usize> = columns.iter().map(|column| column.len().max(8)).collect();
    print!("  {:<14}", "");
    for (column, width) in columns.iter().zip(&widths) {
        print!(" {column:>width$}");
    }
    println!();
    for (name, row) in rows {
        print!("  {name:<14}");
        for (column, width) in columns.iter().zip(&widths) {
            print!(" {:>width$}", row[column.as_str()].to_string());
        }
        println!();
    }
    for (name, row) in rows {
        if let Some(parts) = row.get("cpu_ms_of") {
            println!("  {name}, cpu_ms of each: {parts}");
        }
    }
}
