//! From the client's FIN to the engine's own record of the abort, or to the scheduler's that the job has ended: at most
//! 100 ms, in every stage, on both lanes, streamed and not. Times are those of the engine and of the scheduler.

use std::time::{SystemTime, UNIX_EPOCH};

use berth_tests::{Berth, Bus, Config, Model, SOON, chat, until, until_ok};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a client may be ahead of the record that it has left.
const LIMIT: u64 = 100;
/// A machine that is busy with other things may delay one try; the fastest of some tells what Berth does.
const TRIES: usize = 5;

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    u64::try_from(now.as_millis()).expect("a time")
}

async fn ask(berth: &Berth, body: &Value) -> TcpStream {
    let address = berth.gateway.url().strip_prefix("http://").expect("a URL").to_owned();
    let mut socket = TcpStream::connect(address).await.expect("the gateway listens");
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.expect("it is read");
    socket.write_all(body.as_bytes()).await.expect("it is read");
    socket
}

/// FIN, and when it was sent.
async fn leaves(mut socket: TcpStream) -> u64 {
    let at = now();
    socket.shutdown().await.expect("it was open");
    // Kept until the other side has closed: a reset would be another thing than a FIN.
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest).await;
    at
}

/// Reads until this has been said.
async fn hears(socket: &mut TcpStream, what: &str) -> String {
    let mut said = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = socket.read(&mut piece).await.expect("it is answered");
        assert!(read > 0, "closed after {}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&said);
        if text.contains(what) {
            return text.into_owned();
        }
    }
}

async fn stats(berth: &Berth) -> Result<Value, String> {
    let running = berth.engines.running();
    let Some(engine) = running.first().filter(|_| running.len() == 1) else {
        return Err(format!("not one engine runs: {running:?}"));
    };
    let answer = reqwest::get(format!("{}/sim/stats", engine.url())).await.map_err(|e| e.to_string())?;
    answer.json().await.map_err(|e| e.to_string())
}

async fn until_stats(berth: &Berth, field: &str, value: u64) -> Value {
    until_ok(&format!("the engine's `{field}` is {value}"), SOON, async || {
        let now = stats(berth).await?;
        if now[field] == value { Ok(now) } else { Err(now.to_string()) }
    })
    .await
}

async fn until_warm(berth: &Berth) {
    until_ok("the lane is open", SOON, async || {
        let answer = berth.gateway.chat("sim", &json!({"max_tokens": 1})).await;
        answer.content();
        if answer.headers["x-berth-lane"] == "express" { Ok(()) } else { Err("it was queued".to_owned()) }
    })
    .await;
}

/// Tokens of answers by the gateway's own count.
async fn counted(berth: &Berth) -> u64 {
    let metrics = berth.gateway.get("/metrics").await.text;
    let own =
        |line: &&str| line.starts_with("gen_ai_client_token_usage_sum") && line.contains("type=\"output\"");
    let line = metrics.lines().find(own);
    line.and_then(|line| line.split(' ').next_back()?.parse().ok()).unwrap_or(0)
}

/// A body that takes this lane: what does not fit into a message goes by the queue.
fn body(lane: &str, stream: bool, sim: &Value) -> Value {
    let pad = if lane == "queue" { "x".repeat(300_000) } else { String::new() };
    chat("sim", &json!({"stream": stream, "sim": sim, "pad": pad}))
}

async fn at_the_engine(lane: &str) {
    let berth = Berth::up(&Config::of([Model::sim("sim", &[]).concurrency(4)])).await;
    until_warm(&berth).await;
    let mut aborted = 0;
    for (stream, midway) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut took = Vec::new();
        for _ in 0..TRIES {
            until_warm(&berth).await;
            let before = counted(&berth).await;
            let sim = match midway {
                true => json!({"tokens": 6000, "per_token_ms": 100}),
                false => json!({"first_token_ms": 600_000}),
            };
            let mut socket = ask(&berth, &body(lane, stream, &sim)).await;
            until_stats(&berth, "running", 1).await;
            if stream && midway {
                let said = hears(&mut socket, "\"content\":\"simulated \"").await;
                assert!(said.contains(&format!("x-berth-lane: {lane}")), "{said}");
            }
            let left = leaves(socket).await;
            aborted += 1;
            let record = until_stats(&berth, "aborted", aborted).await;
            took.push(record["aborted_at"].as_u64().expect("a time").saturating_sub(left));
            if stream && midway {
                // `This answer is simulated`: what was made until then is accounted for.
                until_ok("what was made is counted", SOON, async || match counted(&berth).await {
                    now if now >= before + 3 => Ok(()),
                    now => Err(format!("{now} tokens, {before} before")),
                })
                .await;
            }
        }
        println!("{lane}, stream: {stream}, midway: {midway}: {took:?} ms");
        assert!(took.iter().min() < Some(&LIMIT), "{lane}, stream: {stream}, midway: {midway}: {took:?} ms");
    }
}

#[tokio::test]
async fn on_the_express_lane() {
    at_the_engine("express").await;
}

#[tokio::test]
async fn on_the_way_through_the_queue() {
    at_the_engine("queue").await;
}

/// When the scheduler ended the job that ended last.
async fn ended_at(bus: &Bus, count: usize) -> u64 {
    until_ok("the scheduler says that the job has ended", SOON, async || {
        let facts = bus.facts("job_ended").await;
        match facts.last() {
            Some(fact) if facts.len() == count => Ok(fact["at"].as_u64().expect("a time")),
            _ => Err(format!("{} have ended", facts.len())),
        }
    })
    .await
}

#[tokio::test]
async fn while_queued_behind_another() {
    let berth = Berth::up(&Config::of([Model::sim("sim", &[]).concurrency(1).field("replicas", "1")])).await;
    let bus = berth.bus().await;
    let mut holder =
        berth.gateway.stream("sim", &json!({"sim": {"tokens": 6000, "per_token_ms": 100}})).await;
    holder.token().await;
    let held = bus.outstanding().await.expect("the stream is there");
    let mut ended = bus.facts("job_ended").await.len();
    for stream in [true, false] {
        let mut took = Vec::new();
        for _ in 0..TRIES {
            let socket = ask(&berth, &body("express", stream, &json!({"tokens": 1}))).await;
            bus.until_outstanding(held + 1).await;
            let left = leaves(socket).await;
            ended += 1;
            took.push(ended_at(&bus, ended).await.saturating_sub(left));
        }
        println!("queued, stream: {stream}: {took:?} ms");
        assert!(took.iter().min() < Some(&LIMIT), "stream: {stream}: {took:?} ms");
    }
    assert_eq!(stats(&berth).await.expect("it runs")["started"], 1, "none of them reached the engine");
}

#[tokio::test]
async fn while_its_model_loads() {
    let berth = Berth::up(&Config::of([Model::sim("sim", &["--load", "60s"]).concurrency(1)])).await;
    let bus = berth.bus().await;
    let mut ended = 0;
    for stream in [true, false] {
        let mut took = Vec::new();
        for _ in 0..TRIES {
            let socket = ask(&berth, &body("express", stream, &json!({"tokens": 1}))).await;
            bus.until_outstanding(1).await;
            until("an engine starts", SOON, async || !berth.engines.running().is_empty()).await;
            let left = leaves(socket).await;
            ended += 1;
            took.push(ended_at(&bus, ended).await.saturating_sub(left));
            // The start that nobody needs may be broken off; the next one waits for it or for another.
            bus.until_outstanding(0).await;
        }
        println!("loading, stream: {stream}: {took:?} ms");
        assert!(took.iter().min() < Some(&LIMIT), "stream: {stream}: {took:?} ms");
    }
}
