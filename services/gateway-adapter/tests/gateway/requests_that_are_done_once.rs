//! `Idempotency-Key`: a repeat joins the job or gets its answer again, and never causes a second one.

use berth_wire::{ApiError, BeginReply, ErrorKind, Notice};

use crate::support::*;

fn keyed(gateway: &Gateway, key: &'static str, body: String) -> tokio::task::JoinHandle<reqwest::Response> {
    let request = reqwest::Client::new()
        .post(gateway.url("/v1/chat/completions"))
        .header("idempotency-key", key)
        .body(body);
    tokio::spawn(async move { request.send().await.unwrap() })
}

/// Nothing but this job was made: the next one is another's.
async fn nothing_else_was_made(played: &mut Played, gateway: &Gateway) {
    let marker = post(gateway, "/v1/embeddings", r#"{"model":"tiny","input":"marker"}"#.into());
    let next = played.job().await;
    assert_eq!(next.route, berth_wire::Route::Embeddings, "a second job was made");
    played.answer(&next, 200, "application/json", b"{}").await;
    marker.await.unwrap();
}

#[tokio::test]
async fn repeats_share_one_job_and_one_answer_and_it_is_given_again_later() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let first = keyed(&gateway, "k", chat(false));
    let job = played.job().await;
    let second = keyed(&gateway, "k", chat(false));
    nothing_else_was_made(&mut played, &gateway).await;
    played.answer(&job, 200, "application/json", b"{\"n\":1}").await;
    for request in [first, second, keyed(&gateway, "k", chat(false))] {
        let response = request.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "x-berth-job"), Some(job.id.to_string()));
        assert_eq!(response.text().await.unwrap(), "{\"n\":1}");
    }
    let again = keyed(&gateway, "k", chat(false)).await.unwrap();
    assert_eq!(header(&again, "idempotent-replayed").as_deref(), Some("true"));
    nothing_else_was_made(&mut played, &gateway).await;
}

#[tokio::test]
async fn a_key_that_comes_with_another_body_is_refused() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let first = keyed(&gateway, "k", chat(false));
    let job = played.job().await;
    for done in [false, true] {
        if done {
            played.answer(&job, 200, "application/json", b"{}").await;
            break;
        }
        let response = keyed(&gateway, "k", chat(false).replace("hi", "ho")).await.unwrap();
        assert_eq!(response.status(), 422);
        assert_eq!(error_of(response).await["code"], "idempotency_key_reused");
    }
    assert_eq!(first.await.unwrap().status(), 200);
    let response = keyed(&gateway, "k", chat(false).replace("hi", "ho")).await.unwrap();
    assert_eq!(response.status(), 422);
}

#[tokio::test]
async fn the_job_ends_only_when_the_last_of_its_clients_leaves() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let first = keyed(&gateway, "k", chat(false));
    let job = played.job().await;
    let second = keyed(&gateway, "k", chat(false));
    nothing_else_was_made(&mut played, &gateway).await;
    first.abort();
    // Another client's cancel is heard after the first would have been.
    let other = post(&gateway, "/v1/chat/completions", chat(true));
    let left = played.job().await;
    other.abort();
    assert_eq!(played.cancelled().await.job, left.id);
    second.abort();
    assert_eq!(played.cancelled().await.job, job.id);
    assert!(matches!(played.begin(&job, 1).await, Ok(BeginReply::Refuse { .. })));
    // The key is free again.
    let third = keyed(&gateway, "k", chat(false));
    let anew = played.job().await;
    assert_ne!(anew.id, job.id);
    played.answer(&anew, 200, "application/json", b"{}").await;
    assert_eq!(third.await.unwrap().status(), 200);
}

#[tokio::test]
async fn who_is_told_to_come_back_finds_the_job_where_it_was() {
    let (_nats, mut played, gateway) =
        house(|config| config.gateway.wait_limit = std::time::Duration::from_millis(300)).await;
    let first = keyed(&gateway, "k", chat(false));
    let job = played.job().await;
    let response = first.await.unwrap();
    assert_eq!((response.status().as_u16(), header(&response, "retry-after").as_deref()), (503, Some("1")));
    let second = keyed(&gateway, "k", chat(false));
    played.answer(&job, 200, "application/json", b"{}").await;
    assert_eq!(second.await.unwrap().status(), 200);
}

#[tokio::test]
async fn what_failed_may_be_tried_again_under_its_key() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let first = keyed(&gateway, "k", chat(false));
    let job = played.job().await;
    let error = ApiError::new(ErrorKind::EngineFailed, "engine_died", "it died");
    played.notify(&job, 1, Notice::Failed(error)).await;
    assert_eq!(first.await.unwrap().status(), 502);
    let second = keyed(&gateway, "k", chat(false));
    let anew = played.job().await;
    played.answer(&anew, 200, "application/json", b"{}").await;
    assert_eq!(second.await.unwrap().status(), 200);
}
