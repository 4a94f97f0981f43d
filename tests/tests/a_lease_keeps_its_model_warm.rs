//! A lease loads its model ahead of any request and keeps it, until it is released or runs out.

use std::process::Command;

use berth_tests::{Berth, Config, Engine, Finished, Model, Part, SOON, berth, finish, path, until, until_ok};
use serde_json::{Value, json};

/// A model that loads for a second, and whose engines are stopped a second after their last use.
fn slow(id: &str) -> Model {
    Model::sim(id, &["--load", "1s"])
        .concurrency(2)
        .field("idle_ttl", "\"1s\"")
        .list("aliases", &[&format!("{id}-too")])
}

async fn leases(berth: &Berth) -> Result<Vec<Value>, String> {
    let answer = berth.gateway.get("/leases").await;
    match answer.status {
        200 => Ok(answer.json["leases"].as_array().expect("a list of leases").clone()),
        _ => Err(answer.text),
    }
}

/// The only lease there is, once its model is ready.
async fn ready(berth: &Berth) -> Value {
    until_ok("the lease's model is ready", SOON, async || match leases(berth).await?.as_slice() {
        [lease] if lease["state"] == "ready" => Ok(lease.clone()),
        leases => Err(format!("{leases:?}")),
    })
    .await
}

fn nats_cli(berth: &Berth, args: &[&str]) -> Finished {
    let mut command = Command::new(path(Part::NatsCli));
    command.args(["--server", berth.nats_url()]).args(args);
    finish(command, SOON)
}

async fn until_stopped(berth: &Berth, engine: &Engine) {
    until("the idle engine is stopped", SOON, async || !berth.engines.running().contains(engine)).await;
}

