//! A Docker engine that is restarted, or full, under an agent; one of the test's own.

use std::time::Duration;

use berth_config::RegistryConfig;
use berth_testkit::wait::until;
use berth_wire::{Driver, EngineState, Reply, ReportEntry, Verb};

use crate::containers::{CHAT, llama, parts};
use crate::dockerd::Dockerd;
use crate::fixture::{Fleet, GIB, WAIT};
use crate::gateway::text;
use crate::registry::{PASSWORD, Registry};

async fn fleet(host: &str, dockerd: &Dockerd, registries: Vec<RegistryConfig>) -> Fleet {
    let docker_host = dockerd.host();
    Fleet::start_with(host, |config| {
        config.host.drivers = vec![Driver::Docker];
        config.host.docker_host = Some(docker_host);
        config.host.registries = registries;
    })
    .await
}

#[actix::test]
async fn engines_that_a_restart_of_docker_kills_are_told_of_at_once_and_new_ones_start_after_it() {
    let parts = parts();
    let mut dockerd = Dockerd::start(false, None).await;
    let mut fleet = fleet("docker-restart", &dockerd, Vec::new()).await;
    let engine = fleet.ready_engine(llama(&parts)).await;
    dockerd.pause().await;
    // While Docker is away: nobody is sent to an engine that is dead.
    let failure = fleet.failure_of(engine).await;
    assert!(failure.was_ready, "{}", failure.message);
    let late = fleet.start_engine(llama(&parts)).await;
    let failure = fleet.failure_of(late).await;
    assert!(!failure.permanent && failure.message.contains("Docker does not answer"), "{}", failure.message);
    dockerd.resume().await;
    until("what it left is removed", WAIT, async || dockerd.docker(&["ps", "-aq"]).is_empty()).await;
    let engine = fleet.ready_engine(llama(&parts)).await;
    fleet.run(engine, CHAT).await;
    assert!(text(&fleet.gateway.take_all(1 << 20).await).ends_with("data: [DONE]\n\n"));
    fleet.leave().await;
    assert_eq!(dockerd.docker(&["ps", "-aq"]), "");
}

#[actix::test]
async fn engines_that_live_through_a_restart_of_docker_are_kept_and_watched_and_stopped() {
    let parts = parts();
    let mut dockerd = Dockerd::start(true, None).await;
    let mut fleet = fleet("docker-live", &dockerd, Vec::new()).await;
    let (kept, killed) = (fleet.ready_engine(llama(&parts)).await, fleet.ready_engine(llama(&parts)).await);
    dockerd.pause().await;
    dockerd.resume().await;
    let states = |fleet: &Fleet| {
        let entries = fleet.told.entries.borrow();
        entries.iter().filter(|entry| matches!(entry, ReportEntry::Engine(r) if r.failure.is_some())).count()
    };
    fleet.run(kept, CHAT).await;
    assert!(text(&fleet.gateway.take_all(1 << 20).await).ends_with("data: [DONE]\n\n"));
    assert_eq!(states(&fleet), 0, "both are kept");
    dockerd.docker(&["kill", &format!("berth-docker-live-{killed}")]);
    assert!(fleet.failure_of(killed).await.message.contains("exit code 137"));
    fleet.stop_engine(kept, false).await;
    fleet.engine_in(kept, EngineState::Stopped).await;
    assert_eq!(dockerd.docker(&["ps", "-aq"]), "");
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_stopped_while_docker_is_away_counts_as_there_until_it_is_gone() {
    let parts = parts();
    let mut dockerd = Dockerd::start(true, None).await;
    let mut fleet = fleet("docker-stop-away", &dockerd, Vec::new()).await;
    let engine = fleet.ready_engine(llama(&parts)).await;
    dockerd.pause().await;
    fleet.stop_engine(engine, false).await;
    fleet.engine_in(engine, EngineState::Stopping).await;
    let three =
        tokio::time::timeout(Duration::from_secs(3), fleet.engine_in(engine, EngineState::Stopped)).await;
    assert!(three.is_err(), "its memory is not free yet");
    dockerd.resume().await;
    fleet.engine_in(engine, EngineState::Stopped).await;
    assert_eq!(dockerd.docker(&["ps", "-aq"]), "");
    fleet.leave().await;
}

#[actix::test]
async fn an_agent_that_starts_before_its_docker_takes_it_and_what_runs_there_as_soon_as_it_answers() {
    let parts = parts();
    let mut dockerd = Dockerd::start(true, None).await;
    let docker_host = dockerd.host();
    let mut fleet = Fleet::start_with("docker-late", |config| {
        config.host.drivers = vec![Driver::Docker, Driver::Process];
        config.host.docker_host = Some(docker_host);
        config.host.keep_engines = true;
    })
    .await;
    let kept = fleet.ready_engine(llama(&parts)).await;
    fleet.leave().await;
    dockerd.pause().await;
    fleet.told.entries.borrow_mut().clear();
    fleet.run_agent();
    fleet.until("it is there without Docker", |entries| !entries.is_empty()).await;
    let first = fleet.snapshots().remove(0);
    assert_eq!((first.beat.drivers, first.engines.len()), (vec![Driver::Process], 0));
    let refused = fleet.command(Verb::Start, &fleet.start_command(llama(&parts), GIB / 4)).await;
    assert!(matches!(&refused, Reply::Refused { .. }), "{refused:?}");
    dockerd.resume().await;
    fleet
        .until("it has Docker, without having been started anew", |entries| {
            entries.iter().any(
                |entry| matches!(entry, ReportEntry::Snapshot(s) if s.beat.drivers.contains(&Driver::Docker)),
            )
        })
        .await;
    let snapshot = fleet.snapshots().pop().unwrap();
    assert_eq!(snapshot.beat.boot, first.beat.boot);
    let adopted: Vec<_> = snapshot.engines.iter().map(|engine| engine.engine).collect();
    assert_eq!(adopted, [kept], "what runs there is on its books before anything else");
    fleet.engine_in(kept, EngineState::Ready).await;
    fleet.run(kept, CHAT).await;
    assert!(text(&fleet.gateway.take_all(1 << 20).await).ends_with("data: [DONE]\n\n"));
    fleet.ready_engine(llama(&parts)).await;
    fleet.leave().await;
}

#[actix::test]
async fn a_disk_that_is_full_ends_a_pull_with_what_to_do() {
    let parts = parts();
    let mut registry = Registry::start().await;
    let (image, _) = registry.image(&parts.image, "large", [96 << 20, 1 << 10]).await;
    let dockerd = Dockerd::start(false, Some(128)).await;
    let mut fleet = fleet("docker-full", &dockerd, vec![registry.entry(PASSWORD)]).await;
    let small = fleet.ready_engine(llama(&parts)).await;
    let mut model = llama(&parts);
    model.engine.image = Some(image);
    let engine = fleet.start_engine(model).await;
    let failure = fleet.failure_of(engine).await;
    assert!(failure.permanent && failure.message.contains("no space left"), "{}", failure.message);
    assert!(failure.message.contains("free some space"), "{}", failure.message);
    fleet.run(small, CHAT).await;
    assert!(text(&fleet.gateway.take_all(1 << 20).await).ends_with("data: [DONE]\n\n"), "others go on");
    fleet.leave().await;
}
