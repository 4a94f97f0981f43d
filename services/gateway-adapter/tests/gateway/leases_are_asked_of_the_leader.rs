//! Leases: the gateway checks, resolves names, asks whoever leads, and answers in its own words.

use std::time::Duration;

use berth_bus::{Subscriber, read};
use berth_wire::{ApiError, ErrorKind, Lease, LeaseReply, LeaseRequest, LeaseState, LeaseStatus, Timestamp};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::support::*;

async fn ask(gateway: &Gateway, path: &str, body: &Value) -> reqwest::Response {
    reqwest::Client::new().post(gateway.url(path)).json(body).send().await.unwrap()
}

/// Takes one question and answers it.
async fn answer(played: &Played, asked: &mut Subscriber, reply: LeaseReply) -> LeaseRequest {
    let message = tokio::time::timeout(PATIENCE, asked.next()).await.expect("nothing was asked").unwrap();
    played.bus.reply(message.reply.clone(), &reply).await.unwrap();
    read(&message).unwrap()
}

fn held() -> LeaseStatus {
    LeaseStatus {
        lease: Lease {
            session: "s".into(),
            model: MODEL.into(),
            key: None,
            since: Timestamp(0),
            ttl: Duration::from_secs(120),
            expires: Timestamp(1_000),
            keep_context: true,
        },
        state: LeaseState::Loading,
        position: 1,
        eta: None,
        left: Duration::from_secs(120),
    }
}

#[tokio::test]
async fn names_are_resolved_and_answers_have_their_shape() {
    let (_nats, played, gateway) = house(|_| {}).await;
    let mut asked = played.bus.subscribe(played.bus.subjects.lease()).await.unwrap();

    let body = json!({"sessionKey": "s", "model": "tiny"});
    let (response, request) =
        tokio::join!(ask(&gateway, "/lease", &body), answer(&played, &mut asked, LeaseReply::Held(held())));
    let lease_that = |ttl, keep_context| LeaseRequest::Lease {
        session: "s".into(),
        model: MODEL.into(),
        key: None,
        ttl,
        keep_context,
    };
    let lease_for = |ttl| lease_that(ttl, None);
    assert_eq!(request, lease_for(None), "the leader knows how long is usual");
    assert_eq!(response.status(), 200);
    let lease: Value = response.json().await.unwrap();
    let shape = json!({"sessionKey": "s", "model": MODEL, "state": "loading", "position": 1, "etaSeconds": null,
                       "expiresAt": "1970-01-01T00:00:01.000Z", "expiresInSeconds": 120.0, "keepContext": true});
    assert_eq!(lease, shape);

    let body = json!({"sessionKey": "s", "model": "tiny", "ttlSeconds": 86_401});
    let (_, request) =
        tokio::join!(ask(&gateway, "/lease", &body), answer(&played, &mut asked, LeaseReply::Held(held())));
    assert_eq!(
        request,
        lease_for(Some(Duration::from_secs(86_401))),
        "the leader knows how long is too long"
    );

    let body = json!({"sessionKey": "s", "model": "tiny", "ttlSeconds": 60.5});
    let (_, request) =
        tokio::join!(ask(&gateway, "/lease", &body), answer(&played, &mut asked, LeaseReply::Held(held())));
    assert_eq!(request, lease_for(Some(Duration::from_millis(60_500))), "a number in any form");

    let body = json!({"sessionKey": "s", "model": "tiny", "keepContext": true});
    let (_, request) =
        tokio::join!(ask(&gateway, "/lease", &body), answer(&played, &mut asked, LeaseReply::Held(held())));
    assert_eq!(request, lease_that(None, Some(true)));

    let reply = LeaseReply::Released { models: vec![MODEL.into()] };
    let body = json!({"sessionKey": "s", "model": "tiny"});
    let (response, request) =
        tokio::join!(ask(&gateway, "/release", &body), answer(&played, &mut asked, reply));
    assert_eq!(request, LeaseRequest::Release { session: "s".into(), model: Some(MODEL.into()), key: None });
    let released: Value = response.json().await.unwrap();
    assert_eq!(released, json!({"sessionKey": "s", "released": [MODEL]}));

    let reply = LeaseReply::Leases { leases: vec![held()], total: 1 };
    let url = gateway.url("/leases?sessionKey=a%20b");
    let (response, request) = tokio::join!(reqwest::get(url), answer(&played, &mut asked, reply));
    assert_eq!(request, LeaseRequest::List { session: Some("a b".into()), key: None });
    let listed: Value = response.unwrap().json().await.unwrap();
    assert_eq!(listed, json!({"leases": [shape], "total": 1}));

    let body = json!({"sessionKey": "s", "model": "tiny", "inSeconds": 2.5});
    let (response, request) =
        tokio::join!(ask(&gateway, "/hint", &body), answer(&played, &mut asked, LeaseReply::Noted));
    let lead = Duration::from_millis(2500);
    assert_eq!(request, LeaseRequest::Hint { session: "s".into(), model: MODEL.into(), lead, key: None });
    assert_eq!(response.status(), 202);
}

