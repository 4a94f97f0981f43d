//! `[[external]]`: a real Ollama and a real llama-server that nobody but their owners started.

use std::time::Duration;

use berth_tests::{Berth, Config, LlamaByHand, Ollama, SOON, until, until_ok};
use serde_json::{Value, json};

/// The tiny model's weights are random: at a temperature of its own, one answer in fifteen has no text.
fn short() -> Value {
    json!({"max_tokens": 4, "temperature": 0})
}

const KEY: &str = "a-key-that-nobody-may-see-8f2c";

fn ollama(server: &Ollama, more: &str) -> String {
    format!("\n[[external]]\nurl = \"{}\"\nkind = \"ollama\"\n{more}\n", server.url())
}

async fn listed(berth: &Berth) -> Vec<String> {
    let answer = berth.gateway.get("/v1/models").await;
    let models = answer.json["data"].as_array().cloned().unwrap_or_default();
    models.iter().map(|model| model["id"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn until_listed(berth: &Berth, wanted: &[&str]) {
    until(&format!("{wanted:?} are listed"), SOON, async || listed(berth).await == wanted).await;
}

async fn loaded(server: &Ollama) -> Vec<String> {
    let mut names: Vec<String> = server.loaded().await.into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

#[tokio::test]
async fn ollamas_models_are_found_loaded_served_and_unloaded() {
    let server = Ollama::start().await;
    server.create("tiny");
    let mut berth = Berth::up(&Config::default().more(&ollama(&server, ""))).await;
    until_listed(&berth, &["tiny:latest"]).await;
    assert!(loaded(&server).await.is_empty(), "looking at a server loads nothing");

    let answer = berth.gateway.chat("tiny", &short()).await;
    assert!(!answer.content().is_empty(), "{}", answer.text);
    let held = server.loaded().await;
    assert!(
        matches!(held.as_slice(), [(name, until)] if name == "tiny:latest" && until.as_str() > "2200"),
        "{held:?}"
    );

    let mut stream = berth.gateway.stream("tiny:latest", &short()).await;
    stream.token().await;
    stream.rest().await;
    let body = json!({"model": "tiny", "input": "berth"});
    let embedded = berth.gateway.post("/v1/embeddings", &body).await;
    assert!(
        embedded.json["data"][0]["embedding"].as_array().is_some_and(|v| !v.is_empty()),
        "{}",
        embedded.text
    );
    let tokens = berth.gateway.post("/tokenize", &json!({"model": "tiny", "content": "a"})).await;
    assert_eq!(tokens.status, 501, "{}", tokens.text);
    let own = berth.gateway.post("/upstream/tiny/api/delete", &json!({"model": "tiny"})).await;
    assert_eq!(own.status, 501, "what is Ollama's own is nobody's through Berth: {}", own.text);

    assert!(berth.role("up").terminate().success());
    assert!(loaded(&server).await.is_empty(), "who leaves gives back");
}

#[tokio::test]
async fn two_models_of_ollama_that_do_not_fit_together_take_turns() {
    let server = Ollama::start().await;
    server.create("red");
    server.create("blue");
    // Ollama says that it takes 1.4 MB for each.
    let config = Config::default().memory("2MiB").more(&ollama(&server, "concurrency = 2"));
    let berth = Berth::up(&config).await;
    until_listed(&berth, &["blue:latest", "red:latest"]).await;
    for model in ["red", "blue", "red", "blue", "red"] {
        let answer = berth.gateway.chat(model, &json!({"max_tokens": 2})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(loaded(&server).await, [format!("{model}:latest")], "one at a time");
    }
}

#[tokio::test]
async fn ollama_killed_is_told_of_at_once_and_served_again_when_it_is_back() {
    let mut server = Ollama::start().await;
    server.create("tiny");
    let berth = Berth::up(&Config::default().more(&ollama(&server, "name = \"desk\""))).await;
    until_listed(&berth, &["tiny:latest"]).await;
    assert_eq!(berth.gateway.chat("tiny", &json!({"max_tokens": 2})).await.status, 200);
    server.kill();
    let refused = until_ok("its clients are told", SOON, async || {
        let answer = berth.gateway.chat("tiny", &json!({"max_tokens": 2})).await;
        if answer.status == 200 { Err(answer.text) } else { Ok(answer) }
    })
    .await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.error().contains("`desk`"), "{}", refused.text);
    assert!(!refused.text.contains("127.0.0.1"), "where it is, is nobody's business: {}", refused.text);
    assert_eq!(listed(&berth).await, ["tiny:latest"], "it is away, not gone");
    server.serve().await;
    until("it serves again", Duration::from_secs(60), async || {
        berth.gateway.chat("tiny", &json!({"max_tokens": 2})).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn a_model_that_its_server_has_no_more_leaves_the_list_and_a_name_of_ours_is_not_taken() {
    let server = Ollama::start().await;
    server.create("tiny");
    server.create("demo");
    let sim = berth_tests::Model::sim("demo:latest", &[]);
    let berth = Berth::up(&Config::of([sim]).more(&ollama(&server, ""))).await;
    until_listed(&berth, &["demo:latest", "tiny:latest"]).await;
    let answer = berth.gateway.chat("demo:latest", &json!({"max_tokens": 2})).await;
    assert_eq!(answer.status, 200);
    assert!(loaded(&server).await.is_empty(), "that was the configured one");
    let bus = berth.bus().await;
    let refusals = until_ok("the refusal is told", SOON, async || {
        let told = bus.facts("model_refused").await;
        if told.is_empty() { Err("not yet") } else { Ok(told) }
    })
    .await;
    assert!(refusals[0]["why"].as_str().is_some_and(|why| why.contains("configured model `demo:latest`")));
    server.run(&["rm", "tiny"]);
    until_listed(&berth, &["demo:latest"]).await;
    let gone = berth.gateway.chat("tiny", &json!({})).await;
    assert_eq!(gone.status, 404, "{}", gone.text);
}

#[tokio::test]
async fn a_llama_server_with_a_key_is_served_by_alias_and_its_key_is_nowhere_to_be_seen() {
    let mut server = LlamaByHand::start("tiny", KEY).await;
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("key");
    std::fs::write(&file, format!("{KEY}\n")).expect("a key can be written");
    let entry = format!(
        "\n[[external]]\nname = \"hand\"\nurl = \"{}/v1\"\nkind = \"llama.cpp\"\nkey_file = {}\nconcurrency = 2\n\
         prefix = \"hand/\"\naliases = {{ fast = \"tiny\" }}\n",
        server.url(),
        json!(file)
    );
    let mut berth = Berth::up(&Config::default().more(&entry)).await;
    until_listed(&berth, &["hand/tiny"]).await;
    for model in ["hand/tiny", "fast"] {
        let answer = berth.gateway.chat(model, &short()).await;
        assert!(!answer.content().is_empty(), "{}", answer.text);
    }
    until("it takes offers", SOON, async || {
        let answer = berth.gateway.chat("fast", &json!({"max_tokens": 3})).await;
        answer.headers.get("x-berth-lane").is_some_and(|lane| lane == "express")
    })
    .await;
    let embedded = berth.gateway.post("/v1/embeddings", &json!({"model": "fast", "input": "x"})).await;
    assert_eq!(embedded.status, 200, "{}", embedded.text);

    server.kill();
    let refused = until_ok("its clients are told", SOON, async || {
        let answer = berth.gateway.chat("fast", &json!({"max_tokens": 2})).await;
        if answer.status == 200 { Err(answer.text) } else { Ok(answer) }
    })
    .await;
    assert!(refused.error().contains("`hand`") && !refused.text.contains("127.0.0.1"), "{}", refused.text);
    server.serve("tiny").await;
    until("it serves again", Duration::from_secs(60), async || {
        berth.gateway.chat("fast", &json!({"max_tokens": 2})).await.status == 200
    })
    .await;

    let bus = berth.bus().await;
    let seen = format!("{}{}", berth.role("up").tail(), bus.everything_kept().await);
    assert!(seen.contains("hand/tiny"), "{seen}");
    assert!(!seen.contains(KEY), "the key is in:\n{seen}");
    assert!(!seen.contains(&server.url()), "the address is in:\n{seen}");
}

#[tokio::test]
async fn what_others_had_ollama_load_makes_room_and_what_a_killed_agent_left_is_unloaded() {
    let server = Ollama::start().await;
    server.create("red");
    server.create("blue");
    let mut berth = Berth::up(&Config::default().memory("2MiB").more(&ollama(&server, ""))).await;
    until_listed(&berth, &["blue:latest", "red:latest"]).await;
    server.ask("blue").await;
    assert_eq!(loaded(&server).await, ["blue:latest"]);
    assert_eq!(berth.gateway.chat("red", &json!({"max_tokens": 2})).await.status, 200);
    assert_eq!(loaded(&server).await, ["red:latest"], "both do not fit, and Berth's clients wait");

    berth.role("up").kill9();
    assert_eq!(loaded(&server).await, ["red:latest"]);
    berth.restart("up");
    berth.until_ready().await;
    until("nothing is held for nobody", SOON, async || loaded(&server).await.is_empty()).await;
    assert_eq!(berth.gateway.chat("blue", &json!({"max_tokens": 2})).await.status, 200);
}
