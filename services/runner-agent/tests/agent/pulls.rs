//! Images that have to be pulled, from a real registry.

use std::time::Duration;

use berth_config::{Config, RegistryConfig};
use berth_testkit::proxy::Mode;
use berth_testkit::wait::{until, until_ok};
use berth_wire::{Driver, EngineId, EngineRecord, EngineState, HostBeat, ReportEntry};

use crate::containers::{containers_of, docker, llama, parts};
use crate::fixture::{Fleet, WAIT, python};
use crate::registry::{PASSWORD, Registry};

async fn fleet(host: &str, registries: Vec<RegistryConfig>) -> Fleet {
    Fleet::start_with(host, |config: &mut Config| {
        config.host.drivers = vec![Driver::Docker, Driver::Process];
        config.host.registries = registries;
    })
    .await
}

/// What those who wait are told of an engine.
fn details(fleet: &Fleet, engine: EngineId) -> Vec<String> {
    let entries = fleet.told.entries.borrow();
    let reports = entries.iter().filter_map(|entry| match entry {
        ReportEntry::Engine(report) if report.engine == engine => report.detail.clone(),
        _ => None,
    });
    reports.collect()
}

async fn record(fleet: &Fleet, engine: EngineId) -> Option<EngineRecord> {
    let records = fleet.bus.bucket("engines").await.unwrap();
    let found = records.get(format!("{}.{engine}", fleet.host)).await.unwrap()?;
    Some(berth_wire::decode_json(&found).unwrap())
}

