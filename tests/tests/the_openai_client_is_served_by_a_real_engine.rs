//! A streamed and a plain chat through the openai client, with usage; embeddings; a completion.

use berth_tests::{Berth, Config, Model, scenario};

#[tokio::test]
async fn in_a_process() {
    let berth = Berth::up(&Config::of([Model::llama_process("tiny")])).await;
    scenario::the_openai_client_is_served(&berth, "tiny").await;
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn in_a_container() {
    // A name with everything that subjects and container names do not take.
    let berth = Berth::up(&Config::of([Model::llama_docker("org/tiny:0.5b")])).await;
    scenario::the_openai_client_is_served(&berth, "org/tiny:0.5b").await;
    let berth_tests::Engine::Container { id } = berth.engines.only() else { panic!("it is a container") };
    let labels = berth.engines.labels(&id);
    let names = labels.as_object().expect("labels are an object").keys();
    assert!(names.clone().any(|name| name.starts_with("berth")), "it is labelled as Berth's: {labels}");
}

#[tokio::test]
async fn on_the_simulator() {
    let berth = Berth::up(&Config::of([Model::sim("sim", &[])])).await;
    scenario::the_openai_client_is_served(&berth, "sim").await;
}
