//! `berth drain`: what runs ends, leased models move first, a killed scheduler and a new agent do not forget it.

use berth_tests::{Config, Hosts, Model, Role, SOON, scenario, until, until_ok};
use serde_json::{Value, json};

/// Two hosts, on each of which one of the models fits.
fn config() -> Config {
    let model = |id| Model::sim(id, &[]).memory("600MiB").concurrency(4);
    Config::of([model("a"), model("b")]).memory("1GiB")
}

/// What `berth status` says of drained hosts.
fn drains(fleet: &Hosts) -> Vec<Value> {
    let shown = fleet.berth(&["status", "--json"]);
    let shown: Value =
        serde_json::from_str(&shown.output).unwrap_or_else(|e| panic!("{e}: {}", shown.output));
    shown["scheduler"]["drains"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_drained_host_ends_what_it_runs_while_its_lease_moves_and_the_scheduler_and_the_agent_are_replaced()
{
    let mut fleet = Hosts::near(&config(), 2).await;
    let leased = fleet.berth(&["lease", "s", "a", "--ttl", "10m"]);
    assert!(leased.ok, "{}", leased.output);
    let host = fleet.home_of("a").await;
    let mut stream = fleet.gateway.stream("a", &json!({"sim": {"tokens": 160, "per_token_ms": 50}})).await;
    stream.token().await;

    let unknown = fleet.berth(&["drain", "nowhere"]);
    assert!(!unknown.ok && unknown.output.contains(&host), "it names those there are: {}", unknown.output);
    let mut waiting =
        Role::start("drain", fleet.command(&["drain", &host, "--wait", "--timeout", "60s", "--json"]));
    // A model that is leased is loaded elsewhere, and what comes now is served there.
    until_ok("a has a second engine", SOON, async || match fleet.processes_of("a").len() {
        2 => Ok(()),
        n => Err(format!("{n} engines")),
    })
    .await;
    let answer = fleet.answered("a").await;
    assert_ne!(answer.headers["x-berth-host"], *host, "{:?}", answer.headers);
    let table = fleet.berth(&["status"]).output;
    assert!(table.contains(&format!("{host} (drained: 1 job runs, 1 engine is left)")), "{table}");
    let late = fleet.berth(&["drain", &host, "--wait", "--timeout", "1s"]);
    assert!(!late.ok && late.output.contains("is not empty after 1 s: 1 job runs"), "{}", late.output);

    // The next leader knows of it.
    fleet.role("scheduler").kill9();
    fleet.restart("scheduler");
    until("the stream goes on", SOON, async || !stream.token().await.is_empty()).await;
    let rest = stream.rest().await;
    assert!(rest.contains(&berth_tests::Event::Done), "it ended as if nothing had happened: {rest:?}");
    let status = waiting.wait(SOON * 2).unwrap_or_else(|| panic!("{}", waiting.tail()));
    assert!(status.success(), "{}", waiting.tail());
    let last: Value = serde_json::from_str(waiting.lines().last().unwrap()).unwrap();
    assert_eq!((&last["host"], &last["empty"], &last["engines"]), (&json!(host), &json!(true), &json!(0)));
    until("the old engine is gone", SOON, async || fleet.processes_of("a").len() == 1).await;

    // And so does who asks after its agent was started anew: b has no other place.
    let agent = fleet.agent_of(&host);
    fleet.role(&agent).terminate();
    fleet.restart(&agent);
    until_ok("it is back, and drained", SOON, async || {
        let known = drains(&fleet);
        if known.iter().any(|d| d["host"] == *host && d["present"] == true) {
            Ok(())
        } else {
            Err(json!(known).to_string())
        }
    })
    .await;
    fleet.gateway.chat("b", &json!({"max_tokens": 2})).await.content();
    assert_ne!(fleet.home_of("b").await, host);
    let back = fleet.berth(&["undrain", &host]);
    assert!(back.ok && back.output.contains("takes work again"), "{}", back.output);
    // The lease, which had to give way to b, has room again.
    until("a is loaded where it was drained", SOON, async || fleet.home_of("a").await == host).await;
    assert!(drains(&fleet).is_empty());
    scenario::nothing_is_outstanding(&fleet.bus().await).await;
}
