//! The simulator against a real HTTP client.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::time::Duration;

use berth_testkit::sim_engine::{SimOptions, Simulator};
use berth_testkit::wait::{until, until_ok};
use futures::StreamExt;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

fn simulator(change: impl FnOnce(&mut SimOptions)) -> Simulator {
    let mut options = SimOptions { id: "m".into(), ..SimOptions::default() };
    change(&mut options);
    Simulator::start(options).unwrap()
}

fn chat(fields: &Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

async fn post(sim: &Simulator, path: &str, body: &Value) -> reqwest::Response {
    reqwest::Client::new().post(format!("{}{path}", sim.url())).json(body).send().await.unwrap()
}

async fn stats(sim: &Simulator) -> Value {
    reqwest::get(format!("{}/sim/stats", sim.url())).await.unwrap().json().await.unwrap()
}

async fn until_stats(sim: &Simulator, field: &str, value: u64) {
    until_ok(&format!("{field} is {value}"), SOON, async || {
        let now = stats(sim).await;
        if now[field] == value { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
}

fn events(text: &str) -> Vec<Value> {
    text.split("\n\n")
        .filter_map(|e| e.strip_prefix("data: "))
        .filter(|e| *e != "[DONE]")
        .map(|e| serde_json::from_str(e).unwrap())
        .collect()
}

#[tokio::test]
async fn a_streamed_chat_says_it_is_simulated_and_ends_with_usage_and_done() {
    let sim = simulator(|o| o.tokens = 5);
    let body = chat(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let text = post(&sim, "/v1/chat/completions", &body).await.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let events = events(&text);
    let said: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, "This answer is simulated by ");
    assert!(events.iter().all(|e| e["system_fingerprint"] == "berth-simulator" && e["model"] == "m"));
    let usage = events.last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 5);
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "stop");
    until_stats(&sim, "completed", 1).await;
}

#[tokio::test]
async fn head_is_taken_where_get_is_and_a_path_that_it_lacks_is_named() {
    let sim = simulator(|_| ());
    let head = reqwest::Client::new().head(format!("{}/v1/models", sim.url())).send().await.unwrap();
    assert_eq!(head.status(), 200);
    let nothing = reqwest::get(format!("{}/", sim.url())).await.unwrap();
    assert_eq!(nothing.status(), 404);
    let said: Value = nothing.json().await.unwrap();
    assert_eq!(said["error"]["message"], "the simulator has no GET /", "{said}");
}

#[tokio::test]
async fn a_plain_answer_keeps_max_tokens_and_says_length() {
    let sim = simulator(|_| ());
    let body = chat(&json!({"max_tokens": 2}));
    let answer: Value = post(&sim, "/v1/chat/completions", &body).await.json().await.unwrap();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["content"], "This answer ");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let body = json!({"model": "m", "prompt": "x"});
    let answer: Value = post(&sim, "/v1/completions", &body).await.json().await.unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    let body = json!({"model": "m", "input": ["x", "y"]});
    let answer: Value = post(&sim, "/v1/embeddings", &body).await.json().await.unwrap();
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn health_turns_from_503_to_200_when_the_load_is_over() {
    let sim = simulator(|o| o.load = Duration::from_millis(300));
    let health = async || reqwest::get(format!("{}/health", sim.url())).await.unwrap().status().as_u16();
    assert_eq!(health().await, 503);
    assert_eq!(post(&sim, "/v1/chat/completions", &chat(&json!({}))).await.status(), 503);
    until("the simulator is loaded", SOON, async || health().await == 200).await;
    assert_eq!(post(&sim, "/v1/chat/completions", &chat(&json!({}))).await.status(), 200);
}

#[tokio::test]
async fn a_body_it_cannot_serve_is_refused_with_an_error_object() {
    let sim = simulator(|_| ());
    let cases = [
        (json!({"messages": []}), 400, json!("model")),
        (json!({"model": "m"}), 400, json!("messages")),
        (json!({"model": "m", "messages": "no list"}), 400, json!("messages")),
        (json!({"model": "other", "messages": []}), 404, json!("model")),
        (json!([1]), 400, Value::Null),
        (chat(&json!({"sim": {"status": 418}})), 418, Value::Null),
        (chat(&json!({"sim": {"typo": 1}})), 400, Value::Null),
    ];
    for (body, status, param) in cases {
        let answer = post(&sim, "/v1/chat/completions", &body).await;
        assert_eq!(answer.status().as_u16(), status, "{body}");
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["param"], param, "{error}");
        assert!(error["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn requests_above_concurrency_wait_their_turn() {
    let sim = simulator(|o| {
        o.concurrency = 2;
        o.per_token = Duration::from_millis(2);
    });
    let answers = futures::future::join_all(
        (0..10).map(async |_| post(&sim, "/v1/chat/completions", &chat(&json!({}))).await.status().as_u16()),
    )
    .await;
    assert!(answers.iter().all(|status| *status == 200));
    let stats = stats(&sim).await;
    assert_eq!((&stats["max_running"], &stats["completed"]), (&json!(2), &json!(10)), "{stats}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_at_once_streaming_plain_or_waiting() {
    let sim = simulator(|o| {
        o.concurrency = 1;
        o.first_token = Duration::from_mins(10);
    });
    for (count, body) in [(1, chat(&json!({}))), (2, chat(&json!({"stream": true})))] {
        let running = tokio::time::timeout(Duration::from_mins(1), async {
            let answer = post(&sim, "/v1/chat/completions", &body);
            tokio::select! {
                _ = async { answer.await.text().await } => unreachable!("it takes ten minutes"),
                () = until_stats(&sim, "running", 1) => {}
            }
        });
        running.await.unwrap();
        until_stats(&sim, "aborted", count).await;
        until_stats(&sim, "running", 0).await;
    }

    let holder = chat(&json!({}));
    let waiter = chat(&json!({}));
    tokio::select! {
        _ = post(&sim, "/v1/chat/completions", &holder) => unreachable!("it takes ten minutes"),
        () = async {
            until_stats(&sim, "running", 1).await;
            tokio::select! {
                _ = post(&sim, "/v1/chat/completions", &waiter) => unreachable!("there is no slot"),
                () = until_stats(&sim, "waiting", 1) => {}
            }
            until_stats(&sim, "aborted", 3).await;
            until_stats(&sim, "waiting", 0).await;
            assert_eq!(stats(&sim).await["running"], 1);
        } => {}
    }
}

#[tokio::test]
async fn a_client_that_leaves_between_tokens_is_noticed_before_the_next_one() {
    let sim = simulator(|o| o.per_token = Duration::from_mins(10));
    let answer = post(&sim, "/v1/chat/completions", &chat(&json!({"stream": true}))).await;
    let mut body = answer.bytes_stream();
    body.next().await.unwrap().unwrap();
    until_stats(&sim, "running", 1).await;
    drop(body);
    until_stats(&sim, "aborted", 1).await;
}

#[tokio::test]
async fn a_cut_stream_ends_in_an_error_without_done_after_its_tokens() {
    let sim = simulator(|_| ());
    let body = chat(&json!({"stream": true, "sim": {"cut_after_tokens": 3}}));
    let mut body = post(&sim, "/v1/chat/completions", &body).await.bytes_stream();
    let mut text = String::new();
    let ended = loop {
        match body.next().await {
            Some(Ok(piece)) => text.push_str(std::str::from_utf8(&piece).unwrap()),
            other => break other,
        }
    };
    assert!(matches!(ended, Some(Err(_))), "{ended:?}");
    assert_eq!(events(&text).len(), 4, "the role and three tokens: {text}");
    until_stats(&sim, "aborted", 1).await;
}

#[tokio::test]
async fn an_echo_answers_with_the_body_as_it_came() {
    let sim = simulator(|_| ());
    let raw = r#"{ "model":"m","messages":[],  "sim":{"echo":true}, "unknown" : [1.50] }"#;
    let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", sim.url())).body(raw);
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], raw);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = simulator(|_| ());
    let port = first.address().port();
    let error = Simulator::start(SimOptions { port, ..SimOptions::default() }).err().unwrap();
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
}

#[tokio::test]
async fn sound_and_pictures_are_simulated_and_say_so() {
    let sim = simulator(|_| {});
    let speech =
        post(&sim, "/v1/audio/speech", &json!({"model": "m", "input": "x", "sim": {"tokens": 3}})).await;
    assert_eq!(speech.headers()["content-type"], "audio/wav");
    let sound = speech.bytes().await.unwrap();
    assert_eq!((&sound[..4], sound.len()), (&b"RIFF"[..], 44 + 3 * 8000));
    until_stats(&sim, "completed", 1).await;
    for path in ["/v1/images/generations", "/v1/moderations"] {
        let answer: Value =
            post(&sim, path, &json!({"model": "m", "input": "x"})).await.json().await.unwrap();
        assert_eq!(answer["engine"], "berth-simulator", "{answer}");
    }
    for (path, file) in [("/v1/audio/transcriptions", "file"), ("/v1/images/edits", "image")] {
        let body = format!(
            "--b\r\ncontent-disposition: form-data; name={file}; filename=x\r\n\r\n12345\r\n\
             --b\r\ncontent-disposition: form-data; name=model\r\n\r\nm\r\n--b--\r\n"
        );
        let request = reqwest::Client::new().post(format!("{}{path}", sim.url()));
        let request = request.header("content-type", "multipart/form-data; boundary=b").body(body.clone());
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!((answer["bytes"].as_u64(), answer["engine"].as_str()), (Some(5), Some("berth-simulator")));
    }
}
