//! What a client authenticates with is between it and the gateway: on no route and no lane does an engine get it.

use std::collections::BTreeSet;

use berth_tests::{Berth, Config, Model, SOON, until_ok};
use serde_json::{Value, json};

const SECRET: &str = "sk-between-us-0123456789";

/// All that an engine is told beside the body.
const KNOWN: [&str; 7] =
    ["accept", "content-length", "content-type", "host", "traceparent", "transfer-encoding", "user-agent"];

async fn ask(berth: &Berth, path: &str, kind: &str, body: Vec<u8>) -> reqwest::Response {
    let mut request = reqwest::Client::new().post(format!("{}{path}", berth.gateway.url()));
    for name in ["x-api-key", "api-key", "cookie", "proxy-authorization", "x-own-secret", "anthropic-version"]
    {
        request = request.header(name, SECRET);
    }
    request.bearer_auth(SECRET).header("content-type", kind).body(body).send().await.expect("an answer")
}

async fn chat(berth: &Berth, fields: &Value) -> String {
    let body = berth_tests::chat("sim", fields).to_string().into_bytes();
    let answer = ask(berth, "/v1/chat/completions", "application/json", body).await;
    let lane = answer.headers()["x-berth-lane"].to_str().expect("text").to_owned();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.expect("a whole answer");
    lane
}

#[tokio::test]
async fn on_no_route_and_no_lane() {
    let mut berth = Berth::up(&Config::of([Model::sim("sim", &["--tokens", "2"])])).await;
    assert_eq!(chat(&berth, &json!({})).await, "queue", "nothing was ready for the first request");
    for stream in [false, true] {
        until_ok("a warm request takes the express lane", SOON, async || {
            let lane = chat(&berth, &json!({"stream": stream})).await;
            if lane == "express" { Ok(()) } else { Err(lane) }
        })
        .await;
    }
    // By claim check.
    assert_eq!(chat(&berth, &json!({"pad": "x".repeat(300_000)})).await, "queue");
    let form = "--b\r\ncontent-disposition: form-data; name=model\r\n\r\nsim\r\n\
                --b\r\ncontent-disposition: form-data; name=file; filename=x\r\n\r\nRIFF\r\n--b--\r\n";
    let kind = "multipart/form-data; boundary=b";
    assert_eq!(ask(&berth, "/v1/audio/transcriptions", kind, form.into()).await.status(), 200);
    let input = json!({"model": "sim", "input": "x"}).to_string().into_bytes();
    for path in ["/v1/embeddings", "/upstream/sim/v1/embeddings"] {
        assert_eq!(ask(&berth, path, "application/json", input.clone()).await.status(), 200, "{path}");
    }
    let stats: Value = reqwest::get(format!("{}/sim/stats", berth.engines.only().url()))
        .await
        .expect("the engine answers")
        .json()
        .await
        .expect("JSON");
    let seen: BTreeSet<&str> =
        stats["headers"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(
        seen.contains("traceparent") && seen.contains("content-type"),
        "it saw what it is to see: {seen:?}"
    );
    let unknown: Vec<_> = seen.iter().filter(|name| !KNOWN.contains(name)).collect();
    assert!(unknown.is_empty(), "the engine was told {unknown:?}");
    let log = berth.role("up").lines().join("\n");
    assert!(!log.contains(SECRET), "it is in the log");
}
