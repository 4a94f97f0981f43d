//! Who waits hears how far it is, in the words of its route; who is told to come again keeps its place.

use std::time::Duration;

use berth_wire::{ApiError, BeginReply, ErrorKind, Finish, Notice, Stage};

use crate::support::*;

/// As the openai client sends it: its own time-out, and how often it has tried before.
fn sdk(
    gateway: &Gateway,
    body: String,
    timeout: &'static str,
    retries: &'static str,
) -> tokio::task::JoinHandle<reqwest::Response> {
    let request = reqwest::Client::new()
        .post(gateway.url("/v1/chat/completions"))
        .header("x-stainless-read-timeout", timeout)
        .header("x-stainless-retry-count", retries)
        .body(body);
    tokio::spawn(async move { request.send().await.unwrap() })
}

#[tokio::test]
async fn a_retry_takes_over_the_job_that_its_client_was_told_to_come_back_for() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let first = sdk(&gateway, chat(false), "0.5", "0");
    let job = played.job().await;
    let after = job.deadline.unwrap().0 - job.submitted_at.0;
    assert_eq!(after, 15 * 60 * 1000, "it outlives one request's patience");
    let response = first.await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(header(&response, "retry-after").as_deref(), Some("1"));
    assert_eq!(header(&response, "x-berth-job"), Some(job.id.to_string()));
    assert_eq!(error_of(response).await["code"], "wait_limit");
    // Twice: a client may be told so again.
    let second = sdk(&gateway, chat(false), "0.5", "1").await.unwrap();
    assert_eq!((second.status().as_u16(), header(&second, "x-berth-job")), (503, Some(job.id.to_string())));
    let third = sdk(&gateway, chat(false), "60", "2");
    played.answer(&job, 200, "application/json", br#"{"id":"x"}"#).await;
    let third = third.await.unwrap();
    assert_eq!(header(&third, "x-berth-job"), Some(job.id.to_string()));
    assert_eq!(third.text().await.unwrap(), r#"{"id":"x"}"#);
    // The next job is another's: no second one was made, and none was cancelled.
    let other = post(&gateway, "/v1/chat/completions", chat(true));
    let left = played.job().await;
    assert_ne!(left.id, job.id);
    other.abort();
    assert_eq!(played.cancelled().await.job, left.id);
}

#[tokio::test]
async fn an_answer_that_comes_between_two_tries_waits_for_the_second() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let first = sdk(&gateway, chat(false), "0.3", "0");
    let job = played.job().await;
    played.go(&job, 1).await;
    played.frame(&job, head(200, "application/json", 1, b"{\"half\":")).await;
    assert_eq!(first.await.unwrap().status(), 503);
    played.frame(&job, data(2, "1}")).await;
    played.frame(&job, end(3, Finish::Stop)).await;
    let second = sdk(&gateway, chat(false), "60", "1").await.unwrap();
    assert_eq!(second.status(), 200);
    assert_eq!(second.text().await.unwrap(), "{\"half\":1}");
}

#[tokio::test]
async fn only_a_retry_of_the_same_request_takes_a_job_over() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let first = sdk(&gateway, chat(false), "0.3", "0");
    let kept = played.job().await;
    assert_eq!(first.await.unwrap().status(), 503);
    let other_body = chat(false).replace("hi", "ho");
    let mut seen = vec![kept.id];
    for (body, retries) in [(chat(false), "0"), (other_body, "1")] {
        let request = sdk(&gateway, body, "60", retries);
        let job = played.job().await;
        assert!(!seen.contains(&job.id));
        seen.push(job.id);
        request.abort();
        assert_eq!(played.cancelled().await.job, job.id);
    }
}

#[tokio::test]
async fn equal_requests_side_by_side_keep_a_job_each() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let waiting = sdk(&gateway, chat(false), "60", "0");
    let first = played.job().await;
    let retry = sdk(&gateway, chat(false), "60", "1");
    let second = played.job().await;
    assert_ne!(first.id, second.id, "a client that waits is not robbed of its job");
    played.answer(&first, 200, "application/json", b"1").await;
    played.answer(&second, 200, "application/json", b"2").await;
    assert_eq!(waiting.await.unwrap().text().await.unwrap(), "1");
    assert_eq!(retry.await.unwrap().text().await.unwrap(), "2");
}

