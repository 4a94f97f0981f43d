//! Two models on a host whose memory fits one.

use berth_tests::{Berth, Config, Model, scenario};

fn one_at_a_time(models: [Model; 2]) -> Config {
    Config::of(models.map(|model| model.memory("600MiB"))).memory("1GiB")
}

#[tokio::test]
async fn as_processes() {
    let config = one_at_a_time([Model::llama_process("red"), Model::llama_process("blue")]);
    let berth = Berth::up(&config).await;
    scenario::two_models_take_turns(&berth, "red", "blue").await;
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn as_containers() {
    let config = one_at_a_time([Model::llama_docker("red"), Model::llama_docker("blue")]);
    let berth = Berth::up(&config).await;
    scenario::two_models_take_turns(&berth, "red", "blue").await;
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn as_one_of_each() {
    let config = one_at_a_time([Model::llama_docker("red"), Model::llama_process("blue")]);
    let berth = Berth::up(&config).await;
    scenario::two_models_take_turns(&berth, "red", "blue").await;
}
