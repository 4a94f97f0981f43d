//! Hosts in network namespaces, each with a way to NATS and to nothing else: cut off, killed, and back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_tests::{Config, Hosts, Model, SOON, at_most, scenario, until, until_ok};
use serde_json::{Value, json};

/// Three hosts, on each of which one of the models fits.
fn config() -> Config {
    let model = |id| Model::sim(id, &[]).memory("600MiB").concurrency(2);
    Config::of([model("a"), model("b"), model("c")]).memory("1GiB").line("scheduler", "host_timeout = \"6s\"")
}

/// A stream that is read on; it panics when the stream ends or tells of an error.
struct Reader {
    text: Arc<Mutex<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Reader {
    fn of(mut stream: berth_tests::Stream) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let so_far = Arc::clone(&text);
        let task = tokio::spawn(async move {
            loop {
                let token = stream.token().await;
                so_far.lock().unwrap().push_str(&token);
            }
        });
        Self { text, task }
    }

    fn words(&self) -> usize {
        self.text.lock().unwrap().split(' ').count()
    }

    /// What it has brought; its client leaves.
    async fn leave(self) -> String {
        assert!(
            !self.task.is_finished(),
            "the stream of a host that is there has ended: {:?}",
            self.task.await
        );
        self.task.abort();
        let _ = self.task.await;
        std::mem::take(&mut *self.text.lock().unwrap())
    }
}

/// No host has more set aside than it has, nor two engines of one model.
fn nothing_is_booked_twice(picture: &Value) {
    for host in picture["hosts"].as_array().unwrap() {
        let engines = picture["engines"].as_array().unwrap().iter().filter(|e| e["host"] == host["host"]);
        let engines: Vec<&Value> =
            engines.filter(|e| e["state"] != "failed" && e["state"] != "stopped").collect();
        let taken: u64 = engines
            .iter()
            .flat_map(|engine| engine["reservations"].as_array().unwrap())
            .map(|reservation| reservation["bytes"].as_u64().unwrap())
            .sum();
        assert!(taken <= 1 << 30, "{taken} bytes are set aside on {}: {engines:?}", host["host"]);
        let models: BTreeSet<&str> = engines.iter().map(|engine| engine["model"].as_str().unwrap()).collect();
        assert_eq!(models.len(), engines.len(), "two engines of one model: {engines:?}");
    }
}

/// Every job of the queue has ended once.
async fn every_job_ended_once(fleet: &Hosts) {
    let bus = fleet.bus().await;
    scenario::nothing_is_outstanding(&bus).await;
    let ended = bus.facts("job_ended").await;
    let jobs: BTreeSet<String> = ended.iter().map(|fact| fact["job"].to_string()).collect();
    assert_eq!(jobs.len(), ended.len(), "a job ended twice: {ended:?}");
}

