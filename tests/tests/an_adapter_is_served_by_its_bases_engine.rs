//! LoRA adapters: models of their own to clients, served by the one engine of their base. Real engines, real adapters.

use berth_tests::{Answer, Berth, Config, Engine, Event, Model, Part, SOON, chat, finish, path, until_ok};
use serde_json::{Value, json};

/// What is asked is said the same each time, and is no text: that of random weights is noise.
fn ask() -> Value {
    json!({"max_tokens": 8, "temperature": 0, "ignore_eos": true, "logprobs": true, "cache_prompt": false})
}

/// The tokens of an answer, as bytes.
fn tokens(answer: &Value) -> Vec<Value> {
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array();
    tokens.unwrap_or_else(|| panic!("{answer}")).iter().map(|token| token["bytes"].clone()).collect()
}

fn lane(answer: &Answer) -> &str {
    answer.headers["x-berth-lane"].to_str().expect("a header is text")
}

/// The same of the engine itself.
async fn itself(engine: &Engine, body: &Value) -> Value {
    let url = format!("{}/v1/chat/completions", engine.url());
    let answer = reqwest::Client::new().post(url).json(body).send().await.expect("it answers");
    answer.json().await.expect("it answers JSON")
}

/// The engine of a model; its main process comes first.
fn engine(berth: &Berth, model: &str) -> Engine {
    let mine = |engine: &Engine| matches!(engine, Engine::Process { model: of, .. } if of == model);
    berth.engines.running().into_iter().find(mine).expect("it runs")
}

/// How many engines were started.
async fn starts(berth: &Berth, model: &str) -> usize {
    let facts = berth.bus().await.facts("engine_starting").await;
    facts.iter().filter(|fact| fact.to_string().contains(&format!("\"{model}\""))).count()
}

