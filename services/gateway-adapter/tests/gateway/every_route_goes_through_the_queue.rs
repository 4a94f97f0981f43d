//! Each route is a job of its own name whose body and answer are relayed byte for byte.

use std::time::Duration;

use berth_wire::{ApiError, Body, EngineKind, ErrorKind, Finish, Route};

use crate::support::*;

#[tokio::test]
async fn each_route_is_relayed_as_it_came_by_each_of_its_paths() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    add_model(&played, &gateway, &all_routes()).await;
    let client = reqwest::Client::new();
    for route in Route::ALL {
        for path in std::iter::once(&route.path()).chain(route.aliases()) {
            let (kind, body) = match route.takes_form() {
                true => form("all"),
                false => {
                    ("application/json".into(), br#"{ "own":1.0e3, "model":"all","input":"x" }"#.to_vec())
                }
            };
            let request = client.post(gateway.url(path)).header("content-type", &kind).body(body.clone());
            let request = tokio::spawn(request.send());
            let job = played.job().await;
            assert_eq!((job.route, job.model.as_str(), job.stream), (route, "org/all", false), "{path}");
            assert_eq!(job.body, Body::Inline(body.into()), "{path}");
            assert_eq!(job.content_type, route.takes_form().then_some(kind), "{path}");
            assert_eq!(job.target, None, "{path}");
            played.answer(&job, 202, "application/json; charset=utf-8", b"{\"odd\" : 1.0}").await;
            let response = request.await.unwrap().unwrap();
            assert_eq!(response.status(), 202, "{path}");
            assert_eq!(response.headers()["content-type"], "application/json; charset=utf-8", "{path}");
            assert_eq!(response.headers()["content-length"], "13", "{path}");
            assert_eq!(response.text().await.unwrap(), "{\"odd\" : 1.0}", "{path}");
        }
    }
}