#[actix::test]
async fn a_pull_tells_how_far_it_is_and_what_runs_then_and_delays_nobody() {
    let parts = parts();
    let mut registry = Registry::start().await;
    let (image, digest) = registry.image(&parts.image, "slow", [24 << 20, 1 << 20]).await;
    let mut fleet = fleet("docker-pull", vec![registry.entry(PASSWORD)]).await;
    registry.proxy.set(Mode::Slow(4 << 20));
    let mut model = llama(&parts);
    model.engine.image = Some(image.clone());
    let engine = fleet.start_engine(model).await;
    until_ok("bytes, layers and the time left are told", WAIT, async || {
        let told = details(&fleet, engine);
        let whole = |text: &&String| {
            text.starts_with("pulling its image: ")
                && text.contains(" MiB of 25.0 MiB, ")
                && text.contains(" of 2 layers, ")
                && text.ends_with(" s left")
        };
        if told.iter().any(|text| whole(&text)) { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    // The registry falls silent, and nobody else notices.
    registry.proxy.set(Mode::Blackhole);
    let hosts = fleet.bus.bucket("hosts").await.unwrap();
    let beat = async || -> HostBeat {
        berth_wire::decode_json(&hosts.get("docker-pull").await.unwrap().unwrap()).unwrap()
    };
    let before = beat().await.at;
    let other = fleet.ready_engine(python(&[])).await;
    fleet.stop_engine(other, false).await;
    fleet.engine_in(other, EngineState::Stopped).await;
    until("the heart beats on", WAIT, async || beat().await.at > before).await;
    registry.proxy.set(Mode::Pass);
    fleet.engine_in(engine, EngineState::Ready).await;
    let runs = image.replace(":1", "@") + &digest;
    until_ok("the digest that runs is told", WAIT, async || {
        let record = record(&fleet, engine).await;
        let told = record.as_ref().and_then(|record| record.image.clone());
        if told.as_ref() == Some(&runs) { Ok(()) } else { Err(format!("{record:?}, not {runs}")) }
    })
    .await;
    fleet.leave().await;
    assert_eq!(containers_of("docker-pull"), "");
}

#[actix::test]
async fn a_pull_that_nobody_waits_for_any_more_is_given_up() {
    let parts = parts();
    let mut registry = Registry::start().await;
    let (image, _) = registry.image(&parts.image, "dropped", [8 << 20, 1 << 10]).await;
    let mut fleet = fleet("docker-pull-stop", vec![registry.entry(PASSWORD)]).await;
    registry.proxy.set(Mode::Slow(1 << 20));
    let mut model = llama(&parts);
    model.engine.image = Some(image.clone());
    let engine = fleet.start_engine(model).await;
    until("it pulls", WAIT, async || details(&fleet, engine).iter().any(|text| text.contains("MiB"))).await;
    fleet.stop_engine(engine, false).await;
    fleet.engine_in(engine, EngineState::Stopped).await;
    assert_eq!(docker(&["images", "-q", &image]), "");
    fleet.leave().await;
}

#[actix::test]
async fn a_pull_that_makes_no_progress_is_given_up_after_its_models_time_and_the_next_one_goes_on() {
    let parts = parts();
    let mut registry = Registry::start().await;
    let (image, _) = registry.image(&parts.image, "stalled", [4 << 20, 1 << 10]).await;
    let mut fleet = fleet("docker-pull-stall", vec![registry.entry(PASSWORD)]).await;
    registry.proxy.set(Mode::Slow(1 << 20));
    let mut model = llama(&parts);
    model.engine.image = Some(image.clone());
    model.engine.container.pull_timeout = Some(Duration::from_secs(2));
    // It takes longer than that in all, which is no reason to give it up.
    let engine = fleet.start_engine(model.clone()).await;
    until("it pulls", WAIT, async || details(&fleet, engine).iter().any(|text| text.contains("MiB"))).await;
    registry.proxy.set(Mode::Blackhole);
    let failure = fleet.failure_of(engine).await;
    assert!(failure.message.contains("made no progress for 2s (pull_timeout)"), "{}", failure.message);
    assert!(!failure.permanent, "the registry may be better soon");
    registry.proxy.set(Mode::Slow(1 << 20));
    fleet.ready_engine(model).await;
    fleet.leave().await;
    assert_eq!(containers_of("docker-pull-stall"), "");
}

#[actix::test]
async fn who_may_not_pull_is_told_what_to_do_and_no_password_is_told() {
    let parts = parts();
    let mut registry = Registry::start().await;
    let (image, _) = registry.image(&parts.image, "guarded", [1 << 10, 1 << 10]).await;
    let mut unset = registry.entry(PASSWORD);
    unset.password_env = Some("BERTH_TEST_NO_SUCH_VARIABLE".into());
    for (n, (entry, told)) in [
        (None, "let this host into"),
        (Some(registry.entry("hunter2hunter2")), "does not let it in"),
        (Some(unset), "set BERTH_TEST_NO_SUCH_VARIABLE"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut fleet = fleet(&format!("docker-denied-{n}"), entry.into_iter().collect()).await;
        let mut model = llama(&parts);
        model.engine.image = Some(image.clone());
        let engine = fleet.start_engine(model).await;
        let failure = fleet.failure_of(engine).await;
        assert!(failure.permanent && failure.message.contains(told), "{}", failure.message);
        assert!(!failure.message.contains("hunter2"), "{}", failure.message);
        fleet.leave().await;
    }
}

#[actix::test]
async fn a_pinned_image_runs_as_pinned_and_no_other_does() {
    let parts = parts();
    let mut registry = Registry::start().await;
    let (image, digest) = registry.image(&parts.image, "pinned", [1 << 10, 1 << 10]).await;
    let repository = image.strip_suffix(":1").unwrap();
    let mut fleet = fleet("docker-pinned", vec![registry.entry(PASSWORD)]).await;
    let pinned = format!("{repository}@{digest}");
    let mut model = llama(&parts);
    model.engine.image = Some(pinned.clone());
    let engine = fleet.ready_engine(model.clone()).await;
    let runs = record(&fleet, engine).await.unwrap().image;
    assert_eq!(runs, Some(pinned));
    fleet.stop_engine(engine, false).await;
    fleet.engine_in(engine, EngineState::Stopped).await;
    model.engine.image = Some(format!("{repository}@sha256:{}", "0".repeat(64)));
    let engine = fleet.start_engine(model).await;
    let failure = fleet.failure_of(engine).await;
    assert!(failure.permanent && failure.message.contains("could not be pulled"), "{}", failure.message);
    fleet.leave().await;
}
