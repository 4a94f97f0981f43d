//! Berth side by side with the engine alone and with other gateways, in one run on the same engines: `bash tests/bench`.
//!
//! Rounds go through all contenders in turn, so that drift hits all alike; figures are medians of rounds. Every answer
//! is checked, and the engine itself is asked how many it gave. What asks is not counted, but it shares the machine.

mod contenders;
mod load;
mod process;
mod report;

use std::time::Duration;

use berth_tests::{Berth, Config, Model};
use serde_json::{Value, json};

use crate::contenders::Contender;
use crate::load::{Answer, Ask, Seen, load};
use crate::report::{Rounds, at_percentile, round};

/// Slots of the engines, so that nothing waits for one.
const SLOTS: u32 = 1100;
/// Streams at a time, and their tokens, of which there are 20 a second.
const STREAMS: usize = 1000;
const TOKENS: u32 = 200;
/// Slots of the real engine.
const REAL_SLOTS: u32 = 4;

struct Options {
    json: bool,
    rounds: usize,
    lasts: Duration,
    /// Empty: all.
    only: Vec<String>,
    parts: Vec<String>,
}

impl Options {
    fn read() -> Self {
        let mut options = Self {
            json: false,
            rounds: 5,
            lasts: Duration::from_secs(2),
            only: Vec::new(),
            parts: Vec::new(),
        };
        let list = |text: String| text.split(',').map(str::to_owned).collect();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} wants a value"));
            match argument.as_str() {
                "--json" => options.json = true,
                "--rounds" => options.rounds = value().parse().expect("--rounds is a number"),
                "--seconds" => options.lasts = Duration::from_secs_f64(value().parse().expect("a number")),
                "--only" => options.only = list(value()),
                "--parts" => options.parts = list(value()),
                // What cargo adds.
                "--bench" => {}
                other => panic!(
                    "unknown argument {other}; there are --json, --rounds N, --seconds S, --only berth,sglang-router, \
                     --parts plain,stream,real,many"
                ),
            }
        }
        options
    }

    fn has(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let options = Options::read();
    let fast = Model::sim("sim", &["--first-token", "0ms", "--per-token", "0ms"]);
    let paced = Model::sim("paced", &["--first-token", "0ms", "--per-token", "50ms", "--tokens", "1000"]);
    let real = Model::llama_process("real").memory("1GiB").concurrency(REAL_SLOTS);
    let warm = |model: Model| model.field("idle_ttl", "\"never\"");
    let config = Config::of([
        warm(fast.memory("1MiB").concurrency(SLOTS)),
        warm(paced.memory("1MiB").concurrency(SLOTS)),
        warm(real),
    ]);
    let mut berth = Berth::fleet(&config).await;
    let models = ["sim", "paced", "real"];
    let ours = contenders::berth(&mut berth, &models);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let each = ours.each().into_iter().map(|(name, _, mib)| (name.to_owned(), round(mib).into()));
    let idle = (ours.memory(), ours.proportional(), each.collect::<serde_json::Map<_, _>>());
    for model in models {
        berth.gateway.chat(model, &json!({"max_tokens": 1})).await.content();
    }
    let engines = contenders::engines(&berth);
    let direct = contenders::direct(&engines);
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let peers = contenders::peers(&direct, berth.folder(), &wanted).await;
    let mut all = vec![direct, ours];
    all.extend(peers);

    let bench = Bench { all, engines, options };
    let mut report = json!({
        "cores": std::thread::available_parallelism().map(usize::from).unwrap_or(0),
        "load_average_before": load_average(),
        "berth_idle_mib": { "resident": round(idle.0), "proportional": round(idle.1), "each": idle.2 },
    });
    if bench.options.has("plain") {
        let levels = [1, 16, 32, 256];
        for clients in levels {
            report["plain"][clients.to_string()] = bench.plain(clients).await;
        }
    }
    if bench.options.has("stream") {
        for clients in [1, 32] {
            report["stream"][clients.to_string()] = bench.streams(clients).await;
        }
    }
    if bench.options.has("real") {
        report["real"] = bench.real().await;
    }
    if bench.options.has("many") {
        report["many"] = bench.many().await;
    }
    let memory = bench.all.iter().filter(|one| one.name != "direct");
    report["memory_mib"] = memory
        .map(|one| (one.name.clone(), json!({ "peak": round(one.peak()), "after": round(one.memory()) })))
        .collect::<serde_json::Map<_, _>>()
        .into();
    report["load_average_after"] = load_average();
    if bench.options.json {
        println!("{report}");
    } else {
        report::print(&report);
    }
}

struct Bench {
    all: Vec<Contender>,
    /// Where each listens, and its process.
    engines: std::collections::BTreeMap<String, (String, u32)>,
    options: Options,
}

