//! API keys: who is let in, to what, and how much of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_bus::{delete_key, put_json, read};
use berth_config::Config;
use berth_gateway_adapter::GatewayError;
use berth_testkit::nats::TestNats;
use berth_testkit::wait::until;
use berth_wire::{
    Class, End, Finish, Frame, Job, KeyHash, KeyLimits, KeyRecord, LeaseReply, LeaseRequest, Scope,
    Timestamp, Usage,
};
use futures::StreamExt;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::support::*;

const CHAT: &str = "/v1/chat/completions";

fn key(name: &str) -> KeyRecord {
    KeyRecord::new(name.into(), KeyHash::of(&secret(name)))
}

/// The key itself.
fn secret(name: &str) -> String {
    format!("berth-{name}-0123456789")
}

async fn with(gateway: &Gateway, name: &str, path: &str) -> Response {
    reqwest::Client::new().get(gateway.url(path)).bearer_auth(secret(name)).send().await.unwrap()
}

fn ask(
    gateway: &Gateway,
    name: &str,
    more: &[(&'static str, &'static str)],
) -> tokio::task::JoinHandle<Response> {
    let mut request = reqwest::Client::new().post(gateway.url(CHAT)).bearer_auth(secret(name));
    for (header, value) in more {
        request = request.header(*header, *value);
    }
    tokio::spawn(async move { request.body(chat(false)).send().await.unwrap() })
}

/// Answers a job as an engine that counted so many tokens.
async fn answer(played: &Played, job: &Job, usage: Option<(u64, u64)>) {
    played.go(job, 1).await;
    played.frame(job, head(200, "application/json", 1, b"{}")).await;
    let usage = Usage {
        prompt_tokens: usage.map(|(prompt, _)| prompt),
        completion_tokens: usage.map(|(_, completion)| completion),
        ..Usage::default()
    };
    let end = Some(End { finish: Finish::Stop, usage });
    played.frame(job, Frame { end, ..Frame::empty(number(1), 2) }).await;
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn nobody_without_a_key_gets_anything_but_a_sign_of_life() {
    let admin = KeyRecord { scope: Scope::Admin, ..key("admin") };
    let expired = KeyRecord { expires: Some(Timestamp(1)), ..key("expired") };
    let (_nats, _played, gateway) = house_with_keys(vec![key("user"), admin, expired]).await;
    let client = reqwest::Client::new();
    for path in ["/v1/models", "/v1/models/tiny", "/metrics", "/api/v1/fleet", "/leases", "/no/such"] {
        let response = client.get(gateway.url(path)).send().await.unwrap();
        assert_eq!(response.status(), 401, "{path}");
        assert_eq!(header(&response, "www-authenticate"), "Bearer realm=\"berth\"", "{path}");
        assert!(response.headers().contains_key("x-request-id"), "{path}");
        assert_eq!(error_of(response).await["code"], "missing_api_key", "{path}");
    }
    for name in ["unknown", "expired"] {
        let response = with(&gateway, name, "/v1/models").await;
        assert_eq!(response.status(), 401, "{name}");
        assert!(header(&response, "www-authenticate").contains("invalid_token"));
        let error = error_of(response).await;
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!("invalid_api_key"), &json!("authentication_error"))
        );
        assert!(!error.to_string().contains(&secret(name)), "{error}");
    }
    for path in ["/", "/healthz", "/readyz"] {
        assert_ne!(client.get(gateway.url(path)).send().await.unwrap().status(), 401, "{path}");
    }
    for name in ["x-api-key", "api-key"] {
        let response =
            client.get(gateway.url("/v1/models")).header(name, secret("user")).send().await.unwrap();
        assert_eq!(response.status(), 200, "{name}");
    }
    // Spelt otherwise, they are the same routes.
    for path in ["/metrics", "/%6detrics", "/api/v1/fleet", "/api/v1/fl%65et"] {
        let response = with(&gateway, "user", path).await;
        assert_eq!(response.status(), 403, "{path}");
        assert_eq!(error_of(response).await["code"], "admin_required", "{path}");
        assert_ne!(with(&gateway, "admin", path).await.status(), 403, "{path}");
    }
    for path in ["/%68ealthz", "//healthz", "/healthz/"] {
        assert_eq!(client.get(gateway.url(path)).send().await.unwrap().status(), 401, "{path}");
    }
}

