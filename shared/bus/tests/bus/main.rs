//! The bus against a real nats-server.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

mod connecting;
mod election;
mod jobs;
mod views;

use berth_bus::{Bus, BusOptions};
use berth_testkit::nats::TestNats;
use berth_wire::{Body, Job, JobId, Route, Timestamp};

pub(crate) async fn connect(nats: &TestNats) -> Bus {
    let options = BusOptions { urls: vec![nats.url()], ..BusOptions::default() };
    Bus::connect(&options, "test").await.expect("a connection")
}

pub(crate) async fn provisioned(nats: &TestNats) -> Bus {
    let bus = connect(nats).await;
    berth_bus::provision(&bus).await.expect("streams and buckets");
    bus
}

pub(crate) fn job(n: u128, body: &'static [u8]) -> Job {
    Job {
        id: JobId(n),
        model: "org/model:1.5".into(),
        adapter: None,
        route: Route::ChatCompletions,
        gateway: "gw".into(),
        stream: false,
        session: None,
        submitted_at: Timestamp(1),
        deadline: None,
        hurried: false,
        window: 1024,
        traceparent: None,
        class: berth_wire::Class::Standard,
        key: None,
        content_type: None,
        target: None,
        body: Body::Inline(body.into()),
    }
}
