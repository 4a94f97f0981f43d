//! `/api/v1`: what the leader is asked for whom, and what of its answers a user's key sees.

use berth_bus::{Subscriber, read};
use berth_wire::{
    Class, EngineId, Epoch, JobId, JobView, KeyHash, KeyRecord, OperateReply, OperateRequest, Scope,
};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::support::*;

fn secret(name: &str) -> String {
    format!("berth-{name}-0123456789")
}

fn key(name: &str, scope: Scope) -> KeyRecord {
    KeyRecord { scope, ..KeyRecord::new(name.into(), KeyHash::of(&secret(name))) }
}

/// Takes one question and answers it.
async fn answer(played: &Played, asked: &mut Subscriber, reply: OperateReply) -> OperateRequest {
    let message = tokio::time::timeout(PATIENCE, asked.next()).await.expect("nothing was asked").unwrap();
    played.bus.reply(message.reply.clone(), &reply).await.unwrap();
    read(&message).unwrap()
}

async fn get(gateway: &Gateway, name: &str, path: &str) -> Value {
    let request = reqwest::Client::new().get(gateway.url(path)).bearer_auth(secret(name));
    request.send().await.unwrap().json().await.unwrap()
}

fn jobs() -> OperateReply {
    let job = JobView {
        job: JobId(7),
        model: MODEL.into(),
        running: true,
        position: None,
        class: Class::Standard,
        session: Some("s".into()),
        key: Some("user".into()),
        age_s: 1.0,
        eta_s: None,
        why: Some("other-model serves 3 jobs".into()),
        engine: Some(EngineId::new(Epoch(1), 1)),
        host: Some("secret-host".into()),
        attempts: 1,
    };
    OperateReply::Jobs { jobs: vec![job], total: 1 }
}

#[tokio::test]
async fn a_users_key_sees_its_own_jobs_and_nothing_of_others() {
    let (_nats, played, gateway) =
        house_with_keys(vec![key("user", Scope::User), key("ops", Scope::Admin)]).await;
    let mut asked = played.bus.subscribe(played.bus.subjects.operate()).await.unwrap();

    let (seen, request) =
        tokio::join!(get(&gateway, "user", "/api/v1/jobs"), answer(&played, &mut asked, jobs()));
    let of =
        |key: Option<&str>| OperateRequest::Jobs { waiting: false, limit: 1000, key: key.map(Into::into) };
    assert_eq!(request, of(Some("user")));
    assert_eq!((&seen["jobs"][0]["session"], &seen["jobs"][0]["why"]), (&json!("s"), &Value::Null), "{seen}");
    assert!(!seen.to_string().contains("secret-host") && !seen.to_string().contains("other-model"), "{seen}");

    let (seen, request) =
        tokio::join!(get(&gateway, "ops", "/api/v1/jobs"), answer(&played, &mut asked, jobs()));
    assert_eq!(request, of(None));
    assert_eq!(seen["jobs"][0]["host"], "secret-host");

    for path in ["/api/v1/events", "/api/v1/hosts", "/api/v1/engines"] {
        let refused = get(&gateway, "user", path).await;
        assert_eq!(refused["error"]["code"], "admin_required", "{path}");
    }
    for path in ["load", "unload", "pin", "unpin"] {
        let request = reqwest::Client::new().post(gateway.url(&format!("/api/v1/{path}")));
        let refused = request.bearer_auth(secret("user")).body("{\"model\":\"tiny\"}").send().await.unwrap();
        assert_eq!(refused.status(), 403, "{path}");
    }
    let page = reqwest::get(gateway.url("/dashboard")).await.unwrap();
    assert_eq!(page.status(), 200, "the page holds nothing, and asks for a key itself");
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
}

#[tokio::test]
async fn a_model_that_cannot_be_had_says_so_in_every_list() {
    let (_nats, played, gateway) =
        house_with_keys(vec![key("user", Scope::User), key("ops", Scope::Admin)]).await;
    let mut asked = played.bus.subscribe(played.bus.subjects.operate()).await.unwrap();
    let said = "no engine for `org/tiny:1.5` could be started: on secret-host";
    let view = json!({
        "model": MODEL, "aliases": ["tiny"], "engine": "sim", "state": "failed", "hosts": [], "engines": [],
        "pinned": false, "memory": null, "estimated": null, "measured": null, "context": null, "concurrency": 1,
        "waiting": 0, "running": 0, "wait_s": null, "leases": 0, "hints": 0, "asked_for": false, "error": said,
    });
    let reply = || OperateReply::Models(vec![serde_json::from_value(view.clone()).unwrap()]);
    let (seen, request) =
        tokio::join!(get(&gateway, "ops", "/v1/models"), answer(&played, &mut asked, reply()));
    assert_eq!(request, OperateRequest::Models);
    let model = &seen["data"][0];
    assert_eq!((&model["state"], &model["error"]), (&json!("failed"), &json!(said)), "{seen}");
    // From memory.
    let one = get(&gateway, "user", "/v1/models/tiny").await;
    assert_eq!(one["state"], "failed");
    assert!(one["error"].is_string() && !one.to_string().contains("secret-host"), "{one}");
    let (seen, _) =
        tokio::join!(get(&gateway, "user", "/api/v1/models"), answer(&played, &mut asked, reply()));
    assert!(seen["models"][0]["error"].is_string() && !seen.to_string().contains("secret-host"), "{seen}");
}

#[tokio::test]
async fn an_order_names_a_model_by_its_alias_and_says_what_is_wrong() {
    let (_nats, played, gateway) = house(|_| {}).await;
    let mut asked = played.bus.subscribe(played.bus.subjects.operate()).await.unwrap();
    let post = |body: Value| {
        let request = reqwest::Client::new().post(gateway.url("/api/v1/unload")).json(&body).send();
        async move { request.await.unwrap() }
    };
    let done = OperateReply::Done { engines: vec![EngineId::new(Epoch(1), 1)], already: false };
    let (response, request) = tokio::join!(
        post(json!({"model": "tiny", "host": "h", "force": true})),
        answer(&played, &mut asked, done)
    );
    let expected = OperateRequest::Unload { model: MODEL.into(), host: Some("h".into()), force: true };
    assert_eq!((response.status().as_u16(), request), (202, expected));
    let nothing = OperateReply::Done { engines: Vec::new(), already: true };
    let (response, _) = tokio::join!(post(json!({"model": "tiny"})), answer(&played, &mut asked, nothing));
    assert_eq!(response.status(), 200);
    let document: Value = reqwest::get(gateway.url("/openapi.json")).await.unwrap().json().await.unwrap();
    for path in ["/api/v1/load", "/api/v1/unload", "/api/v1/pin", "/api/v1/unpin"] {
        let told = &document["paths"][path]["post"]["responses"];
        assert!(told["200"].is_object() && told["202"].is_object(), "{path}: {told}");
    }
    for (body, param) in [
        (json!({}), "model"),
        (json!({"model": "tiny", "force": "yes"}), "force"),
        (json!({"model": "tiny", "gpu": 1}), "gpu"),
    ] {
        let error = error_of(post(body).await).await;
        assert_eq!(error["param"], param, "{error}");
    }
}
