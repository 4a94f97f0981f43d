//! The engine is killed mid-stream: the client gets an error frame, the next request gets a new engine.

use berth_tests::{Berth, Config, Model, SOON, scenario, until_ok};
use serde_json::json;

#[tokio::test]
async fn as_a_process() {
    let berth = Berth::up(&Config::of([Model::llama_process("tiny")])).await;
    scenario::a_killed_engine_is_told_of_and_replaced(&berth, "tiny").await;
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn as_a_container() {
    let berth = Berth::up(&Config::of([Model::llama_docker("tiny")])).await;
    scenario::a_killed_engine_is_told_of_and_replaced(&berth, "tiny").await;
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn and_all_its_streams_are_told_with_what_they_had_kept() {
    let berth = Berth::up(&Config::of([Model::sim("sim", &[]).concurrency(8)])).await;
    let slow = json!({"sim": {"tokens": 1000, "per_token_ms": 50}});
    let mut streams = Vec::new();
    for _ in 0..7 {
        let mut stream = berth.gateway.stream("sim", &slow).await;
        assert_eq!(stream.token().await, "This ");
        streams.push(stream);
    }
    let crash = json!({"sim": {"tokens": 1000, "crash_after_tokens": 3}});
    streams.push(berth.gateway.stream("sim", &crash).await);
    for stream in &mut streams {
        scenario::an_error_ends_the_stream(&stream.rest().await);
    }
    berth.gateway.chat("sim", &json!({})).await.content();
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn a_plain_request_that_crashes_every_engine_gives_up_with_an_error() {
    let berth = Berth::up(&Config::of([Model::sim("sim", &[])])).await;
    let watch = berth.engines.watch();
    let answer = berth.gateway.chat("sim", &json!({"sim": {"crash_after_tokens": 0}})).await;
    assert!((500..600).contains(&answer.status), "{} {}", answer.status, answer.text);
    answer.error();
    let (all, _) = watch.stop();
    assert!(all.len() <= 5, "it does not crash engines for ever: {all:?}");
    berth.gateway.chat("sim", &json!({})).await.content();
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn a_connection_cut_mid_stream_is_told_and_the_engine_kept() {
    let berth = Berth::up(&Config::of([Model::sim("sim", &[])])).await;
    let mut stream = berth.gateway.stream("sim", &json!({"sim": {"cut_after_tokens": 2}})).await;
    assert_eq!(stream.token().await, "This ");
    scenario::an_error_ends_the_stream(&stream.rest().await);
    let engine = berth.engines.only();
    berth.gateway.chat("sim", &json!({})).await.content();
    assert_eq!(berth.engines.only(), engine);
    until_ok("the slot is free", SOON, async || {
        berth.bus().await.outstanding().await.and_then(
            |n| {
                if n == 0 { Ok(()) } else { Err(format!("{n} jobs")) }
            },
        )
    })
    .await;
}