#[tokio::test]
async fn a_refusal_does_not_wait_for_the_body() {
    let (_nats, _played, gateway) = house_with_keys(vec![key("user")]).await;
    let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let request = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n{{\"model\"");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(1), stream.read_exact(&mut answer)).await;
    read.expect("the answer waits for the body").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    closed.expect("the body is read for ever").ok();
}

#[tokio::test]
async fn a_job_carries_the_name_of_its_key_and_its_class() {
    let (_nats, mut played, gateway) =
        house_with_keys(vec![KeyRecord { class: Class::Interactive, ..key("chat") }]).await;
    for (asked, class) in [(&[][..], Class::Interactive), (&[("x-berth-class", "batch")][..], Class::Batch)] {
        let response = ask(&gateway, "chat", asked);
        let job = played.job().await;
        assert_eq!((job.key.as_ref().map(|key| key.as_str()), job.class), (Some("chat"), class));
        answer(&played, &job, None).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(!response.headers().keys().any(|name| name.as_str().starts_with("x-ratelimit")), "no limits");
    }
    let wrong = ask(&gateway, "chat", &[("x-berth-class", "urgent")]).await.unwrap();
    assert_eq!(
        (wrong.status().as_u16(), error_of(wrong).await["param"].as_str()),
        (400, Some("x-berth-class"))
    );
}

#[tokio::test]
async fn keys_of_the_bucket_count_from_the_moment_they_are_made_until_they_are_revoked() {
    let (_nats, played, gateway) = house(|_| {}).await;
    let open = reqwest::get(gateway.url("/v1/models")).await.unwrap();
    assert_eq!(open.status(), 200, "without keys loopback is open");
    let bucket = played.bus.bucket("keys").await.unwrap();
    let (one, two) = (key("one"), key("two"));
    for record in [&one, &two] {
        put_json(&bucket, &KeyRecord::key_of(&record.name), record).await.unwrap();
    }
    let status = async |name: &str| with(&gateway, name, "/v1/models").await.status().as_u16();
    until("a stored key opens", PATIENCE, async || status("two").await == 200 && status("none").await == 401)
        .await;
    assert_eq!(status("one").await, 200);
    assert_eq!(reqwest::get(gateway.url("/v1/models")).await.unwrap().status(), 401);
    delete_key(&bucket, &KeyRecord::key_of(&one.name)).await.unwrap();
    until("a revoked key opens nothing", PATIENCE, async || status("one").await == 401).await;
    assert_eq!(status("two").await, 200);
    delete_key(&bucket, &KeyRecord::key_of(&two.name)).await.unwrap();
    until("the last one neither", PATIENCE, async || status("two").await == 401).await;
    let after = reqwest::get(gateway.url("/v1/models")).await.unwrap();
    assert_eq!(after.status(), 401, "the last revocation opens nothing");
}

#[tokio::test]
async fn a_key_sees_and_uses_only_its_models() {
    let mine = KeyRecord { models: vec!["tiny".into()], ..key("mine") };
    let other = KeyRecord { models: vec!["other".into()], ..key("other") };
    let (_nats, _played, gateway) = house_with_keys(vec![mine, other]).await;
    let list: Value = with(&gateway, "mine", "/v1/models").await.json().await.unwrap();
    assert_eq!(list["data"][0]["id"], MODEL);
    let list: Value = with(&gateway, "other", "/v1/models").await.json().await.unwrap();
    assert_eq!(list["data"], json!([]));
    for response in
        [ask(&gateway, "other", &[]).await.unwrap(), with(&gateway, "other", "/v1/models/tiny").await]
    {
        assert_eq!(response.status(), 403);
        let error = error_of(response).await;
        assert_eq!((&error["code"], &error["param"]), (&json!("model_not_allowed"), &json!("model")));
    }
    let unknown = with(&gateway, "other", "/v1/models/tinny").await;
    assert_eq!(unknown.status(), 404);
    assert!(
        !error_of(unknown).await["message"].as_str().unwrap().contains("tiny"),
        "names of others' models"
    );
}

