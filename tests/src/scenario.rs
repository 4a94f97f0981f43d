//! What is asked of more than one kind of fleet or driver.

use serde_json::json;

use crate::bus::Bus;
use crate::clients::python;
use crate::fleet::Berth;
use crate::gateway::Event;
use crate::run::SOON;
use crate::until;

/// The openai client gets chat, completion and embeddings, streamed and plain, with usage.
///
/// # Panics
/// When it does not.
pub async fn the_openai_client_is_served(berth: &Berth, model: &str) {
    let (url, model) = (format!("{}/v1", berth.gateway.url()), model.to_owned());
    let said = tokio::task::spawn_blocking(move || python("openai_client.py", &[&url, &model])).await;
    let said = said.expect("the client is served");
    assert!(said.contains("all answered"), "{said}");
}

/// Requests for two models that do not fit together, interleaved: all are answered, by one engine at a time.
///
/// # Panics
/// When they are not.
pub async fn two_models_take_turns(berth: &Berth, one: &str, other: &str) {
    let watch = berth.engines.watch();
    let requests = (0..12).map(async |n| {
        let model = if n % 2 == 0 { one } else { other };
        let answer = berth.gateway.chat(model, &json!({"max_tokens": 4, "ignore_eos": true})).await;
        answer.content();
        assert_eq!(answer.json["usage"]["completion_tokens"], 4, "{}", answer.text);
    });
    futures::future::join_all(requests).await;
    // And one after the other, so that each must swap.
    for model in [one, other, one] {
        berth.gateway.chat(model, &json!({"max_tokens": 4, "ignore_eos": true})).await.content();
    }
    let (all, most) = watch.stop();
    assert!(all.len() >= 2, "both models had an engine: {all:?}");
    assert_eq!(most.len(), 1, "only one engine runs at any time: {most:?}");
}

/// Every job has ended and nothing waits.
///
/// # Panics
/// When something does.
pub async fn nothing_is_outstanding(bus: &Bus) {
    bus.until_outstanding(0).await;
}

/// The engine is killed while it streams: the client is told, the next request gets a new engine.
///
/// # Panics
/// When not so.
pub async fn a_killed_engine_is_told_of_and_replaced(berth: &Berth, model: &str) {
    // Noise without an end: 30,000 tokens take the real engine seconds.
    let endless = json!({"max_tokens": 30_000, "ignore_eos": true, "temperature": 0});
    let mut stream = berth.gateway.stream(model, &endless).await;
    stream.token().await;
    let first = berth.engines.only();
    first.kill9();
    an_error_ends_the_stream(&stream.rest().await);

    let answer = berth.gateway.chat(model, &json!({"max_tokens": 4, "ignore_eos": true})).await;
    answer.content();
    until("the dead engine is gone", SOON, async || !berth.engines.running().contains(&first)).await;
    assert_ne!(berth.engines.only(), first);
}

/// The stream's last event is an error object, and no `[DONE]` was said.
///
/// # Panics
/// When not so.
pub fn an_error_ends_the_stream(events: &[Event]) {
    assert!(!events.contains(&Event::Done), "a broken stream says [DONE]: {events:?}");
    let last = events.iter().rev().find(|event| matches!(event, Event::Data(_)));
    let Some(Event::Data(last)) = last else { panic!("the stream ends without a word: {events:?}") };
    let error = last.get("error").unwrap_or_else(|| panic!("the last event is no error: {last}"));
    assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
}
