use std::time::Duration;

use berth_bus::{Bus, BusError, BusOptions, Jobs};
use berth_testkit::nats::TestNats;
use berth_testkit::wait;
use berth_wire::{Epoch, JobId};
use futures::StreamExt;

use super::{connect, job, provisioned};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_later_leader_reads_every_outstanding_job_from_the_start() {
    let nats = TestNats::start().unwrap();
    let bus = provisioned(&nats).await;
    for n in 0..3 {
        bus.submit(&job(n, b"{}")).await.unwrap();
    }
    let first = Jobs::take_over(&bus, Epoch(1)).await.unwrap();
    let mut messages = Box::pin(first.messages().await.unwrap());
    let done = tokio::time::timeout(SOON, messages.next()).await.unwrap().unwrap();
    assert_eq!(done.job, job(0, b"{}"));
    done.ticket.remove().await;

    let mut second = Jobs::take_over(&connect(&nats).await, Epoch(2)).await.unwrap();
    assert_eq!(second.outstanding().await.unwrap(), 2);
    let mut messages = Box::pin(second.messages().await.unwrap());
    let mut ids = Vec::new();
    for _ in 0..2 {
        let queued = tokio::time::timeout(SOON, messages.next()).await.unwrap().unwrap();
        assert_eq!(second.payload(queued.sequence).await.unwrap(), queued.payload);
        ids.push(queued.job.id);
    }
    assert_eq!(ids, [JobId(1), JobId(2)]);
}

#[tokio::test]
async fn a_leader_reads_the_stream_anew_unless_a_later_one_has_it() {
    let nats = TestNats::start().unwrap();
    let bus = provisioned(&nats).await;
    bus.submit(&job(0, b"{}")).await.unwrap();
    let first = Jobs::take_over(&bus, Epoch(1)).await.unwrap();
    drop(Box::pin(first.messages().await.unwrap()).next().await.unwrap());
    let again = Jobs::take_again(&bus, Epoch(1)).await.unwrap();
    assert_eq!(again.to_read(), 1, "what was delivered is delivered once more");
    let second = Jobs::take_over(&connect(&nats).await, Epoch(2)).await.unwrap();
    assert!(matches!(Jobs::take_again(&bus, Epoch(1)).await, Err(BusError::Missing { .. })));
    let mut messages = Box::pin(second.messages().await.unwrap());
    let read = tokio::time::timeout(SOON, messages.next()).await.unwrap().unwrap();
    assert_eq!(read.job, job(0, b"{}"), "the later leader reads on");
}

#[tokio::test]
async fn a_job_submitted_twice_is_in_the_stream_once() {
    let nats = TestNats::start().unwrap();
    let bus = provisioned(&nats).await;
    let first = bus.submit(&job(7, b"{}")).await.unwrap();
    assert_eq!(bus.submit(&job(7, b"{}")).await.unwrap(), first);
    let mut jobs = Jobs::take_over(&bus, Epoch(1)).await.unwrap();
    assert_eq!(jobs.outstanding().await.unwrap(), 1);
}

#[tokio::test]
async fn queued_jobs_survive_a_kill_of_the_server() {
    let mut nats = TestNats::start().unwrap();
    let bus = provisioned(&nats).await;
    bus.submit(&job(1, b"{}")).await.unwrap();
    nats.kill9();
    nats.restart().unwrap();
    wait::until("the job is still there", Duration::from_secs(20), async || {
        match Jobs::take_over(&bus, Epoch(1)).await {
            Ok(mut jobs) => jobs.outstanding().await.is_ok_and(|n| n == 1),
            Err(_) => false,
        }
    })
    .await;
}

#[tokio::test]
async fn a_full_stream_refuses_new_jobs_and_keeps_the_old_ones() {
    let nats = TestNats::start().unwrap();
    let bus = provisioned(&nats).await;
    let mut config =
        bus.jetstream.get_stream(bus.subjects.jobs_stream()).await.unwrap().cached_info().config.clone();
    config.max_messages = 1;
    bus.jetstream.update_stream(config).await.unwrap();
    bus.submit(&job(1, b"{}")).await.unwrap();
    assert!(matches!(bus.submit(&job(2, b"{}")).await, Err(BusError::Full(_))));
    let mut jobs = Jobs::take_over(&bus, Epoch(1)).await.unwrap();
    assert_eq!(jobs.outstanding().await.unwrap(), 1);
}

#[tokio::test]
async fn a_message_above_the_servers_limit_is_refused_with_the_numbers() {
    let nats = TestNats::start().unwrap();
    let bus = provisioned(&nats).await;
    let body: &'static [u8] = Box::leak(vec![b'x'; 2 * 1024 * 1024].into_boxed_slice());
    let error = bus.submit(&job(1, body)).await.unwrap_err();
    assert!(matches!(error, BusError::TooLarge { limit: 1_048_576, .. }), "{error}");
}

#[tokio::test]
async fn without_a_server_the_error_says_how_to_get_one() {
    let options = BusOptions {
        urls: vec!["nats://127.0.0.1:1".into()],
        patience: Duration::from_millis(300),
        ..BusOptions::default()
    };
    let error = Bus::connect(&options, "test").await.unwrap_err();
    assert!(error.to_string().contains("nats://127.0.0.1:1"), "{error}");
    assert!(error.to_string().contains("berth up"), "{error}");
}