#[tokio::test]
async fn only_routes_that_have_streams_are_streamed_and_each_ends_by_its_own_marker() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    add_model(&played, &gateway, &all_routes()).await;
    let client = reqwest::Client::new();
    let ends: [(Route, &'static [u8]); 6] = [
        (Route::Completions, b"data: [DONE]\n\n"),
        (Route::Responses, b"event: response.completed\ndata: {\"type\":\"response.completed\"}\n\n"),
        (Route::Responses, b"event: response.incomplete\ndata: {}\n\n"),
        (Route::Messages, b"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"),
        (Route::ImageGenerations, b"data: {\"type\":\"image_generation.completed\",\"b64_json\":\"\"}\n\n"),
        (Route::Transcriptions, b"data: {\"type\":\"transcript.text.done\",\"text\":\"x\"}\n\n"),
    ];
    for (route, end_of_it) in ends {
        for whole in [true, false] {
            let request = client.post(gateway.url(route.path())).body(r#"{"model":"all","stream":true}"#);
            let request = tokio::spawn(request.send());
            let job = played.job().await;
            assert!(job.stream, "{route:?}");
            played.go(&job, 1).await;
            played.frame(&job, head(200, EVENTS, 1, b"data: {\"delta\":1}\n\n")).await;
            if whole {
                played.frame(&job, data(2, end_of_it)).await;
            }
            played.frame(&job, end(if whole { 3 } else { 2 }, Finish::Stop)).await;
            let response = request.await.unwrap().unwrap();
            let text = if whole { response.text().await.unwrap() } else { until_cut(response).await };
            assert!(text.starts_with("data: {\"delta\":1}\n\n"), "{route:?}: {text}");
            assert_eq!(text.as_bytes().ends_with(end_of_it), whole, "{route:?}: {text}");
            assert_eq!(text.contains("ended before it was complete"), !whole, "{route:?}: {text}");
        }
    }
    for route in [Route::Embeddings, Route::CountTokens, Route::Rerank, Route::Speech] {
        let request = post(&gateway, route.path(), r#"{"model":"all","stream":true}"#.into());
        let job = played.job().await;
        assert!(!job.stream, "{route:?}");
        played.answer(&job, 200, "application/json", b"{}").await;
        assert_eq!(request.await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn sound_is_passed_on_as_it_comes() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/audio/speech", r#"{"model":"tiny","input":"x"}"#.into());
    let job = played.job().await;
    played.go(&job, 1).await;
    played.frame(&job, head(200, "audio/mpeg", 1, b"\xff\xfb\x00")).await;
    let mut response = request.await.unwrap();
    assert_eq!(response.headers()["content-type"], "audio/mpeg");
    assert_eq!(response.chunk().await.unwrap().unwrap(), &b"\xff\xfb\x00"[..]);
    played.frame(&job, data(2, &b"\x01"[..])).await;
    assert_eq!(response.chunk().await.unwrap().unwrap(), &b"\x01"[..]);
    played.frame(&job, end(3, Finish::Stop)).await;
    assert_eq!(response.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn sound_that_breaks_off_is_an_error_or_a_connection_that_is_cut() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    for late in [false, true] {
        let request = post(&gateway, "/v1/audio/speech", r#"{"model":"tiny","input":"x"}"#.into());
        let job = played.job().await;
        played.go(&job, 1).await;
        let died = ApiError::new(ErrorKind::EngineFailed, "engine_died", "it died");
        if late {
            played.frame(&job, head(200, "audio/mpeg", 1, b"\xff")).await;
            let mut response = request.await.unwrap();
            assert_eq!(response.chunk().await.unwrap().unwrap(), &b"\xff"[..]);
            played.frame(&job, end(2, Finish::Error(died))).await;
            assert!(response.chunk().await.is_err(), "the client must see that some of it is missing");
        } else {
            let mut frame = head(200, "audio/mpeg", 1, b"\xff");
            frame.end = end(1, Finish::Error(died)).end;
            played.frame(&job, frame).await;
            let response = request.await.unwrap();
            assert_eq!(response.status(), 502);
            assert_eq!(error_of(response).await["code"], "engine_died");
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_a_sound_holds_no_more_than_its_window() {
    let window = 64 * 1024;
    let (_nats, mut played, gateway) = house(|config| config.gateway.window = window).await;
    let request = post(&gateway, "/v1/audio/speech", r#"{"model":"tiny","input":"x"}"#.into());
    let job = played.job().await;
    played.go(&job, 1).await;
    played.frame(&job, head(200, "audio/wav", 1, b"R")).await;
    let response = request.await.unwrap();
    let (mut sent, mut granted, mut seq) = (1, window, 2);
    // Until the connection is full, credit comes; then none.
    while let Some(credit) = {
        while sent + 8192 <= granted {
            played.frame(&job, data(seq, vec![b'1'; 8192])).await;
            (sent, seq) = (sent + 8192, seq + 1);
        }
        played.no_credit_within(Duration::from_millis(700)).await
    } {
        granted = credit;
        assert!(sent < 64 << 20, "credit never ends");
    }
    assert!(granted - sent < 8192, "all that was granted is sent, and no more is granted");
    let reader = tokio::spawn(response.bytes());
    played.credit().await;
    played.frame(&job, end(seq, Finish::Stop)).await;
    assert_eq!(reader.await.unwrap().unwrap().len() as u64, sent);
}

#[tokio::test]
async fn a_route_that_the_engine_does_not_serve_is_refused_before_the_queue() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let mut llama = all_routes();
    llama.engine.kind = EngineKind::LlamaCpp;
    add_model(&played, &gateway, &llama).await;
    let response = post(&gateway, "/v1/audio/speech", r#"{"model":"all","input":"x"}"#.into()).await.unwrap();
    assert_eq!(response.status(), 501);
    assert_eq!(response.headers()["x-should-retry"], "false");
    let error = error_of(response).await;
    assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some("route_not_served"), Some("model")));
    let message = error["message"].as_str().unwrap();
    for part in ["`org/all`", "(llama.cpp)", "/v1/audio/speech", "/v1/chat/completions, ", "/upstream"] {
        assert!(message.contains(part), "{part} is missing in {message}");
    }
    // What a configuration declares counts more than the kind.
    llama.id = "declared".into();
    llama.aliases.clear();
    llama.engine.routes = Some(vec![Route::Speech]);
    add_model(&played, &gateway, &llama).await;
    let response =
        post(&gateway, "/v1/embeddings", r#"{"model":"declared","input":"x"}"#.into()).await.unwrap();
    assert_eq!(response.status(), 501);
    let message = error_of(response).await["message"].to_string();
    assert!(message.contains("it serves /v1/audio/speech;"), "{message}");
    let request = post(&gateway, "/v1/audio/speech", r#"{"model":"declared","input":"x"}"#.into());
    let job = played.job().await;
    assert_eq!((job.route, job.model.as_str()), (Route::Speech, "declared"), "nothing was queued before");
    played.answer(&job, 200, "audio/wav", b"x").await;
    assert_eq!(request.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_bad_form_is_refused_by_the_name_of_its_field() {
    let (_nats, _played, gateway) = house(|_| {}).await;
    let client = reqwest::Client::new();
    let send = async |kind: &str, body: Vec<u8>| {
        let request = client.post(gateway.url("/v1/audio/transcriptions")).header("content-type", kind);
        let response = request.body(body).send().await.unwrap();
        assert_eq!(response.status(), 400);
        error_of(response).await
    };
    let (kind, whole) = form("tiny");
    let cut = whole[..whole.len() - 12].to_vec();
    let error = send(&kind, cut).await;
    assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some("invalid_form"), Some("model")));
    let error = send("multipart/form-data", whole.clone()).await;
    assert!(error["message"].as_str().unwrap().contains("boundary"), "{error}");
    let error = send("audio/wav", whole.clone()).await;
    assert_eq!(error["param"], "content-type");
    let error = send("application/json", whole.clone()).await;
    assert!(error["message"].as_str().unwrap().contains("the body is a form"), "{error}");
    let error = send(&kind, br#"{"model":"tiny"}"#.to_vec()).await;
    assert!(error["message"].as_str().unwrap().contains("the body is JSON"), "{error}");
    let twice = [&whole[..whole.len() - 8], &whole].concat();
    let error = send(&kind, twice).await;
    assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some("invalid_form"), Some("model")));
    let nameless = String::from_utf8_lossy(&whole).replace("name=\"model\"", "name=\"modell\"").into_bytes();
    assert_eq!(send(&kind, nameless).await["code"], "missing_model");
}