#[tokio::test]
async fn it_is_renewed_outlives_the_scheduler_and_ends_when_it_is_released() {
    let mut berth = Berth::fleet(&Config::of([slow("slow")])).await;
    let ask = json!({"sessionKey": "chat 1", "model": "slow-too", "ttlSeconds": 300});
    let granted = berth.gateway.post("/lease", &ask).await;
    assert_eq!(granted.status, 200, "{}", granted.text);
    assert_eq!((&granted.json["sessionKey"], &granted.json["model"]), (&json!("chat 1"), &json!("slow")));
    assert!(["queued", "loading"].contains(&granted.json["state"].as_str().unwrap()), "{}", granted.text);
    let left = granted.json["expiresInSeconds"].as_f64().unwrap();
    assert!((299.0..=300.0).contains(&left), "{}", granted.text);
    ready(&berth).await;
    let engine = berth.engines.only();
    let bus = berth.bus().await;
    assert!(bus.facts("job_ended").await.is_empty(), "no request has loaded it");

    let renewed = berth.gateway.post("/lease", &ask).await;
    assert_eq!((renewed.status, &renewed.json["state"]), (200, &json!("ready")), "{}", renewed.text);
    let until_when = renewed.json["expiresAt"].as_str().unwrap().to_owned();
    assert!(until_when.as_str() > granted.json["expiresAt"].as_str().unwrap(), "{}", renewed.text);
    let kept = nats_cli(&berth, &["kv", "get", "berth_leases", "chat_201.slow", "--raw"]);
    assert!(kept.ok && kept.output.contains(r#""session":"chat 1""#), "{}", kept.output);

    berth.role("scheduler").kill9();
    berth.restart("scheduler");
    let lease = ready(&berth).await;
    assert_eq!(lease["expiresAt"], until_when, "the new leader has read it");
    assert_eq!(berth.engines.only(), engine);
    let profiles = nats_cli(&berth, &["kv", "ls", "berth_profiles"]);
    assert!(profiles.ok && profiles.output.contains("slow."), "its start was measured: {}", profiles.output);

    let body = json!({"sessionKey": "chat 1"});
    let released = berth.gateway.post("/release", &body).await;
    assert_eq!((released.status, &released.json["released"]), (200, &json!(["slow"])), "{}", released.text);
    assert!(leases(&berth).await.unwrap().is_empty());
    until_stopped(&berth, &engine).await;
    let gone = nats_cli(&berth, &["kv", "get", "berth_leases", "chat_201.slow", "--raw"]);
    assert!(!gone.ok, "{}", gone.output);
    let again = berth.gateway.post("/release", &body).await;
    assert_eq!((again.status, &again.json["released"]), (200, &json!([])), "{}", again.text);

    // A leader that has never met an engine of the model: it knows from the profile how long a start takes.
    berth.role("scheduler").kill9();
    berth.restart("scheduler");
    let eta = until_ok("its load is foretold", SOON, async || {
        let lease = berth.gateway.post("/lease", &ask).await;
        assert_ne!(lease.json["state"], "ready", "it was loading for a second without an estimate");
        lease.json["etaSeconds"].as_f64().filter(|_| lease.json["state"] == "loading").ok_or(lease.text)
    })
    .await;
    assert!((0.2..5.0).contains(&eta), "a load takes a second: {eta}");
}

#[tokio::test]
async fn it_is_kept_where_an_idle_model_goes_and_carried_on_by_requests_until_it_runs_out() {
    let berth = Berth::fleet(&Config::of([slow("slow"), slow("other")])).await;
    let ask = json!({"sessionKey": "chat-2", "model": "slow", "ttlSeconds": 6});
    assert_eq!(berth.gateway.post("/lease", &ask).await.status, 200);
    let lease = ready(&berth).await;
    let leased = berth.engines.only();

    berth.gateway.chat("other", &json!({"max_tokens": 2})).await.content();
    // By its session's requests alone it lives longer than the other model's idle engine, whose start takes a second.
    let expires = |lease: &Value| lease["expiresAt"].as_str().unwrap().to_owned();
    let mut last = expires(&lease);
    let before = last.clone();
    until_ok("the model without a lease is stopped", SOON, async || {
        berth.gateway.chat("slow", &json!({"max_tokens": 2, "user": "chat-2"})).await.content();
        let now = leases(&berth).await?;
        last = expires(now.first().ok_or("the lease has run out")?);
        let running = berth.engines.running();
        assert!(running.contains(&leased), "the leased model stays");
        if running.len() == 1 { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
    assert!(last > before, "requests of the session renew it: {before} {last}");

    until_ok("it runs out", SOON, async || match leases(&berth).await?.as_slice() {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await;
    until_stopped(&berth, &leased).await;
}

#[tokio::test]
async fn what_cannot_be_granted_is_told_with_its_reason() {
    let config = Config::of([slow("one"), slow("two")]).line("scheduler", "leases_per_session = 1");
    let berth = Berth::fleet(&config).await;
    let lease = async |body: Value| berth.gateway.post("/lease", &body).await;
    assert_eq!(lease(json!({"sessionKey": "s", "model": "one"})).await.status, 200);
    assert_eq!(
        lease(json!({"sessionKey": "s", "model": "one"})).await.status,
        200,
        "a renewal is no second lease"
    );
    let refused = lease(json!({"sessionKey": "s", "model": "two"})).await;
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert!(refused.error().contains("1 is the most"), "{}", refused.text);
    let after: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&after));
    assert_eq!(lease(json!({"sessionKey": "t", "model": "two"})).await.status, 200, "another session may");

    let unknown = lease(json!({"sessionKey": "s", "model": "three"})).await;
    assert_eq!((unknown.status, &unknown.json["error"]["code"]), (404, &json!("model_not_found")));
    unknown.error();
    let ask = json!({"sessionKey": "t", "model": "two", "ttlSeconds": 7200});
    let long = lease(ask).await;
    assert_eq!((long.status, &long.json["error"]["param"]), (400, &json!("ttlSeconds")), "{}", long.text);
    let told = long.error();
    assert!(told.contains("1 to 3600 s") && told.contains("7200 s were asked for"), "{told}");
    let mut command = berth_tests::berth();
    command.args(["lease", "t", "two", "--ttl", "2h", "--nats-url", berth.nats_url()]);
    command.current_dir(berth.folder());
    let typed = finish(command, SOON);
    assert!(!typed.ok && typed.output.contains(told), "the same is told: {}", typed.output);

    let typo = lease(json!({"sessionKey": "s", "model": "one", "ttl": 5})).await;
    assert_eq!((typo.status, &typo.json["error"]["param"]), (400, &json!("ttl")), "{}", typo.text);
    typo.error();
}

#[tokio::test]
async fn a_hint_of_what_can_never_run_is_refused_as_a_lease_on_it_is() {
    let berth = Berth::fleet(&Config::of([slow("huge").memory("64GiB")])).await;
    let lease = json!({"sessionKey": "s", "model": "huge"});
    let hint = json!({"sessionKey": "s", "model": "huge", "inSeconds": 5});
    // A new leader calls nothing impossible before hosts have had time to report.
    let refused = until_ok("it is known that it cannot run", SOON, async || {
        let answer = berth.gateway.post("/lease", &lease).await;
        if answer.status == 503 { Ok(answer) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(refused.json["error"]["code"], "model_cannot_fit", "{}", refused.text);
    let answer = berth.gateway.post("/hint", &hint).await;
    assert_eq!((answer.status, &answer.json), (503, &refused.json));
}

#[tokio::test]
async fn a_hint_loads_its_model_before_the_request_comes() {
    let berth = Berth::fleet(&Config::of([slow("slow")])).await;
    let hint = json!({"sessionKey": "s", "model": "slow-too", "inSeconds": 1});
    let noted = berth.gateway.post("/hint", &hint).await;
    assert_eq!((noted.status, &noted.json["model"]), (202, &json!("slow")), "{}", noted.text);
    let bus = berth.bus().await;
    until("its engine is ready", SOON, async || !bus.facts("engine_ready").await.is_empty()).await;
    assert!(bus.facts("job_ended").await.is_empty(), "no request has loaded it");
}

#[tokio::test]
async fn a_person_asks_for_it_at_the_command_line() {
    let fleet = Berth::fleet(&Config::of([slow("slow")])).await;
    let url = fleet.nats_url().to_owned();
    let said = |args: &[&str]| {
        let mut command = berth();
        command.args(args).args(["--nats-url", &url]).current_dir(fleet.folder());
        finish(command, SOON)
    };
    let granted = said(&["lease", "chat 3", "slow-too", "--ttl", "5m"]);
    assert!(granted.ok && granted.output.contains("chat 3"), "{}", granted.output);
    assert!(granted.output.contains("slow "), "the alias is resolved: {}", granted.output);
    ready(&fleet).await;
    let names = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let read = |said: &Finished| -> Value {
        serde_json::from_str(&said.output).unwrap_or_else(|e| panic!("{e}: {}", said.output))
    };
    let json = read(&said(&["leases", "--session", "chat 3", "--json"]));
    let http = fleet.gateway.get("/leases?sessionKey=chat%203").await.json;
    assert_eq!(names(&json), names(&http));
    let (lease, over_http) = (&json["leases"][0], &http["leases"][0]);
    assert_eq!(names(lease), names(over_http));
    for name in ["sessionKey", "model", "state", "position", "etaSeconds", "expiresAt"] {
        assert_eq!(lease[name], over_http[name], "{name}");
    }
    assert_eq!((&lease["model"], &lease["state"]), (&json!("slow"), &json!("ready")));
    let renewed = read(&said(&["lease", "chat 3", "slow", "--json"]));
    assert_eq!(names(&renewed), names(over_http));
    let other = read(&said(&["release", "nobody", "--json"]));
    assert_eq!(other, json!({"sessionKey": "nobody", "released": []}));
    let status = said(&["status"]);
    assert!(status.output.contains("SESSION") && status.output.contains("chat 3"), "{}", status.output);
    let released = said(&["release", "chat 3", "slow"]);
    assert!(released.ok && released.output.contains("released slow"), "{}", released.output);
    assert!(said(&["leases"]).output.contains("no session holds a lease"));
    let wrong = said(&["lease", "chat 3", "slov"]);
    assert!(
        !wrong.ok && wrong.output.contains("no model is called `slov`; there are slow"),
        "{}",
        wrong.output
    );
}