#[tokio::test]
async fn requests_above_a_limit_are_told_which_and_when_to_come_back() {
    let limits = KeyLimits { requests_per_minute: Some(2), ..KeyLimits::default() };
    let two = KeyRecord { limits, ..key("two") };
    let limits = KeyLimits { concurrency: Some(1), ..KeyLimits::default() };
    let single = KeyRecord { limits, ..key("single") };
    let (_nats, mut played, gateway) = house_with_keys(vec![two, single]).await;
    for left in ["1", "0"] {
        let response = ask(&gateway, "two", &[]);
        let job = played.job().await;
        answer(&played, &job, None).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "x-ratelimit-limit-requests"), "2");
        assert_eq!(header(&response, "x-ratelimit-remaining-requests"), left);
    }
    let refused = ask(&gateway, "two", &[]).await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!((1..=30).contains(&header(&refused, "retry-after").parse::<u32>().unwrap()));
    assert_eq!(header(&refused, "x-ratelimit-remaining-requests"), "0");
    let error = error_of(refused).await;
    assert_eq!(
        (&error["code"], &error["param"], &error["type"]),
        (&json!("rate_limit_exceeded"), &json!("requests_per_minute"), &json!("rate_limit_error"))
    );

    let first = ask(&gateway, "single", &[]);
    let job = played.job().await;
    let second = ask(&gateway, "single", &[]).await.unwrap();
    assert_eq!((second.status().as_u16(), header(&second, "retry-after")), (429, "1"));
    assert_eq!(error_of(second).await["param"], "concurrency");
    answer(&played, &job, None).await;
    assert_eq!(first.await.unwrap().status(), 200);
    // Who leaves makes room as well.
    let gone = ask(&gateway, "single", &[]);
    let job = played.job().await;
    gone.abort();
    assert_eq!(played.cancelled().await.job, job.id);
    let third = ask(&gateway, "single", &[]);
    let job = played.job().await;
    answer(&played, &job, None).await;
    assert_eq!(third.await.unwrap().status(), 200);
}

#[tokio::test]
async fn what_a_key_may_not_do_does_not_count_as_one_of_its_requests() {
    let limits = KeyLimits { requests_per_minute: Some(2), ..KeyLimits::default() };
    let other = KeyRecord { models: vec!["other".into()], limits, ..key("other") };
    let mine = KeyRecord { models: vec!["tiny".into()], limits, ..key("mine") };
    let (_nats, _played, gateway) = house_with_keys(vec![other, mine]).await;
    for _ in 0..5 {
        let refused = ask(&gateway, "other", &[]).await.unwrap();
        assert_eq!(header(&refused, "x-ratelimit-remaining-requests"), "2");
        assert_eq!((refused.status().as_u16(), header(&refused, "x-should-retry")), (403, "false"));
        let sleep =
            reqwest::Client::new().post(gateway.url("/upstream/tiny/sleep")).bearer_auth(secret("mine"));
        let refused = sleep.send().await.unwrap();
        assert_eq!(header(&refused, "x-ratelimit-remaining-requests"), "2");
        assert_eq!(error_of(refused).await["code"], "scheduler_decides");
    }
    // What is wrong by what it says does.
    let wrong = reqwest::Client::new().post(gateway.url(CHAT)).bearer_auth(secret("mine")).body("{}");
    assert_eq!(header(&wrong.send().await.unwrap(), "x-ratelimit-remaining-requests"), "1");
    // What it may not do at all it hears also when it has used up what it may do.
    let send = async |model: &str| {
        let request = reqwest::Client::new().post(gateway.url(CHAT)).bearer_auth(secret("mine"));
        let response = request.body(format!("{{\"model\":\"{model}\"")).send().await.unwrap();
        response.status().as_u16()
    };
    assert_eq!(send("tiny").await, 400);
    assert_eq!(send("tiny").await, 429);
    let sleep = reqwest::Client::new().post(gateway.url("/upstream/tiny/sleep")).bearer_auth(secret("mine"));
    assert_eq!(error_of(sleep.send().await.unwrap()).await["code"], "scheduler_decides");
}

