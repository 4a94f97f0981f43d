//! The SDKs of both languages are told of every fault in their own terms, and take no broken answer for a whole one.

use berth_tests::{Berth, Config, Engine, Model, node, python};
use serde_json::json;

async fn told(run: fn(&str, &[&str]) -> String, script: &'static str) {
    let models =
        [Model::sim("sim", &[]).memory("1MiB"), Model::llama_process("tiny").memory("1GiB").concurrency(2)];
    let config = Config::of(models).line("gateway", "grace = \"300ms\"\nheartbeat = \"500ms\"");
    let berth = Berth::up(&config).await;
    berth.gateway.chat("tiny", &json!({"max_tokens": 1})).await.content();
    let Engine::Process { pid, .. } = berth.engines.only() else { panic!("it is a process") };
    let url = berth.gateway.url().to_owned();
    let said =
        tokio::task::spawn_blocking(move || run(script, &[&url, "sim", "tiny", &pid.to_string()])).await;
    let said = said.expect("the client runs");
    assert!(said.contains("all told"), "{said}");
    berth_tests::scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn in_python() {
    told(python, "faults.py").await;
}

#[tokio::test]
async fn in_node() {
    told(node, "faults.cjs").await;
}
