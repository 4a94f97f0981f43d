//! `/upstream/{model}/{path}`: any method and any bytes, through the same queue.

use berth_wire::{Body, Finish, KeyHash, KeyRecord, Route, Scope, Target};
use reqwest::Method;

use crate::support::*;

#[tokio::test]
async fn any_method_path_and_query_reach_the_engine_as_they_are() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let cases = [
        (Method::GET, "/upstream/tiny/props", "/props"),
        (
            Method::GET,
            "/upstream/org/tiny:1.5/slots?fail_on_no_slot=1&x=%20",
            "/slots?fail_on_no_slot=1&x=%20",
        ),
        (Method::DELETE, "/upstream/org%2Ftiny%3a1.5/a%2Fb//c", "/a%2Fb//c"),
        (Method::OPTIONS, "/upstream/tiny", "/"),
        (Method::PUT, "/upstream/tiny/", "/"),
        (Method::HEAD, "/upstream/tiny/x", "/x"),
    ];
    for (method, path, at_engine) in cases {
        let request = reqwest::Client::new().request(method.clone(), gateway.url(path)).send();
        let request = tokio::spawn(request);
        let job = played.job().await;
        assert_eq!((job.route, job.model.as_str()), (Route::Upstream, MODEL), "{path}");
        let target = Target { method: method.to_string(), path: at_engine.into() };
        assert_eq!(job.target, Some(target), "{path}");
        assert_eq!((job.content_type.as_deref(), job.body.len()), (None, 0), "{path}");
        let body: &[u8] = if method == Method::HEAD { b"" } else { b"it is" };
        played.answer(&job, 418, "text/x-tea", body).await;
        let response = request.await.unwrap().unwrap();
        assert_eq!(response.status(), 418, "{path}");
        assert_eq!(response.headers()["content-type"], "text/x-tea", "{path}");
        // Of HEAD the engine tells no length here, and it is not 0.
        let told = header(&response, "content-length").is_some();
        assert_eq!(told, method != Method::HEAD, "{path}");
        assert_eq!(response.bytes().await.unwrap(), body, "{path}");
    }
}

#[tokio::test]
async fn an_answer_to_head_tells_the_length_that_the_engine_tells() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = tokio::spawn(reqwest::Client::new().head(gateway.url("/upstream/tiny/file")).send());
    let job = played.job().await;
    played.go(&job, 1).await;
    let mut frame = head(200, "application/octet-stream", 1, b"");
    frame.head.as_mut().unwrap().length = Some(1_234_567);
    played.frame(&job, frame).await;
    played.frame(&job, end(2, Finish::Stop)).await;
    let response = request.await.unwrap().unwrap();
    assert_eq!(header(&response, "content-length").as_deref(), Some("1234567"));
    assert_eq!(response.bytes().await.unwrap(), "");
}

#[tokio::test]
async fn a_body_of_any_type_is_passed_on_and_an_answer_comes_as_the_engine_sends_it() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = reqwest::Client::new()
        .post(gateway.url("/upstream/tiny/api/chat"))
        .header("content-type", "application/x-own")
        .body(&b"\0\xff"[..]);
    let request = tokio::spawn(request.send());
    let job = played.job().await;
    assert_eq!(job.body, Body::Inline((&b"\0\xff"[..]).into()));
    assert_eq!(job.content_type.as_deref(), Some("application/x-own"));
    played.go(&job, 1).await;
    played.frame(&job, head(200, "application/x-ndjson", 1, b"{\"n\":1}\n")).await;
    let mut response = request.await.unwrap().unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "{\"n\":1}\n");
    played.frame(&job, data(2, "{\"n\":2}\n")).await;
    assert_eq!(response.chunk().await.unwrap().unwrap(), "{\"n\":2}\n");
    played.frame(&job, end(3, Finish::Stop)).await;
    assert_eq!(response.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn events_from_upstream_end_as_the_engine_ends_them() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/upstream/tiny/completion", r#"{"prompt":"x","stream":true}"#.into());
    let job = played.job().await;
    played.answer(&job, 200, EVENTS, b"data: {\"stop\":true}\n\n").await;
    let response = request.await.unwrap();
    assert_eq!(response.headers()["content-type"], EVENTS);
    assert_eq!(response.text().await.unwrap(), "data: {\"stop\":true}\n\n");
}

