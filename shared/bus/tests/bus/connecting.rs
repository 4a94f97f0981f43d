//! What a server must have.

use std::time::Duration;

use berth_bus::{Bus, BusOptions};
use berth_testkit::nats::TestNats;

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
