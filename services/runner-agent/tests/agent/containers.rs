//! An agent with engines that are containers of a real llama-server, on a real Docker engine.
//!
//! Needs `BERTH_TEST_LLAMA_IMAGE` and `BERTH_TEST_GGUF`, which `bash tests/run` provides; fails without.

use std::process::Command;
use std::time::Duration;

use crate::fixture::{Fleet, GIB, WAIT, process};
use crate::gateway::text;
use berth_testkit::wait::until;
use berth_wire::{BeginReply, Driver, EngineId, EngineState, Finish, ModelSpec, Outcome, Reply, ReportEntry};

pub(crate) struct Parts {
    pub(crate) image: String,
    pub(crate) weights: String,
}

pub(crate) fn part(name: &str) -> String {
    berth_config::env::var(name)
        .unwrap_or_else(|| panic!("{name} is not set: run `bash tests/run`, which provides the real parts"))
}

pub(crate) fn parts() -> Parts {
    Parts { image: part("BERTH_TEST_LLAMA_IMAGE"), weights: part("BERTH_TEST_GGUF") }
}

pub(crate) fn llama(parts: &Parts) -> ModelSpec {
    let mut model = process(&[]);
    model.engine.driver = Driver::Docker;
    model.engine.image = Some(parts.image.clone());
    let args =
        ["-m", "/models/tiny.gguf", "--host", "{host}", "--port", "{port}", "--chat-template", "chatml"];
    model.engine.args = args.map(str::to_owned).to_vec();
    model
        .engine
        .args
        .extend(["-c", "2048", "--parallel", "{concurrency}", "--alias", "{id}"].map(str::to_owned));
    model.engine.volumes = vec![format!("{}:/models/tiny.gguf:ro", parts.weights)];
    model.engine.served_name = "m".into();
    model.engine.stop_grace = Duration::from_secs(5);
    model
}

pub(crate) async fn fleet(host: &str) -> Fleet {
    // An earlier run that failed may have left some, which would be adopted.
    for left in containers_of(host).lines() {
        docker(&["rm", "-f", left]);
    }
    Fleet::start_with(host, |config| config.host.drivers = vec![Driver::Docker, Driver::Process]).await
}

pub(crate) fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub(crate) fn container(host: &str, engine: EngineId) -> String {
    format!("berth-{host}-{engine}")
}

pub(crate) fn containers_of(host: &str) -> String {
    docker(&["ps", "-aq", "--filter", &format!("label=berth.host={host}")])
}

pub(crate) const CHAT: &str = r#"{"model":"alias","stream":true,"stream_options":{"include_usage":true},"max_tokens":16,
    "messages":[{"role":"user","content":"hello"}]}"#;

#[actix::test]
async fn a_container_serves_without_privileges_and_leaves_nothing_behind() {
    let parts = parts();
    let mut fleet = fleet("docker-serve").await;
    let engine = fleet.ready_engine(llama(&parts)).await;
    let (_, attempt) = fleet.run(engine, CHAT).await;
    let frames = fleet.gateway.take_all(1 << 20).await;
    assert!(text(&frames).ends_with("data: [DONE]\n\n"), "{}", text(&frames));
    let end = frames.last().unwrap().end.clone().unwrap();
    assert_eq!(end.finish, Finish::Stop);
    assert!(end.usage.completion_tokens.unwrap() > 0);
    assert_eq!(fleet.ended(attempt).await.outcome, Outcome::Completed);

    let name = container("docker-serve", engine);
    let asked = "{{.HostConfig.Memory}} {{.HostConfig.Privileged}} {{.HostConfig.CapDrop}} \
                 {{.HostConfig.SecurityOpt}} {{index .Config.Labels \"berth.model\"}}";
    let told = docker(&["inspect", "--format", asked, &name]);
    assert_eq!(told, format!("{} false [ALL] [no-new-privileges] m", GIB / 4));
    let ports = docker(&["port", &name]);
    assert!(ports.contains("127.0.0.1:") && !ports.contains("0.0.0.0"), "{ports}");

    assert_eq!(fleet.stop_engine(engine, false).await, Reply::Ok);
    fleet.engine_in(engine, EngineState::Stopped).await;
    assert_eq!(containers_of("docker-serve"), "");
    fleet.leave().await;
}

#[actix::test]
async fn a_container_that_dies_is_reported_and_removed_without_what_it_logged_of_requests() {
    let parts = parts();
    let mut fleet = fleet("docker-die").await;
    let engine = fleet.ready_engine(llama(&parts)).await;
    let long = CHAT.replace("\"max_tokens\":16", "\"max_tokens\":100000,\"ignore_eos\":true");
    let (_, attempt) = fleet.run(engine, &long).await;
    fleet.gateway.answer(&BeginReply::Go { credit: 2000 }).await;
    fleet.gateway.frame().await;
    docker(&["kill", &container("docker-die", engine)]);
    assert!(matches!(fleet.ended(attempt).await.outcome, Outcome::Failed { output_sent: true, .. }));
    let failure = fleet.failure_of(engine).await;
    assert!(failure.was_ready);
    assert!(failure.message.contains("exit code 137"), "{}", failure.message);
    assert_eq!(failure.message.lines().count(), 1, "{}", failure.message);

    let mut broken = llama(&parts);
    broken.engine.volumes.clear();
    let broken = fleet.start_engine(broken).await;
    let failure = fleet.failure_of(broken).await;
    assert!(failure.message.contains("before it was ready"), "{}", failure.message);
    assert!(failure.message.contains("/models/tiny.gguf"), "{}", failure.message);
    assert_eq!(containers_of("docker-die"), "");
    fleet.leave().await;
}

