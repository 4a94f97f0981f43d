use std::time::Duration;

use crate::support::*;
use berth_wire::{ApiError, BeginReply, Body, ErrorKind, Finish, Notice, Route, Stage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_plain_chat_is_relayed_as_it_came() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let client = reqwest::Client::new();
    let request = client
        .post(gateway.url("/v1/chat/completions"))
        .header("x-request-id", "mine-1")
        .header("x-session-affinity", "conv:7")
        .body(chat(false))
        .send();
    let request = tokio::spawn(request);
    let job = played.job().await;
    assert_eq!(job.model.as_str(), MODEL);
    assert_eq!(job.route, Route::ChatCompletions);
    assert_eq!(job.session.as_deref(), Some("conv"));
    assert!(!job.stream && job.deadline.is_some());
    assert_eq!(job.body, Body::Inline(chat(false).into()));
    played.answer(&job, 200, "application/json", br#"{"id":"x","extra":true}"#).await;
    let response = request.await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    assert_eq!(header("x-request-id").as_deref(), Some("mine-1"));
    assert_eq!(header("x-berth-job"), Some(job.id.to_string()));
    assert_eq!(header("x-berth-model").as_deref(), Some(MODEL));
    assert_eq!(header("x-berth-host").as_deref(), Some("h1"));
    assert_eq!(header("x-berth-attempts").as_deref(), Some("1"));
    assert!(header("x-berth-queue-ms").is_some() && header("openai-processing-ms").is_some());
    assert_eq!(header("content-length").as_deref(), Some("23"));
    assert_eq!(response.text().await.unwrap(), r#"{"id":"x","extra":true}"#);
    gateway.stop().await;
}

#[tokio::test]
async fn a_streamed_chat_passes_each_event_when_it_comes() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    assert!(job.stream);
    played.go(&job, 1).await;
    played.frame(&job, head(200, EVENTS, 1, b"data: {\"a\":1}\n\ndata: {\"b\"")).await;
    let mut response = request.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], EVENTS);
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: {\"a\":1}\n\n");
    played.frame(&job, data(2, ":2}\n\n")).await;
    let mut next = response.chunk().await.unwrap().unwrap().to_vec();
    if next.len() < 14 {
        next.extend_from_slice(&response.chunk().await.unwrap().unwrap());
    }
    assert_eq!(next, b"data: {\"b\":2}\n\n");
    played.frame(&job, data(3, "data: [DONE]\n\n")).await;
    played.frame(&job, end(4, Finish::Stop)).await;
    assert_eq!(response.text().await.unwrap(), "data: [DONE]\n\n");
}

/// HTTP/1.0 has no chunks: they would be read as part of the body.
#[tokio::test]
async fn a_client_of_http_1_0_gets_its_body_unframed_and_then_the_end_of_the_connection() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    for (stream, kind, body) in [
        (true, EVENTS, &b"data: {}\n\ndata: [DONE]\n\n"[..]),
        (false, "application/json", b"{\"a\":1}"),
        (false, "audio/wav", b"RIFF"),
    ] {
        let asked = chat(stream);
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.0\r\nhost: x\r\nconnection: keep-alive\r\ncontent-length: {}\r\n\r\n{asked}",
            asked.len()
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let job = played.job().await;
        played.answer(&job, 200, kind, body).await;
        let mut told = Vec::new();
        tokio::time::timeout(PATIENCE, socket.read_to_end(&mut told)).await.expect("it stays open").unwrap();
        let told = String::from_utf8(told).unwrap();
        let (head, rest) = told.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        assert_eq!(rest.as_bytes(), body, "{head}");
    }
}

