//! Engines that sleep and wake, as vLLM does; the small engine plays it, with its faults.

use berth_testkit::wait::until;
use berth_wire::{
    BeginReply, EngineId, EngineKind, EngineState, Epoch, ModelSpec, Outcome, Reply, SleepEngine, SleepLevel,
    SleepSpec, Verb, WakeEngine,
};

use crate::fixture::{Fleet, GIB, STREAM, WAIT, noted_pid, python, stats};

async fn fleet(host: &str) -> Fleet {
    Fleet::start_with(host, |config| config.host.sleep_memory = Some(GIB)).await
}

fn sleeper(level: SleepLevel, args: &[&str]) -> ModelSpec {
    let mut model = python(args);
    model.engine.kind = EngineKind::Vllm;
    model.engine.sleep = Some(SleepSpec { level, ram: None });
    model
}

async fn sleep(fleet: &Fleet, engine: EngineId) -> Reply {
    let epoch = Epoch(fleet.told.epoch.get());
    fleet.command(Verb::Sleep, &SleepEngine { epoch, engine, reason: "test".into() }).await
}

async fn wake(fleet: &Fleet, engine: EngineId) -> Reply {
    let epoch = Epoch(fleet.told.epoch.get());
    fleet.command(Verb::Wake, &WakeEngine { epoch, engine, reservations: Vec::new() }).await
}

#[actix::test]
async fn an_engine_sleeps_and_wakes_and_no_request_reaches_it_between() {
    let mut fleet = fleet("nap").await;
    assert_eq!(fleet.status().await.beat.sleep_memory, GIB);
    let engine = fleet.ready_engine(sleeper(SleepLevel::Ram, &[])).await;
    let cost = fleet.engine_in(engine, EngineState::Ready).await.sleep.unwrap();
    assert_eq!((cost.ram, cost.residue), (GIB / 4, 0), "as much as was set aside, until it is measured");
    assert_eq!(sleep(&fleet, engine).await, Reply::Ok);
    // Right behind the command, before it sleeps.
    assert!(matches!(fleet.dispatch(engine, &fleet.job(STREAM)).await, Reply::Refused { .. }));
    let asleep = fleet.engine_in(engine, EngineState::Sleeping).await;
    let measured = asleep.sleep.unwrap().ram;
    assert!((1 << 20..GIB / 4).contains(&measured), "{measured}");
    assert_eq!(sleep(&fleet, engine).await, Reply::Ok, "a command that comes twice");
    assert!(matches!(fleet.dispatch(engine, &fleet.job(STREAM)).await, Reply::Refused { .. }));

    assert_eq!(wake(&fleet, engine).await, Reply::Ok);
    let ready = fleet.engine_in(engine, EngineState::Ready).await;
    assert!(ready.start_took.is_some());
    assert_eq!(wake(&fleet, engine).await, Reply::Ok, "a command that comes twice");
    let (_, attempt) = fleet.run(engine, STREAM).await;
    fleet.gateway.answer(&BeginReply::Go { credit: 1 << 20 }).await;
    assert_eq!(fleet.ended(attempt).await.outcome, Outcome::Completed);
    let told = stats(&fleet).await;
    assert_eq!(told["calls"], serde_json::json!(["/sleep?level=1", "/wake_up"]));
    assert_eq!(told["requests"], 1);
    fleet.leave().await;
}

#[actix::test]
async fn weights_that_were_dropped_are_read_before_the_cache_takes_its_room() {
    let mut fleet = fleet("deep").await;
    let engine = fleet.ready_engine(sleeper(SleepLevel::Disk, &[])).await;
    assert_eq!(sleep(&fleet, engine).await, Reply::Ok);
    fleet.engine_in(engine, EngineState::Sleeping).await;
    assert_eq!(wake(&fleet, engine).await, Reply::Ok);
    fleet.engine_in(engine, EngineState::Ready).await;
    let calls = [
        "/sleep?level=2",
        "/wake_up?tags=weights",
        "/collective_rpc",
        "/wake_up?tags=kv_cache",
        "/reset_prefix_cache",
    ];
    assert_eq!(stats(&fleet).await["calls"], serde_json::json!(calls));
    fleet.leave().await;
}

