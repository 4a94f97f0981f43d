//! What comes through Berth is what the engine says to one who asks it directly, apart from ids and times.

#![expect(clippy::expect_used, reason = "a test may fail by panic")]

use berth_tests::{Berth, Config, Engine, Model, at_most};
use reqwest::Method;
use serde_json::{Value, json};

const MODEL: &str = "org/tiny:1.5";

/// Fields that differ from one answer to the next, by whoever asks: ids, times, and what the engine had in its cache.
const PASSING: [&str; 14] = [
    "id",
    "item_id",
    "created",
    "created_at",
    "completed_at",
    "timings",
    "cached_tokens",
    "cache_read_input_tokens",
    "input_tokens",
    "tokens_cached",
    "id_slot",
    "id_task",
    "prompt_progress",
    "seed",
];

#[derive(Debug, PartialEq)]
struct Said {
    status: u16,
    kind: String,
    /// Of a stream each event, its name before it.
    body: Vec<Value>,
}

async fn ask(base: &str, method: Method, path: &str, body: &Value) -> Said {
    let mut request = reqwest::Client::new().request(method, format!("{base}{path}"));
    if !body.is_null() {
        request = request.json(body);
    }
    let response =
        at_most(std::time::Duration::from_secs(90), path, request.send()).await.expect("an answer");
    let status = response.status().as_u16();
    let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
    let text = response.text().await.expect("a whole answer");
    let mut body: Vec<Value> = if kind.starts_with("text/event-stream") {
        text.lines().filter(|line| !line.is_empty()).map(line).collect()
    } else {
        vec![serde_json::from_str(&text).unwrap_or_else(|_| Value::from(text))]
    };
    for value in &mut body {
        forget(value);
    }
    Said { status, kind, body }
}

/// A line of an event, as JSON where it is.
fn line(line: &str) -> Value {
    let data = line.strip_prefix("data: ").and_then(|data| serde_json::from_str(data).ok());
    data.unwrap_or_else(|| line.into())
}

fn forget(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !PASSING.contains(&name.as_str()));
            fields.values_mut().for_each(forget);
        }
        Value::Array(items) => items.iter_mut().for_each(forget),
        _ => {}
    }
}

fn url_of(engines: &berth_tests::Engines, model: &str) -> String {
    let running = engines.running();
    let engine =
        running.iter().find(|engine| matches!(engine, Engine::Process { model: of, .. } if of == model));
    engine.expect("the engine runs").url()
}

async fn tiny() -> (Berth, String) {
    let model = Model::llama_process(MODEL).list("aliases", &["tiny"]).memory("600MiB");
    let berth = Berth::up(&Config::of([model])).await;
    assert_eq!(berth.gateway.chat("tiny", &json!({"max_tokens": 1})).await.status, 200);
    let engine = url_of(&berth.engines, MODEL);
    (berth, engine)
}

#[tokio::test]
async fn each_route_that_llama_cpp_serves_gives_its_own_answer() {
    let (berth, engine) = tiny().await;
    let hi = json!([{"role": "user", "content": "Which berth is free?"}]);
    let cases = [
        ("/v1/chat/completions", json!({"messages": hi, "max_tokens": 6, "logprobs": true, "n": 1}), true),
        ("/v1/completions", json!({"prompt": "A berth", "max_tokens": 6}), true),
        ("/v1/embeddings", json!({"input": ["one", "two"], "encoding_format": "float"}), false),
        ("/v1/embeddings", json!({"input": "one", "encoding_format": "base64"}), false),
        ("/v1/responses", json!({"input": "Which berth?", "max_output_tokens": 6}), true),
        ("/v1/messages", json!({"messages": hi, "max_tokens": 6}), true),
        ("/v1/messages/count_tokens", json!({"messages": hi, "max_tokens": 6}), false),
        ("/tokenize", json!({"content": "Which berth?", "with_pieces": true}), false),
        ("/detokenize", json!({"tokens": [260, 110, 104]}), false),
        // What the engine refuses is refused in its own words.
        ("/v1/rerank", json!({"query": "a", "documents": ["b"]}), false),
        ("/v1/audio/transcriptions", json!({}), false),
    ];
    for (path, mut body, streams) in cases {
        for stream in if streams { vec![false, true] } else { vec![false] } {
            if streams {
                body["stream"] = stream.into();
                body["temperature"] = 0.into();
            }
            body["model"] = MODEL.into();
            let direct = ask(&engine, Method::POST, path, &body).await;
            body["model"] = "tiny".into();
            let through = ask(berth.gateway.url(), Method::POST, path, &body).await;
            assert_eq!(through, direct, "{path}, stream: {stream}");
            assert_eq!(stream, direct.kind.starts_with("text/event-stream"), "{path}: {direct:?}");
        }
    }
    // On Anthropic's routes its words are put into Anthropic's shape.
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        let wrong = json!([{"role": "user", "content": 5}]);
        let body = json!({"model": MODEL, "messages": wrong, "max_tokens": 6});
        let direct = ask(&engine, Method::POST, path, &body).await;
        let through = ask(berth.gateway.url(), Method::POST, path, &body).await;
        assert_eq!(through.status, direct.status, "{path}: {direct:?}");
        let said = &through.body[0];
        assert_eq!(
            (&said["type"], &said["error"]["type"]),
            (&"error".into(), &"invalid_request_error".into())
        );
        assert_eq!(said["error"]["message"], direct.body[0]["error"]["message"], "{path}");
    }
}

