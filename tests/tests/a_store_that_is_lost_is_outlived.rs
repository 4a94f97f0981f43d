//! NATS loses its streams and buckets under a fleet that runs: epochs begin anew, and no engine is taken for another.

use std::time::Duration;

use async_nats::jetstream;
use berth_tests::{Config, Hosts, Model, SOON, until, until_ok};
use futures::TryStreamExt;

/// Everything that JetStream keeps.
async fn wipe(url: &str) {
    let context = jetstream::new(async_nats::connect(url).await.unwrap());
    let names: Vec<String> = context.stream_names().try_collect().await.unwrap();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        context.delete_stream(name).await.unwrap();
    }
}

/// Ids of the engines that there are, and the epoch of who leads.
async fn ids(fleet: &Hosts) -> (Vec<String>, u64) {
    let picture = fleet.picture().await;
    let engines = picture["engines"].as_array().cloned().unwrap_or_default();
    let ids = engines.iter().map(|engine| engine["engine"].as_str().unwrap().to_owned()).collect();
    (ids, picture["leader"]["epoch"].as_u64().unwrap_or_default())
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
    let after = until_ok("both engines are told of", SOON, async || {
        let now = ids(fleet).await;
        if now.0.len() > before.0.len() { Ok(now) } else { Err(format!("{now:?}")) }
    })
    .await;
    let mut distinct = after.0.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), after.0.len(), "no two engines are called the same: {after:?}");
    assert!(after.1 > before.1, "epochs go on where they were: {before:?}, {after:?}");
}

#[tokio::test]
async fn no_engine_gets_the_id_of_one_that_ran_through_it() {
    let models = ["a", "b"].map(|id| Model::sim(id, &[]).memory("300MiB"));
    let mut fleet = Hosts::near(&Config::of(models).memory("1GiB"), 1).await;
    // In its first epoch: the next leader's ids would be those of this one.
    a_fleet_goes_on(&mut fleet, "a", "b").await;
}
