//! On Anthropic's routes every error of ours is in Anthropic's shape, whatever made it and however late.

use std::time::Duration;

use berth_testkit::wait::until;
use berth_wire::{ApiError, ErrorKind, Finish, Notice};
use reqwest::{Method, Response};

use crate::support::*;

fn message(stream: bool) -> String {
    format!(
        r#"{{"model":"all","stream":{stream},"max_tokens":4,"messages":[],"metadata":{{"user_id":"u_session_1"}}}}"#
    )
}

async fn said(response: Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    let id = response.headers()["request-id"].to_str().unwrap().to_owned();
    assert_eq!(response.headers()["x-request-id"], id.as_str());
    let value: serde_json::Value = response.json().await.unwrap();
    assert_eq!((value["type"].as_str(), value["request_id"].as_str()), (Some("error"), Some(id.as_str())));
    assert_eq!(value.as_object().unwrap().len(), 3, "{value}");
    let text = |key: &str| value["error"][key].as_str().unwrap_or_default().to_owned();
    (status, text("type"), text("message"))
}

#[tokio::test]
async fn whatever_is_refused_before_it_is_a_job_is_refused_in_anthropics_words() {
    let (_nats, played, gateway) = house(|config| {
        config.gateway.body_limit = 1000;
        config.gateway.body_timeout = Duration::from_millis(100);
    })
    .await;
    add_model(&played, &gateway, &all_routes()).await;
    let client = reqwest::Client::new();
    let send = async |method: Method, path: &str, body: String| {
        let request = client.request(method, gateway.url(path)).header("x-request-id", "mine").body(body);
        said(request.send().await.unwrap()).await
    };
    let messages = "/v1/messages";
    let cases = [
        (Method::POST, messages, "{".into(), 400, "invalid_request_error"),
        (Method::POST, messages, "{}".into(), 400, "invalid_request_error"),
        (Method::POST, messages, message(true).replace("all", "none"), 404, "not_found_error"),
        (
            Method::POST,
            "/v1/messages/count_tokens",
            message(false).replace("all", "tiny"),
            501,
            "invalid_request_error",
        ),
        (Method::POST, messages, "x".repeat(1001), 413, "request_too_large"),
        (Method::GET, messages, String::new(), 405, "invalid_request_error"),
        (Method::POST, "/v1/messages/batches", String::new(), 404, "not_found_error"),
    ];
    for (method, path, body, status, kind) in cases {
        let (told, told_kind, text) = send(method, path, body).await;
        assert_eq!((told, told_kind.as_str()), (status, kind), "{path}: {text}");
        assert!(!text.is_empty());
    }
    let endless = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let slow = client.post(gateway.url(messages)).body(reqwest::Body::wrap_stream(endless));
    assert_eq!(said(slow.send().await.unwrap()).await.0, 408);
}

#[tokio::test]
async fn overload_is_529_and_other_failures_keep_their_status() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    add_model(&played, &gateway, &all_routes()).await;
    let cases = [
        (ErrorKind::Overloaded, "queue_full", 529, "overloaded_error"),
        (ErrorKind::Overloaded, "requests_per_minute", 429, "rate_limit_error"),
        (ErrorKind::Unavailable, "engine_failed", 503, "api_error"),
        (ErrorKind::Expired, "expired", 504, "timeout_error"),
        (ErrorKind::EngineFailed, "engine_died", 502, "api_error"),
    ];
    for (kind, code, status, told) in cases {
        for stream in [true, false] {
            let request = post(&gateway, "/v1/messages", message(stream));
            let job = played.job().await;
            assert_eq!(job.session.as_deref(), Some("u_session_1"));
            let error = ApiError::new(kind, code, "why").retry_after(Duration::from_secs(7));
            played.notify(&job, 1, Notice::Failed(error)).await;
            let response = request.await.unwrap();
            assert_eq!(response.headers()["retry-after"], "7");
            assert_eq!(response.headers()["x-berth-job"], job.id.to_string().as_str());
            assert_eq!(said(response).await, (status, told.into(), "why".into()), "{code}");
        }
    }
}

#[tokio::test]
async fn sdks_are_told_not_to_try_again_what_stays_so_or_lasts_longer_than_they_wait() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    add_model(&played, &gateway, &all_routes()).await;
    let failed = |after| {
        let error = ApiError::new(ErrorKind::Unavailable, "engine_start_failed", "it did not start");
        error.retry_after(Duration::from_secs(after))
    };
    let never = || ApiError::new(ErrorKind::CannotFit, "model_cannot_fit", "too large");
    let cases = [
        (never(), "600", None, Some("false")),
        (failed(200), "600", Some("60"), Some("false")),
        (failed(40), "600", Some("40"), None),
        (failed(40), "30", Some("40"), Some("false")),
    ];
    for path in ["/v1/messages", "/v1/chat/completions"] {
        for (error, time_out, after, retry) in &cases {
            let request = reqwest::Client::new().post(gateway.url(path)).body(message(true));
            let request = tokio::spawn(request.header("x-stainless-timeout", *time_out).send());
            let job = played.job().await;
            played.notify(&job, 1, Notice::Failed(error.clone())).await;
            let response = request.await.unwrap().unwrap();
            assert_eq!(response.status(), 503, "{path} {error}");
            assert_eq!(header(&response, "retry-after").as_deref(), *after, "{path} {error}");
            assert_eq!(header(&response, "x-should-retry").as_deref(), *retry, "{path} {error} {time_out}");
        }
    }
}

