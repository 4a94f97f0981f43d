//! What a connection costs that waits in the queue: ten thousand of them, streaming and not, on one gateway.
//! `eval "$(bash tests/run --env)" && BERTH_TEST_BIN=target/release/berth cargo bench -p berth-tests --bench waiting`.
//!
//! Four separate processes on a nats-server of their own; the model is one that loads for longer than this takes.
//! `--json` prints one object instead of a table. Needs about 11,000 open files (`ulimit -n`).

use std::time::{Duration, Instant};

use berth_tests::{Berth, Config, Model, chat, until};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONNECTIONS: u64 = 10_000;
/// Opened at the same time, so that no listen queue overflows.
const AT_ONCE: u64 = 200;
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    let config = Config::of([Model::sim("sim", &["--load", "3600s"]).field("start_timeout", "\"2h\"")])
        .line("gateway", "grace = \"1s\"\nheartbeat = \"10s\"");
    let mut berth = Berth::fleet(&config).await;
    let bus = berth.bus().await;
    let address = berth.gateway.url().trim_start_matches("http://").to_owned();
    let mut report = json!({"connections": CONNECTIONS});
    for stream in [true, false] {
        let before = resident(&mut berth);
        let began = Instant::now();
        let mut waiting = Vec::new();
        for _ in 0..CONNECTIONS / AT_ONCE {
            let opened = (0..AT_ONCE).map(|_| open(&address, stream));
            waiting.extend(futures::future::join_all(opened).await);
        }
        until("all are queued", LIMIT, async || bus.outstanding().await == Ok(CONNECTIONS)).await;
        let queued = began.elapsed();
        if stream {
            // Each has its status line and has heard that it waits.
            futures::future::join_all(waiting.iter_mut().map(hear)).await;
        }
        let after = resident(&mut berth);
        let each = before.iter().zip(&after).map(|((role, before), (_, after))| {
            (role.clone(), json!(after.saturating_sub(*before) as f64 / CONNECTIONS as f64))
        });
        report[if stream { "streaming_bytes_each" } else { "plain_bytes_each" }] =
            serde_json::Value::Object(each.collect());
        report[if stream { "streaming_queued_ms" } else { "plain_queued_ms" }] =
            json!(queued.as_millis() as u64);
        let began = Instant::now();
        drop(waiting);
        until("all that left are cancelled", LIMIT, async || bus.outstanding().await == Ok(0)).await;
        report[if stream { "streaming_left_ms" } else { "plain_left_ms" }] =
            json!(began.elapsed().as_millis() as u64);
    }
    if json {
        println!("{report}");
    } else {
        println!("{}", serde_json::to_string_pretty(&report).expect("it is JSON"));
    }
}

async fn open(address: &str, stream: bool) -> TcpStream {
    let mut body = chat("sim", &json!({"max_tokens": 1}));
    body["stream"] = stream.into();
    let body = body.to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut socket = TcpStream::connect(address).await.expect("the gateway accepts");
    socket.write_all(request.as_bytes()).await.expect("the gateway reads");
    socket
}

/// Reads until a heartbeat.
async fn hear(socket: &mut TcpStream) {
    let mut heard = Vec::new();
    let mut piece = [0; 1024];
    while !heard.windows(7).any(|window| window == b": berth") {
        let read = socket.read(&mut piece).await.expect("the gateway answers");
        assert!(read > 0, "closed: {}", String::from_utf8_lossy(&heard));
        heard.extend_from_slice(&piece[..read]);
    }
}

/// Bytes of memory that each role holds.
fn resident(berth: &mut Berth) -> Vec<(String, u64)> {
    ["gateway", "scheduler"]
        .map(|role| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", berth.role(role).pid()));
            let status = status.expect("the role runs");
            let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux tells it");
            let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
            (role.to_owned(), kib * 1024)
        })
        .into()
}
