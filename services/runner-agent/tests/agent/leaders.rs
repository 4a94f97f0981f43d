//! Leaders, old and new, and how an agent begins and ends.

use std::time::Duration;

use berth_testkit::wait::{until, until_ok};
use berth_wire::{
    BeginReply, Driver, EngineState, Epoch, HostBeat, Outcome, Reply, ReportEntry, SleepEngine, Snapshot,
    StatusRequest, StopEngine, Verb, WakeEngine,
};

use crate::fixture::{Fleet, GIB, STREAM, WAIT, group_members, noted_pid, python, stats};

#[actix::test]
async fn what_cannot_fit_or_run_here_is_refused() {
    let mut fleet = Fleet::start("refuse").await;
    let start = fleet.start_command(python(&[]), 2 * GIB);
    let Reply::Refused { message } = fleet.command(Verb::Start, &start).await else { panic!("not refused") };
    assert!(message.contains("`reservations`"), "{message}");
    let mut docker = python(&[]);
    docker.engine.driver = Driver::Docker;
    let start = fleet.start_command(docker, GIB / 4);
    assert!(matches!(fleet.command(Verb::Start, &start).await, Reply::Refused { .. }));
    fleet.leave().await;
}

#[actix::test]
async fn an_older_leader_is_not_obeyed() {
    let mut fleet = Fleet::start("fence").await;
    let newer = StatusRequest { epoch: Epoch(9) };
    let subject = fleet.bus.subjects.ctl(&fleet.host, Verb::Status);
    let _: Snapshot = fleet.bus.request(subject, &newer, WAIT).await.unwrap();
    let engine = fleet.next_engine();
    let old = StopEngine { epoch: Epoch(8), engine, reason: String::new(), force: false };
    assert_eq!(fleet.command(Verb::Stop, &old).await, Reply::Stale { epoch: Epoch(9) });
    let job = fleet.job(STREAM);
    assert_eq!(fleet.dispatch(engine, &job).await, Reply::Stale { epoch: Epoch(9) });
    fleet.leave().await;
}