#[tokio::test]
async fn an_error_within_a_stream_is_an_event_of_its_own_name() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    add_model(&played, &gateway, &all_routes()).await;
    for died in [true, false] {
        let request = post(&gateway, "/v1/messages", message(true));
        let job = played.job().await;
        played.go(&job, 1).await;
        played.frame(&job, head(200, EVENTS, 1, b"event: ping\ndata: {}\n\n")).await;
        let error = ApiError::new(ErrorKind::EngineFailed, "engine_died", "it died");
        played.frame(&job, end(2, if died { Finish::Error(error) } else { Finish::Stop })).await;
        let response = request.await.unwrap();
        let id = response.headers()["request-id"].to_str().unwrap().to_owned();
        let text = until_cut(response).await;
        let error = text
            .strip_prefix("event: ping\ndata: {}\n\nevent: error\ndata: ")
            .unwrap_or_else(|| panic!("{text}"));
        let value: serde_json::Value = serde_json::from_str(error.trim_end()).unwrap();
        assert_eq!(
            (value["type"].as_str(), value["error"]["type"].as_str()),
            (Some("error"), Some("api_error"))
        );
        assert_eq!(value["request_id"], id.as_str());
        let wanted = if died { "it died" } else { "ended before it was complete" };
        assert!(value["error"]["message"].as_str().unwrap().contains(wanted), "{value}");
    }
}

#[tokio::test]
async fn an_engines_refusal_after_the_grace_is_said_in_the_routes_words() {
    let (_nats, mut played, gateway) = house(|config| config.gateway.grace = Duration::from_millis(50)).await;
    add_model(&played, &gateway, &all_routes()).await;
    let cases: [(&'static [u8], &str); 2] = [
        (
            br#"{"error":{"code":400,"message":"too long"}}"#,
            r#""error":{"type":"invalid_request_error","message":"too long"}"#,
        ),
        (
            br#"{"type":"error","error":{"type":"overloaded_error","message":"m","x":1}}"#,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"m","x":1}}"#,
        ),
    ];
    for (body, wanted) in cases {
        let request = post(&gateway, "/v1/messages", message(true));
        let job = played.job().await;
        let response = request.await.unwrap();
        assert_eq!(response.status(), 200);
        played.answer(&job, 400, "application/json", body).await;
        let text = until_cut(response).await;
        assert!(text.contains("event: error\ndata: {") && text.contains(wanted), "{text}");
    }
}

#[tokio::test]
async fn an_engines_own_errors_are_in_anthropics_shape_on_each_way_to_the_client() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    add_model(&played, &gateway, &all_routes()).await;
    const OWN: &[u8] = br#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#;
    let told = (400, "invalid_request_error".to_owned(), "too long".to_owned());
    for (path, stream) in
        [("/v1/messages", false), ("/v1/messages", true), ("/v1/messages/count_tokens", false)]
    {
        let request = post(&gateway, path, message(stream));
        let job = played.job().await;
        played.answer(&job, 400, "application/json; charset=utf-8", OWN).await;
        assert_eq!(said(request.await.unwrap()).await, told, "{path}, stream: {stream}");
    }
    // Done once for a key, and given again.
    for again in [false, true] {
        let request = reqwest::Client::new().post(gateway.url("/v1/messages")).body(message(false));
        let request = tokio::spawn(request.header("idempotency-key", "k").send());
        if !again {
            let job = played.job().await;
            played.answer(&job, 400, "application/json", OWN).await;
        }
        let value: serde_json::Value = request.await.unwrap().unwrap().json().await.unwrap();
        assert_eq!(value["error"]["type"], "invalid_request_error", "again: {again}: {value}");
    }
    // In a stream that has begun, cut anywhere.
    let request = post(&gateway, "/v1/messages", message(true));
    let job = played.job().await;
    played.go(&job, 1).await;
    let begun = b"event: ping\ndata: {}\n\nevent: error\ndata: {\"code\":500,\"mess";
    played.frame(&job, head(200, EVENTS, 1, begun)).await;
    played.frame(&job, data(2, "age\":\"it broke\",\"type\":\"server_error\"}\n\n")).await;
    played.frame(&job, end(3, Finish::Stop)).await;
    let text = request.await.unwrap().text().await.unwrap();
    let event = "event: ping\ndata: {}\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\
                 \"message\":\"it broke\"},\"request_id\":\"req-";
    assert!(text.starts_with(event), "{text}");
}

#[tokio::test]
async fn a_gateway_that_ends_says_so_in_anthropics_words() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    add_model(&played, &gateway, &all_routes()).await;
    // An answer that runs keeps it from ending.
    let running = post(&gateway, "/v1/messages", message(true));
    let job = played.job().await;
    played.go(&job, 1).await;
    played.frame(&job, head(200, EVENTS, 1, b"event: ping\ndata: {}\n\n")).await;
    let running = running.await.unwrap();
    gateway.begin_shutdown();
    until("it refuses", PATIENCE, async || {
        let response = post(&gateway, "/v1/messages", message(false).replace("all", "none")).await.unwrap();
        let (status, kind, _) = said(response).await;
        (status, kind.as_str()) == (503, "api_error")
    })
    .await;
    played.frame(&job, data(2, "event: message_stop\ndata: {}\n\n")).await;
    played.frame(&job, end(3, Finish::Stop)).await;
    assert!(running.text().await.unwrap().ends_with("event: message_stop\ndata: {}\n\n"));
    gateway.stop().await;
}