/// The adapters that are loaded, as `berth models` and `berth status` tell of them, and what they say to people.
fn shown(berth: &Berth) -> (Vec<String>, String) {
    let said = |args: &[&str]| {
        let mut command = berth_tests::berth();
        command.current_dir("/").args(args).arg("--data-dir").arg(berth.folder().join("data"));
        let done = finish(command, SOON);
        assert!(done.ok, "{}", done.output);
        done.output
    };
    let read = |args: &[&str]| serde_json::from_str::<Value>(&said(args)).expect("it is JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let models = read(&["models", "--json"]);
    let adapters = list(&models["models"]).into_iter().flat_map(|model| list(&model["adapters"]));
    let loaded = adapters.filter(|adapter| !list(&adapter["engines"]).is_empty());
    let mut loaded: Vec<_> =
        loaded.filter_map(|adapter| adapter["model"].as_str().map(str::to_owned)).collect();
    loaded.sort();
    let engines = list(&read(&["status", "--json"])["engines"]).into_iter();
    let mut held: Vec<_> = engines.flat_map(|engine| list(&engine["adapters"])).collect();
    held.sort_by_key(ToString::to_string);
    assert_eq!(json!(held), json!(loaded), "both say the same");
    (loaded, said(&["status"]) + &said(&["models"]))
}

fn adapters(list: &[(&str, &str)]) -> String {
    let entry = |(id, path): &(&str, &str)| {
        format!("{{ id = \"{id}\", aliases = [\"{id}-too\"], path = \"{path}\" }}")
    };
    format!("[{}]", list.iter().map(entry).collect::<Vec<_>>().join(", "))
}

#[tokio::test]
async fn a_llama_server_applies_the_one_that_is_asked_for_and_no_other() {
    let file = path(Part::Gguf).with_file_name("adapter.gguf");
    let list = adapters(&[("other", &file.to_string_lossy()), ("sql", &file.to_string_lossy())]);
    let tiny = Model::llama_process("tiny").concurrency(2).field("adapters", &list);
    let berth = Berth::up(&Config::of([tiny, Model::llama_process("plain")]).memory("8GiB")).await;
    let gateway = &berth.gateway;
    let models = gateway.get("/v1/models").await.json;
    let sql = models["data"].as_array().and_then(|all| all.iter().find(|model| model["id"] == "sql"));
    assert_eq!(sql.map(|sql| &sql["parent"]), Some(&json!("tiny")), "{models}");

    // A lease on it warms its base's engine.
    let lease = gateway.post("/lease", &json!({"sessionKey": "s", "model": "sql"})).await;
    assert_eq!((lease.status, &lease.json["model"]), (200, &json!("tiny")), "{}", lease.text);
    let adapted = gateway.chat("sql-too", &ask()).await;
    adapted.content();
    assert_eq!(
        (&adapted.json["model"], &adapted.headers["x-berth-model"]),
        (&json!("sql"), &"sql".parse().unwrap())
    );
    let base = gateway.chat("tiny", &ask()).await;
    assert_eq!(base.json["model"], "tiny");
    assert_ne!(tokens(&adapted.json), tokens(&base.json));
    assert_eq!(starts(&berth, "tiny").await, 1, "one engine serves both");
    let (loaded, text) = shown(&berth);
    assert_eq!(loaded, ["other", "sql"]);
    assert!(text.contains("with other, sql") && text.contains("+ sql "), "{text}");

    let server = engine(&berth, "tiny");
    let mut body = chat("any", &ask());
    body["lora"] = json!([{"id": 1, "scale": 1.0}]);
    assert_eq!(tokens(&itself(&server, &body).await), tokens(&adapted.json));
    // What a client says of adapters itself is no way around their names.
    let mut around = ask();
    around["lora"] = json!([{"id": 1, "scale": 1.0}]);
    assert_eq!(tokens(&gateway.chat("tiny", &around).await.json), tokens(&base.json));
    // And what says nothing of them is the base alone: a server without adapters says the same.
    let plain = gateway.chat("plain", &ask()).await;
    assert_eq!(tokens(&plain.json), tokens(&base.json));
    let embed = async |model: &str| {
        let answer = gateway.post("/v1/embeddings", &json!({"model": model, "input": "a berth"})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json["data"].clone()
    };
    assert_eq!(embed("tiny").await, embed("plain").await);
    let refused = gateway.post("/v1/embeddings", &json!({"model": "sql", "input": "a berth"})).await;
    assert_eq!((refused.status, refused.error().contains("`tiny`")), (501, true), "{}", refused.text);

    until_ok("it takes the express lane", SOON, async || {
        let answer = gateway.chat("sql", &ask()).await;
        assert_eq!(tokens(&answer.json), tokens(&adapted.json));
        if lane(&answer) == "express" { Ok(()) } else { Err("it was queued".to_owned()) }
    })
    .await;
    let events = gateway.stream("sql", &ask()).await.rest().await;
    let named = |event: &Event| matches!(event, Event::Data(data) if data["model"] == "sql");
    assert!(events.iter().any(named) && events.contains(&Event::Done), "{events:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::Data(data) if data["model"] == "tiny")));
}

#[tokio::test]
async fn a_vllm_loads_them_as_they_are_asked_for_and_lets_go_of_the_one_used_longest_ago() {
    let folder = path(Part::Vllm).join("adapter");
    let list = [("red", folder.as_path()), ("blue", folder.as_path()), ("ghost", "/nowhere/ghost".as_ref())];
    let list = list.map(|(id, path)| (id, path.to_string_lossy().into_owned()));
    let list = adapters(&list.each_ref().map(|(id, path)| (*id, path.as_str())));
    let tiny = Model::vllm_process("tiny").field("adapters", &list).field("max_adapters", "1");
    let tiny = tiny.also_args(&["--no-enable-prefix-caching"]);
    let berth = Berth::up(&Config::of([tiny]).line("gateway", "wait_limit = \"10m\"")).await;
    let gateway = &berth.gateway;
    let red = gateway.chat_at_length("red", &ask()).await;
    red.content();
    assert_eq!(red.json["model"], "red");
    let base = gateway.chat("tiny", &ask()).await;
    assert_ne!(tokens(&red.json), tokens(&base.json));
    let server = engine(&berth, "tiny");
    assert_eq!(tokens(&itself(&server, &chat("red", &ask())).await), tokens(&red.json));

    // One at a time: they take turns, and all who ask are answered.
    let (asked, turns) = (ask(), ["red", "blue", "blue", "red", "tiny", "blue"]);
    let all = futures::future::join_all(turns.map(|model| gateway.chat(model, &asked))).await;
    for (model, answer) in turns.iter().zip(all) {
        assert_eq!((answer.status, &answer.json["model"]), (200, &json!(model)), "{}", answer.text);
    }
    // What else runs beside a request may change what random weights say to it, so these come one by one.
    for (model, wanted) in [("red", &red), ("tiny", &base), ("blue", &red)] {
        assert_eq!(tokens(&gateway.chat(model, &ask()).await.json), tokens(&wanted.json), "{model}");
    }
    let held = reqwest::get(format!("{}/v1/models", server.url())).await.expect("it answers");
    let held: Value = held.json().await.expect("it answers JSON");
    let loaded = held["data"].as_array().expect("a list").iter().filter(|model| model["parent"].is_string());
    assert_eq!(loaded.count(), 1, "{held}");
    let told = until_ok("it is shown", SOON, async || {
        let (loaded, text) = shown(&berth);
        if loaded == ["blue"] { Ok(text) } else { Err(format!("{loaded:?}")) }
    })
    .await;
    assert!(told.contains("not loaded"), "{told}");

    // One that is not there fails alone.
    let ghost = gateway.chat("ghost", &ask()).await;
    assert_eq!(
        (ghost.status, &ghost.json["error"]["code"]),
        (503, &json!("adapter_unavailable")),
        "{}",
        ghost.text
    );
    assert_eq!(tokens(&gateway.chat("blue", &ask()).await.json), tokens(&red.json));
    assert_eq!((starts(&berth, "tiny").await, engine(&berth, "tiny")), (1, server));
}
