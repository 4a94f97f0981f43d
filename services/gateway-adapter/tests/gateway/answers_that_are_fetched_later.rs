//! `Prefer: respond-async`: a job URL at once, the answer as the engine gave it later, from any gateway.

use std::time::Duration;

use berth_testkit::wait::until;
use berth_wire::{ApiError, BeginReply, End, ErrorKind, Finish, Frame, Job, Notice, Stage, Usage};
use serde_json::Value;

use crate::support::*;

async fn later(gateway: &Gateway, stream: bool) -> (String, Value) {
    let request = reqwest::Client::new()
        .post(gateway.url("/v1/chat/completions"))
        .header("prefer", "respond-async, wait=5")
        .body(chat(stream));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 202);
    assert_eq!(header(&response, "preference-applied").as_deref(), Some("respond-async"));
    assert!(header(&response, "retry-after").is_some());
    let url = header(&response, "location").unwrap();
    let body: Value = response.json().await.unwrap();
    assert_eq!(url, format!("/api/v1/jobs/{}", body["id"].as_str().unwrap()));
    (url, body)
}

async fn get(gateway: &Gateway, path: &str) -> reqwest::Response {
    reqwest::get(gateway.url(path)).await.unwrap()
}

async fn job(gateway: &Gateway, path: &str) -> Value {
    get(gateway, path).await.json().await.unwrap()
}

async fn becomes(gateway: &Gateway, path: &str, status: &str) -> Value {
    until(status, PATIENCE, async || job(gateway, path).await["status"] == status).await;
    job(gateway, path).await
}

