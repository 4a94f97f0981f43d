//! Each role has a key of its own, which opens what it needs and nothing else; all that a fleet does works so, and the
//! NATS CLI shows it to who has the operator's key.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_tests::{Berth, Config, Event, Model, Part, Role, SOON, finish, path, scenario, until, until_ok};
use bytes::Bytes;
use serde_json::{Value, json};

/// A command of the program, given by a person.
fn command(berth: &Berth, args: &[&str]) -> String {
    let done = finish(berth.command(args), SOON);
    assert!(done.ok, "berth {args:?}:\n{}", done.output);
    done.output
}

/// The NATS CLI with the operator's key.
fn nats(berth: &Berth, args: &[&str]) -> String {
    let mut command = Command::new(path(Part::NatsCli));
    command.args(["--server", berth.nats_url(), "--inbox-prefix", "_INBOX.berth.v1.operator", "--nkey"]);
    command.arg(berth.folder().join("nats/keys/operator.nk")).args(args);
    let done = finish(command, SOON);
    assert!(done.ok, "nats {args:?}:\n{}", done.output);
    println!("$ nats {}\n{}", args.join(" "), done.output);
    done.output
}

async fn lane(berth: &Berth, model: &str) -> String {
    let answer = berth.gateway.chat(model, &json!({"max_tokens": 1})).await;
    answer.content();
    answer.headers["x-berth-lane"].to_str().expect("a header is text").to_owned()
}

#[tokio::test]
async fn jobs_of_all_kinds_and_commands_of_operators_need_no_more() {
    let models = ["red", "blue"].map(|id| Model::sim(id, &[]).memory("600MiB").concurrency(2));
    let mut berth = Berth::fleet(&Config::of(models).memory("1GiB").permissions()).await;
    // Cold, then warm by the express lane.
    assert_eq!(lane(&berth, "red").await, "queue");
    until("a warm request takes the express lane", SOON, async || lane(&berth, "red").await == "express")
        .await;
    let mut stream = berth.gateway.stream("red", &json!({"max_tokens": 3})).await;
    assert!(stream.rest().await.contains(&Event::Done));
    // A client that leaves.
    let mut left = berth.gateway.stream("red", &json!({"sim": {"tokens": 10_000, "per_token_ms": 10}})).await;
    left.token().await;
    drop(left);
    // A body beyond what a message holds.
    let long = "x ".repeat(512 * 1024);
    let body = json!({"model": "red", "messages": [{"role": "user", "content": long}], "max_tokens": 1});
    berth.gateway.post("/v1/chat/completions", &body).await.content();
    // An asynchronous job.
    let id = accepted(&berth).await;
    until_ok("its answer is there", SOON, async || {
        let job = berth.gateway.get(&format!("/api/v1/jobs/{id}")).await;
        if job.json["status"] == "completed" { Ok(()) } else { Err(job.text) }
    })
    .await;
    let result = berth.gateway.get(&format!("/api/v1/jobs/{id}/result")).await;
    assert!(result.json["choices"].is_array(), "{}", result.text);
    // What people ask.
    assert!(command(&berth, &["status"]).contains("red"));
    command(&berth, &["lease", "talk", "red"]);
    assert!(command(&berth, &["leases"]).contains("talk"));
    command(&berth, &["release", "talk"]);
    command(&berth, &["logs", "red", "--tail", "5"]);
    inspected(&berth);
    // Another model in its place.
    berth.gateway.chat("blue", &json!({"max_tokens": 1})).await.content();
    scenario::nothing_is_outstanding(&berth.bus().await).await;
    two_hosts_keep_apart(&berth).await;
    // A server that was away: who follows its buckets makes new consumers, and clears the old ones away.
    berth.nats().restart().expect("it comes back");
    until("all is there again", SOON, async || berth.gateway.get("/readyz").await.status == 200).await;
    berth.gateway.chat("blue", &json!({"max_tokens": 1})).await.content();
    command(&berth, &["key", "create", "laptop", "--scope", "admin"]);
    until("keys are followed", SOON, async || berth.gateway.get("/v1/models").await.status == 401).await;
    command(&berth, &["key", "revoke", "laptop"]);
    assert_eq!(berth.denials(), Vec::<String>::new());
}