/// One contender's turn.
struct Turn {
    seen: Seen,
    cpu: Duration,
    /// Of its processes, where they have names.
    each: Vec<(&'static str, Duration)>,
    engine_cpu: Duration,
}

impl Bench {
    /// Lets one contender be asked, and has the engine confirm how many answers it gave.
    async fn turn(&self, contender: &Contender, model: &str, ask: Ask) -> Turn {
        let (authority, pid) = &self.engines[model];
        let counted = completed(authority).await;
        let (cpu, each, engine_cpu) = (contender.cpu(), contender.each(), process::cpu(*pid));
        let mut seen = load(contender.aim(model), ask).await;
        let turn_cpu = contender.cpu().saturating_sub(cpu);
        let each = contender.each().into_iter().zip(each);
        let each = each.map(|(now, then)| (now.0, now.1.saturating_sub(then.1))).collect();
        let engine_cpu = process::cpu(*pid).saturating_sub(engine_cpu);
        if let (Some(before), Some(after)) = (counted, completed(authority).await)
            && after - before != seen.answers.len() as u64
        {
            let answers = seen.answers.len();
            seen.wrong.push(format!("{answers} answers came, and the engine gave {}", after - before));
        }
        if let Some(wrong) = seen.wrong.first() {
            eprintln!("{}: {} wrong answers, the first: {wrong}", contender.name, seen.wrong.len());
        }
        Turn { seen, cpu: turn_cpu, each, engine_cpu }
    }

    async fn rounds(&self, model: &str, ask: Ask) -> Vec<Rounds> {
        let mut all: Vec<Rounds> = self.all.iter().map(|one| Rounds::new(&one.name)).collect();
        let warm = Ask { lasts: Duration::from_millis(300), ..ask };
        for contender in &self.all {
            load(contender.aim(model), warm).await;
        }
        for _ in 0..self.options.rounds {
            let mut direct = None;
            for (contender, rounds) in self.all.iter().zip(&mut all) {
                let turn = self.turn(contender, model, ask).await;
                direct = Some(rounds.add(turn, direct.take()));
            }
        }
        all
    }

    async fn plain(&self, clients: usize) -> Value {
        let (lasts, apart) = (self.options.lasts, Duration::ZERO);
        let ask = Ask { clients, stream: false, lasts, apart, answer: Answer::Words };
        report::table(&self.rounds("sim", ask).await)
    }

    /// Until the first word of streams of an engine without delays.
    async fn streams(&self, clients: usize) -> Value {
        let (lasts, apart) = (self.options.lasts, Duration::ZERO);
        let ask = Ask { clients, stream: true, lasts, apart, answer: Answer::Words };
        report::table(&self.rounds("sim", ask).await)
    }

    /// The real engine: one client, one token; and streams on all of its slots.
    async fn real(&self) -> Value {
        let (lasts, apart) = (self.options.lasts, Duration::ZERO);
        let one = Ask { clients: 1, stream: false, lasts, apart, answer: Answer::Tokens(1) };
        let clients = REAL_SLOTS as usize;
        let many = Ask { clients, stream: true, lasts, apart, answer: Answer::Tokens(64) };
        json!({
            "plain": report::table(&self.rounds("real", one).await),
            "stream": report::table(&self.rounds("real", many).await),
        })
    }

    /// Many streams at a common pace: whether words are lost or late.
    async fn many(&self) -> Value {
        let mut rows = serde_json::Map::new();
        for contender in &self.all {
            let ask = Ask {
                clients: STREAMS,
                stream: true,
                lasts: Duration::ZERO,
                apart: Duration::from_millis(1),
                answer: Answer::Many(TOKENS),
            };
            let Turn { mut seen, cpu, engine_cpu, .. } = self.turn(contender, "paced", ask).await;
            let ms = |nanos: u64| round(nanos as f64 / 1e6);
            let longest = seen.gaps.iter().max().copied().unwrap_or(0);
            let words = seen.first.len() + seen.gaps.len();
            let late = seen.gaps.iter().filter(|gap| **gap > 150_000_000).count();
            rows.insert(
                contender.name.clone(),
                json!({
                    "streams": seen.answers.len(), "wrong": seen.wrong.len(), "queued": seen.queued,
                    "reads_with_words": words,
                    "first_p50_ms": ms(at_percentile(&mut seen.first, 50)),
                    "first_p99_ms": ms(at_percentile(&mut seen.first, 99)),
                    "gap_p50_ms": ms(at_percentile(&mut seen.gaps, 50)),
                    "gap_p99_ms": ms(at_percentile(&mut seen.gaps, 99)),
                    "gap_longest_ms": ms(longest), "gaps_over_150_ms": late,
                    "cpu_s": round(cpu.as_secs_f64()), "engine_cpu_s": round(engine_cpu.as_secs_f64()),
                    "took_s": round(seen.took.as_secs_f64()), "peak_mib": round(contender.peak()),
                }),
            );
        }
        rows.into()
    }
}

/// How many answers the simulator has given; `None` of a real engine.
async fn completed(authority: &str) -> Option<u64> {
    let answer = reqwest::get(format!("http://{authority}/sim/stats")).await.ok()?;
    answer.json::<Value>().await.ok()?["completed"].as_u64()
}

fn load_average() -> Value {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).map(|n| n.parse::<f64>().unwrap_or(0.0)).collect::<Vec<_>>().into()
}
