//! What a model takes is read from its file where nobody says it: held against the server's own words, and used.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use berth_footprint::{Use, of_gguf};

use berth_tests::{Berth, Config, Model, Part, SOON, berth, finish, path, until};
use serde_json::{Value, json};

const MIB: f64 = 1_048_576.0;

/// Sums of MiB that llama-server says while it loads, by the words in front of them.
fn told_by_the_server(context: &str, slots: &str, wanted: &[&str]) -> Vec<f64> {
    let mut server = Command::new(path(Part::LlamaServer))
        .arg("-m")
        .arg(path(Part::Gguf))
        .args(["-c", context, "-np", slots, "--port", "0", "-lv", "4"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("llama-server runs");
    let lines = BufReader::new(server.stderr.take().expect("a pipe")).lines();
    let mut told = vec![None; wanted.len()];
    for line in lines.map_while(Result::ok) {
        for (sum, words) in told.iter_mut().zip(wanted) {
            let number =
                line.split_once(words).and_then(|(_, rest)| rest.split("MiB").next()?.trim().parse().ok());
            *sum = sum.or(number);
        }
        if told.iter().all(Option::is_some) {
            break;
        }
    }
    server.kill().expect("it can be killed");
    server.wait().expect("it ends");
    told.into_iter().map(|sum| sum.expect("the server says how large its buffers are")).collect()
}

#[test]
fn the_estimate_is_what_the_server_says_that_it_takes() {
    let wanted = ["model buffer size =", "KV buffer size =", "compute buffer size ="];
    for (context, slots) in [(32_768, 2), (4096, 4)] {
        let all = (context * slots).to_string();
        let told = told_by_the_server(&all, &slots.to_string(), &wanted);
        let model = of_gguf(&path(Part::Gguf)).expect("the tiny model is whole");
        let usage = Use { slots, ..Use::llama(Some(context), false) };
        let (weights, cache, scratch) =
            (model.weights as f64 / MIB, model.cache(usage) as f64 / MIB, model.scratch(usage) as f64 / MIB);
        let close = |what: &str, mine: f64, server: f64, most: f64| {
            assert!(
                mine > server - 0.02 && mine < server * most + 0.02,
                "{what}: {mine:.2} and {server:.2} MiB"
            );
        };
        close("weights", weights, told[0], 1.0);
        close("cache", cache, told[1], 1.0);
        close("working memory", scratch, told[2], 1.5);
    }
}

#[tokio::test]
async fn two_models_without_memory_run_side_by_side() {
    let models = [Model::llama_process("red"), Model::llama_docker("blue")];
    let fleet = Berth::fleet(&Config::of(models)).await;
    for model in ["red", "blue", "red"] {
        let answer = fleet.gateway.chat(model, &json!({"max_tokens": 1})).await;
        assert_eq!(answer.status, 200, "{}", answer.error());
    }
    assert_eq!(fleet.engines.running().len(), 2, "neither made room for the other");
    let status = || {
        let mut command = berth();
        command.args(["status", "--json", "--nats-url", fleet.nats_url()]).current_dir(fleet.folder());
        serde_json::from_str::<Value>(&finish(command, SOON).output).expect("JSON")
    };
    // Measured with the next heartbeat.
    let mut shown = status();
    until("engines are measured", SOON, async || {
        shown = status();
        shown["hosts"][0]["accelerators"][0]["held"].as_u64().is_some_and(|bytes| bytes > 1 << 20)
    })
    .await;
    let ram = &shown["hosts"][0]["accelerators"][0];
    let engines = shown["engines"].as_array().expect("engines");
    let bytes = |engine: &Value| engine["reservations"][0]["bytes"].as_u64().expect("bytes");
    let [one, other] = engines.as_slice() else { panic!("{engines:?}") };
    assert!(bytes(one) + bytes(other) < ram["memory"].as_u64().expect("bytes"), "{engines:?}");
}
