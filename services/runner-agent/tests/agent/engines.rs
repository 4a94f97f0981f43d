//! Engines that are processes: how they start, fail and stop.

use std::path::PathBuf;
use std::time::Duration;

use berth_testkit::wait::until;
use berth_wire::{BeginReply, EngineId, EngineState, Outcome, Reply};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::{Fleet, GIB, STREAM, WAIT, engine_py, group_members, noted_pid, process, python};

#[actix::test]
async fn an_engine_that_ends_before_it_is_ready_is_reported_with_its_log() {
    let mut fleet = Fleet::start("fail").await;
    let crashing = fleet.start_engine(python(&["--die-at-start"])).await;
    let failure = fleet.failure_of(crashing).await;
    assert!(!failure.permanent && !failure.was_ready);
    assert!(failure.message.contains("exit code 3"), "{}", failure.message);
    assert!(failure.message.contains("made of cheese"), "{}", failure.message);
    assert!(fleet.status().await.engines.is_empty());
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_prints_its_secrets_and_ends_is_reported_without_them() {
    let mut fleet = Fleet::start("secret").await;
    // `PATH` is handed on by name: a variable that every process has, and that nothing else says.
    let script =
        "echo \"pw=$API_PW of $PORT_PW\"; echo \"path=$PATH\" >&2; echo login at http://me:mine@h/; exit 3";
    let mut model = process(&["sh", "-c", script]);
    model.engine.env = vec!["API_PW=hunter2".into(), "PATH".into(), "PORT_PW=pw-{port}-pw".into()];
    let engine = fleet.start_engine(model).await;
    let failure = fleet.failure_of(engine).await;
    let mut log: Vec<_> = failure.message.lines().skip(1).collect();
    log.sort_unstable();
    assert_eq!(log, ["login at http://***@h/", "path=***", "pw=*** of ***"], "{}", failure.message);
    fleet.leave().await;
}

#[actix::test]
async fn a_program_that_does_not_exist_is_a_permanent_failure() {
    let mut fleet = Fleet::start("missing").await;
    let missing = fleet.start_engine(process(&["no-such-program-of-berth"])).await;
    let failure = fleet.failure_of(missing).await;
    assert!(failure.permanent);
    assert_eq!(
        failure.message,
        "cannot run `no-such-program-of-berth`: not found on PATH; install it or correct `command`"
    );
    let missing = fleet.start_engine(process(&["/no/such/program"])).await;
    let failure = fleet.failure_of(missing).await;
    assert!(failure.permanent);
    assert_eq!(
        failure.message,
        "cannot run `/no/such/program`: /no/such/program does not exist on this host; correct `command`"
    );
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_is_never_ready_is_reported_with_what_it_answered() {
    let mut fleet = Fleet::start("unready").await;
    let script = |answer: &str| {
        format!(
            "import socket,sys\ns=socket.create_server(('127.0.0.1',int(sys.argv[1])))\nwhile 1:\n c=s.accept()[0]\n \
             c.recv(999)\n c.sendall(b'{answer}')\n c.close()"
        )
    };
    for (answer, told) in [
        (
            "HTTP/1.1 503 Loading\\r\\ncontent-length: 0\\r\\n\\r\\n",
            "start_timeout of 2s: it answered with status 503",
        ),
        (
            "HTTP/1.1 302 Found\\r\\nlocation: /login\\r\\ncontent-length: 0\\r\\n\\r\\n",
            "it answered with status 302",
        ),
        ("220 mail.example.org ESMTP\\r\\n", "what it answered is not HTTP"),
    ] {
        let mut model = process(&["python3", "-c", &script(answer), "{port}"]);
        model.engine.start_timeout = Duration::from_secs(2);
        let engine = fleet.start_engine(model).await;
        let failure = fleet.failure_of(engine).await;
        assert!(failure.message.contains(told), "expected `{told}` in:\n{}", failure.message);
    }
    let mut mute = process(&["sleep", "600", "{port}"]);
    mute.engine.start_timeout = Duration::from_millis(300);
    let mute = fleet.start_engine(mute).await;
    let failure = fleet.failure_of(mute).await;
    assert!(failure.message.contains("it took no connection"), "{}", failure.message);
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_never_answers_or_whose_port_is_taken_fails_and_says_so() {
    let mut fleet = Fleet::start("port").await;
    let mut slow = python(&["--load", "600"]);
    slow.engine.start_timeout = Duration::from_millis(300);
    let slow = fleet.start_engine(slow).await;
    let failure = fleet.failure_of(slow).await;
    assert!(failure.message.contains("did not answer on /health"), "{}", failure.message);
    assert!(failure.permanent, "those who waited are told, and do not wait once more");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut fixed = process(&["sleep", "600"]);
    fixed.engine.port = taken.local_addr().unwrap().port();
    let fixed = fleet.start_engine(fixed).await;
    let failure = fleet.failure_of(fixed).await;
    assert!(failure.message.contains("cannot be used on this host"), "{}", failure.message);
    fleet.leave().await;
}

#[actix::test]
async fn a_start_is_timed_and_a_stop_frees_the_whole_group() {
    let mut fleet = Fleet::start("stop").await;
    // The worker ignores SIGTERM and would outlive its leader.
    let script = format!(
        "sh -c 'trap \"\" TERM; sleep 601; sleep 602' & exec python3 -u {} {{port}} --load 0.3",
        engine_py()
    );
    let mut model = process(&["sh", "-c", &script]);
    model.engine.stop_grace = Duration::from_millis(300);
    let engine = fleet.ready_engine(model).await;
    let ready = fleet.engine_in(engine, EngineState::Ready).await;
    assert!(ready.start_took.unwrap() >= Duration::from_millis(300));
    let key = format!("stop.{engine}");
    let records = fleet.bus.bucket("engines").await.unwrap();
    until("the engine is in its bucket", WAIT, async || records.get(&key).await.unwrap().is_some()).await;
    let group = noted_pid(&fleet).unwrap();
    assert!(group_members(group).len() > 1);
    assert_eq!(fleet.stop_engine(engine, false).await, Reply::Ok);
    fleet.engine_in(engine, EngineState::Stopped).await;
    assert!(group_members(group).is_empty(), "stopped means that nothing holds memory");
    until("its record is gone", WAIT, async || records.get(&key).await.unwrap().is_none()).await;
    assert!(matches!(fleet.stop_engine(engine, false).await, Reply::Refused { .. }));
    fleet.leave().await;
}

#[actix::test]
async fn a_slow_start_delays_no_other_engine_and_can_be_stopped() {
    let mut fleet = Fleet::start("slow").await;
    let slow = fleet.start_engine(python(&["--load", "600"])).await;
    let quick = fleet.ready_engine(python(&[])).await;
    fleet.run(quick, STREAM).await;
    fleet.gateway.take_all(1 << 20).await;
    assert_eq!(fleet.stop_engine(slow, false).await, Reply::Ok);
    fleet.engine_in(slow, EngineState::Stopped).await;
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_is_not_stopped_while_it_serves_unless_forced() {
    let mut fleet = Fleet::start("force").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let (_, attempt) = fleet.run(engine, r#"{"model":"m","do":"hang"}"#).await;
    fleet.gateway.answer(&BeginReply::Go { credit: 1 << 20 }).await;
    let Reply::Refused { message } = fleet.stop_engine(engine, false).await else { panic!("not refused") };
    assert!(message.contains("serves 1 jobs"), "{message}");
    assert_eq!(fleet.stop_engine(engine, true).await, Reply::Ok);
    assert!(matches!(fleet.ended(attempt).await.outcome, Outcome::Failed { output_sent: false, .. }));
    fleet.engine_in(engine, EngineState::Stopped).await;
    fleet.leave().await;
}

/// The folder of an engine's cgroup.
fn group_of(fleet: &Fleet, engine: EngineId) -> Option<PathBuf> {
    let note = std::fs::read_to_string(fleet.notes().join(format!("{engine}.json"))).unwrap();
    let note: serde_json::Value = serde_json::from_str(&note).unwrap();
    note["group"].as_str().map(PathBuf::from)
}

#[actix::test]
async fn a_process_that_outgrows_its_memory_is_killed_and_told_so() {
    let mut fleet = Fleet::start("process-oom").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let group = group_of(&fleet, engine).unwrap_or_default();
    let limits = ["memory.max", "memory.oom.group"].map(|name| std::fs::read_to_string(group.join(name)));
    if limits[0].is_err() {
        eprintln!("not run: this machine has no cgroup v2 with the memory controller for us");
        return fleet.leave().await;
    }
    assert_eq!(limits.map(|text| text.unwrap()), [format!("{}\n", GIB / 4), "1\n".into()]);
    let mut greedy =
        process(&["python3", "-c", "print('loading', flush=True); x = b'x' * (600 << 20)", "{port}"]);
    greedy.memory = Some(48 << 20);
    let greedy = fleet.start_engine(greedy).await;
    let failure = fleet.failure_of(greedy).await;
    assert!(failure.message.contains("more than its 48 MiB of memory"), "{}", failure.message);
    assert!(failure.message.contains("loading"), "{}", failure.message);
    fleet.engine_in(engine, EngineState::Ready).await;
    fleet.leave().await;
}

#[actix::test]
async fn what_an_engine_has_started_ends_with_it_wherever_it_has_gone() {
    let mut fleet = Fleet::start("runaway").await;
    let path = engine_py();
    let away = "setsid sleep 86399 & exec python3 -u \"$0\" \"$1\"";
    let engine = fleet.ready_engine(process(&["sh", "-c", away, &path, "{port}"])).await;
    let Some(group) = group_of(&fleet, engine) else {
        eprintln!("not run: this machine has no cgroup v2 that may be written to");
        return fleet.leave().await;
    };
    let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    assert_eq!(members.lines().count(), 2, "the engine, and what has left its session");
    let leader = noted_pid(&fleet).unwrap();
    kill(Pid::from_raw(leader.try_into().unwrap()), Signal::SIGKILL).unwrap();
    assert!(fleet.failure_of(engine).await.message.contains("SIGKILL"));
    assert!(!group.exists(), "{}", group.display());
    for pid in members.lines().filter(|pid| *pid != leader.to_string()) {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!line.contains("86399"), "{pid} lives on");
    }
    fleet.leave().await;
}
