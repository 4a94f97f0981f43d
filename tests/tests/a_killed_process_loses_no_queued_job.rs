//! `kill -9` of a process with jobs queued, and its restart: every job is answered.

use std::time::Duration;

use berth_tests::{Berth, Config, Gateway, Model, SOON, at_most, scenario, until, until_ok};
use serde_json::{Value, json};

const JOBS: u64 = 10;

/// One engine of one slot, and answers that take half a second each.
fn config() -> Config {
    Config::of([Model::sim("sim", &[]).concurrency(1).field("replicas", "1")])
}

/// Ten jobs at once, half of them streams; each must be answered whole.
async fn ten_are_answered(gateway: Gateway) {
    let fields = json!({"sim": {"tokens": 10, "per_token_ms": 50}});
    let whole = "This answer is simulated by Berth: no model has read ";
    let requests = (0..JOBS).map(async |n| {
        if n % 2 == 0 {
            assert_eq!(gateway.chat("sim", &fields).await.content(), whole);
            return;
        }
        let mut stream = gateway.stream("sim", &fields).await;
        let mut text = String::new();
        while text.len() < whole.len() {
            text.push_str(&stream.token().await);
        }
        assert_eq!(text, whole);
        let rest = stream.rest().await;
        assert!(rest.contains(&berth_tests::Event::Done), "{rest:?}");
    });
    at_most(Duration::from_secs(80), "ten answers", futures::future::join_all(requests)).await;
}

#[tokio::test]
async fn the_scheduler_with_jobs_queued() {
    let mut berth = Berth::fleet(&config()).await;
    let bus = berth.bus().await;
    let clients = tokio::spawn(ten_are_answered(berth.gateway.clone()));
    // Two answered, some queued: the fleet is in the middle of it.
    until_ok("some jobs are done and some queued", SOON, async || match bus.outstanding().await? {
        n @ 3..=8 if !berth.engines.running().is_empty() => Ok(n),
        n => Err(format!("{n} are outstanding")),
    })
    .await;
    let engine = berth.engines.only();
    berth.role("scheduler").kill9();
    berth.restart("scheduler");
    clients.await.unwrap();
    scenario::nothing_is_outstanding(&bus).await;
    assert_eq!(berth.engines.only(), engine, "the new leader uses the engine that runs");
}

#[tokio::test]
async fn the_scheduler_before_it_has_seen_the_first_job() {
    let mut berth = Berth::fleet(&config()).await;
    let bus = berth.bus().await;
    berth.role("scheduler").kill9();
    let clients = tokio::spawn(ten_are_answered(berth.gateway.clone()));
    bus.until_outstanding(JOBS).await;
    berth.restart("scheduler");
    clients.await.unwrap();
    scenario::nothing_is_outstanding(&bus).await;
}

#[tokio::test]
async fn the_agent_with_jobs_queued() {
    let mut berth = Berth::fleet(&config()).await;
    let bus = berth.bus().await;
    // Held by a client whose stream breaks with the agent, so that the others are all still queued then.
    let mut holder = berth.gateway.stream("sim", &json!({"sim": {"tokens": 6000, "per_token_ms": 50}})).await;
    holder.token().await;
    let held = bus.outstanding().await.unwrap();
    let clients = tokio::spawn(ten_are_answered(berth.gateway.clone()));
    bus.until_outstanding(held + JOBS).await;
    berth.role("agent").kill9();
    berth.restart("agent");
    scenario::an_error_ends_the_stream(&at_most(SOON, "the broken stream's end", holder.rest()).await);
    clients.await.unwrap();
    scenario::nothing_is_outstanding(&bus).await;
    until("one engine runs, not two", SOON, async || berth.engines.running().len() == 1).await;
}

#[tokio::test]
async fn the_gateway_frees_what_its_clients_held() {
    let mut berth = Berth::fleet(&config()).await;
    let bus = berth.bus().await;
    let mut holder = berth.gateway.stream("sim", &json!({"sim": {"tokens": 6000, "per_token_ms": 50}})).await;
    holder.token().await;
    berth.role("gateway").kill9();
    let left = at_most(SOON, "the broken stream's end", holder.rest()).await;
    assert!(!left.contains(&berth_tests::Event::Done), "{left:?}");
    berth.restart("gateway");
    berth.until_ready().await;
    // The slot that nobody reads from is taken back for the next.
    berth.gateway.chat("sim", &json!({})).await.content();
    scenario::nothing_is_outstanding(&bus).await;
}

/// A job that its client comes back for: its URL.
async fn later(gateway: &Gateway, fields: &Value) -> String {
    let body = berth_tests::chat("sim", fields);
    let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", gateway.url()));
    let response = request.header("prefer", "respond-async").json(&body).send().await.unwrap();
    assert_eq!(response.status(), 202);
    response.headers()["location"].to_str().unwrap().to_owned()
}

/// The answer of such a job, once it is there.
async fn answered(gateway: &Gateway, url: &str) -> String {
    until_ok("the job is completed", Duration::from_secs(40), async || {
        let job = gateway.get(url).await;
        match job.json["status"].as_str() {
            Some("completed") => Ok(()),
            Some("failed" | "cancelled" | "expired") => panic!("{}", job.text),
            _ => Err(job.text),
        }
    })
    .await;
    gateway.get(&format!("{url}/result")).await.content().to_owned()
}

