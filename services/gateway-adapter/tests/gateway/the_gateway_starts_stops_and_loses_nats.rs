//! The gateway's own life.

use std::sync::Arc;
use std::time::Duration;

use berth_config::Config;
use berth_testkit::nats::TestNats;
use berth_testkit::wait::until;
use berth_wire::Finish;

use crate::support::*;

async fn ready(gateway: &Gateway) -> (u16, serde_json::Value) {
    let response = reqwest::get(gateway.url("/readyz")).await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn readiness_names_what_is_missing_until_nothing_is() {
    let nats = TestNats::start().unwrap();
    let gateway = Gateway::start(&nats, |_| {}).await;
    let (status, body) = ready(&gateway).await;
    assert_eq!(status, 503);
    let missing: Vec<&str> = body["components"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|part| part["ready"] == false)
        .map(|part| part["name"].as_str().unwrap())
        .collect();
    assert_eq!(missing, ["catalog", "keys", "scheduler", "hosts"]);
    let refused = post(&gateway, "/v1/chat/completions", chat(false)).await.unwrap();
    assert_eq!(refused.status(), 503, "not 404: the catalog is not known yet");
    assert!(refused.headers().contains_key("retry-after"));

    let played = Played::new(&nats).await;
    played.appear().await;
    until("the gateway is ready", PATIENCE, async || ready(&gateway).await.0 == 200).await;
    assert_eq!(reqwest::get(gateway.url("/healthz")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_running_answer_is_finished_before_the_gateway_ends() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    played.go(&job, 1).await;
    played.frame(&job, head(200, EVENTS, 1, b"data: {}\n\n")).await;
    let mut response = request.await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    gateway.begin_shutdown();
    until("it says that it ends", PATIENCE, async || ready(&gateway).await.1["draining"] == true).await;
    played.frame(&job, data(2, "data: [DONE]\n\n")).await;
    played.frame(&job, end(3, Finish::Stop)).await;
    assert_eq!(response.text().await.unwrap(), "data: [DONE]\n\n");
    gateway.stop().await;
}

#[tokio::test]
async fn who_comes_while_the_gateway_ends_is_told_so_at_once_and_disturbs_no_answer() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let kept = reqwest::Client::new();
    kept.get(gateway.url("/healthz")).send().await.unwrap().bytes().await.unwrap();
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    played.go(&job, 1).await;
    played.frame(&job, head(200, EVENTS, 1, b"data: {}\n\n")).await;
    let mut response = request.await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    gateway.begin_shutdown();
    until("it says that it ends", PATIENCE, async || ready(&gateway).await.1["draining"] == true).await;
    for client in [kept, reqwest::Client::new()] {
        let late = client.post(gateway.url("/v1/chat/completions")).body(chat(false)).send();
        let late = tokio::time::timeout(Duration::from_secs(2), late).await.expect("it hangs").unwrap();
        assert_eq!(late.status(), 503);
        assert_eq!(late.headers()["connection"], "close");
        assert_eq!(late.headers()["retry-after"], "2");
        assert_eq!(error_of(late).await["code"], "shutting_down");
    }
    played.frame(&job, data(2, "data: [DONE]\n\n")).await;
    played.frame(&job, end(3, Finish::Stop)).await;
    assert_eq!(response.text().await.unwrap(), "data: [DONE]\n\n");
    gateway.stop().await;
}

#[tokio::test]
async fn who_waits_when_the_gateway_ends_is_told_to_come_back_and_cancelled() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    gateway.begin_shutdown();
    let response = request.await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(error_of(response).await["code"], "shutting_down");
    assert_eq!(played.cancelled().await.job, job.id);
    gateway.stop().await;
}

#[tokio::test]
async fn a_lost_nats_is_told_and_work_goes_on_when_it_is_back() {
    let (mut nats, played, gateway) = house(|_| {}).await;
    drop(played);
    nats.kill9();
    let response = post(&gateway, "/v1/chat/completions", chat(false)).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(error_of(response).await["code"], "bus_unavailable");
    assert_eq!(ready(&gateway).await.0, 503);
    assert_eq!(reqwest::get(gateway.url("/v1/models")).await.unwrap().status(), 200);

    nats.restart().unwrap();
    let mut played = Played::new(&nats).await;
    played.appear().await;
    until("the gateway is ready again", PATIENCE * 2, async || ready(&gateway).await.0 == 200).await;
    let request = post(&gateway, "/v1/embeddings", r#"{"model":"tiny","input":"again"}"#.into());
    // The refused one may have been stored after all; its client has left, so it is refused at frame 0.
    loop {
        let job = played.job().await;
        if matches!(played.begin(&job, 1).await, Ok(berth_wire::BeginReply::Go { .. })) {
            played.frame(&job, head(200, "application/json", 1, b"{}")).await;
            played.frame(&job, end(2, Finish::Stop)).await;
            break;
        }
    }
    assert_eq!(request.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_queue_that_does_not_exist_is_no_schedulers_fault_to_hide() {
    let (_nats, played, gateway) = house(|_| {}).await;
    let stream = played.bus.subjects.jobs_stream();
    played.bus.jetstream.delete_stream(stream).await.unwrap();
    let response = post(&gateway, "/v1/chat/completions", chat(false)).await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(error_of(response).await["code"], "no_scheduler");
}

#[tokio::test]
async fn a_full_queue_is_told_with_a_time_to_come_back() {
    let (_nats, played, gateway) = house(|_| {}).await;
    let stream = played.bus.jetstream.get_stream(played.bus.subjects.jobs_stream()).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.max_messages = 1;
    played.bus.jetstream.update_stream(config).await.unwrap();
    let first = post(&gateway, "/v1/chat/completions", chat(true));
    let mut stream = stream;
    until("the queue is full", PATIENCE, async || stream.info().await.unwrap().state.messages == 1).await;
    let response = post(&gateway, "/v1/chat/completions", chat(true)).await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "5");
    assert_eq!(error_of(response).await["code"], "queue_full");
    first.abort();
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut config = Config::empty();
    config.gateway.listen = vec![address];
    let error = actix_rt::System::new()
        .block_on(berth_gateway_adapter::run(
            Arc::new(config),
            berth_bus::BusOptions::default(),
            tokio_util::sync::CancellationToken::new(),
            |_| {},
            None,
        ))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{address} is in use by another program; choose another with --listen or [gateway] listen")
    );
}
