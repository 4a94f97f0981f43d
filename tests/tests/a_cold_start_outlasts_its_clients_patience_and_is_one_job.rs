//! The real openai client times out faster than a model starts, and asks again by itself: one job in the end.

use berth_tests::{Berth, Config, Model, python, scenario};

#[tokio::test]
async fn in_the_openai_client() {
    let model = Model::sim("slow", &["--load", "6s"]).concurrency(2);
    let berth = Berth::up(&Config::of([model])).await;
    let url = format!("{}/v1", berth.gateway.url());
    let told = tokio::task::spawn_blocking(move || python("short_patience.py", &[&url, "slow", "1.5"]));
    let told = told.await.expect("the client is answered");
    let retries: u32 = told
        .split_once("retries=")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no retries told: {told}"));
    assert!(retries >= 2, "the start was shorter than the client's patience: {told}");
    let stats: serde_json::Value = reqwest::get(format!("{}/sim/stats", berth.engines.only().url()))
        .await
        .expect("the engine tells")
        .json()
        .await
        .expect("its numbers");
    assert_eq!(stats["completed"], 1, "{stats}");
    assert_eq!(stats["aborted"], 0, "no other request reached the engine: {stats}");
    let bus = berth.bus().await;
    scenario::nothing_is_outstanding(&bus).await;
    let ended = bus.facts("job_ended").await;
    assert_eq!(ended.len(), 1, "the story tells of one job: {ended:?}");
}
