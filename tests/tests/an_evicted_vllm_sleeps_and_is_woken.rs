//! A real vLLM on the CPU sleeps while another model has its room, and is woken by its next request.

use std::collections::BTreeSet;
use std::time::Instant;

use berth_tests::{Berth, Config, Engine, Model, SOON, until, until_ok};
use serde_json::{Value, json};

/// The main process of a model's engine comes first; vLLM has several.
fn of(berth: &Berth, model: &str) -> BTreeSet<Engine> {
    let mine = |engine: &Engine| matches!(engine, Engine::Process { model: of, .. } if of == model);
    berth.engines.running().into_iter().filter(mine).collect()
}

/// Their starts take a minute where two cores are shared.
fn fleet(models: impl IntoIterator<Item = Model>) -> Config {
    let patient = Config::of(models).line("gateway", "wait_limit = \"10m\"");
    patient.line("host", "sleep_memory = \"8GiB\"")
}

/// What the model says, always the same, and how long that took.
async fn said(berth: &Berth, model: &str) -> (String, f64) {
    let began = Instant::now();
    let ask = json!({"max_tokens": 12, "temperature": 0, "ignore_eos": true});
    let answer = berth.gateway.chat_at_length(model, &ask).await;
    let text = answer.content().to_owned();
    assert_eq!(answer.json["usage"]["completion_tokens"], 12, "{}", answer.text);
    (text, began.elapsed().as_secs_f64())
}

async fn fact(berth: &Berth, kind: &str, holds: impl Fn(&Value) -> bool) {
    let bus = berth.bus().await;
    until_ok(&format!("{kind} is told"), SOON, async || {
        let facts = bus.facts(kind).await;
        facts.iter().any(&holds).then_some(()).ok_or(format!("{facts:?}"))
    })
    .await;
}

#[tokio::test]
async fn two_that_do_not_fit_together_take_turns_without_being_loaded_again() {
    let models = [Model::vllm_process("red"), Model::vllm_process("blue").field("sleep", "2")];
    let berth = Berth::up(&fleet(models).memory("3GiB")).await;
    let (red, start) = said(&berth, "red").await;
    let engine = of(&berth, "red");
    let (blue, _) = said(&berth, "blue").await;
    fact(&berth, "engine_sleeping", |fact| fact.to_string().contains("red")).await;
    assert_eq!(of(&berth, "red"), engine, "it was not stopped");

    let (again, wake) = said(&berth, "red").await;
    assert_eq!(again, red);
    assert_eq!(of(&berth, "red"), engine, "nor started again");
    let (again, deep) = said(&berth, "blue").await;
    assert_eq!(again, blue);
    println!(
        "first answer after a start {start:.1} s, after a wake {wake:.2} s, with weights read anew {deep:.2} s"
    );
    let starts = berth.bus().await.facts("engine_starting").await;
    assert_eq!(starts.len(), 2, "{starts:?}");

    // Red sleeps now.
    engine.first().expect("it runs").kill9();
    fact(&berth, "engine_failed", |fact| fact.to_string().contains("while it was asleep")).await;
    until("what is left of it is gone", SOON, async || of(&berth, "red").is_empty()).await;
    assert_eq!(said(&berth, "blue").await.0, blue);
}

#[tokio::test]
async fn an_agent_that_was_killed_finds_it_asleep_and_wakes_it() {
    let model = Model::vllm_docker("red").memory("3GiB").field("idle_ttl", "\"1s\"");
    let mut berth = Berth::fleet(&fleet([model])).await;
    let (red, _) = said(&berth, "red").await;
    let engine = berth.engines.only();
    asleep(&berth).await;
    berth.role("agent").kill9();
    berth.restart("agent");
    let agent = berth.role("agent").pid();
    until("the agent has adopted it", SOON, async || {
        berth
            .role("agent")
            .lines()
            .iter()
            .any(|line| line.contains("adopted an engine") && line.contains("sleeping"))
    })
    .await;
    asleep(&berth).await;
    assert_eq!(said(&berth, "red").await.0, red);
    assert_eq!((berth.engines.only(), berth.role("agent").pid()), (engine, agent));
}

async fn asleep(berth: &Berth) {
    until_ok("its engine is asleep", SOON, async || {
        let fleet = berth.gateway.get("/api/v1/fleet").await;
        fleet.text.contains("\"sleeping\"").then_some(()).ok_or(fleet.text)
    })
    .await;
}
