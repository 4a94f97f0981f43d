//! The client leaves while queued, while loading, while streaming: its slot is freed and the engine's request aborted.

use berth_tests::{Berth, Config, Model, SOON, scenario, until, until_ok};
use serde_json::{Value, json};

/// A model of one slot, whose answers take as long as a request says.
fn one_slot(args: &[&str]) -> Config {
    Config::of([Model::sim("sim", args).concurrency(1)])
}

/// What the engine says of itself, once it listens.
async fn stats(berth: &Berth) -> Result<Value, String> {
    let running = berth.engines.running();
    let Some(engine) = running.first().filter(|_| running.len() == 1) else {
        return Err(format!("not one engine runs: {running:?}"));
    };
    let url = engine.url();
    let answer = reqwest::get(format!("{url}/sim/stats")).await.map_err(|e| e.to_string())?;
    answer.json().await.map_err(|e| e.to_string())
}

async fn until_stats(berth: &Berth, field: &str, value: u64) {
    until_ok(&format!("the engine's `{field}` is {value}"), SOON, async || {
        let now = stats(berth).await?;
        if now[field] == value { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
}

/// Ten minutes of answer.
fn endless() -> Value {
    json!({"sim": {"tokens": 6000, "per_token_ms": 100}})
}

/// Runs a request that is not answered until `then` is done, then leaves.
async fn leaves_after(request: impl Future<Output = ()>, then: impl Future<Output = ()>) {
    tokio::select! {
        () = request => panic!("the request was answered"),
        () = then => {}
    }
}

async fn the_slot_is_free_for_the_next(berth: &Berth) {
    let answer = berth.gateway.chat("sim", &json!({"max_tokens": 2})).await;
    assert_eq!(answer.content(), "This answer ");
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn while_streaming() {
    let berth = Berth::up(&one_slot(&[])).await;
    let mut stream = berth.gateway.stream("sim", &endless()).await;
    stream.token().await;
    drop(stream);
    until_stats(&berth, "aborted", 1).await;
    until_stats(&berth, "running", 0).await;
    the_slot_is_free_for_the_next(&berth).await;
}

#[tokio::test]
async fn while_the_engine_works_on_a_plain_answer() {
    let berth = Berth::up(&one_slot(&[])).await;
    let request = async { drop(berth.gateway.chat("sim", &endless()).await) };
    leaves_after(request, async {
        until("an engine runs", SOON, async || !berth.engines.running().is_empty()).await;
        until_stats(&berth, "running", 1).await;
    })
    .await;
    until_stats(&berth, "aborted", 1).await;
    the_slot_is_free_for_the_next(&berth).await;
}

#[tokio::test]
async fn before_the_first_token_of_a_stream() {
    let berth = Berth::up(&one_slot(&[])).await;
    let silent = json!({"sim": {"first_token_ms": 600_000}});
    let request = async { drop(berth.gateway.stream("sim", &silent).await.rest().await) };
    leaves_after(request, async {
        until("an engine runs", SOON, async || !berth.engines.running().is_empty()).await;
        until_stats(&berth, "running", 1).await;
    })
    .await;
    until_stats(&berth, "aborted", 1).await;
    the_slot_is_free_for_the_next(&berth).await;
}

#[tokio::test]
async fn while_queued_behind_another() {
    let berth = Berth::up(&one_slot(&[])).await;
    let bus = berth.bus().await;
    let mut holder = berth.gateway.stream("sim", &endless()).await;
    holder.token().await;
    let before = bus.outstanding().await.unwrap();

    let plain = async { drop(berth.gateway.chat("sim", &endless()).await) };
    leaves_after(plain, bus.until_outstanding(before + 1)).await;
    bus.until_outstanding(before).await;
    let streamed = async { drop(berth.gateway.stream("sim", &endless()).await.rest().await) };
    leaves_after(streamed, bus.until_outstanding(before + 1)).await;
    bus.until_outstanding(before).await;

    let now = stats(&berth).await.unwrap();
    assert_eq!(
        (&now["started"], &now["running"]),
        (&json!(1), &json!(1)),
        "no other reached the engine: {now}"
    );
    holder.token().await;
    drop(holder);
    the_slot_is_free_for_the_next(&berth).await;
    assert_eq!(stats(&berth).await.unwrap()["started"], 2, "those who left are never run");
}

#[tokio::test]
async fn while_its_model_loads() {
    let berth = Berth::up(&one_slot(&["--load", "3s"])).await;
    let bus = berth.bus().await;
    let request = async { drop(berth.gateway.chat("sim", &endless()).await) };
    leaves_after(request, async {
        until("an engine starts", SOON, async || !berth.engines.running().is_empty()).await;
    })
    .await;
    bus.until_outstanding(0).await;
    // Whether the start is broken off or ends unneeded is the policy's matter; the next one is served either way.
    the_slot_is_free_for_the_next(&berth).await;
    assert_eq!(stats(&berth).await.unwrap()["started"], 1, "the one who left is never run");
}

#[tokio::test]
async fn and_a_hundred_who_leave_at_once_leave_nothing_behind() {
    let berth = Berth::up(&one_slot(&[])).await;
    let bus = berth.bus().await;
    let mut holder = berth.gateway.stream("sim", &endless()).await;
    holder.token().await;
    let before = bus.outstanding().await.unwrap();
    let crowd = futures::future::join_all((0..100).map(async |_| {
        drop(berth.gateway.chat("sim", &endless()).await);
    }));
    leaves_after(async { drop(crowd.await) }, bus.until_outstanding(before + 100)).await;
    bus.until_outstanding(before).await;
    drop(holder);
    the_slot_is_free_for_the_next(&berth).await;
    assert_eq!(stats(&berth).await.unwrap()["started"], 2);
}
