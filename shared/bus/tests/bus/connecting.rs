//! What a server must have.

use std::time::Duration;

use berth_bus::{Bus, BusOptions};
use berth_testkit::nats::TestNats;

use super::provisioned;

#[tokio::test]
async fn a_server_without_jetstream_is_named_with_what_to_do() {
    let nats = TestNats::start_without_jetstream().unwrap();
    let url = nats.url().replace("nats://", "nats://me:hunter2@");
    let patience = Duration::from_millis(300);
    let options = BusOptions { urls: vec![url], patience, ..BusOptions::default() };
    let error = Bus::connect(&options, "test").await.expect_err("it has no JetStream").to_string();
    let told = format!("JetStream is not enabled on NATS at nats://***@{}", nats.address());
    assert_eq!(error, format!("{told}: start nats-server with -js"));
}

#[tokio::test]
async fn a_server_with_little_room_gets_smaller_streams_and_buckets() {
    let nats = TestNats::start_with_room("1GB").expect("nats-server");
    let bus = provisioned(&nats).await;
    let name = bus.subjects.jobs_stream();
    let jobs = bus.jetstream.get_stream(&name).await.expect("the stream of jobs");
    let size = jobs.cached_info().config.max_bytes;
    assert!((16 << 20..1_000_000_000).contains(&size), "{size}");
    // Again, as every scheduler does at its start.
    berth_bus::provision(&bus).await.expect("streams and buckets");
}
