//! Bad requests, bad models, bad surroundings: each a clear error, and the next request is served.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use berth_tests::{Berth, Config, Model, Part, SOON, at_most, berth, docker, finish, path, scenario, until};
use serde_json::{Value, json};

/// The simulator, whose answer proves that nothing is wedged, and others.
fn with_sim(others: impl IntoIterator<Item = Model>) -> Config {
    Config::of([Model::sim("sim", &[])].into_iter().chain(others))
}

async fn is_well(berth: &Berth) {
    berth.gateway.chat("sim", &json!({})).await.content();
    scenario::nothing_is_outstanding(&berth.bus().await).await;
}

#[tokio::test]
async fn a_request_that_is_wrong_is_told_what_is_wrong() {
    let berth = Berth::up(&with_sim([])).await;
    let post =
        async |body: &str| berth.gateway.post_raw("/v1/chat/completions", body.to_owned().into()).await;
    let cases = [
        (r#"{"model": "ghost", "messages": []}"#, 404, "ghost"),
        (r#"{"model": "sim", "messages": ["#, 400, ""),
        ("", 400, ""),
        ("[1, 2]", 400, ""),
        (r#"{"messages": []}"#, 400, "model"),
        (r#"{"model": 7, "messages": []}"#, 400, "model"),
        // Past the gateway, which relays what it does not read: the engine's own refusal.
        (r#"{"model": "sim", "messages": "none"}"#, 400, "messages"),
    ];
    for (body, status, says) in cases {
        let answer = post(body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert!(answer.error().contains(says), "{body}: {}", answer.text);
    }
    let unknown = post(r#"{"model": "ghost", "messages": []}"#).await;
    assert_eq!(unknown.json["error"]["code"], "model_not_found");
    assert_eq!(berth.gateway.get("/v1/models/ghost").await.status, 404);
    assert_eq!(berth.gateway.get("/no/such/path").await.status, 404);
    is_well(&berth).await;
}

#[tokio::test]
async fn an_engines_own_refusal_reaches_the_client_as_it_is() {
    let berth = Berth::up(&with_sim([])).await;
    let refused = berth.gateway.chat("sim", &json!({"sim": {"status": 422}})).await;
    assert_eq!(
        (refused.status, refused.error()),
        (422, "this error is simulated by Berth, as the request asked")
    );
    let mut stream = berth.gateway.stream("sim", &json!({"sim": {"status": 422}})).await;
    assert_eq!((stream.status, stream.rest().await.len()), (422, 2), "an error object and the end");
    is_well(&berth).await;
}

#[tokio::test]
async fn unknown_fields_and_the_bytes_of_a_body_reach_the_engine_as_they_came() {
    let berth = Berth::up(&Config::of([Model::sim("sim", &[]).list("aliases", &["other"])])).await;
    let body =
        r#"{ "model":"sim","messages":[],  "sim":{"echo":true}, "unknown" : [1.50, "\u00e9\ud83d\ude00"] }"#;
    let echoed = berth.gateway.post_raw("/v1/chat/completions", body.into()).await;
    assert_eq!(echoed.content(), body);
    // Only an alias is replaced, by the name that the engine serves.
    let alias = body.replace("\"sim\",", "\"other\",");
    let echoed = berth.gateway.post_raw("/v1/chat/completions", alias.into()).await;
    assert_eq!(echoed.content(), body);
}

#[tokio::test]
async fn a_body_of_20_mib_travels_whole_and_one_above_the_limit_is_refused() {
    let berth = Berth::up(&with_sim([])).await;
    let body = |mib: usize| json!({"model": "sim", "messages": [{"role": "user", "content": "x".repeat(mib << 20)}]});
    let answer = berth.gateway.post("/v1/chat/completions", &body(20)).await;
    answer.content();
    let prompt = answer.json["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(prompt >= (20 << 20) / 4, "the engine has read all of it: {prompt}");

    let refused = berth.gateway.post("/v1/chat/completions", &body(33)).await;
    assert_eq!(refused.status, 413, "{}", refused.text);
    refused.error();
    // An answer as large as the question comes back whole, too.
    let mut echo = body(2);
    echo["sim"] = json!({"echo": true});
    let answer = berth.gateway.post("/v1/chat/completions", &echo).await;
    let echoed: Value = serde_json::from_str(answer.content()).unwrap();
    assert_eq!(echoed, echo);
    is_well(&berth).await;
}

#[tokio::test]
async fn an_engine_that_cannot_start_is_told_with_its_reason() {
    let config = with_sim([
        Model::new("no-image")
            .field("engine", "\"custom\"")
            .field("driver", "\"docker\"")
            .field("image", "\"berth-test/no-such-image:1\""),
        Model::new("no-program")
            .field("engine", "\"custom\"")
            .field("driver", "\"process\"")
            .list("command", &["/no/such/program", "{port}"]),
        Model::sim("no-luck", &["--load", "100ms", "--fail-start", "the simulated GPU is on fire"]),
        Model::sim("too-big", &[]).memory("64GiB"),
    ]);
    let berth = Berth::up(&config).await;
    let cases = [
        ("no-image", "berth-test/no-such-image:1"),
        ("no-program", "/no/such/program"),
        ("no-luck", "the simulated GPU is on fire"),
        ("too-big", "memory"),
    ];
    for (model, says) in cases {
        let begun = Instant::now();
        let answer = berth.gateway.chat(model, &json!({})).await;
        assert!((500..600).contains(&answer.status), "{model}: {} {}", answer.status, answer.text);
        assert!(answer.error().contains(says), "{model}: {}", answer.text);
        assert!(begun.elapsed() < SOON, "{model}: told after {:?}", begun.elapsed());
        is_well(&berth).await;
    }
    // A stream is told in the same way, with a proper status while nothing has been sent.
    let mut stream = berth.gateway.stream("no-program", &json!({})).await;
    assert!((500..600).contains(&stream.status), "{}", stream.status);
    let events = stream.rest().await;
    assert!(format!("{events:?}").contains("/no/such/program"), "{events:?}");
}

#[tokio::test]
async fn a_container_that_ends_at_its_start_is_started_again_and_given_up_after_the_second_time() {
    let weights = tempfile::tempdir().unwrap();
    let mount = format!("{}:/weights:ro", weights.path().display());
    let crashing = |id: &str| {
        Model::llama_docker(id)
            .memory("600MiB")
            .also_args(&["-m", &format!("/weights/{id}.gguf")])
            .list("volumes", &["WEIGHTS:/models/tiny.gguf:ro", &mount])
    };
    let mut berth = Berth::up(&with_sim([crashing("late"), crashing("never")])).await;
    let gateway = berth.gateway.clone();
    let asked = |model| {
        let gateway = gateway.clone();
        tokio::spawn(async move { gateway.chat(model, &json!({"max_tokens": 2})).await })
    };
    let (late, never) = (asked("late"), asked("never"));
    let streaming = gateway.clone();
    let stream = tokio::spawn(async move {
        let mut stream = streaming.stream("late", &json!({"max_tokens": 2})).await;
        stream.rest().await
    });
    let fallen = |berth: &mut Berth, model: &str| {
        // What a failure is logged with ends so, behind the engine's own words.
        let end = format!("model={model} permanent=");
        berth.role("up").lines().iter().filter(|line| line.contains(&end)).count()
    };
    until("its first container has ended", SOON, async || fallen(&mut berth, "late") > 0).await;
    // What was wrong is put right; nobody who waits has heard of it.
    let copy = weights.path().join("copy");
    std::fs::copy(path(Part::Gguf), &copy).unwrap();
    std::fs::rename(copy, weights.path().join("late.gguf")).unwrap();
    let late = late.await.unwrap();
    assert_eq!(late.status, 200, "{}", late.text);
    let events = stream.await.unwrap();
    assert!(events.contains(&berth_tests::Event::Done), "{events:?}");
    assert_eq!(fallen(&mut berth, "late"), 1);

    let never = never.await.unwrap();
    let begun = Instant::now();
    let again = gateway.chat("never", &json!({})).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "nothing is tried meanwhile");
    for told in [never, again] {
        assert_eq!((told.status, &told.json["error"]["code"]), (503, &json!("engine_start_failed")));
        assert!(told.error().contains("/weights/never.gguf"), "the engine's own words: {}", told.text);
        let after = told.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
        assert!((1..=10).contains(&after), "{after}");
    }
    assert_eq!(fallen(&mut berth, "never"), 2);
    let left = docker(&["ps", "-aq", "--filter", &format!("volume={}", weights.path().display())]);
    assert_eq!(left.lines().count(), 1, "only the one that serves: {left}");
    is_well(&berth).await;
}

#[tokio::test]
async fn a_client_of_a_slow_start_hears_heartbeats_and_then_its_answer_or_error() {
    let config = Config::of([
        Model::sim("slow", &["--load", "2s"]),
        Model::sim("doomed", &["--load", "2s", "--fail-start", "out of simulated memory"]),
    ])
    .line("gateway", "grace = \"200ms\"")
    .line("gateway", "heartbeat = \"200ms\"");
    let berth = Berth::up(&config).await;
    let mut stream = berth.gateway.stream("slow", &json!({"max_tokens": 2})).await;
    assert_eq!(stream.status, 200);
    let events = stream.rest().await;
    let beats = events.iter().filter(|event| matches!(event, berth_tests::Event::Comment(_))).count();
    assert!(beats >= 2, "{events:?}");
    assert!(events.contains(&berth_tests::Event::Done), "{events:?}");

    let mut stream = berth.gateway.stream("doomed", &json!({})).await;
    assert_eq!(stream.status, 200, "the grace is over before the engine fails");
    let events = stream.rest().await;
    scenario::an_error_ends_the_stream(&events);
    assert!(format!("{events:?}").contains("out of simulated memory"), "{events:?}");
}

#[test]
fn a_configuration_with_a_typo_is_pointed_at() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("berth.toml");
    std::fs::write(&file, "[gateway]\nlisten = \"127.0.0.1:0\"\n\n[[models]]\nid = \"a\"\nengin = \"sim\"\n")
        .unwrap();
    for command in ["check", "up", "gateway"] {
        let mut run = berth();
        run.arg(command).arg("--config").arg(&file).current_dir(folder.path());
        let said = finish(run, SOON);
        assert!(!said.ok, "{command}: {}", said.output);
        assert!(said.output.contains("engin"), "{command}: {}", said.output);
        assert!(said.output.contains("berth.toml:6"), "{command} names the line: {}", said.output);
    }
    std::fs::write(&file, "[[models]]\nid = \"a\"\nengine = \"sim\"\n").unwrap();
    let mut run = berth();
    run.arg("check").arg("--config").arg(&file);
    let said = finish(run, SOON);
    assert!(said.ok, "{}", said.output);
    let mut run = berth();
    run.arg("check").arg("--config").arg(folder.path().join("missing.toml"));
    let said = finish(run, SOON);
    assert!(!said.ok && said.output.contains("missing.toml"), "{}", said.output);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("berth.toml");
    std::fs::write(&file, "[[models]]\nid = \"a\"\nengine = \"sim\"\n").unwrap();
    let mut run = berth();
    run.arg("up").arg("--config").arg(&file).arg("--listen").arg(&address);
    run.arg("--data-dir").arg(folder.path().join("data"));
    let said = finish(run, Duration::from_secs(60));
    assert!(!said.ok, "{}", said.output);
    assert!(said.output.contains(&address), "{}", said.output);
}

#[test]
fn no_nats_server_is_named() {
    // A port that was free a moment ago, so that nothing answers there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("nats://{free}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("berth.toml");
    let text = format!(
        "[bus]\nurls = [\"{url}\"]\n[gateway]\nlisten = \"127.0.0.1:0\"\n[[models]]\nid = \"a\"\nengine = \"sim\"\n"
    );
    std::fs::write(&file, text).unwrap();
    for command in ["gateway", "scheduler", "agent", "health"] {
        let mut run = berth();
        run.arg(command).arg("--config").arg(&file);
        // A role may wait for its NATS; it says so, and stops when told to.
        let mut role = berth_tests::Role::start(command, run);
        let deadline = Instant::now() + SOON;
        while !role.lines().join("\n").contains(&free.to_string()) {
            assert!(Instant::now() < deadline, "{command} does not say what it waits for");
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(status) = role.wait(Duration::from_secs(1)) {
            assert!(!status.success());
        } else {
            role.terminate();
        }
    }
}

#[tokio::test]
async fn an_engine_that_falls_silent_in_a_stream_is_given_up() {
    let mute = Model::sim("mute", &["--first-token", "1h"]).field("first_token_timeout", "\"1s\"");
    let stuck = Model::sim("stuck", &["--per-token", "1h"]).field("token_timeout", "\"1s\"");
    let berth = Berth::up(&with_sim([mute, stuck])).await;
    let mut stream = berth.gateway.stream("stuck", &json!({})).await;
    stream.token().await;
    let events = at_most(SOON, "the end of a stream that is stuck", stream.rest()).await;
    scenario::an_error_ends_the_stream(&events);
    assert!(format!("{events:?}").contains("token_timeout"), "{events:?}");
    let events = at_most(SOON, "the end of a stream that says nothing", async {
        berth.gateway.stream("mute", &json!({})).await.rest().await
    });
    let events = format!("{:?}", events.await);
    assert!(events.contains("engine_silent") && events.contains("first_token_timeout"), "{events}");
    is_well(&berth).await;
}
