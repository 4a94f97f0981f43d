//! Schedulers, agents, engines and nats-server are killed at random under load. Every client gets its whole answer or an
//! error that says so: no stream ends as if it were complete, repeats or skips a word, or never ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use berth_tests::{Berth, Config, Event, Gateway, Model, at_most, scenario, until_ok};
use serde_json::json;

const CLIENTS: usize = 12;
const TOKENS: usize = 40;
/// Longer than a lost leader's and a lost host's terms together, with a start after them.
const PATIENCE: Duration = Duration::from_secs(60);

/// A generator of Knuth's (MMIX), so that a run can be repeated by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

#[derive(Debug, Default)]
struct Tally {
    whole: usize,
    told: usize,
}

/// Asks again and again until told to stop, and checks every answer.
async fn ask(gateway: Gateway, n: usize, whole: Arc<Vec<String>>, stop: Arc<AtomicBool>) -> Tally {
    let mut tally = Tally::default();
    let model = if n.is_multiple_of(2) { "red" } else { "blue" };
    while !stop.load(Ordering::Relaxed) {
        let fields = json!({"sim": {"tokens": TOKENS, "per_token_ms": 10}});
        let answer = async {
            let mut stream = gateway.stream(model, &fields).await;
            (stream.status, stream.rest().await)
        };
        let (status, events) = at_most(PATIENCE, "a client's answer", answer).await;
        let mut words = Vec::new();
        let mut error = false;
        for event in &events {
            if let Event::Data(chunk) = event {
                error = error || chunk.get("error").is_some();
                let text = chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                if !text.is_empty() {
                    words.push(text.to_owned());
                }
            }
        }
        assert!(whole.starts_with(&words), "words are repeated or skipped: {words:?}");
        let done = events.contains(&Event::Done);
        if done {
            assert!(!error && status == 200);
            assert_eq!(words.len(), TOKENS, "a stream that says it is done is whole");
            tally.whole += 1;
        } else {
            assert!(error, "a stream that broke off says so: {status} {events:?}");
            tally.told += 1;
            // A client waits a moment before it tries again.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    tally
}

async fn kill_something(berth: &mut Berth, dice: &mut Dice) {
    match dice.roll(4) {
        0 => {
            berth.role("scheduler").kill9();
            berth.restart("scheduler");
        }
        1 => {
            berth.role("agent").kill9();
            berth.restart("agent");
        }
        2 => {
            berth.nats().kill9();
            berth.nats().restart().unwrap();
        }
        _ => {
            let running: Vec<_> = berth.engines.running().into_iter().collect();
            if !running.is_empty() {
                running[dice.roll(running.len())].kill9();
            }
        }
    }
}

#[tokio::test]
async fn a_fleet_of_two_models_that_do_not_fit_together() {
    let config = Config::of(["red", "blue"].map(|id| Model::sim(id, &[]).memory("3GiB").concurrency(4)))
        .line("scheduler", "max_wait = \"1s\"");
    let mut berth = Berth::fleet(&config).await;
    let mut first = berth.gateway.stream("red", &json!({"sim": {"tokens": TOKENS}})).await;
    let mut whole = Vec::new();
    for _ in 0..TOKENS {
        whole.push(first.token().await);
    }
    drop(first);
    let (whole, stop) = (Arc::new(whole), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| tokio::spawn(ask(berth.gateway.clone(), n, Arc::clone(&whole), Arc::clone(&stop))))
        .collect();

    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(25) {
        tokio::time::sleep(Duration::from_millis(500 + dice.roll(2500) as u64)).await;
        kill_something(&mut berth, &mut dice).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut sum = Tally::default();
    for client in clients {
        let tally = client.await.unwrap();
        sum.whole += tally.whole;
        sum.told += tally.told;
    }
    println!("{} whole answers, {} told of a failure", sum.whole, sum.told);
    assert!(sum.whole > CLIENTS, "the fleet serves between the kills: {sum:?}");

    // Left alone, it heals.
    until_ok("both models are served", PATIENCE, async || {
        for model in ["red", "blue"] {
            let answer = berth.gateway.chat(model, &json!({"max_tokens": 2})).await;
            if answer.status != 200 {
                return Err(answer.text);
            }
        }
        Ok(())
    })
    .await;
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}