#[tokio::test]
async fn an_engines_own_refusal_of_a_stream_keeps_its_status_and_body() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    played.answer(&job, 400, "application/json", br#"{"error":{"message":"too long"}}"#).await;
    let response = request.await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(response.text().await.unwrap(), r#"{"error":{"message":"too long"}}"#);
}

#[tokio::test]
async fn a_client_that_waits_beyond_the_grace_gets_heartbeats_and_then_its_answer() {
    let (_nats, mut played, gateway) = house(|config| {
        config.gateway.grace = Duration::from_millis(100);
        config.gateway.heartbeat = Duration::from_millis(100);
    })
    .await;
    let body = chat(true).replace("\"x_own\":1", "\"stream_options\":{\"include_usage\":true}");
    let request = post(&gateway, "/v1/chat/completions", body);
    let job = played.job().await;
    let eta = Some(Duration::from_secs(41));
    played.notify(&job, 1, Notice::Waiting { stage: Stage::Loading, position: 3, eta }).await;
    let mut response = request.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let mut text = String::new();
    while text.matches(": berth queued position=3 eta_s=41 stage=loading\n\n").count() < 2 {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    assert!(text.contains("\"choices\":[]"), "{text}");
    played.go(&job, 1).await;
    played.frame(&job, head(200, EVENTS, 1, b"data: {}\n\ndata: [DONE]\n\n")).await;
    played.frame(&job, end(2, Finish::Stop)).await;
    let rest = response.text().await.unwrap();
    assert!(rest.ends_with("data: {}\n\ndata: [DONE]\n\n"), "{rest}");
}

#[tokio::test]
async fn an_engines_refusal_after_the_grace_becomes_an_error_event() {
    let (_nats, mut played, gateway) = house(|config| config.gateway.grace = Duration::from_millis(50)).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    let response = request.await.unwrap();
    assert_eq!(response.status(), 200);
    played.answer(&job, 400, "application/json", br#"{"error":{"message":"too long"}}"#).await;
    let text = until_cut(response).await;
    assert!(text.ends_with("data: {\"error\":{\"message\":\"too long\"}}\n\n"), "{text}");
    assert!(!text.contains("[DONE]"));
}

#[tokio::test]
async fn a_gap_in_the_frames_is_told_and_the_attempt_is_cancelled() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    played.go(&job, 1).await;
    played.frame(&job, head(200, EVENTS, 1, b"data: {\"a\":1}\n\n")).await;
    played.frame(&job, data(3, "data: [DONE]\n\n")).await;
    let text = until_cut(request.await.unwrap()).await;
    let (first, error) = text.split_once("\n\n").unwrap();
    assert_eq!(first, "data: {\"a\":1}");
    assert!(error.contains("\"code\":\"stream_gap\"") && !text.contains("[DONE]"), "{text}");
    assert_eq!(played.cancelled().await.job, job.id);
    played.command("cancel").await;
}

#[tokio::test]
async fn a_stream_that_ends_without_its_marker_is_told_as_broken() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    played.answer(&job, 200, EVENTS, b"data: {\"a\":1}\n\n").await;
    let text = until_cut(request.await.unwrap()).await;
    assert!(text.contains("\"code\":\"incomplete_answer\""), "{text}");
}

#[tokio::test]
async fn an_engine_that_dies_mid_answer_is_an_error_event_or_a_status_of_its_own() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    for stream in [true, false] {
        let request = post(&gateway, "/v1/chat/completions", chat(stream));
        let job = played.job().await;
        played.go(&job, 1).await;
        let kind = if stream { EVENTS } else { "application/json" };
        played.frame(&job, head(200, kind, 1, b"data: {\"a\":1}\n\ndata: {\"half")).await;
        let died = ApiError::new(ErrorKind::EngineFailed, "engine_died", "the engine died");
        played.frame(&job, end(2, Finish::Error(died))).await;
        let response = request.await.unwrap();
        assert_eq!(response.status().as_u16(), if stream { 200 } else { 502 });
        let text = if stream { until_cut(response).await } else { response.text().await.unwrap() };
        assert!(text.contains("\"code\":\"engine_died\"") && !text.contains("half"), "{text}");
    }
}

