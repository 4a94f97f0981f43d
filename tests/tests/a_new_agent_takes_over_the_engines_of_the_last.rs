//! An agent is exchanged, or killed, under containers that serve: none is lost, none started twice.

use berth_tests::{Berth, Config, Event, Model, SOON, scenario, until};
use nix::sys::signal::Signal;
use serde_json::json;

fn config(keep: bool) -> Config {
    Config::of([Model::llama_docker("tiny")]).line("host", &format!("keep_engines = {keep}"))
}

#[tokio::test]
async fn an_exchanged_agent_finishes_what_runs_and_the_next_one_serves_from_the_same_engine() {
    let mut berth = Berth::fleet(&config(true)).await;
    let bus = berth.bus().await;
    berth.gateway.chat("tiny", &json!({"max_tokens": 2})).await.content();
    let engine = berth.engines.only();
    let watch = berth.engines.watch();
    let mut stream = berth.gateway.stream("tiny", &json!({"max_tokens": 400, "ignore_eos": true})).await;
    stream.token().await;
    let status = berth.role("agent").terminate();
    assert!(status.success(), "{}", berth.role("agent").tail());
    let rest = stream.rest().await;
    assert!(rest.contains(&Event::Done), "it finished before the agent ended: {rest:?}");
    assert_eq!(berth.engines.only(), engine, "it is left running");
    // Asked while there is no agent: it waits for the next one.
    let gateway = berth.gateway.clone();
    let waits = tokio::spawn(async move {
        let answer = gateway.chat("tiny", &json!({"max_tokens": 2})).await;
        answer.content().to_owned()
    });
    berth.restart("agent");
    waits.await.unwrap();
    let (all, _) = watch.stop();
    assert_eq!(all.into_iter().collect::<Vec<_>>(), [engine], "no other was started");
    scenario::nothing_is_outstanding(&bus).await;
}

#[tokio::test]
async fn a_killed_agent_s_engine_is_adopted_and_its_job_ends_with_an_error_that_is_told() {
    let mut berth = Berth::fleet(&config(false)).await;
    let bus = berth.bus().await;
    berth.gateway.chat("tiny", &json!({"max_tokens": 2})).await.content();
    let engine = berth.engines.only();
    let watch = berth.engines.watch();
    let mut stream = berth.gateway.stream("tiny", &json!({"max_tokens": 100_000, "ignore_eos": true})).await;
    stream.token().await;
    berth.role("agent").kill9();
    assert_eq!(berth.engines.only(), engine);
    berth.restart("agent");
    scenario::an_error_ends_the_stream(&stream.rest().await);
    berth.gateway.chat("tiny", &json!({"max_tokens": 2})).await.content();
    let (all, _) = watch.stop();
    assert_eq!(all.into_iter().collect::<Vec<_>>(), [engine], "no other was started");
    scenario::nothing_is_outstanding(&bus).await;
    // Without the wish to keep them, they end with their agent.
    assert!(berth.role("agent").terminate().success());
    until("nothing runs", SOON, async || berth.engines.running().is_empty()).await;
}

#[tokio::test]
async fn who_asks_while_an_agent_finishes_its_work_waits_for_the_next_one() {
    let config = Config::of([Model::sim("m", &[]).concurrency(2)]);
    let mut berth = Berth::fleet(&config).await;
    let bus = berth.bus().await;
    let mut stream = berth.gateway.stream("m", &json!({"sim": {"tokens": 120, "per_token_ms": 50}})).await;
    stream.token().await;
    berth.role("agent").signal(Signal::SIGTERM);
    until("the agent leaves", SOON, async || berth.role("agent").tail().contains("agent leaves")).await;
    let gateway = berth.gateway.clone();
    let waits = tokio::spawn(async move { gateway.chat("m", &json!({"max_tokens": 2})).await });
    let rest = stream.rest().await;
    assert!(rest.contains(&Event::Done), "{rest:?}");
    assert!(berth.role("agent").wait(SOON).is_some_and(|status| status.success()));
    berth.restart("agent");
    waits.await.unwrap().content();
    scenario::nothing_is_outstanding(&bus).await;
}
