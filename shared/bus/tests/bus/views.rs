use std::time::Duration;

use berth_bus::{View, put_json};
use berth_testkit::nats::TestNats;
use berth_testkit::wait;
use berth_wire::{LeaderRecord, Timestamp};

use super::{connect, provisioned};

fn record(instance: &str) -> LeaderRecord {
    LeaderRecord { instance: instance.into(), since: Timestamp(1), epoch: Default::default() }
}

#[tokio::test]
async fn a_view_waits_for_its_bucket_and_follows_it_across_a_server_restart() {
    let mut nats = TestNats::start().unwrap();
    let bus = connect(&nats).await;
    let view = View::<LeaderRecord>::follow(&bus, "profiles");
    assert!(!view.is_synced());
    berth_bus::provision(&bus).await.unwrap();
    let soon = Duration::from_secs(10);
    wait::until("the empty bucket is read", soon, async || view.is_synced()).await;
    let store = bus.bucket("profiles").await.unwrap();
    put_json(&store, "a", &record("one")).await.unwrap();
    wait::until("the entry shows", soon, async || view.entries().contains_key("a")).await;

    nats.kill9();
    nats.restart().unwrap();
    wait::until("a later entry shows", Duration::from_secs(40), async || {
        let _ = put_json(&store, "b", &record("two")).await;
        view.entries().contains_key("b")
    })
    .await;
    store.delete("a").await.unwrap();
    wait::until("the entry is gone", soon, async || !view.entries().contains_key("a")).await;
}

#[tokio::test]
async fn a_heartbeat_that_stops_disappears_from_the_view() {
    let nats = TestNats::start().unwrap();
    let bus = provisioned(&nats).await;
    let view = View::<LeaderRecord>::follow(&bus, "leader");
    let store = bus.bucket("leader").await.unwrap();
    put_json(&store, "x", &record("gone soon")).await.unwrap();
    wait::until("it shows", Duration::from_secs(5), async || view.entries().len() == 1).await;
    wait::until("it expires", Duration::from_secs(20), async || view.entries().is_empty()).await;
}