#[tokio::test]
async fn streams_of_other_hosts_go_on_and_what_was_cut_off_is_found_again_as_it_was() {
    let mut fleet = Hosts::apart(&config(), 3).await;
    let fields = json!({"sim": {"tokens": 4000, "per_token_ms": 50}});
    let mut streams = Vec::new();
    for model in ["a", "b", "c"] {
        let mut stream = fleet.gateway.stream(model, &fields).await;
        stream.token().await;
        streams.push(stream);
    }
    let homes = [fleet.home_of("a").await, fleet.home_of("b").await, fleet.home_of("c").await];
    assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), 3, "each has a host of its own: {homes:?}");
    let engine = fleet.processes_of("a");
    let agent = fleet.agent_of(&homes[0]);
    let island: u8 = agent.trim_start_matches("agent-").parse().unwrap();
    assert!(fleet.islands().holds(island, *engine.first().unwrap()), "its engine runs in its namespace");

    fleet.islands().cut(island);
    let mut lost = streams.remove(0);
    let others: Vec<Reader> = streams.into_iter().map(Reader::of).collect();
    // Its client is told, and soon: by the gateway that hears nothing, or by the scheduler that gives the host up.
    let told = at_most(Duration::from_secs(25), "the end of the stream that is cut off", lost.rest()).await;
    scenario::an_error_ends_the_stream(&told);
    // What comes for it meanwhile waits behind the jobs of the others: there is no room elsewhere while they serve.
    let (gateway, body) = (fleet.gateway.clone(), json!({"max_tokens": 3}));
    let waiting = tokio::spawn(async move { gateway.chat("a", &body).await });
    fleet.bus().await.until_outstanding(3).await;
    // A leader of another epoch meanwhile: what comes from before it is refused.
    fleet.role("scheduler").kill9();
    fleet.restart("scheduler");
    until_ok("the host is given up", SOON, async || {
        let picture = fleet.picture().await;
        let gone =
            picture["hosts"].as_array().is_some_and(|hosts| hosts.iter().all(|h| h["host"] != *homes[0]));
        if gone { Ok(()) } else { Err(picture["hosts"].to_string()) }
    })
    .await;
    assert_eq!(fleet.processes_of("a"), engine, "nobody else has started it");

    fleet.islands().mend(island);
    let answer =
        at_most(Duration::from_secs(40), "the answer of the host that is back", waiting).await.unwrap();
    assert_eq!(answer.content(), "This answer is ");
    assert_eq!(fleet.processes_of("a"), engine, "by the engine that it had");
    nothing_is_booked_twice(&fleet.picture().await);
    let before: Vec<usize> = others.iter().map(Reader::words).collect();
    for (reader, before) in others.iter().zip(before) {
        until("the others' streams go on", SOON, async || reader.words() > before + 5).await;
    }
    let mut texts = Vec::new();
    for reader in others {
        texts.push(reader.leave().await);
    }
    // All simulated answers begin alike.
    texts.sort_by_key(String::len);
    assert!(texts[0].len() > 500 && texts[1].starts_with(&texts[0]), "nothing is missing: {texts:?}");

    // A killed agent takes its engine along, and no other's.
    let mut streams = Vec::new();
    for model in ["b", "c"] {
        let mut stream = fleet.gateway.stream(model, &fields).await;
        stream.token().await;
        streams.push(stream);
    }
    let other = Reader::of(streams.pop().unwrap());
    let victim = fleet.agent_of(&homes[1]);
    fleet.role(&victim).kill9();
    fleet.restart(&victim);
    scenario::an_error_ends_the_stream(
        &at_most(SOON, "the killed agent's stream", streams.remove(0).rest()).await,
    );
    assert!(other.leave().await.contains("simulated"));
    for model in ["a", "b", "c"] {
        fleet.answered(model).await;
        assert_eq!(fleet.processes_of(model).len(), 1, "{model} has one engine");
    }
    nothing_is_booked_twice(&fleet.picture().await);
    every_job_ended_once(&fleet).await;
}

#[tokio::test]
async fn a_scheduler_that_is_cut_off_steps_down_and_the_one_that_took_over_stays() {
    let mut fleet = Hosts::apart(&config(), 1).await;
    fleet.answered("a").await;
    // The scheduler has the namespace behind those of the hosts.
    fleet.islands().cut(1);
    fleet.add("scheduler-2", None);
    let mut stream = fleet.gateway.stream("a", &json!({"sim": {"tokens": 500, "per_token_ms": 50}})).await;
    stream.token().await;
    fleet.until_said("scheduler", "leadership lost").await;
    let bus = fleet.bus().await;
    until("the other one is elected", SOON, async || bus.facts("leader_elected").await.len() == 2).await;
    stream.token().await;
    drop(stream);
    // It has another engine started, for which the first must go.
    fleet.answered("b").await;
    assert_eq!(fleet.engines.running().len(), 1);
    fleet.islands().mend(1);
    assert_eq!(fleet.answered("a").await.status, 200);
    assert_eq!(bus.facts("leader_elected").await.len(), 2, "the one that is back has not led again");
    // It waits for its turn, and takes over in its turn.
    fleet.role("scheduler-2").kill9();
    fleet.answered("b").await;
    assert_eq!(bus.facts("leader_elected").await.len(), 3);
    assert_eq!(fleet.engines.running().len(), 1, "one engine, and not one for each scheduler");
    nothing_is_booked_twice(&fleet.picture().await);
    every_job_ended_once(&fleet).await;
}
