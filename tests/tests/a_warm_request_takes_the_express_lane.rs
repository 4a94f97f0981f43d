//! The express lane: a warm request goes from the gateway to the agent and back, and nobody is lost or overtaken by it.

use std::time::Duration;

use berth_tests::{
    Answer, Berth, Config, Connection, Event, Gateway, Model, SOON, at_most, connections, scenario, until,
    until_ok,
};
use serde_json::{Value, json};

fn config(slots: u32) -> Config {
    Config::of([Model::sim("sim", &[]).concurrency(slots).field("replicas", "1")])
}

fn lane(answer: &Answer) -> &str {
    answer.headers["x-berth-lane"].to_str().expect("a header is text")
}

/// One engine is ready, and its lane open: the first request goes through the queue, later ones do not.
async fn warm(gateway: &Gateway) {
    let first = gateway.chat("sim", &json!({"max_tokens": 1})).await;
    first.content();
    assert_eq!(lane(&first), "queue", "nothing was ready for the first request");
    until_warm(gateway).await;
}

async fn until_warm(gateway: &Gateway) {
    until_ok("the lane is open", SOON, async || {
        let answer = gateway.chat("sim", &json!({"max_tokens": 1})).await;
        answer.content();
        if lane(&answer) == "express" { Ok(()) } else { Err("a warm request was queued".to_owned()) }
    })
    .await;
}

async fn engines(gateway: &Gateway) -> Value {
    gateway.get("/api/v1/fleet").await.json["engines"].clone()
}

fn tokens(count: u32, each_ms: u32) -> Value {
    json!({"sim": {"tokens": count, "per_token_ms": each_ms}})
}

#[tokio::test]
async fn the_second_request_of_a_warm_model_takes_it_and_says_so() {
    let berth = Berth::fleet(&config(2)).await;
    let bus = berth.bus().await;
    warm(&berth.gateway).await;
    assert_eq!(engines(&berth.gateway).await[0]["lane"], true);
    let answer = berth.gateway.chat("sim", &tokens(3, 1)).await;
    answer.content();
    assert_eq!((lane(&answer), &answer.headers["x-berth-attempts"]), ("express", &"1".parse().unwrap()));
    assert!(answer.headers.contains_key("x-berth-host"));
    let mut stream = berth.gateway.stream("sim", &tokens(3, 1)).await;
    assert_eq!(stream.headers["x-berth-lane"], "express");
    assert!(stream.rest().await.contains(&Event::Done));
    // A first word that is slow to come is waited for.
    let slow = berth.gateway.chat("sim", &json!({"sim": {"tokens": 1, "first_token_ms": 2500}})).await;
    slow.content();
    assert_eq!(lane(&slow), "express");
    // It waited for no slot: what its engine took is not told as such, nor when the host said that it has it.
    let queued: u64 = slow.headers["x-berth-queue-ms"].to_str().unwrap().parse().unwrap();
    assert!(queued < 50, "{queued} ms");
    let metrics = berth.gateway.get("/metrics").await.text;
    assert!(metrics.contains("berth_lane_offers_total{outcome=\"taken\"}"), "{metrics}");
    until("the engine's tokens a second are told", SOON, async || {
        engines(&berth.gateway).await[0]["tokens_per_second"].as_f64().is_some_and(|pace| pace > 0.0)
    })
    .await;
    scenario::nothing_is_outstanding(&bus).await;
}

#[tokio::test]
async fn no_connection_on_a_tokens_way_holds_it_back_for_others() {
    let mut berth = Berth::fleet(&config(1)).await;
    warm(&berth.gateway).await;
    let mut stream = berth.gateway.stream("sim", &tokens(6000, 50)).await;
    stream.token().await;
    let client = berth.gateway.url().trim_start_matches("http://").to_owned();
    let engine = berth.engines.only().url().trim_start_matches("http://").to_owned();
    for (role, end) in [("gateway", client), ("agent", engine)] {
        let connections = connections(berth.role(role).pid());
        let of = |held: &&Connection| held.local.to_string() == end || held.peer.to_string() == end;
        assert!(connections.iter().any(|held| of(&held)), "{role} has none with {end}: {connections:?}");
        // Those with NATS among them.
        assert!(connections.iter().all(|held| held.no_delay), "{role}: {connections:?}");
    }
}

