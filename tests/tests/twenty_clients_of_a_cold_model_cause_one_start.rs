//! Twenty clients at once on a cold model: one start, twenty answers.

use berth_tests::{Berth, Config, Model, scenario};
use serde_json::json;

async fn twenty_clients_cause_one_start(berth: &Berth, model: &str) {
    let watch = berth.engines.watch();
    let requests = (0..20).map(async |n| {
        let fields = json!({"max_tokens": 5, "ignore_eos": true, "temperature": 0});
        if n % 2 == 0 {
            berth.gateway.chat(model, &fields).await.content();
        } else {
            let mut stream = berth.gateway.stream(model, &fields).await;
            stream.token().await;
            let events = stream.rest().await;
            assert!(events.contains(&berth_tests::Event::Done), "{events:?}");
        }
    });
    futures::future::join_all(requests).await;
    let (all, _) = watch.stop();
    assert_eq!(all.len(), 1, "one start: {all:?}");
    let bus = berth.bus().await;
    scenario::nothing_is_outstanding(&bus).await;
    let starts = bus.facts("engine_starting").await;
    assert_eq!(starts.len(), 1, "the story tells of one start: {starts:?}");
}

#[tokio::test]
async fn of_a_real_engine() {
    let berth = Berth::up(&Config::of([Model::llama_process("tiny").concurrency(2)])).await;
    twenty_clients_cause_one_start(&berth, "tiny").await;
}

#[tokio::test]
async fn of_an_engine_that_loads_for_a_second_and_has_two_slots() {
    let model = Model::sim("slow", &["--load", "1s", "--per-token", "5ms"]).concurrency(2);
    let berth = Berth::up(&Config::of([model])).await;
    twenty_clients_cause_one_start(&berth, "slow").await;
    let url = berth.engines.only().url();
    let stats: serde_json::Value =
        reqwest::get(format!("{url}/sim/stats")).await.unwrap().json().await.unwrap();
    assert_eq!(stats["completed"], 20, "{stats}");
    assert_eq!(stats["max_running"], 2, "every slot is used and no more: {stats}");
    assert_eq!(stats["waiting"], 0, "{stats}");
}
