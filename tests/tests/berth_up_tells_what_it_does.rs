//! `berth up` as a person meets it: a file of weights, the story on the bus, and a stop in good order.

use std::process::Command;

use berth_tests::{Berth, Config, Model, Part, Role, SOON, berth, finish, path, scenario, until, until_ok};
use serde_json::json;

#[tokio::test]
async fn a_gguf_file_alone_is_served_by_the_llama_server_on_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("little-one.gguf");
    std::fs::copy(path(Part::Gguf), &weights).unwrap();
    let mut run = berth();
    let known =
        run.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value).unwrap().to_owned();
    let mut folders = vec![path(Part::LlamaServer).parent().unwrap().to_path_buf()];
    folders.extend(std::env::split_paths(&known));
    run.env("PATH", std::env::join_paths(folders).unwrap()).current_dir(folder.path());
    run.arg("up").arg("--model").arg(&weights).arg("--listen").arg("127.0.0.1:0");
    run.arg("--data-dir").arg(folder.path().join("data"));
    let mut up = Role::start("up", run);
    let url = until_ok("berth up is ready", SOON, async || {
        let lines = up.lines();
        if !lines.iter().any(|line| line.contains("ready")) {
            return Err(lines.join("\n"));
        }
        let urls = lines.iter().filter_map(|line| line.split_once("http://127.0.0.1:"));
        for (_, rest) in urls {
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let url = format!("http://127.0.0.1:{port}");
            if reqwest::get(format!("{url}/v1/models")).await.is_ok_and(|a| a.status().is_success()) {
                return Ok(url);
            }
        }
        Err(lines.join("\n"))
    })
    .await;
    let models: serde_json::Value =
        reqwest::get(format!("{url}/v1/models")).await.unwrap().json().await.unwrap();
    assert_eq!(models["data"][0]["id"], "little-one", "{models}");
    let body =
        json!({"model": "little-one", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]});
    let answer =
        reqwest::Client::new().post(format!("{url}/v1/chat/completions")).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    assert!(text.contains("\"choices\""), "{text}");
    assert!(up.terminate().success());
}

#[tokio::test]
async fn it_says_what_it_found_and_its_addresses() {
    let mut berth = Berth::up(&Config::of([Model::sim("sim", &[])])).await;
    let url = berth.gateway.url().to_owned();
    let said = berth.role("up").lines().join("\n");
    for word in [url.as_str(), "nats://", "sim", "ready", "4"] {
        assert!(said.contains(word), "`{word}` is said:\n{said}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(berth.gateway.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn told_to_stop_it_lets_a_stream_end_and_leaves_nothing_behind() {
    let mut berth = Berth::up(&Config::of([Model::sim("sim", &[])])).await;
    let mut stream = berth.gateway.stream("sim", &json!({"sim": {"tokens": 30, "per_token_ms": 50}})).await;
    stream.token().await;
    berth.role("up").signal(nix::sys::signal::Signal::SIGTERM);
    let events = stream.rest().await;
    assert!(events.contains(&berth_tests::Event::Done), "the stream ends whole: {events:?}");
    let status = berth.role("up").wait(SOON).expect("it stops");
    assert!(status.success(), "{status}");
    until("no engine is left", SOON, async || berth.engines.running().is_empty()).await;
    assert!(async_nats::connect(berth.nats_url()).await.is_err(), "its nats-server is stopped");
}

#[tokio::test]
async fn its_story_can_be_read_with_the_nats_cli() {
    let berth = Berth::up(&Config::of([Model::sim("sim", &[])])).await;
    berth.gateway.chat("sim", &json!({})).await.content();
    let bus = berth.bus().await;
    scenario::nothing_is_outstanding(&bus).await;
    for kind in ["leader_elected", "host_joined", "engine_starting", "engine_ready", "job_ended"] {
        until(&format!("the story tells of {kind}"), SOON, async || !bus.facts(kind).await.is_empty()).await;
    }
    let mut command = Command::new(path(Part::NatsCli));
    command.args(["--server", berth.nats_url(), "kv", "ls", "berth_engines"]);
    let listed = finish(command, SOON);
    assert!(listed.ok && !listed.output.trim().is_empty(), "{}", listed.output);
}

#[test]
fn translate_turns_msgpack_into_json() {
    use std::io::Write;
    let mut command = berth();
    command.arg("translate").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    // {"model": "a", "n": [1, -2]}
    child.stdin.take().unwrap().write_all(b"\x82\xa5model\xa1a\xa1n\x92\x01\xfe").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value, json!({"model": "a", "n": [1, -2]}));
}

#[tokio::test]
async fn killed_and_started_again_it_serves_at_once_and_leaves_no_engine_of_before() {
    let mut berth = Berth::up(&Config::of([Model::sim("sim", &[])])).await;
    berth.gateway.chat("sim", &json!({"max_tokens": 2})).await.content();
    let before = berth.engines.only();
    berth.role("up").kill9();
    berth.restart("up");
    berth.until_ready().await;
    let begun = std::time::Instant::now();
    berth.gateway.chat("sim", &json!({"max_tokens": 2})).await.content();
    assert!(begun.elapsed().as_secs() < 5, "no dead leader's term is waited for: {:?}", begun.elapsed());
    assert_ne!(berth.engines.only(), before, "the engine that was left is stopped");
}