#[tokio::test]
async fn without_keys_it_answers_to_its_own_names_and_to_no_page_of_another_site() {
    let (_nats, _played, gateway) =
        house(|config| config.gateway.hosts = vec!["llm.example.org".into()]).await;
    let list = async |host: &str| {
        let request = reqwest::Client::new().get(gateway.url("/v1/models")).header("host", host);
        request.send().await.unwrap()
    };
    for host in ["localhost:8421", "gateway:8421", "host.docker.internal", "llm.example.org", "[::1]:8421"] {
        assert_eq!(list(host).await.status(), 200, "{host}");
    }
    let refused = list("rebound.example:8421").await;
    assert_eq!(refused.status(), 403);
    let error = error_of(refused).await;
    assert_eq!(error["code"], "host_not_known");
    assert!(error["message"].as_str().unwrap().contains("berth key create"), "{error}");

    let send = async |site: &str, method: reqwest::Method, path: &str| {
        let request =
            reqwest::Client::new().request(method, gateway.url(path)).header("sec-fetch-site", site);
        request.body("{}").send().await.unwrap()
    };
    for path in ["/lease", "/api/v1/unload", CHAT] {
        let refused = send("cross-site", reqwest::Method::POST, path).await;
        assert_eq!((refused.status().as_u16(), header(&refused, "x-should-retry")), (403, "false"));
        assert_eq!(error_of(refused).await["code"], "cross_site", "{path}");
        for site in ["same-origin", "none"] {
            assert_eq!(send(site, reqwest::Method::POST, path).await.status(), 400, "{site} {path}");
        }
    }
    assert_eq!(send("cross-site", reqwest::Method::GET, "/v1/models").await.status(), 200);
}

#[tokio::test]
async fn tokens_are_counted_by_what_the_engine_says() {
    let limits = KeyLimits { tokens_per_minute: Some(6000), ..KeyLimits::default() };
    let (_nats, mut played, gateway) = house_with_keys(vec![KeyRecord { limits, ..key("t") }]).await;
    let response = ask(&gateway, "t", &[]);
    let job = played.job().await;
    answer(&played, &job, Some((1000, 4000))).await;
    assert_eq!(response.await.unwrap().status(), 200);
    let left = || async {
        let listed = with(&gateway, "t", "/v1/models").await;
        header(&listed, "x-ratelimit-remaining-tokens").parse::<u32>().unwrap()
    };
    let now = left().await;
    // 100 come back each second.
    assert!((1000..2000).contains(&now), "{now}");
    let response = ask(&gateway, "t", &[]);
    let job = played.job().await;
    answer(&played, &job, Some((1000, 20_000))).await;
    assert_eq!(response.await.unwrap().status(), 200);
    let refused = ask(&gateway, "t", &[]).await.unwrap();
    assert_eq!(refused.status(), 429);
    assert_eq!(header(&refused, "retry-after"), "60", "it owes for minutes; no client waits longer");
    assert_eq!(error_of(refused).await["param"], "tokens_per_minute");
}