#[actix::test]
async fn a_malformed_command_is_refused_and_wedges_nothing() {
    let mut fleet = Fleet::start("malformed").await;
    for verb in Verb::ALL {
        let subject = fleet.bus.subjects.ctl(&fleet.host, verb);
        let wait = Duration::from_millis(if verb == Verb::Credit { 200 } else { 5000 });
        let headers = berth_bus::HeaderMap::new();
        let answer = fleet.bus.request_raw(subject, headers, "nonsense".into(), wait).await;
        match (verb, answer) {
            (Verb::Credit, Err(_)) | (_, Ok(Reply::Refused { .. })) => {}
            // An offer is answered as its output would be.
            (Verb::Offer, Err(error)) => assert!(error.to_string().contains("declined"), "{error}"),
            (verb, answer) => panic!("{verb:?}: {answer:?}"),
        }
    }
    assert_eq!(fleet.status().await.engines, []);
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_cannot_sleep_is_not_put_to_sleep_and_goes_on_serving() {
    let mut fleet = Fleet::start("sleepless").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let epoch = Epoch(fleet.told.epoch.get());
    let sleep = SleepEngine { epoch, engine, reason: "test".into() };
    let wake = WakeEngine { epoch, engine, reservations: Vec::new() };
    let Reply::Refused { message } = fleet.command(Verb::Sleep, &sleep).await else { panic!("not refused") };
    assert!(message.contains("cannot sleep"), "{message}");
    assert_eq!(fleet.command(Verb::Wake, &wake).await, Reply::Ok, "it is awake");
    let status = fleet.status().await;
    assert_eq!((status.engines[0].state, status.engines[0].sleep), (EngineState::Ready, None));
    fleet.leave().await;
}

#[actix::test]
async fn a_dispatch_that_comes_twice_runs_once() {
    let mut fleet = Fleet::start("twice").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let job = fleet.job(STREAM);
    assert_eq!(fleet.dispatch(engine, &job).await, Reply::Ok);
    assert_eq!(fleet.dispatch(engine, &job).await, Reply::Ok);
    fleet.gateway.take_all(1 << 20).await;
    fleet.ended(fleet.attempt()).await;
    assert_eq!(fleet.dispatch(engine, &job).await, Reply::Ok);
    assert!(fleet.gateway.is_quiet(Duration::from_millis(200)).await);
    assert_eq!(stats(&fleet).await["requests"], 1);
    fleet.leave().await;
}

#[actix::test]
async fn a_new_leader_is_told_everything_and_no_end_is_lost_while_there_is_none() {
    let mut fleet = Fleet::start("leader").await;
    let engine = fleet.ready_engine(python(&[])).await;
    fleet.told.silent.set(true);
    let (job, attempt) = fleet.run(engine, STREAM).await;
    fleet.gateway.take_all(1 << 20).await;
    until("the end waits", WAIT, async || fleet.status().await.ended.len() == 1).await;
    fleet.told.epoch.set(6);
    fleet.told.silent.set(false);
    assert_eq!(fleet.ended(attempt).await.job, job.id);
    fleet
        .until("a snapshot for the new leader", |entries| {
            entries.iter().filter(|entry| matches!(entry, ReportEntry::Snapshot(_))).count() == 2
        })
        .await;
    let snapshot = fleet.snapshots().pop().unwrap();
    assert_eq!(snapshot.engines[0].engine, engine);
    assert_eq!(snapshot.models[0].id.as_str(), "m");
    assert_eq!(snapshot.beat.accelerators[0].memory, GIB);
    fleet.leave().await;
}

#[actix::test]
async fn an_agent_survives_a_restart_of_its_nats_server() {
    let mut fleet = Fleet::start("restart").await;
    let engine = fleet.ready_engine(python(&[])).await;
    fleet.nats.restart().unwrap();
    // The heartbeats' bucket lives in memory, so the scheduler's provisioning comes first.
    until("the server is back", WAIT, async || berth_bus::provision(&fleet.bus).await.is_ok()).await;
    let hosts = fleet.bus.bucket("hosts").await.unwrap();
    until("it beats again", WAIT, async || hosts.get("restart").await.is_ok_and(|beat| beat.is_some())).await;
    assert_eq!(fleet.status().await.engines[0].engine, engine);
    fleet.run(engine, STREAM).await;
    fleet.gateway.take_all(1 << 20).await;
    fleet.ended(fleet.attempt()).await;
    fleet.leave().await;
}

#[actix::test]
async fn an_agent_that_leaves_finishes_what_runs_and_stops_its_engines() {
    let mut fleet = Fleet::start("leave").await;
    let hosts = fleet.bus.bucket("hosts").await.unwrap();
    let beat = until_ok("a heartbeat", WAIT, async || hosts.get("leave").await.unwrap().ok_or("none")).await;
    let beat: HostBeat = berth_wire::decode_json(&beat).unwrap();
    assert!(beat.accelerators[0].free.is_some());
    let engine = fleet.ready_engine(python(&[])).await;
    let group = noted_pid(&fleet).unwrap();
    let (_, attempt) = fleet.run(engine, r#"{"model":"m","do":"stream","n":5,"delay":0.1}"#).await;
    fleet.gateway.answer(&BeginReply::Go { credit: 1 << 20 }).await;
    fleet.shutdown.cancel();
    until("it says that it drains", WAIT, async || fleet.status().await.beat.draining).await;
    let late = fleet.start_command(python(&[]), GIB / 4);
    assert!(matches!(fleet.command(Verb::Start, &late).await, Reply::Busy { .. }));
    fleet.leave().await;
    assert_eq!(fleet.ended(attempt).await.outcome, Outcome::Completed);
    assert_eq!(fleet.told.entries.borrow().last(), Some(&ReportEntry::Goodbye));
    assert!(group_members(group).is_empty());
    assert!(hosts.get("leave").await.unwrap().is_none());
}

#[actix::test]
async fn what_a_killed_agent_left_running_is_killed_before_anything_starts() {
    use std::os::unix::process::CommandExt;
    let sleep = || std::process::Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
    let mut fleet = Fleet::start("orphan").await;
    fleet.leave().await;
    let (mut orphan, mut other) = (sleep(), sleep());
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", orphan.id())).unwrap();
    let started: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let note = |pid: u32, started: u64| format!(r#"{{"pid":{pid},"started":{started}}}"#);
    std::fs::write(fleet.notes().join("1-1.json"), note(orphan.id(), started)).unwrap();
    // A later process that happens to have the id of an engine of before.
    std::fs::write(fleet.notes().join("1-2.json"), note(other.id(), started + 1_000_000)).unwrap();
    let records = fleet.bus.bucket("engines").await.unwrap();
    records.put("orphan.1-1", "{}".into()).await.unwrap();
    records.put("another.1-1", "{}".into()).await.unwrap();
    fleet.told.entries.borrow_mut().clear();
    fleet.run_agent();
    fleet.until("it reports", |entries| !entries.is_empty()).await;
    assert!(!orphan.wait().unwrap().success());
    assert!(other.try_wait().unwrap().is_none(), "another process of that id lives");
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(records.get("orphan.1-1").await.unwrap().is_none());
    assert!(records.get("another.1-1").await.unwrap().is_some());
    fleet.leave().await;
}
