//! Containers that fail, are slow or come and go, on a real Docker engine.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use berth_testkit::wait::{until, until_ok};
use berth_wire::{ContainerSpec, EngineRecord, EngineState, ModelSpec, Reply, Ulimit};

use crate::containers::{CHAT, Parts, container, containers_of, docker, fleet, llama, part, parts};
use crate::fixture::{Fleet, WAIT, python};
use crate::gateway::text;

/// The simulator in a container: there in an instant, and told what to do.
fn sim(parts: &Parts, args: &[&str]) -> ModelSpec {
    let mut model = llama(parts);
    model.engine.command = vec!["/berth".into()];
    model.engine.args = ["sim-engine", "--host", "{host}", "--port", "{port}"].map(str::to_owned).to_vec();
    model.engine.args.extend(args.iter().map(|arg| (*arg).to_owned()));
    model.engine.volumes = vec![format!("{}:/berth:ro", part("BERTH_TEST_BIN"))];
    model.memory = Some(64 << 20);
    model
}

async fn record(fleet: &Fleet, engine: berth_wire::EngineId) -> Option<EngineRecord> {
    let records = fleet.bus.bucket("engines").await.unwrap();
    let found = records.get(format!("{}.{engine}", fleet.host)).await.unwrap()?;
    Some(berth_wire::decode_json(&found).unwrap())
}

