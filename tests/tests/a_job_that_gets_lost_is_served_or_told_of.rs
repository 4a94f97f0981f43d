//! What core NATS does not promise to deliver gets lost with a connection now and then, and what would be said again with
//! its process. No client waits for that.

use std::time::Duration;

use berth_tests::{Berth, Config, Model, SOON, Stream, at_most, until};
use serde_json::json;

/// One slot, and a client that holds it.
async fn busy() -> (Berth, Stream) {
    let berth =
        Berth::fleet(&Config::of([Model::sim("sim", &[]).concurrency(1).field("replicas", "1")])).await;
    let mut holder = berth.gateway.stream("sim", &json!({"sim": {"tokens": 6000, "per_token_ms": 50}})).await;
    holder.token().await;
    (berth, holder)
}

#[tokio::test]
async fn a_job_that_nobody_knows_any_more_is_told_as_lost() {
    let (mut berth, holder) = busy().await;
    let bus = berth.bus().await;
    let held = bus.outstanding().await.unwrap();
    let gateway = berth.gateway.clone();
    let client = tokio::spawn(async move { gateway.chat("sim", &json!({})).await });
    bus.until_outstanding(held + 1).await;
    // As if it had ended, and its last word had been lost with the scheduler that would have said it again.
    berth.role("scheduler").kill9();
    bus.lose_jobs().await;
    berth.restart("scheduler");
    let answer = at_most(Duration::from_secs(60), "its client is told", client).await.unwrap();
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.error().contains("send the request again"), "{answer:?}");
    drop(holder);
    until("others are served", SOON, async || berth.gateway.chat("sim", &json!({})).await.status == 200)
        .await;
}

#[tokio::test]
async fn a_job_whose_delivery_was_lost_with_the_server_is_read_again() {
    let (mut berth, holder) = busy().await;
    let bus = berth.bus().await;
    let mut clients = Vec::new();
    // Of two that ask, the server gives to one after the other.
    bus.steal_delivery(async {
        for _ in 0..2 {
            let gateway = berth.gateway.clone();
            clients.push(tokio::spawn(async move { gateway.chat("sim", &json!({})).await }));
        }
    })
    .await;
    drop(holder);
    // One that is shut down remembers what it has delivered.
    berth.nats().terminate().unwrap();
    berth.nats().restart().unwrap();
    for client in clients {
        let answer = at_most(SOON, "an answer", client).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}