#[actix::test]
async fn a_missing_image_or_program_is_a_permanent_failure() {
    let parts = parts();
    let mut fleet = fleet("docker-missing").await;
    let mut missing = llama(&parts);
    missing.engine.image = Some("localhost:1/berth-test/none:1".into());
    let missing = fleet.start_engine(missing).await;
    let failure = fleet.failure_of(missing).await;
    assert!(failure.permanent);
    let told = "image localhost:1/berth-test/none:1 is not on this host and could not be pulled: ";
    assert!(failure.message.starts_with(told), "{}", failure.message);
    let mut program = llama(&parts);
    program.engine.command = vec!["/no/such/program".into()];
    let program = fleet.start_engine(program).await;
    let failure = fleet.failure_of(program).await;
    assert!(failure.permanent, "{}", failure.message);
    assert_eq!(containers_of("docker-missing"), "");
    fleet.leave().await;
}

#[actix::test]
async fn a_volume_whose_source_is_missing_is_refused_and_not_made() {
    let parts = parts();
    let mut fleet = fleet("docker-volume").await;
    let folder = std::env::temp_dir().join("berth-test-no-such-folder");
    let source = folder.display();
    let mut model = llama(&parts);
    model.engine.volumes.push(format!("{source}:/more"));
    let engine = fleet.start_engine(model).await;
    let failure = fleet.failure_of(engine).await;
    assert!(failure.permanent);
    let told = format!("source {source} does not exist on the host");
    assert!(failure.message.contains(&told), "{}", failure.message);
    assert!(!folder.exists(), "Docker has made it");
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_outgrows_its_memory_is_told_so() {
    let parts = parts();
    let mut fleet = fleet("docker-oom").await;
    let mut model = llama(&parts);
    model.memory = Some(24 << 20);
    // Its cache alone is larger than that.
    model.engine.args.extend(["-c", "800000"].map(str::to_owned));
    let engine = fleet.start_engine(model).await;
    let failure = fleet.failure_of(engine).await;
    assert!(failure.message.contains("more than its 24 MiB of memory"), "{}", failure.message);
    fleet.leave().await;
}

#[actix::test]
async fn a_restarted_agent_adopts_what_serves_and_removes_what_does_not() {
    let parts = parts();
    let mut fleet = fleet("docker-adopt").await;
    let engine = fleet.ready_engine(llama(&parts)).await;
    let mut loading = llama(&parts);
    // Its process sleeps in the loader: it never answers.
    loading.engine.health_path = "/no-such-path".into();
    loading.engine.start_timeout = Duration::from_secs(600);
    let loading = fleet.start_engine(loading).await;
    let name = container("docker-adopt", loading);
    until("its container runs", WAIT, async || {
        docker(&["inspect", "--format", "{{.State.Running}}", &name]) == "true"
    })
    .await;
    let boot = fleet.snapshots()[0].beat.boot.clone();
    // The first agent lives on, as one that hangs would; the second takes over from what Docker tells.
    let first = (fleet.shutdown.clone(), fleet.agent.take());
    fleet.told.entries.borrow_mut().clear();
    fleet.run_agent();
    fleet
        .until("the second agent's snapshot", |entries| {
            entries.iter().any(|entry| matches!(entry, ReportEntry::Snapshot(s) if s.beat.boot != boot))
        })
        .await;
    let snapshot = fleet.snapshots().into_iter().find(|s| s.beat.boot != boot).unwrap();
    assert_eq!(snapshot.engines.len(), 1);
    assert_eq!((snapshot.engines[0].engine, snapshot.engines[0].state), (engine, EngineState::Ready));
    assert_eq!(snapshot.models, [llama(&parts)]);
    assert_eq!(docker(&["ps", "-aq", "--filter", &format!("name={name}")]), "", "it did not answer");
    fleet.leave().await;
    assert_eq!(containers_of("docker-adopt"), "");
    first.0.cancel();
    first.1.unwrap().await.unwrap().unwrap();
}

#[actix::test]
async fn on_a_shared_network_no_port_is_published() {
    let parts = parts();
    let network = "berth-test-agent";
    docker(&["network", "create", network]);
    let mut fleet = Fleet::start_with("docker-network", |config| {
        config.host.drivers = vec![Driver::Docker];
        config.host.docker_network = Some(network.into());
    })
    .await;
    let engine = fleet.ready_engine(llama(&parts)).await;
    assert_eq!(docker(&["port", &container("docker-network", engine)]), "");
    fleet.run(engine, CHAT).await;
    assert!(text(&fleet.gateway.take_all(1 << 20).await).ends_with("data: [DONE]\n\n"));
    fleet.leave().await;
    assert_eq!(containers_of("docker-network"), "");
    docker(&["network", "rm", network]);
}