#[tokio::test]
async fn a_job_that_nobody_comes_back_for_is_cancelled_after_its_grace() {
    let (_nats, mut played, gateway) =
        house(|config| config.gateway.retry_grace = Duration::from_millis(300)).await;
    let first = sdk(&gateway, chat(false), "0.3", "0");
    let job = played.job().await;
    assert_eq!(first.await.unwrap().status(), 503);
    assert_eq!(played.cancelled().await.job, job.id);
    assert!(matches!(played.begin(&job, 1).await, Ok(BeginReply::Refuse { .. })));
}

#[tokio::test]
async fn a_client_that_leaves_by_itself_is_cancelled_though_it_might_ask_again() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = sdk(&gateway, chat(false), "60", "0");
    let job = played.job().await;
    request.abort();
    assert_eq!(played.cancelled().await.job, job.id);
}

#[tokio::test]
async fn a_gateway_that_ends_cancels_what_it_keeps() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let first = sdk(&gateway, chat(false), "0.3", "0");
    let job = played.job().await;
    assert_eq!(first.await.unwrap().status(), 503);
    gateway.begin_shutdown();
    assert_eq!(played.cancelled().await.job, job.id);
    gateway.stop().await;
}

#[tokio::test]
async fn a_deadline_that_passes_ends_the_job_with_504_or_an_error_event() {
    let (_nats, mut played, gateway) = house(|config| config.gateway.grace = Duration::from_millis(50)).await;
    for stream in [false, true] {
        let request = reqwest::Client::new()
            .post(gateway.url("/v1/chat/completions"))
            .header("x-berth-deadline", "0.4")
            .header("x-stainless-retry-count", "0")
            .body(chat(stream));
        let request = tokio::spawn(async move { request.send().await.unwrap() });
        let job = played.job().await;
        assert_eq!(job.deadline.unwrap().0 - job.submitted_at.0, 400, "the job carries it");
        let response = request.await.unwrap();
        if stream {
            assert_eq!(response.status(), 200);
            let text = until_cut(response).await;
            assert!(text.contains("\"code\":\"deadline_exceeded\"") && !text.contains("[DONE]"), "{text}");
        } else {
            assert_eq!(response.status(), 504);
            assert_eq!(error_of(response).await["code"], "deadline_exceeded");
        }
        assert_eq!(played.cancelled().await.job, job.id);
    }
}

#[tokio::test]
async fn a_job_that_the_scheduler_lets_expire_is_answered_with_504() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/chat/completions", chat(false));
    let job = played.job().await;
    let expired = ApiError::new(ErrorKind::Expired, "expired", "it waited too long");
    played.notify(&job, 1, Notice::Failed(expired)).await;
    assert_eq!(request.await.unwrap().status(), 504);
}

#[tokio::test]
async fn a_header_that_makes_no_sense_is_refused_by_its_name() {
    let (_nats, _played, gateway) = house(|_| {}).await;
    for (name, value) in [("x-berth-deadline", "soon"), ("x-berth-deadline", "-1"), ("idempotency-key", " ")]
    {
        let request = reqwest::Client::new().post(gateway.url("/v1/chat/completions")).header(name, value);
        let response = request.body(chat(false)).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let error = error_of(response).await;
        assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some("invalid_header"), Some(name)));
        assert!(error["message"].as_str().unwrap().contains(name));
    }
}

#[tokio::test]
async fn usage_that_was_not_asked_for_is_counted_and_not_shown() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let body = b"data: {\"choices\":[{\"index\":0}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\ndata: [DONE]\n\n";
    for asked in [false, true] {
        let options = format!("\"stream_options\":{{\"include_usage\":{asked}}}");
        let request = post(&gateway, "/v1/chat/completions", chat(true).replace("\"x_own\":1", &options));
        let job = played.job().await;
        played.go(&job, 1).await;
        // Cut where the chunk is.
        played.frame(&job, head(200, EVENTS, 1, &body[..50])).await;
        played.frame(&job, data(2, &body[50..])).await;
        played.frame(&job, end(3, Finish::Stop)).await;
        let text = request.await.unwrap().text().await.unwrap();
        let whole = std::str::from_utf8(body).unwrap();
        if asked {
            assert_eq!(text, whole);
        } else {
            assert_eq!(text, "data: {\"choices\":[{\"index\":0}]}\n\ndata: [DONE]\n\n");
        }
    }
}