#[tokio::test]
async fn upstream_gives_all_else_that_the_engine_has() {
    let (berth, engine) = tiny().await;
    let stream = json!({"prompt": "A berth", "n_predict": 4, "temperature": 0, "stream": true});
    let cases = [
        (Method::GET, "/props", Value::Null),
        (Method::GET, "/lora-adapters?x=1", Value::Null),
        (Method::GET, "/metrics", Value::Null),
        (Method::GET, "/no/such/thing", Value::Null),
        (Method::POST, "/infill", json!({"input_prefix": "a", "input_suffix": "b"})),
        (Method::POST, "/apply-template", json!({"messages": [{"role": "user", "content": "hi"}]})),
        (Method::POST, "/completion", stream),
    ];
    for (method, path, body) in cases {
        let direct = ask(&engine, method.clone(), path, &body).await;
        for model in ["tiny", MODEL, "org%2Ftiny%3A1.5"] {
            let through =
                ask(berth.gateway.url(), method.clone(), &format!("/upstream/{model}{path}"), &body).await;
            assert_eq!(through, direct, "{path} of {model}");
        }
    }
    // HEAD tells how long the answer to GET would be.
    let length = async |url: String| {
        let response = reqwest::Client::new().head(url).send().await.expect("an answer");
        response.headers()["content-length"].to_str().expect("text").to_owned()
    };
    let direct = length(format!("{engine}/health")).await;
    assert_eq!(length(format!("{}/upstream/tiny/health", berth.gateway.url())).await, direct);
    assert_ne!(direct, "0");
    let slots = berth.gateway.get("/upstream/tiny/slots").await;
    assert_eq!(slots.json.as_array().map(Vec::len), Some(1), "{}", slots.text);
    let props = berth.gateway.get("/upstream/tiny/v1/models").await;
    assert_eq!(props.json["data"][0]["id"], MODEL, "{}", props.text);
    // The model's own names are rewritten here too.
    let body = json!({"model": "tiny", "prompt": "A berth", "max_tokens": 2});
    let answer = berth.gateway.post("/upstream/tiny/v1/completions", &body).await;
    assert_eq!((answer.status, answer.json["model"].as_str()), (200, Some(MODEL)), "{}", answer.text);
}

#[tokio::test]
async fn a_reranker_ranks_by_every_name_of_the_route() {
    let model = Model::llama_process("ranker").memory("600MiB").list(
        "args",
        &["-m", "WEIGHTS", "--reranking", "-c", "4096", "-np", "{concurrency}", "--threads", "1"],
    );
    let berth = Berth::up(&Config::of([model])).await;
    let body =
        json!({"model": "ranker", "query": "berth", "documents": ["a berth", "a bird", "b"], "top_n": 2});
    let mut through = Vec::new();
    for path in ["/v1/rerank", "/rerank", "/v2/rerank"] {
        through.push(ask(berth.gateway.url(), Method::POST, path, &body).await);
    }
    let direct = ask(&url_of(&berth.engines, "ranker"), Method::POST, "/v1/rerank", &body).await;
    assert_eq!(direct.status, 200, "{direct:?}");
    assert!(through.iter().all(|said| *said == direct), "{through:?}\n{direct:?}");
}

#[tokio::test]
async fn forms_and_sounds_go_through_to_a_simulator() {
    let berth =
        Berth::up(&Config::of([Model::sim("voice", &["--tokens", "3"]).list("aliases", &["v"])])).await;
    let client = reqwest::Client::new();
    let url = |path: &str| format!("{}{path}", berth.gateway.url());
    let mut body = b"--b\r\ncontent-disposition: form-data; name=model\r\n\r\nv\r\n".to_vec();
    body.extend_from_slice(b"--b\r\ncontent-disposition: form-data; name=file; filename=x\r\n\r\n");
    // Large enough to go by claim check.
    body.resize(body.len() + (3 << 20), b'\n');
    body.extend_from_slice(b"\r\n--b--\r\n");
    for path in ["/v1/audio/transcriptions", "/v1/audio/translations"] {
        let request = client.post(url(path)).header("content-type", "multipart/form-data; boundary=b");
        let answer: Value =
            request.body(body.clone()).send().await.expect("an answer").json().await.expect("JSON");
        assert_eq!(answer["bytes"], 3 << 20, "{path}: {answer}");
    }
    let speech = client.post(url("/v1/audio/speech")).body(r#"{"model":"v","input":"x"}"#);
    let speech = speech.send().await.expect("an answer");
    assert_eq!(speech.headers()["content-type"], "audio/wav");
    assert_eq!(speech.bytes().await.expect("a whole sound").len(), 44 + 3 * 8000);
    let refused = berth.gateway.post("/v1/responses", &json!({"model": "v", "input": "x"})).await;
    assert_eq!((refused.status, refused.json["error"]["code"].as_str()), (501, Some("route_not_served")));
    assert!(refused.error().contains("(sim)"), "{}", refused.text);
}