#[tokio::test]
async fn a_user_holds_shows_and_releases_leases_of_its_own_key_alone() {
    let admin = KeyRecord { scope: Scope::Admin, ..key("admin") };
    let (_nats, played, gateway) = house_with_keys(vec![key("user"), admin]).await;
    let mut asked = played.bus.subscribe(played.bus.subjects.lease()).await.unwrap();
    for (name, sees) in [("user", Some("user".into())), ("admin", None)] {
        let url = |path: &str| gateway.url(path);
        let client = reqwest::Client::new();
        let requests = [
            client.post(url("/lease")).json(&json!({"sessionKey": "s", "model": "tiny"})),
            client.post(url("/release")).json(&json!({"sessionKey": "s"})),
            client.get(url("/leases")),
        ];
        let mut questions = Vec::new();
        for request in requests {
            let request = tokio::spawn(request.bearer_auth(secret(name)).send());
            let message = tokio::time::timeout(PATIENCE, asked.next()).await.expect("nothing asked").unwrap();
            played.bus.reply(message.reply.clone(), &LeaseReply::Noted).await.unwrap();
            questions.push(read::<LeaseRequest>(&message).unwrap());
            request.await.unwrap().unwrap();
        }
        let [LeaseRequest::Lease { key, .. }, LeaseRequest::Release { key: released, .. }, list] =
            questions.as_slice()
        else {
            panic!("{questions:?}")
        };
        assert_eq!(key.as_ref().map(|key| key.as_str()), Some(name), "counted for the key");
        assert_eq!(*released, sees);
        assert_eq!(*list, LeaseRequest::List { session: None, key: sees });
    }
}

/// Runs a gateway on every interface: its address once it has started, or why it does not.
async fn everywhere(
    nats: &TestNats,
    change: impl FnOnce(&mut Config),
) -> (Result<SocketAddr, GatewayError>, CancellationToken) {
    let mut config = Config::empty();
    config.gateway.listen = vec![SocketAddr::from(([0, 0, 0, 0], 0))];
    config.gateway.workers = Some(1);
    change(&mut config);
    let shutdown = CancellationToken::new();
    let (sender, started) = tokio::sync::oneshot::channel();
    let (options, token) = (options(nats), shutdown.clone());
    let thread = std::thread::spawn(move || {
        let started = move |addresses: Vec<SocketAddr>| sender.send(addresses[0]).unwrap();
        let run = berth_gateway_adapter::run(Arc::new(config), options, token, started, None);
        actix_rt::System::new().block_on(run)
    });
    let started = tokio::time::timeout(PATIENCE, started).await.expect("it neither starts nor ends");
    let outcome = match started {
        Ok(address) => Ok(address),
        Err(_) => Err(thread.join().unwrap().unwrap_err()),
    };
    (outcome, shutdown)
}

#[tokio::test]
async fn elsewhere_than_on_loopback_it_starts_only_with_a_key_or_when_it_is_told_to() {
    let nats = TestNats::start().unwrap();
    let played = Played::new(&nats).await;
    let (refused, _) = everywhere(&nats, |_| {}).await;
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("berth key create") && message.contains("--open"), "{message}");

    let (open, end) = everywhere(&nats, |config| config.gateway.open = true).await;
    let url = |address: SocketAddr| format!("http://127.0.0.1:{}/v1/models", address.port());
    assert_eq!(reqwest::get(url(open.unwrap())).await.unwrap().status(), 200);
    end.cancel();

    let (configured, end) = everywhere(&nats, |config| config.gateway.keys = vec![key("a")]).await;
    assert_eq!(reqwest::get(url(configured.unwrap())).await.unwrap().status(), 401);
    end.cancel();

    let bucket = played.bus.bucket("keys").await.unwrap();
    put_json(&bucket, "b", &key("b")).await.unwrap();
    let (stored, end) = everywhere(&nats, |_| {}).await;
    let url = url(stored.unwrap());
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 401);
    let with = reqwest::Client::new().get(&url).bearer_auth(secret("b")).send().await.unwrap();
    assert_eq!(with.status(), 200);
    end.cancel();
}