#[tokio::test]
async fn jobs_of_a_full_engine_queue_in_their_order() {
    let berth = Berth::fleet(&config(1)).await;
    let bus = berth.bus().await;
    warm(&berth.gateway).await;
    let mut holder = berth.gateway.stream("sim", &tokens(6000, 50)).await;
    assert_eq!(holder.headers["x-berth-lane"], "express");
    holder.token().await;
    let mut waiting = Vec::new();
    for n in 1..=5 {
        let gateway = berth.gateway.clone();
        waiting.push(tokio::spawn(async move {
            let answer = gateway.chat("sim", &tokens(1, 1)).await;
            answer.content();
            assert_eq!(lane(&answer), "queue");
            std::time::Instant::now()
        }));
        bus.until_outstanding(n).await;
    }
    until("the lane is closed", SOON, async || engines(&berth.gateway).await[0]["lane"] == false).await;
    drop(holder);
    let mut ends = Vec::new();
    for answered in waiting {
        ends.push(at_most(SOON, "a queued answer", answered).await.unwrap());
    }
    assert!(ends.is_sorted(), "the queue is served in its order: {ends:?}");
    until_warm(&berth.gateway).await;
}

#[tokio::test]
async fn an_agent_that_is_killed_loses_nothing_that_it_was_offered() {
    let mut berth = Berth::fleet(&config(4)).await;
    let bus = berth.bus().await;
    warm(&berth.gateway).await;
    // One has had output; the others are taken, and nothing has come of them yet.
    let mut begun = berth.gateway.stream("sim", &tokens(6000, 50)).await;
    begun.token().await;
    assert_eq!(begun.headers["x-berth-lane"], "express");
    let engine = berth.engines.only();
    let taken: Vec<_> = (0..3)
        .map(|_| {
            let gateway = berth.gateway.clone();
            let fields = json!({"sim": {"tokens": 1, "first_token_ms": 3000}});
            tokio::spawn(async move { gateway.chat("sim", &fields).await })
        })
        .collect();
    until("all are at the engine", SOON, async || running(&berth.gateway).await == 4).await;
    berth.role("agent").kill9();
    // Offered to nobody.
    let gateway = berth.gateway.clone();
    let offered = tokio::spawn(async move { gateway.chat("sim", &tokens(1, 1)).await });
    bus.until_outstanding(4).await;
    scenario::an_error_ends_the_stream(&at_most(SOON, "the broken stream's end", begun.rest()).await);
    berth.restart("agent");
    for answer in taken.into_iter().chain([offered]) {
        let answer = at_most(Duration::from_secs(60), "an answer", answer).await.unwrap();
        answer.content();
        assert_eq!(lane(&answer), "queue");
    }
    assert_ne!(berth.engines.only(), engine);
    scenario::nothing_is_outstanding(&bus).await;
}

async fn running(gateway: &Gateway) -> u64 {
    engines(gateway).await[0]["running"].as_u64().unwrap_or_default()
}

#[tokio::test]
async fn warm_requests_are_served_while_no_scheduler_leads() {
    let mut berth = Berth::fleet(&config(2)).await;
    warm(&berth.gateway).await;
    let mut across = berth.gateway.stream("sim", &tokens(100, 50)).await;
    across.token().await;
    berth.role("scheduler").kill9();
    for _ in 0..50 {
        let answer = at_most(SOON, "a warm answer", berth.gateway.chat("sim", &tokens(1, 1))).await;
        answer.content();
        assert_eq!(lane(&answer), "express");
    }
    berth.restart("scheduler");
    assert!(across.rest().await.contains(&Event::Done));
    // The new leader knows what ran, and opens the lane anew.
    until_ok("the leader's books are right", SOON, async || {
        let status = berth.gateway.get("/readyz").await;
        if status.status == 200 { Ok(()) } else { Err(status.text) }
    })
    .await;
    until_warm(&berth.gateway).await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_within_a_moment() {
    let berth = Berth::fleet(&config(1)).await;
    warm(&berth.gateway).await;
    for fields in [tokens(6000, 50), json!({"sim": {"tokens": 1, "first_token_ms": 60_000}})] {
        let gateway = berth.gateway.clone();
        let client = tokio::spawn(async move {
            let mut stream = gateway.stream("sim", &fields).await;
            loop {
                stream.token().await;
            }
        });
        until("it has the slot", SOON, async || running(&berth.gateway).await == 1).await;
        client.abort();
        // The only slot: whoever has it next tells that it was given back.
        let next =
            at_most(Duration::from_secs(5), "the slot", berth.gateway.chat("sim", &tokens(1, 1))).await;
        next.content();
        until_warm(&berth.gateway).await;
    }
}

#[tokio::test]
async fn a_gateway_that_is_killed_gives_its_slots_back() {
    let mut berth = Berth::fleet(&config(1)).await;
    warm(&berth.gateway).await;
    let mut held = berth.gateway.stream("sim", &tokens(6000, 50)).await;
    held.token().await;
    assert_eq!(held.headers["x-berth-lane"], "express");
    berth.role("gateway").kill9();
    berth.restart("gateway");
    berth.until_ready().await;
    until("its job is ended", SOON, async || running(&berth.gateway).await == 0).await;
    until_warm(&berth.gateway).await;
}