#[actix::test]
async fn an_engine_killed_for_want_of_memory_while_it_serves_is_told_so() {
    let parts = parts();
    let mut fleet = fleet("docker-oom-ready").await;
    let engine = fleet.ready_engine(llama(&parts)).await;
    let name = container("docker-oom-ready", engine);
    // A second process in it asks for more than there is: that one goes, the engine stays.
    let greedy =
        ["exec", &name, "/app/llama-server", "-m", "/models/tiny.gguf", "-c", "8000000", "--port", "9"];
    docker(&greedy);
    until_ok("it is told", WAIT, async || {
        let record = record(&fleet, engine).await.unwrap();
        match record.detail.as_deref() {
            Some("a process of it was killed for want of memory") => Ok(()),
            other => Err(format!("{other:?}, {}", record.state.as_str())),
        }
    })
    .await;
    fleet.run(engine, CHAT).await;
    assert!(text(&fleet.gateway.take_all(1 << 20).await).ends_with("data: [DONE]\n\n"));
    docker(&["kill", &name]);
    let failure = fleet.failure_of(engine).await;
    let told = format!("more than its {} MiB of memory", llama(&parts).memory.unwrap() >> 20);
    assert!(failure.was_ready && failure.message.contains(&told), "{}", failure.message);
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_crashes_at_each_start_leaves_nothing_and_says_why_each_time() {
    let parts = parts();
    let mut fleet = fleet("docker-crash").await;
    for _ in 0..3 {
        let engine = fleet.start_engine(sim(&parts, &["--fail-start", "no such weights"])).await;
        let failure = fleet.failure_of(engine).await;
        assert!(failure.message.contains("no such weights") && !failure.permanent, "{}", failure.message);
        assert_eq!(containers_of("docker-crash"), "");
    }
    fleet.leave().await;
}

#[actix::test]
async fn two_engines_that_listen_on_the_same_port_run_side_by_side() {
    let parts = parts();
    let mut fleet = fleet("docker-port").await;
    let first = fleet.ready_engine(sim(&parts, &[])).await;
    let second = fleet.ready_engine(sim(&parts, &[])).await;
    let ports = [first, second].map(|engine| docker(&["port", &container("docker-port", engine)]));
    assert_ne!(ports[0], ports[1]);
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_is_never_healthy_is_given_up_and_told_with_what_it_answered() {
    let parts = parts();
    let mut fleet = fleet("docker-sick").await;
    let mut model = sim(&parts, &[]);
    model.engine.health_path = "/no-such-path".into();
    model.engine.start_timeout = Duration::from_secs(1);
    let engine = fleet.start_engine(model).await;
    let failure = fleet.failure_of(engine).await;
    assert!(failure.permanent && failure.message.contains("status 404"), "{}", failure.message);
    assert_eq!(containers_of("docker-sick"), "");
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_does_not_stop_is_killed_after_its_grace_and_delays_no_other() {
    let parts = parts();
    let mut fleet = fleet("docker-slow-stop").await;
    let mut model = sim(&parts, &["--ignore-sigterm"]);
    model.engine.stop_grace = Duration::from_secs(3);
    let slow = fleet.ready_engine(model).await;
    let began = Instant::now();
    assert_eq!(fleet.stop_engine(slow, false).await, Reply::Ok);
    let other = fleet.ready_engine(python(&[])).await;
    assert_eq!(fleet.stop_engine(other, false).await, Reply::Ok);
    fleet.engine_in(other, EngineState::Stopped).await;
    assert_eq!(
        record(&fleet, slow).await.unwrap().state,
        EngineState::Stopping,
        "the other did not wait for it"
    );
    fleet.engine_in(slow, EngineState::Stopped).await;
    assert!(began.elapsed() >= Duration::from_secs(3));
    assert_eq!(containers_of("docker-slow-stop"), "");
    fleet.leave().await;
}

#[actix::test]
async fn a_container_is_kept_to_what_its_model_says() {
    let parts = parts();
    let mut fleet = fleet("docker-limits").await;
    let mut model = llama(&parts);
    model.engine.container = ContainerSpec {
        shm: Some(32 << 20),
        ipc: Some("private".into()),
        ulimits: vec![Ulimit { name: "nofile".into(), soft: 1024, hard: 2048 }],
        cpus: Some("0".into()),
        read_only: true,
        pids: Some(64),
        ram: Some(1 << 40),
        pull_timeout: None,
    };
    let engine = fleet.ready_engine(model.clone()).await;
    let name = container("docker-limits", engine);
    let asked = "{{.HostConfig.ShmSize}} {{.HostConfig.IpcMode}} {{(index .HostConfig.Ulimits 0).Hard}} \
                 {{.HostConfig.CpusetCpus}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.PidsLimit}} {{.HostConfig.Memory}}";
    let memory = model.memory.unwrap();
    let told = docker(&["inspect", "--format", asked, &name]);
    assert_eq!(told, format!("{} private 2048 0 true 64 {memory}", 32 << 20), "RAM is the accelerator here");
    let networks = docker(&[
        "inspect",
        "--format",
        "{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}",
        &name,
    ]);
    assert_eq!(networks, "berth-docker-limits-engines");
    fleet.run(engine, CHAT).await;
    assert!(text(&fleet.gateway.take_all(1 << 20).await).ends_with("data: [DONE]\n\n"));
    fleet.leave().await;
    assert_eq!(docker(&["network", "ls", "-q", "--filter", "name=berth-docker-limits-engines"]), "");
}

#[actix::test]
async fn what_is_left_of_engines_that_are_gone_is_removed_and_what_others_own_is_not() {
    let parts = parts();
    let host = "docker-orphan";
    let fleet_before = fleet(host).await;
    drop(fleet_before);
    // As an agent that was killed between making a container and starting it leaves it, and one of another host.
    let labels = |host: &str| {
        ["berth.root=berth.v1".to_owned(), format!("berth.host={host}"), "berth.engine=1-9".to_owned()]
    };
    let make = |host: &str| {
        let mut args = vec!["create".to_owned()];
        args.extend(labels(host).into_iter().flat_map(|label| ["--label".to_owned(), label]));
        args.push(parts.image.clone());
        docker(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (orphan, others) = (make(host), make("docker-orphan-other"));
    let mut fleet =
        Fleet::start_with(host, |config| config.host.drivers = vec![berth_wire::Driver::Docker]).await;
    assert_eq!(containers_of(host), "", "{orphan} is removed");
    assert!(others.starts_with(&containers_of("docker-orphan-other")));
    docker(&["rm", "-f", &others]);
    fleet.leave().await;
}

/// Files that this process has open, and its memory in KiB.
fn footprint() -> (usize, u64) {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (files, resident.trim().trim_end_matches(" kB").trim().parse().unwrap())
}

#[actix::test]
async fn a_hundred_engines_come_and_go_and_leave_no_container_network_file_or_memory() {
    // In a process of its own, whose files and memory no other test has.
    if berth_config::env::var("BERTH_TEST_ALONE").is_none() {
        let name = "faults::a_hundred_engines_come_and_go_and_leave_no_container_network_file_or_memory";
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let ran = alone.args(["--exact", name, "--nocapture"]).env("BERTH_TEST_ALONE", "1").output().unwrap();
        let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(ran.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let parts = parts();
    let mut fleet = fleet("docker-cycles").await;
    let listed = |args: &[&str]| docker(args).lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let ours = |args: &[&str]| {
        let all = listed(args);
        all.into_iter().filter(|line| line.contains("docker-cycles")).collect::<BTreeSet<_>>()
    };
    let networks = ["network", "ls", "--format", "{{.Name}}"];
    let cycle = async |fleet: &Fleet| {
        let start = async |_| fleet.ready_engine(sim(&parts, &[])).await;
        let engines = futures::future::join_all((0..4).map(start)).await;
        for engine in &engines {
            assert_eq!(fleet.stop_engine(*engine, false).await, Reply::Ok);
        }
        for engine in &engines {
            fleet.engine_in(*engine, EngineState::Stopped).await;
        }
        fleet.told.entries.borrow_mut().clear();
    };
    for _ in 0..5 {
        cycle(&fleet).await;
    }
    let (before, networks_before) = (footprint(), ours(&networks));
    for _ in 0..20 {
        cycle(&fleet).await;
    }
    assert_eq!(containers_of("docker-cycles"), "");
    assert_eq!(ours(&networks), networks_before);
    until_ok("files are closed", WAIT, async || {
        let (files, memory) = footprint();
        if files < before.0 + 8 {
            Ok(())
        } else {
            Err(format!("{files} files, {} before; {memory} KiB", before.0))
        }
    })
    .await;
    let (_, memory) = footprint();
    assert!(memory < before.1 + 8 * 1024, "{memory} KiB, {} before 80 engines", before.1);
    assert_eq!(fleet.status().await.engines, []);
    until("records are gone", WAIT, async || {
        let records = fleet.bus.bucket("engines").await.unwrap();
        futures::StreamExt::count(records.keys().await.unwrap()).await == 0
    })
    .await;
    fleet.leave().await;
    assert_eq!(ours(&networks), BTreeSet::new());
}