/// Whose requests reach the queue, and what the others are told. The played engine is a simulator, which may be any.
#[tokio::test]
async fn what_changes_an_engine_is_for_administrators_and_what_its_scheduler_must_know_of_for_nobody() {
    let user = KeyRecord::new("user".into(), KeyHash::of("berth-user"));
    let admin =
        KeyRecord { scope: Scope::Admin, ..KeyRecord::new("admin".into(), KeyHash::of("berth-admin")) };
    let (_nats, mut played, gateway) = house_with_keys(vec![user, admin]).await;
    let ask = |key: &str, method: Method, path: &str| {
        let request = reqwest::Client::new().request(method, gateway.url(&format!("/upstream/tiny{path}")));
        tokio::spawn(request.bearer_auth(format!("berth-{key}")).send())
    };
    for (method, path) in [
        (Method::POST, "/v1/load_lora_adapter"),
        (Method::POST, "/V1/Load_Lora_Adapter/"),
        (Method::POST, "//v1%2fload_lora_adapter?x=1"),
        (Method::POST, "/x/%252e%252e/slots/0?action=erase"),
        (Method::DELETE, "/api/delete"),
        (Method::POST, "/props"),
    ] {
        let refused = ask("user", method.clone(), path).await.unwrap().unwrap();
        assert_eq!(
            (refused.status().as_u16(), header(&refused, "x-should-retry").as_deref()),
            (403, Some("false")),
            "{path}"
        );
        assert_eq!(error_of(refused).await["code"], "admin_required", "{path}");
        let admitted = ask("admin", method, path);
        let job = played.job().await;
        played.answer(&job, 200, "text/plain", b"done").await;
        assert_eq!(admitted.await.unwrap().unwrap().status(), 200, "{path}");
    }
    for path in ["/sleep?level=1", "/wake_up", "/models/load", "/release_memory_occupation"] {
        for key in ["user", "admin"] {
            let refused = ask(key, Method::POST, path).await.unwrap().unwrap();
            assert_eq!(refused.status(), 403, "{path}");
            let error = error_of(refused).await;
            assert_eq!(error["code"], "scheduler_decides", "{path}");
            assert!(error["message"].as_str().unwrap().contains("lease"), "{error}");
        }
    }
    let reads = ask("user", Method::GET, "/props");
    let job = played.job().await;
    played.answer(&job, 200, "text/plain", b"told").await;
    assert_eq!(reads.await.unwrap().unwrap().status(), 200);

    // Where nobody needs a key everybody administers, and the scheduler's books are still its own.
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let refused = post(&gateway, "/upstream/tiny/sleep", String::new()).await.unwrap();
    assert_eq!(error_of(refused).await["code"], "scheduler_decides");
    let admitted = post(&gateway, "/upstream/tiny/v1/load_lora_adapter", "{}".into());
    let job = played.job().await;
    played.answer(&job, 200, "text/plain", b"done").await;
    assert_eq!(admitted.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_path_without_a_known_model_says_so() {
    let (_nats, _played, gateway) = house(|_| {}).await;
    for (path, status, code) in [
        ("/upstream/tinny/props", 404, "model_not_found"),
        ("/upstream/org/tiny/props", 404, "model_not_found"),
        ("/upstream/%ff/props", 400, "invalid_path"),
        ("/upstream//props", 400, "invalid_path"),
        ("/upstream/", 400, "invalid_path"),
        ("/upstream", 404, "unknown_url"),
    ] {
        let response = reqwest::get(gateway.url(path)).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path}");
        assert_eq!(error_of(response).await["code"], code, "{path}");
    }
    for method in ["TRACE", "PROPFIND"] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let refused =
            reqwest::Client::new().request(method, gateway.url("/upstream/tiny/x")).send().await.unwrap();
        assert_eq!(refused.status(), 405);
        assert_eq!(
            header(&refused, "allow").as_deref(),
            Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
        );
        assert_eq!(error_of(refused).await["code"], "method_not_allowed");
    }
}