#[tokio::test]
async fn what_is_wrong_is_said_at_once_and_a_refusal_is_passed_on() {
    let (_nats, played, gateway) = house(|_| {}).await;
    let mut asked = played.bus.subscribe(played.bus.subjects.lease()).await.unwrap();
    let cases = [
        ("/lease", json!({"model": "tiny"}), 400, "sessionKey"),
        ("/lease", json!({"sessionKey": "", "model": "tiny"}), 400, "sessionKey"),
        ("/lease", json!({"sessionKey": "x".repeat(257), "model": "tiny"}), 400, "sessionKey"),
        ("/lease", json!({"sessionKey": "s", "model": "none"}), 404, "model"),
        ("/lease", json!({"sessionKey": "s", "model": "tiny", "ttlSeconds": 0}), 400, "ttlSeconds"),
        ("/lease", json!({"sessionKey": "s", "model": "tiny", "ttlSeconds": "60"}), 400, "ttlSeconds"),
        ("/lease", json!({"sessionKey": "s", "model": "tiny", "ttlSecs": 5}), 400, "ttlSecs"),
        ("/lease", json!({"sessionKey": "s", "model": "tiny", "keepContext": "yes"}), 400, "keepContext"),
        ("/release", json!({"sessionKey": "s", "model": "none"}), 404, "model"),
        ("/hint", json!({"sessionKey": "s", "model": "tiny"}), 400, "inSeconds"),
        ("/hint", json!({"sessionKey": "s", "model": "tiny", "inSeconds": -1}), 400, "inSeconds"),
    ];
    for (path, body, status, param) in cases {
        let response = ask(&gateway, path, &body).await;
        assert_eq!(response.status().as_u16(), status, "{path} {body}");
        assert_eq!(error_of(response).await["param"], param, "{path} {body}");
    }
    for path in ["/lease", "/release", "/hint"] {
        let twice = r#"{"sessionKey":"s","model":"tiny","inSeconds":1,"model":"tiny"}"#;
        let asked = reqwest::Client::new().post(gateway.url(path)).body(twice);
        let response = asked.send().await.unwrap();
        assert_eq!(response.status(), 400, "{path}");
        assert_eq!(error_of(response).await["param"], "model", "{path}");
    }
    let response = reqwest::get(gateway.url("/leases?session=s")).await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(error_of(response).await["param"], "session");

    let full = ApiError::new(ErrorKind::Overloaded, "too_many_leases", "release one first")
        .retry_after(Duration::from_secs(7));
    let body = json!({"sessionKey": "s", "model": "tiny"});
    let reply = LeaseReply::Refused(full);
    let (response, _) = tokio::join!(ask(&gateway, "/lease", &body), answer(&played, &mut asked, reply));
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (429, &"7".parse().unwrap())
    );
    assert_eq!(error_of(response).await["code"], "too_many_leases");
}

#[tokio::test]
async fn where_nobody_leads_it_says_so_with_a_time_to_come_back() {
    let (_nats, _played, gateway) = house(|_| {}).await;
    let response = ask(&gateway, "/lease", &json!({"sessionKey": "s", "model": "tiny"})).await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(error_of(response).await["code"], "no_scheduler");
}

#[tokio::test]
async fn a_leader_that_comes_within_a_moment_is_waited_for() {
    let (_nats, played, gateway) = house(|_| {}).await;
    let request = tokio::spawn({
        let url = gateway.url("/lease");
        async move {
            let body = json!({"sessionKey": "s", "model": "tiny"});
            reqwest::Client::new().post(url).json(&body).send().await.unwrap()
        }
    });
    let mut asked = played.bus.subscribe(played.bus.subjects.lease()).await.unwrap();
    answer(&played, &mut asked, LeaseReply::Held(held())).await;
    assert_eq!(request.await.unwrap().status(), 200);
}