#[actix::test]
async fn a_sleeper_gives_its_room_to_others_and_wakes_only_where_it_has_it_back() {
    let mut fleet = fleet("room").await;
    let mut model = sleeper(SleepLevel::Ram, &[]);
    model.memory = Some(GIB);
    let first = fleet.ready_engine(model.clone()).await;
    assert_eq!(sleep(&fleet, first).await, Reply::Ok);
    fleet.engine_in(first, EngineState::Sleeping).await;
    let second = fleet.ready_engine(model).await;
    let Reply::Refused { message } = wake(&fleet, first).await else { panic!("both awake at once") };
    assert!(message.contains("only 0 MiB are left"), "{message}");
    assert_eq!(fleet.stop_engine(second, false).await, Reply::Ok);
    fleet.engine_in(second, EngineState::Stopped).await;
    assert_eq!(wake(&fleet, first).await, Reply::Ok);
    fleet.engine_in(first, EngineState::Ready).await;
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_serves_is_not_put_to_sleep() {
    let mut fleet = fleet("busy").await;
    let engine = fleet.ready_engine(sleeper(SleepLevel::Ram, &[])).await;
    let (job, attempt) = fleet.run(engine, r#"{"model":"alias","do":"hang"}"#).await;
    fleet.gateway.answer(&BeginReply::Go { credit: 1 << 20 }).await;
    let Reply::Refused { message } = sleep(&fleet, engine).await else { panic!("not refused") };
    assert!(message.contains("serves 1 jobs"), "{message}");
    fleet.cancel(&job).await;
    fleet.ended(attempt).await;
    assert_eq!(sleep(&fleet, engine).await, Reply::Ok);
    fleet.engine_in(engine, EngineState::Sleeping).await;
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_does_not_wake_is_stopped_and_told_of() {
    let mut fleet = fleet("coma").await;
    let engine = fleet.ready_engine(sleeper(SleepLevel::Ram, &["--no-wake"])).await;
    assert_eq!(sleep(&fleet, engine).await, Reply::Ok);
    fleet.engine_in(engine, EngineState::Sleeping).await;
    assert_eq!(wake(&fleet, engine).await, Reply::Ok);
    let failure = fleet.failure_of(engine).await;
    assert!(failure.was_ready);
    assert!(
        failure.message.contains("could not be woken: /wake_up was answered with status 500"),
        "{failure:?}"
    );
    until("its process is gone", WAIT, async || noted_pid(&fleet).is_none()).await;
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_does_not_fall_asleep_is_stopped() {
    let mut fleet = fleet("awake").await;
    let engine = fleet.ready_engine(sleeper(SleepLevel::Ram, &["--no-sleep"])).await;
    assert_eq!(sleep(&fleet, engine).await, Reply::Ok);
    fleet.engine_in(engine, EngineState::Stopped).await;
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_killed_in_its_sleep_is_told_of() {
    let mut fleet = fleet("killed").await;
    let engine = fleet.ready_engine(sleeper(SleepLevel::Ram, &[])).await;
    assert_eq!(sleep(&fleet, engine).await, Reply::Ok);
    fleet.engine_in(engine, EngineState::Sleeping).await;
    let pid = i32::try_from(noted_pid(&fleet).unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let failure = fleet.failure_of(engine).await;
    assert!(failure.message.contains("was killed by SIGKILL while it was asleep"), "{failure:?}");
    fleet.leave().await;
}

#[actix::test]
async fn where_no_ram_is_set_aside_nothing_sleeps() {
    let mut fleet = Fleet::start("ramless").await;
    let engine = fleet.ready_engine(sleeper(SleepLevel::Ram, &[])).await;
    assert_eq!(fleet.engine_in(engine, EngineState::Ready).await.sleep, None);
    let Reply::Refused { message } = sleep(&fleet, engine).await else { panic!("not refused") };
    assert!(message.contains("cannot sleep"), "{message}");
    fleet.leave().await;
}
