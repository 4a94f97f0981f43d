//! Clients that read a byte a second hold no more than their windows anywhere, and others do not feel them. And a prompt of
//! 20 MiB goes through as it is.

use std::time::{Duration, Instant};

use berth_tests::{Berth, Config, Model, SOON, at_most, chat, until_ok};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SLOW: usize = 16;
const MIB: u64 = 1 << 20;

/// A field of `/proc/PID/status`, in bytes.
fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux tells it");
    line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Asks for an answer without an end and reads a byte of it each second.
async fn dawdle(url: &str) {
    let mut socket =
        TcpStream::connect(url.strip_prefix("http://").expect("a URL")).await.expect("it listens");
    let body = chat("sim", &json!({"stream": true, "sim": {"tokens": 1_000_000_000}})).to_string();
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all(head.as_bytes()).await.expect("it is read");
    socket.write_all(body.as_bytes()).await.expect("it is read");
    loop {
        socket.read_u8().await.expect("it goes on");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn sixteen_that_read_a_byte_a_second() {
    let model = Model::sim("sim", &[]).concurrency(20).field("replicas", "1");
    let mut berth = Berth::fleet(&Config::of([model])).await;
    berth.gateway.chat("sim", &json!({"max_tokens": 1})).await.content();
    let pids = ["gateway", "agent"].map(|role| (role, berth.role(role).pid()));
    let before = pids.map(|(_, pid)| memory(pid, "VmRSS"));
    let slow: Vec<_> = (0..SLOW)
        .map(|_| {
            let url = berth.gateway.url().to_owned();
            tokio::spawn(async move { dawdle(&url).await })
        })
        .collect();
    let stats = format!("{}/sim/stats", berth.engines.only().url());
    until_ok("all of them are being answered", SOON, async || {
        let now: Value =
            reqwest::get(&stats).await.map_err(|e| e.to_string())?.json().await.map_err(|e| e.to_string())?;
        if now["running"] == SLOW { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    // The simulator has no pace: what is not held back comes by hundreds of megabytes in this time.
    let began = Instant::now();
    let mut took = Vec::new();
    while began.elapsed() < Duration::from_secs(6) {
        let at = Instant::now();
        berth.gateway.chat("sim", &json!({"sim": {"tokens": 3}})).await.content();
        took.push(at.elapsed());
    }
    took.sort_unstable();
    let median = took[took.len() / 2];
    for ((role, pid), before) in pids.into_iter().zip(before) {
        let peak = memory(pid, "VmHWM");
        let grown = peak.saturating_sub(before);
        println!("{role}: {} KiB before, {} KiB at most", before / 1024, peak / 1024);
        // A window each in the gateway, one on its way, and what an allocator keeps.
        assert!(grown < 40 * MIB, "{role} took {} MiB for {SLOW} slow clients", grown / MIB);
    }
    println!("{} answers for the others, half of them within {median:?}", took.len());
    assert!(median < Duration::from_millis(500), "others wait {median:?}");
    assert!(slow.iter().all(|client| !client.is_finished()), "a slow client was cut off");
    for client in slow {
        client.abort();
    }
}

/// A chat with a picture of about 20 MiB in it.
fn picture(model: &str) -> (Value, String) {
    let url = format!("data:image/png;base64,{}", "iVBORw0KGgoAAAAN".repeat(20 * 65_536));
    let content =
        json!([{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]);
    (json!({"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4}), url)
}

#[tokio::test]
async fn a_picture_of_20_mib_reaches_the_engine_whole_and_is_held_a_few_times_at_most() {
    let mut berth = Berth::fleet(&Config::of([Model::sim("sim", &[])])).await;
    berth.gateway.chat("sim", &json!({"max_tokens": 1})).await.content();
    let pids = ["gateway", "agent"].map(|role| (role, berth.role(role).pid()));
    let before = pids.map(|(_, pid)| memory(pid, "VmRSS"));
    let (mut body, url) = picture("sim");
    // The engine says again what it was sent.
    body["sim"] = json!({"echo": true});
    let answer = berth.gateway.post("/v1/chat/completions", &body).await;
    assert!(answer.content().contains(&url), "{} bytes came back", answer.text.len());
    for ((role, pid), before) in pids.into_iter().zip(before) {
        let grown = memory(pid, "VmHWM").saturating_sub(before);
        println!("{role}: {} MiB more for a prompt of {} MiB", grown / MIB, body.to_string().len() >> 20);
        assert!(grown < 110 * MIB, "{role} took {} MiB", grown / MIB);
    }
}

#[tokio::test]
async fn a_real_engine_says_of_such_a_picture_what_it_says_to_one_who_asks_directly() {
    let berth = Berth::up(&Config::of([Model::llama_process("tiny").memory("1GiB")])).await;
    berth.gateway.chat("tiny", &json!({"max_tokens": 1})).await.content();
    let (body, _) = picture("tiny");
    let url = format!("{}/v1/chat/completions", berth.engines.only().url());
    let direct =
        at_most(SOON, "the engine's own answer", reqwest::Client::new().post(url).json(&body).send()).await;
    let direct = direct.expect("it answers");
    let status = direct.status().as_u16();
    let said: Value = direct.json().await.expect("JSON");
    let through = berth.gateway.post("/v1/chat/completions", &body).await;
    assert_eq!((through.status, &through.json["error"]), (status, &said["error"]), "{}", through.text);
    assert!(said["error"]["message"].is_string(), "this model sees nothing: {said}");
}