#[tokio::test]
async fn the_gateway_with_asynchronous_jobs_queued_and_running_which_another_takes_over() {
    let mut berth = Berth::fleet(&config()).await;
    let bus = berth.bus().await;
    let other = berth.second_gateway().await;
    // The one runs when its gateway is killed, and holds the only slot; the other is queued behind it.
    let running = later(&berth.gateway, &json!({"sim": {"tokens": 30, "per_token_ms": 100}})).await;
    until("it runs", SOON, async || other.get(&running).await.json["status"] == "running").await;
    let queued = later(&berth.gateway, &json!({"sim": {"tokens": 2}})).await;
    bus.until_outstanding(2).await;
    berth.role("gateway").kill9();
    assert_eq!(answered(&other, &queued).await, "This answer ");
    assert!(answered(&other, &running).await.starts_with("This answer is simulated"));
    scenario::nothing_is_outstanding(&bus).await;
}

#[tokio::test]
async fn the_only_gateway_with_asynchronous_jobs_queued_which_its_restart_takes_over() {
    let mut berth = Berth::fleet(&config()).await;
    let bus = berth.bus().await;
    let mut urls = Vec::new();
    for n in 1..=3 {
        urls.push(later(&berth.gateway, &json!({"sim": {"tokens": n, "first_token_ms": 1500}})).await);
    }
    bus.until_outstanding(3).await;
    berth.role("gateway").kill9();
    berth.restart("gateway");
    berth.until_ready().await;
    for (url, text) in urls.iter().zip(["This ", "This answer ", "This answer is "]) {
        assert_eq!(answered(&berth.gateway, url).await, text);
    }
    scenario::nothing_is_outstanding(&bus).await;
}

#[tokio::test]
async fn nats_itself_with_jobs_queued() {
    let mut berth = Berth::fleet(&config()).await;
    let bus = berth.bus().await;
    let mut holder = berth.gateway.stream("sim", &json!({"sim": {"tokens": 6000, "per_token_ms": 50}})).await;
    holder.token().await;
    berth.nats().kill9();
    berth.nats().restart().unwrap();
    drop(holder);
    // Whatever became of the stream that ran, the fleet heals by itself.
    until_ok("a request is answered", Duration::from_secs(60), async || {
        let answer = berth.gateway.chat("sim", &json!({"max_tokens": 2})).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    scenario::nothing_is_outstanding(&bus).await;
}

#[tokio::test]
async fn a_nats_that_dies_under_an_answer_leaves_no_client_hanging() {
    // Long enough that the agent gives up what it cannot deliver, short enough that the scheduler leads on.
    const AWAY: Duration = Duration::from_millis(3500);
    let mut berth = Berth::fleet(&Config::of([Model::sim("sim", &[]).concurrency(2)])).await;
    let bus = berth.bus().await;
    // Four seconds each, so that the end falls near NATS's return.
    let fields = json!({"sim": {"tokens": 80, "per_token_ms": 50}});
    let mut stream = berth.gateway.stream("sim", &fields).await;
    stream.token().await;
    let (gateway, body) = (berth.gateway.clone(), fields.clone());
    let plain = tokio::spawn(async move { gateway.chat("sim", &body).await });
    until("both are at the engine", SOON, async || {
        berth.gateway.get("/api/v1/fleet").await.json["engines"][0]["running"] == 2
    })
    .await;
    berth.nats().kill9();
    tokio::time::sleep(AWAY).await;
    berth.nats().restart().unwrap();

    let told = Duration::from_secs(30);
    let left = at_most(told, "the stream's end", stream.rest()).await;
    if !left.contains(&berth_tests::Event::Done) {
        scenario::an_error_ends_the_stream(&left);
    }
    let answer = at_most(told, "the plain answer", plain).await.unwrap();
    match answer.status {
        200 => drop(answer.content().to_owned()),
        _ => drop(answer.error().to_owned()),
    }
    scenario::nothing_is_outstanding(&bus).await;
}

#[tokio::test]
async fn and_a_nats_that_is_away_for_longer_than_a_leaders_term_ends_nobody() {
    let mut berth = Berth::fleet(&config()).await;
    berth.gateway.chat("sim", &json!({"max_tokens": 2})).await.content();
    berth.nats().kill9();
    until("the scheduler has stepped down", Duration::from_secs(20), async || {
        berth.role("scheduler").lines().join("\n").contains("leadership lost")
    })
    .await;
    // It campaigns without a server by now, and says so.
    until("the scheduler tries again", Duration::from_secs(20), async || {
        berth.role("scheduler").lines().join("\n").contains("cannot campaign")
    })
    .await;
    berth.nats().restart().unwrap();
    for role in ["scheduler", "agent", "gateway", "health"] {
        assert!(berth.role(role).ended().is_none(), "{role} has ended");
    }
    until_ok("a request is answered", Duration::from_secs(60), async || {
        let answer = berth.gateway.chat("sim", &json!({"max_tokens": 2})).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text) }
    })
    .await;
}