fn key_of(berth: &Berth, name: &str) -> String {
    let file = berth.folder().join(format!("nats/keys/{name}.nk"));
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().into()
}

fn hosts(berth: &Berth) -> Vec<String> {
    let status: Value = serde_json::from_str(&command(berth, &["status", "--json"])).expect("JSON");
    let hosts = status["hosts"].as_array().expect("a list").iter();
    hosts.map(|host| host["host"].as_str().expect("a name").to_owned()).collect()
}

/// While a second host answers, who has the key of another role or host tries what is not theirs: the server denies each, and
/// nobody sees anything of it.
async fn two_hosts_keep_apart(berth: &Berth) {
    let first = hosts(berth).remove(0);
    let second = format!("{first}-second");
    let mut agent = berth.command(&["agent"]);
    agent.env("BERTH_HOST", &second).env("BERTH_NATS_NKEY", key_of(berth, &format!("agent-{second}")));
    agent.env("BERTH_DATA_DIR", berth.folder().join("second")).env("RUST_LOG", "info");
    let mut agent = Role::start("the second agent", agent);
    until("the second host has joined", SOON, async || hosts(berth).contains(&second)).await;
    command(berth, &["load", "red", "--host", &second]);
    let mut stream = berth.gateway.stream("red", &json!({"sim": {"tokens": 40, "per_token_ms": 50}})).await;
    stream.token().await;
    let of_second = |subject: &str| subject.replace("HOST", &second);
    for (name, heard, said) in [
        (
            format!("agent-{first}"),
            &["berth.v1.ctl.HOST.*", "berth.v1.out.*.*", "$KV.berth_hosts.HOST", "$KV.berth_engines.HOST.*"]
                [..],
            &[
                "berth.v1.ctl.HOST.stop",
                "berth.v1.sched.report.HOST",
                "$KV.berth_hosts.HOST",
                "$KV.berth_engines.HOST.1-1",
                "$JS.API.DIRECT.GET.KV_berth_hosts.$KV.berth_hosts.HOST",
                "$JS.API.CONSUMER.CREATE.KV_berth_hosts",
                "$JS.API.STREAM.MSG.GET.BERTH_JOBS",
            ][..],
        ),
        (
            "gateway".into(),
            &["berth.v1.ctl.HOST.*"][..],
            &["berth.v1.ctl.HOST.start", "berth.v1.ctl.HOST.stop", "berth.v1.sched.drain"][..],
        ),
        (
            "health".into(),
            &["berth.v1.out.*.*"][..],
            &[
                "berth.v1.ctl.HOST.stop",
                "$KV.berth_hosts.HOST",
                "$KV.berth_catalog.red",
                "berth.v1.sched.drain",
            ][..],
        ),
    ] {
        let said: BTreeSet<String> = said.iter().map(|subject| of_second(subject)).collect();
        let heard: BTreeSet<String> = heard.iter().map(|subject| of_second(subject)).collect();
        denied(berth, &name, &heard, &said).await;
    }
    assert!(stream.rest().await.contains(&Event::Done), "the stream goes on");
    let lines = agent.lines();
    assert!(!lines.iter().any(|line| line.contains("does not let us")), "{lines:?}");
    assert!(agent.terminate().success());
}