#[tokio::test]
async fn a_job_is_told_of_while_it_waits_and_its_answer_is_kept() {
    let (nats, mut played, gateway) = house(|_| {}).await;
    let (url, taken) = later(&gateway, false).await;
    assert_eq!((taken["status"].as_str(), taken["model"].as_str()), (Some("queued"), Some(MODEL)));
    let queued = played.job().await;
    assert_eq!(taken["id"], queued.id.to_string());
    let eta = Some(Duration::from_secs(41));
    played.notify(&queued, 1, Notice::Waiting { stage: Stage::Loading, position: 3, eta }).await;
    let loading = becomes(&gateway, &url, "loading").await;
    // It is counted down.
    let soon = |seconds: u64| (30..=41).contains(&seconds);
    assert!(loading["position"] == 3 && soon(loading["eta_s"].as_u64().unwrap()), "{loading}");
    let early = get(&gateway, &format!("{url}/result")).await;
    assert_eq!(early.status(), 202);
    assert!(soon(header(&early, "retry-after").unwrap().parse().unwrap()));

    played.go(&queued, 1).await;
    becomes(&gateway, &url, "running").await;
    played.frame(&queued, head(200, "application/json", 1, br#"{"id":"x","extra":true}"#)).await;
    played.frame(&queued, end(2, Finish::Stop)).await;
    let done = becomes(&gateway, &url, "completed").await;
    assert_eq!((done["result"]["bytes"].as_u64(), done["host"].as_str()), (Some(23), Some("h1")));
    assert!(loading["position"].is_u64() && done["position"].is_null(), "{done}");
    assert!(done["began_at"].is_string() && done["ended_at"].is_string(), "{done}");

    // A restart of the gateway loses nothing of it.
    gateway.stop().await;
    let gateway = another(&nats, |_| {}).await;
    let result = get(&gateway, &format!("{url}/result")).await;
    assert_eq!(result.status(), 200);
    assert_eq!(header(&result, "content-type").as_deref(), Some("application/json"));
    assert_eq!(result.text().await.unwrap(), r#"{"id":"x","extra":true}"#);
    assert_eq!(job(&gateway, &url).await["status"], "completed");
}

#[tokio::test]
async fn a_streams_answer_is_kept_as_the_client_would_have_seen_it() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let (url, _) = later(&gateway, true).await;
    let queued = played.job().await;
    assert!(queued.stream);
    played.go(&queued, 1).await;
    let usage = b"data: {\"choices\":[{}]}\n\ndata: {\"choices\":[],\"usage\":{}}\n\n";
    played.frame(&queued, head(200, EVENTS, 1, usage)).await;
    played.frame(&queued, data(2, "data: [DONE]\n\n")).await;
    played.frame(&queued, end(3, Finish::Stop)).await;
    becomes(&gateway, &url, "completed").await;
    let result = get(&gateway, &format!("{url}/result")).await;
    assert_eq!(header(&result, "content-type").as_deref(), Some(EVENTS));
    assert_eq!(result.text().await.unwrap(), "data: {\"choices\":[{}]}\n\ndata: [DONE]\n\n");
}

#[tokio::test]
async fn a_job_that_fails_says_why_and_with_which_status() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let (url, _) = later(&gateway, false).await;
    let queued = played.job().await;
    let error = ApiError::new(ErrorKind::CannotFit, "cannot_fit", "it never fits");
    played.notify(&queued, 1, Notice::Failed(error)).await;
    let failed = becomes(&gateway, &url, "failed").await;
    assert_eq!(failed["error"]["code"], "cannot_fit");
    let result = get(&gateway, &format!("{url}/result")).await;
    assert_eq!(result.status(), 503);
    // It stays as it is: an SDK need not ask for it again.
    assert_eq!(header(&result, "x-should-retry").as_deref(), Some("false"));
    assert_eq!(error_of(result).await["code"], "cannot_fit");

    let (url, _) = later(&gateway, false).await;
    let queued = played.job().await;
    played.answer(&queued, 400, "application/json", b"{\"error\":{}}").await;
    becomes(&gateway, &url, "failed").await;
    let result = get(&gateway, &format!("{url}/result")).await;
    assert_eq!(result.status(), 400);
    assert_eq!(result.text().await.unwrap(), "{\"error\":{}}");
}

#[tokio::test]
async fn a_job_is_cancelled_by_any_gateway_in_every_stage() {
    let (nats, mut played, gateway) = house(|_| {}).await;
    let other = another(&nats, |_| {}).await;
    for (by, begun) in [(&gateway, false), (&gateway, true), (&other, false), (&other, true)] {
        let (url, _) = later(&gateway, false).await;
        let queued: Job = played.job().await;
        if begun {
            played.go(&queued, 1).await;
        }
        let response = reqwest::Client::new().delete(by.url(&url)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let told: Value = response.json().await.unwrap();
        assert_eq!(told["status"], "cancelled", "{told}");
        assert_eq!(played.cancelled().await.job, queued.id);
        assert!(matches!(played.begin(&queued, 2).await, Ok(BeginReply::Refuse { .. })));
        let result = get(by, &format!("{url}/result")).await;
        assert_eq!(result.status(), 409);
        // What is over stays as it is.
        let again = reqwest::Client::new().delete(by.url(&url)).send().await.unwrap();
        assert_eq!(again.json::<Value>().await.unwrap()["status"], "cancelled");
        while tokio::time::timeout(Duration::from_millis(200), played.cancelled()).await.is_ok() {}
    }
}

#[tokio::test]
async fn what_a_cancelled_job_had_used_is_told() {
    let (nats, mut played, gateway) = house(|_| {}).await;
    let other = another(&nats, |_| {}).await;
    for by in [&gateway, &other] {
        let (url, _) = later(&gateway, true).await;
        let queued = played.job().await;
        played.go(&queued, 1).await;
        // A window's half of it, so that it is known to have been read.
        let pad = "x".repeat(usize::try_from(queued.window).unwrap() / 2);
        let text = format!("data: {{\"pad\":\"{pad}\"}}\n\n");
        played.frame(&queued, head(200, EVENTS, 1, b"data: {}\n\n")).await;
        played.frame(&queued, data(2, text)).await;
        played.credit().await;
        let cancel = tokio::spawn(reqwest::Client::new().delete(by.url(&url)).send());
        assert_eq!(played.cancelled().await.job, queued.id);
        let usage = Usage { prompt_tokens: Some(5), completion_tokens: Some(7), ..Usage::default() };
        let last = End { finish: Finish::Cancelled, usage };
        played.frame(&queued, Frame { end: Some(last), ..Frame::empty(number(1), 3) }).await;
        let told: Value = cancel.await.unwrap().unwrap().json().await.unwrap();
        assert_eq!(told["status"], "cancelled", "{told}");
        assert_eq!(
            (&told["usage"]["prompt_tokens"], &told["usage"]["completion_tokens"]),
            (&5.into(), &7.into())
        );
        while tokio::time::timeout(Duration::from_millis(200), played.cancelled()).await.is_ok() {}
    }
}

#[tokio::test]
async fn a_job_expires_at_its_deadline() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = reqwest::Client::new()
        .post(gateway.url("/v1/chat/completions"))
        .header("prefer", "respond-async")
        .header("x-berth-deadline", "0.3")
        .body(chat(false));
    let url = header(&request.send().await.unwrap(), "location").unwrap();
    let queued = played.job().await;
    let expired = becomes(&gateway, &url, "expired").await;
    assert_eq!(expired["error"]["code"], "deadline_exceeded");
    assert_eq!(played.cancelled().await.job, queued.id);
    assert_eq!(get(&gateway, &format!("{url}/result")).await.status(), 504);
}

#[tokio::test]
async fn what_is_not_there_any_more_is_410_and_what_never_was_404() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    for id in ["0123456789abcdef0123456789abcdef", "nonsense"] {
        for path in [format!("/api/v1/jobs/{id}"), format!("/api/v1/jobs/{id}/result")] {
            let response = get(&gateway, &path).await;
            assert_eq!(response.status(), 404);
            assert_eq!(error_of(response).await["code"], "job_not_found");
        }
    }
    let (url, _) = later(&gateway, false).await;
    let queued = played.job().await;
    played.answer(&queued, 200, "application/json", b"{}").await;
    becomes(&gateway, &url, "completed").await;
    let results = berth_bus::Bodies::results(&played.bus).await.unwrap();
    results.delete(&queued.id.to_string()).await;
    let gone = get(&gateway, &format!("{url}/result")).await;
    assert_eq!(gone.status(), 410);
    assert_eq!(error_of(gone).await["code"], "result_expired");
}

#[tokio::test]
async fn no_record_of_a_job_holds_any_of_its_content() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let (url, _) = later(&gateway, false).await;
    let queued = played.job().await;
    played.answer(&queued, 200, "application/json", b"{\"secret\":\"answer\"}").await;
    becomes(&gateway, &url, "completed").await;
    let records = played.bus.bucket("async_jobs").await.unwrap();
    let record = records.get(queued.id.to_string()).await.unwrap().unwrap();
    let text = std::str::from_utf8(&record).unwrap();
    assert!(!text.contains("secret") && !text.contains("\"hi\""), "{text}");
}
