//! NATS loses its streams and buckets under a fleet that runs: epochs begin anew, and no engine is taken for another.

use std::time::Duration;

use async_nats::jetstream;
use berth_tests::{Config, Hosts, Model, SOON, until, until_ok};
use futures::TryStreamExt;
use serde_json::json;

/// Everything that JetStream keeps.
async fn wipe(url: &str) {
    let context = jetstream::new(async_nats::connect(url).await.unwrap());
    let names: Vec<String> = context.stream_names().try_collect().await.unwrap();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        context.delete_stream(name).await.unwrap();
    }
}

/// Ids of the engines that there are.
async fn ids(fleet: &Hosts) -> Vec<String> {
    let picture = fleet.picture().await;
    let engines = picture["engines"].as_array().cloned().unwrap_or_default();
    engines.iter().map(|engine| engine["engine"].as_str().unwrap().to_owned()).collect()
}

async fn a_fleet_goes_on(fleet: &mut Hosts, first: &str, second: &str) {
    fleet.answered(first).await;
    let engine = fleet.processes_of(first);
    let before = ids(fleet).await;
    let url = fleet.nats().url();
    wipe(&url).await;
    until("the streams and buckets are made anew, and somebody leads", Duration::from_secs(40), async || {
        let picture = fleet.picture().await;
        picture["leader"].is_object() && picture["hosts"].as_array().is_some_and(|hosts| !hosts.is_empty())
    })
    .await;
    // It takes a new engine, whose id must not be that of the one that runs.
    fleet.answered(second).await;
    fleet.answered(first).await;
    assert_eq!(fleet.processes_of(first), engine, "it serves from the engine that ran through it");
    assert_eq!(fleet.processes_of(second).len(), 1);
    let mut after = until_ok("both engines are told of", SOON, async || {
        let now = ids(fleet).await;
        if now.len() > before.len() { Ok(now) } else { Err(format!("{now:?}")) }
    })
    .await;
    let count = after.len();
    after.sort();
    after.dedup();
    assert_eq!(after.len(), count, "no two engines are called the same: {after:?}");
    assert!(before.iter().all(|id| after.contains(id)), "{before:?}, {after:?}");
}

#[tokio::test]
async fn epochs_go_on_behind_those_that_hosts_have_seen() {
    let models = ["a", "b", "c"].map(|id| Model::sim(id, &[]).memory("300MiB"));
    let mut fleet = Hosts::near(&Config::of(models).memory("1GiB"), 1).await;
    // In its first epoch: the next leader's ids would be those of this one.
    a_fleet_goes_on(&mut fleet, "a", "b").await;
    // In a later one: the host obeys nobody of the first.
    a_fleet_goes_on(&mut fleet, "b", "c").await;
    let answer = fleet.gateway.chat("c", &json!({"max_tokens": 2})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}