/// All of it is denied to who has the key of this name.
async fn denied(berth: &Berth, name: &str, heard: &BTreeSet<String>, said: &BTreeSet<String>) {
    let told = Arc::new(Mutex::new(BTreeSet::new()));
    let tells = Arc::clone(&told);
    let options = async_nats::ConnectOptions::with_nkey(key_of(berth, name)).event_callback(move |event| {
        if let async_nats::Event::ServerError(error) = event {
            let text = error.to_string().to_lowercase();
            let kind = if text.contains("subscription") { "hear" } else { "say" };
            let subject = error.to_string().split('"').nth(1).unwrap_or_default().to_owned();
            tells.lock().expect("nobody panics").insert((kind, subject));
        }
        std::future::ready(())
    });
    let client = options.connect(berth.nats_url()).await.expect("the key opens");
    let mut kept = Vec::new();
    for subject in heard {
        kept.push(client.subscribe(subject.clone()).await.expect("it is queued"));
    }
    for subject in said {
        client.publish(subject.clone(), Bytes::new()).await.expect("it is queued");
    }
    let all: BTreeSet<(&str, String)> = heard
        .iter()
        .map(|subject| ("hear", subject.clone()))
        .chain(said.iter().map(|subject| ("say", subject.clone())))
        .collect();
    until_ok(&format!("{name} is denied all of it"), SOON, async || {
        let told = told.lock().expect("nobody panics").clone();
        if told == all { Ok(()) } else { Err(format!("denied: {told:?}")) }
    })
    .await;
}

/// What the NATS CLI shows.
fn inspected(berth: &Berth) {
    let listed = nats(berth, &["micro", "ls"]);
    for service in ["berth-gateway", "berth-scheduler", "berth-agent", "berth-health"] {
        assert!(listed.contains(service), "{service} is listed:\n{listed}");
    }
    let info = nats(berth, &["micro", "info", "berth-agent"]);
    assert!(info.contains("host") && info.contains("role"), "{info}");
    let stats = nats(berth, &["micro", "stats", "berth-scheduler", "--json"]);
    assert!(stats.contains("\"leads\": true"), "a service's own state is in its statistics:\n{stats}");
    let kept = nats(berth, &["kv", "ls", "berth_engines"]);
    assert!(kept.contains('.'), "a key is host and engine:\n{kept}");
    nats(berth, &["stream", "ls"]);
    let story = nats(berth, &["sub", "berth.v1.evt.>", "--stream", "BERTH_EVENTS", "--all", "--count", "3"]);
    assert!(story.contains("berth.v1.evt."), "{story}");
    assert!(nats(berth, &["kv", "watch", "berth_hosts", "--help"]).contains("watch"));
}

async fn accepted(berth: &Berth) -> String {
    let body = json!({"model": "red", "messages": [{"role": "user", "content": "later"}], "max_tokens": 1});
    let answer = reqwest::Client::new()
        .post(format!("{}/v1/chat/completions", berth.gateway.url()))
        .header("prefer", "respond-async")
        .header("content-type", "application/json")
        .body(body.to_string())
        .timeout(Duration::from_secs(10))
        .send()
        .await
        .expect("the gateway answers");
    assert_eq!(answer.status(), 202);
    let text = answer.text().await.expect("a body");
    let told: Value = serde_json::from_str(&text).expect("JSON");
    told["id"].as_str().unwrap_or_else(|| panic!("no id in {text}")).to_owned()
}

#[tokio::test]
async fn a_role_with_no_key_or_that_of_another_says_what_to_do() {
    let berth = Berth::fleet(&Config::of([Model::sim("sim", &[])]).permissions()).await;
    let mut without = berth.command(&["health"]);
    without.env_remove("BERTH_NATS_NKEY");
    let refused = finish(without, SOON);
    assert!(!refused.ok);
    assert!(refused.output.contains("nkey_file under [bus]"), "{}", refused.output);
    let key = std::fs::read_to_string(berth.folder().join("nats/keys/health.nk")).expect("a key");
    let mut wrong = berth.command(&["agent"]);
    wrong.env("BERTH_NATS_NKEY", key.trim()).env("BERTH_DATA_DIR", berth.folder().join("other"));
    let mut wrong = berth_tests::Role::start("agent with the key of health", wrong);
    until("it says so", SOON, async || {
        wrong
            .lines()
            .iter()
            .any(|line| line.contains("does not let us") && line.contains("berth nats update"))
    })
    .await;
    wrong.kill9();
}
