//! `berth gateway`, `scheduler`, `agent` and `health`, each its own process, against one nats-server.

use std::process::Command;

use berth_tests::{Berth, Config, Model, Part, SOON, finish, path, scenario};

#[tokio::test]
async fn the_openai_client_is_served() {
    let berth = Berth::fleet(&Config::of([Model::llama_process("tiny")])).await;
    scenario::the_openai_client_is_served(&berth, "tiny").await;
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn two_models_take_turns_in_containers() {
    let models =
        [Model::llama_docker("red"), Model::llama_docker("blue")].map(|model| model.memory("600MiB"));
    let berth = Berth::fleet(&Config::of(models).memory("1GiB")).await;
    scenario::two_models_take_turns(&berth, "red", "blue").await;
}

#[tokio::test]
async fn a_killed_engine_is_told_of_and_replaced() {
    let berth = Berth::fleet(&Config::of([Model::llama_process("tiny")])).await;
    scenario::a_killed_engine_is_told_of_and_replaced(&berth, "tiny").await;
}

#[tokio::test]
async fn each_is_a_service_that_the_nats_cli_lists() {
    let berth = Berth::fleet(&Config::of([Model::sim("sim", &[])])).await;
    let mut command = Command::new(path(Part::NatsCli));
    command.args(["--server", berth.nats_url(), "micro", "ls"]);
    let listed = finish(command, SOON);
    assert!(listed.ok, "{}", listed.output);
    for service in ["gateway", "scheduler", "agent", "health"] {
        assert!(listed.output.contains(service), "{service} is listed:\n{}", listed.output);
    }
}

#[tokio::test]
async fn each_stops_in_good_order_when_told_to() {
    let mut berth = Berth::fleet(&Config::of([Model::llama_process("tiny")])).await;
    berth.gateway.chat("tiny", &serde_json::json!({"max_tokens": 2})).await.content();
    for name in ["gateway", "agent", "scheduler", "health"] {
        let status = berth.role(name).terminate();
        assert!(status.success(), "{name} ended with {status}:\n{}", berth.role(name).tail());
    }
    assert!(berth.engines.running().is_empty(), "the agent stops its engines");
}