#[tokio::test]
async fn what_is_left_out_of_a_stream_is_granted_anew() {
    let window = 4096;
    let (_nats, mut played, gateway) = house(|config| config.gateway.window = window).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    played.go(&job, 1).await;
    let pad = "x".repeat(1000);
    let chunk = format!("data: {{\"choices\":[],\"pad\":\"{pad}\",\"usage\":{{\"prompt_tokens\":1}}}}\n\n");
    let mut frame = head(200, EVENTS, 1, b"data: {}\n\n");
    for seq in 1..4 {
        played.frame(&job, frame).await;
        frame = data(seq + 1, chunk.clone());
    }
    assert!(played.credit().await.granted > window);
    played.frame(&job, data(4, "data: [DONE]\n\n")).await;
    played.frame(&job, end(5, Finish::Stop)).await;
    assert_eq!(request.await.unwrap().text().await.unwrap(), "data: {}\n\ndata: [DONE]\n\n");
}

#[tokio::test]
async fn an_answer_says_where_it_came_from_and_how_long_each_step_took() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for given in [Some(trace), None] {
        let mut request = reqwest::Client::new().post(gateway.url("/v1/chat/completions"));
        if let Some(trace) = given {
            request = request.header("traceparent", trace);
        }
        let request = tokio::spawn(request.body(chat(false)).send());
        let job = played.job().await;
        let loading = Notice::Waiting { stage: Stage::Loading, position: 0, eta: None };
        played.notify(&job, 1, loading).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
        played.answer(&job, 200, "application/json", b"{}").await;
        let response = request.await.unwrap().unwrap();
        let told = |name: &str| header(&response, name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(told("x-berth-route"), "/v1/chat/completions");
        let load: u64 = told("x-berth-load-ms").parse().unwrap();
        let queue: u64 = told("x-berth-queue-ms").parse().unwrap();
        assert!((50..=queue).contains(&load), "load {load}, queue {queue}");
        let own = format!("00-{}-", job.id);
        match given {
            Some(trace) => assert_eq!(told("traceparent"), trace),
            None => assert!(told("traceparent").starts_with(&own), "{}", told("traceparent")),
        }
        assert_eq!(job.traceparent, Some(told("traceparent")));
    }
}

#[tokio::test]
async fn signs_of_life_have_the_form_of_their_route_and_are_neither_numbered_nor_compressed() {
    let (_nats, played, gateway) = house(|config| {
        config.gateway.grace = Duration::from_millis(20);
        config.gateway.heartbeat = Duration::from_millis(40);
    })
    .await;
    add_model(&played, &gateway, &all_routes()).await;
    const COMMENT: &str = ": berth queued position=0 stage=queued";
    const CHUNK: &str =
        "data: {\"berth\":{\"eta_s\":null,\"position\":0,\"stage\":\"queued\"},\"choices\":[],";
    const PING: &str = "event: ping\ndata: {\"type\":\"ping\"}";
    for (path, usage, forms) in [
        ("/v1/chat/completions", false, &[COMMENT][..]),
        ("/v1/chat/completions", true, &[COMMENT, CHUNK]),
        ("/v1/completions", true, &[COMMENT, CHUNK]),
        ("/v1/responses", false, &[COMMENT]),
        ("/v1/messages", false, &[COMMENT, PING]),
    ] {
        let body = format!(r#"{{"model":"all","stream":true,"stream_options":{{"include_usage":{usage}}}}}"#);
        let request = reqwest::Client::new().post(gateway.url(path)).header("accept-encoding", "gzip, br");
        let mut response = request.body(body).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), header(&response, "content-encoding")),
            (200, None),
            "{path}"
        );
        assert!(header(&response, "content-type").unwrap().starts_with(EVENTS), "{path}");
        let mut said = String::new();
        while said.matches("\n\n").count() < 3 * forms.len() {
            said += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
        }
        for (n, event) in said.split_terminator("\n\n").enumerate() {
            let form = forms[n % forms.len()];
            assert!(event.starts_with(form), "{path}, usage {usage}: {event}");
            assert!(!event.lines().any(|line| line.starts_with("id:")), "{path}: {event}");
        }
    }
}
