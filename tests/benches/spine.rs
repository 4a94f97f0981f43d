//! What Berth adds, measured side by side with the engine alone in one run:
//! `eval "$(bash tests/run --env)" && BERTH_TEST_BIN=target/release/berth cargo bench -p berth-tests --bench spine`.
//!
//! Four separate processes on a nats-server of their own. `--json` prints one object instead of tables.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_testkit::sim_engine::{SimOptions, Simulator};
use berth_tests::{Berth, Config, Model, Part, chat, path};
use futures::StreamExt;
use serde_json::{Value, json};

/// One request at a time, so that the figures are of latency alone.
const WARM: usize = 1000;
const COLD: usize = 12;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    let config = Config::of([
        Model::sim("sim", &["--first-token", "0ms", "--per-token", "0ms"]).memory("1MiB").concurrency(8),
        Model::llama_process("one").memory("3GiB").concurrency(4),
        Model::llama_process("other").memory("3GiB").concurrency(4),
    ]);
    let mut berth = Berth::fleet(&config).await;
    let simulated = warm_simulated(&berth).await;
    let (real, swap) = (warm_real(&berth).await, cold(&berth).await);
    let memory = memory(&mut berth);
    let report = json!({
        "warm_simulator_us": simulated, "warm_llama_server_us": real, "cold_ms": swap, "memory_mib": memory,
    });
    if json {
        println!("{report}");
    } else {
        print(&report);
    }
}

fn print(report: &Value) {
    for (title, key) in [
        ("warm, one client, simulator without delays (us)", "warm_simulator_us"),
        ("warm, one client, real llama-server, one token (us)", "warm_llama_server_us"),
        ("cold, real llama-server, request to first token (ms)", "cold_ms"),
        ("memory in use, resident (MiB)", "memory_mib"),
    ] {
        println!("\n{title}");
        for (name, value) in report[key].as_object().into_iter().flatten() {
            println!("  {name:<34} {value:>10}");
        }
    }
}

/// Percentiles of requests sent in turn to the engine and through Berth, so that drift hits both alike.
async fn side_by_side(direct: &str, through: &str, model: &str) -> Value {
    let client = reqwest::Client::builder().tcp_nodelay(true).build().expect("a client");
    let body = chat(model, &json!({"max_tokens": 1, "sim": {"tokens": 1}})).to_string();
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..WARM + 50 {
        for (url, times) in [direct, through].into_iter().zip(&mut times) {
            let began = Instant::now();
            let answer = client
                .post(format!("{url}/v1/chat/completions"))
                .header("content-type", "application/json")
                .body(body.clone())
                .send()
                .await
                .expect("an answer");
            assert!(answer.status().is_success(), "{}", answer.status());
            answer.bytes().await.expect("a whole answer");
            if round >= 50 {
                times.push(began.elapsed().as_micros() as u64);
            }
        }
    }
    let [direct, through] = times.map(|mut times| {
        times.sort_unstable();
        (times[WARM / 2], times[WARM * 99 / 100])
    });
    json!({
        "direct_p50": direct.0, "direct_p99": direct.1, "berth_p50": through.0, "berth_p99": through.1,
        "added_p50": through.0.saturating_sub(direct.0), "added_p99": through.1.saturating_sub(direct.1),
    })
}

async fn warm_simulated(berth: &Berth) -> Value {
    let options = SimOptions { id: "sim".into(), concurrency: 8, ..SimOptions::default() };
    let alone = Simulator::start(SimOptions { per_token: Duration::ZERO, ..options }).expect("it starts");
    side_by_side(&alone.url(), berth.gateway.url(), "sim").await
}

async fn warm_real(berth: &Berth) -> Value {
    let mut alone = Alone::start();
    alone.until_healthy().await;
    berth.gateway.chat("one", &json!({"max_tokens": 1})).await;
    let result = side_by_side(&alone.url, berth.gateway.url(), "one").await;
    drop(alone);
    result
}

/// From a request to its first token: the engine's own boot, against a swap that Berth does for it.
async fn cold(berth: &Berth) -> Value {
    let (mut boots, mut swaps, mut stops) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..COLD {
        let began = Instant::now();
        let mut alone = Alone::start();
        alone.until_healthy().await;
        first_token(&alone.url, "one").await;
        boots.push(millis(began));
        let began = Instant::now();
        alone.stop();
        stops.push(millis(began));
        let began = Instant::now();
        // Each evicts the other: their memory does not fit together.
        first_token(berth.gateway.url(), if round % 2 == 0 { "other" } else { "one" }).await;
        swaps.push(millis(began));
    }
    let [boot, stop, swap] = [boots, stops, swaps].map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[COLD / 2]
    });
    json!({
        "engine_boot_and_token_p50": boot, "engine_stop_p50": stop, "berth_swap_p50": swap,
        "added_by_swap": ((swap - boot - stop) * 10.0).round() / 10.0,
    })
}

fn millis(began: Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 10_000.0).round() / 10.0
}

async fn first_token(url: &str, model: &str) {
    let mut body = chat(model, &json!({"max_tokens": 1}));
    body["stream"] = true.into();
    let answer = reqwest::Client::new()
        .post(format!("{url}/v1/chat/completions"))
        .header("content-type", "application/json")
        .body(body.to_string())
        .send()
        .await
        .expect("an answer");
    assert!(answer.status().is_success(), "{}", answer.status());
    answer.bytes_stream().next().await.expect("a token").expect("a token");
}

/// A llama-server without Berth.
struct Alone {
    child: Child,
    url: String,
}

impl Alone {
    fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let child = Command::new(path(Part::LlamaServer))
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "-m"])
            .arg(path(Part::Gguf))
            .args(["--chat-template", "chatml", "--embeddings", "--pooling", "mean"])
            .args(["-c", "65536", "-np", "4", "--threads", "1", "--alias", "one"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("llama-server starts");
        Self { child, url: format!("http://127.0.0.1:{port}") }
    }

    async fn until_healthy(&mut self) {
        let client = reqwest::Client::new();
        loop {
            let answer = client.get(format!("{}/health", self.url)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn memory(berth: &mut Berth) -> Value {
    let mut pids: Vec<(String, u32)> = ["gateway", "scheduler", "agent", "health"]
        .into_iter()
        .map(|role| (role.to_owned(), berth.role(role).pid()))
        .collect();
    pids.extend(berth.nats().pid().map(|pid| ("nats-server".to_owned(), pid)));
    let mut table = serde_json::Map::new();
    let mut sum = 0.0;
    for (name, pid) in pids {
        let mib = resident(pid);
        sum += mib;
        table.insert(name, json!(mib));
    }
    table.insert("sum".into(), json!((sum * 10.0).round() / 10.0));
    Value::Object(table)
}

/// Resident memory in MiB, from Linux' `/proc`.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or(0.0);
    (kib / 102.4).round() / 10.0
}