#[tokio::test]
async fn an_attempt_lost_before_output_is_followed_by_another_and_after_output_by_an_error() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let lost = |n| Notice::AttemptLost {
        attempt: number(n),
        error: ApiError::new(ErrorKind::EngineFailed, "host_lost", "the host is gone"),
    };
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    played.go(&job, 1).await;
    played.notify(&job, 1, lost(1)).await;
    played.go(&job, 2).await;
    let mut frame = head(200, EVENTS, 1, b"data: {\"a\":1}\n\n");
    frame.attempt = number(2);
    played.frame(&job, frame).await;
    let response = request.await.unwrap();
    assert_eq!(response.headers()["x-berth-attempts"], "2");
    played.notify(&job, 1, lost(2)).await;
    let text = until_cut(response).await;
    assert!(text.contains("\"code\":\"host_lost\""), "{text}");
    assert_eq!(played.cancelled().await.job, job.id);
    assert!(matches!(played.begin(&job, 3).await, Ok(BeginReply::Refuse { .. })));
}

#[tokio::test]
async fn a_job_that_the_scheduler_gives_up_is_answered_with_its_error() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/embeddings", r#"{"model":"tiny","input":"x","stream":true}"#.into());
    let job = played.job().await;
    assert_eq!((job.route, job.stream), (Route::Embeddings, false));
    let error = ApiError::new(ErrorKind::Unavailable, "engine_failed", "it did not start")
        .retry_after(Duration::from_millis(2500));
    played.notify(&job, 1, Notice::Failed(error)).await;
    let response = request.await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "3");
    assert_eq!(response.headers()["x-berth-job"], job.id.to_string().as_str());
    assert_eq!(error_of(response).await["code"], "engine_failed");
}

#[tokio::test]
async fn a_plain_request_that_waits_too_long_is_given_up_and_cancelled() {
    let (_nats, mut played, gateway) =
        house(|config| config.gateway.wait_limit = Duration::from_millis(200)).await;
    let request = post(&gateway, "/v1/completions", r#"{"model":"tiny","prompt":"x"}"#.into());
    let job = played.job().await;
    let response = request.await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(error_of(response).await["code"], "wait_limit");
    assert_eq!(played.cancelled().await.job, job.id);
}

#[tokio::test]
async fn a_large_body_goes_by_claim_check_and_arrives_as_it_was() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let filler = "x".repeat(20 << 20);
    let body = format!(r#"{{"messages":"{filler}","model":"tiny"}}"#);
    let request = post(&gateway, "/v1/chat/completions", body.clone());
    let job = played.job().await;
    let Body::Claim { object, len } = &job.body else { panic!("20 MiB inline") };
    let bodies = berth_bus::Bodies::open(&played.bus).await.unwrap();
    assert_eq!(bodies.get(object, *len).await.unwrap(), body.as_bytes());
    played.answer(&job, 200, "application/json", b"{}").await;
    assert_eq!(request.await.unwrap().status(), 200);
}

#[tokio::test]
async fn an_answer_larger_than_the_window_is_streamed_on_credit() {
    let window = 64 * 1024;
    let (_nats, mut played, gateway) = house(|config| config.gateway.window = window).await;
    let request = post(&gateway, "/v1/embeddings", r#"{"model":"tiny","input":"x"}"#.into());
    let job = played.job().await;
    played.go(&job, 1).await;
    played.frame(&job, head(200, "application/json", 1, b"[")).await;
    let (mut sent, mut granted, mut seq) = (1, window, 2);
    let total = 10 * window;
    while sent < total {
        while sent + 8192 <= granted && sent < total {
            played.frame(&job, data(seq, vec![b'1'; 8192])).await;
            (sent, seq) = (sent + 8192, seq + 1);
        }
        if sent < total {
            granted = played.credit().await.granted;
        }
    }
    played.frame(&job, end(seq, Finish::Stop)).await;
    assert_eq!(request.await.unwrap().bytes().await.unwrap().len() as u64, sent);
}
