//! `docker compose up` at the root of the repository, a further host by its overlay, and what becomes of it when its
//! containers are killed.

use std::fmt::Write;
use std::time::Duration;

use berth_tests::{
    Compose, Event, Gateway, Part, SOON, at_most, docker, finish, free_port, path, repository, until,
    until_ok,
};
use serde_json::{Value, json};

/// A restart, an election and a start included.
const RECOVERY: Duration = Duration::from_secs(90);

async fn until_answered(what: &str, gateway: &Gateway, model: &str) {
    until_ok(what, RECOVERY, async || {
        let url = format!("{}/v1/chat/completions", gateway.url());
        let body = berth_tests::chat(model, &json!({"max_tokens": 2}));
        let request = reqwest::Client::new().post(url).timeout(Duration::from_secs(60)).json(&body);
        let answer = request.send().await.map_err(|error| error.to_string())?;
        if answer.status() == 200 { Ok(()) } else { Err(answer.text().await.unwrap_or_default()) }
    })
    .await;
}

/// nats-server reads its configuration, and who has a key, anew.
fn reload(compose: &Compose) {
    let _ = compose.ok(&["exec", "-T", "nats", "nats-server", "--signal", "reload=1"]);
}

fn status(compose: &Compose) -> Value {
    let said = compose.ok(&["run", "--rm", "-T", "berth", "status", "--json"]);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// A llama-server in a container, its weights below the project's folder, and one whose weights are nowhere on the host.
fn models(compose: &Compose) -> String {
    let weights = compose.folder().join("models");
    std::fs::create_dir(&weights).unwrap();
    std::fs::copy(path(Part::Gguf), weights.join("tiny.gguf")).unwrap();
    let mut text = String::new();
    let folders =
        [("tiny", weights.to_string_lossy().into_owned()), ("astray", "/usr/local/bin/berth".into())];
    for (id, source) in folders {
        write!(
            text,
            "\n[[models]]\nid = {id:?}\nengine = \"llama.cpp\"\nimage = {:?}\nmemory = \"512MiB\"\ncontext = 1024\n\
             keep_context = \"1h\"\nvolumes = [\"{source}:/models:ro\"]\nargs = [\"-m\", \"/models/tiny.gguf\", \"--chat-template\", \
             \"chatml\", \"--threads\", \"1\"]\n",
            Part::LlamaImage.text()
        )
        .unwrap();
    }
    text += "\n[[models]]\nid = \"far\"\nengine = \"sim\"\nlabels = [\"far\"]\n";
    text
}

#[tokio::test]
async fn with_engines_in_containers_a_further_host_and_every_container_killed_once() {
    let bridge = docker(&["network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}"]);
    let nats = format!("{bridge}:{}", free_port());
    let mut here = Compose::new(&["compose.yaml", "compose/bus.yaml"])
        .env("BERTH_NATS_PUBLISH", &nats)
        .env("BERTH_NATS_NAME", &bridge);
    let text = models(&here);
    let weights = here.folder().join("models").to_string_lossy().into_owned();
    here = here.config(&text).env("BERTH_MODELS", &weights).env("BERTH_KEEP_ENGINES", "1");
    here.up();
    let gateway = here.gateway("BERTH_PUBLISH");
    until_answered("the model that answers at once", &gateway, "demo").await;

    // An engine in a container is beside the agent's, on a network that it shares with the agent alone.
    until_answered("a model whose engine is a container", &gateway, "tiny").await;
    // What it has read of a session outlasts it: the folder is in the agent's volume.
    let again = async || {
        let answer = gateway.chat("tiny", &json!({"user": "s", "max_tokens": 2})).await;
        answer.json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_default()
    };
    again().await;
    let cached = again().await;
    let unloaded = gateway.post("/api/v1/unload", &json!({"model": "tiny"})).await;
    assert_eq!(unloaded.status, 202, "{}", unloaded.text);
    until("it is stopped", SOON, async || here.engines().is_empty()).await;
    assert_eq!((again().await, cached > 0), (cached, true));
    let engines = here.engines();
    assert_eq!(engines.len(), 1);
    let engine = engines[0].as_str();
    let networks = docker(&[
        "inspect",
        "-f",
        "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}",
        engine,
    ]);
    assert_eq!(networks, format!("{}_engines", here.project()));
    assert_eq!(docker(&["port", engine]), "");
    let astray = gateway.chat("astray", &json!({})).await;
    assert!(astray.error().contains("in the agent's own container alone"), "{}", astray.text);

    // Each says that it works, by the check that its container has.
    for role in ["scheduler", "agent", "http://127.0.0.1:8422/healthz"] {
        let service = if role.starts_with("http") { "health" } else { role };
        let _ = here.ok(&["exec", "-T", service, "berth", "healthcheck", role]);
    }
    let refused = here.run(&["exec", "-T", "health", "berth", "healthcheck", "scheduler"]);
    assert!(
        !refused.ok && refused.output.contains("does not let us ask for the scheduler"),
        "{}",
        refused.output
    );

    // A further host, whose label a model asks for, with a key of its own.
    let mut far = Compose::new(&["compose/host.yaml"]).image_of(&here);
    let told = here.ok(&["run", "--rm", "-T", "keys", "add-host", far.project()]);
    for (name, value) in told.lines().filter_map(|line| line.split_once('=')) {
        far = far.env(name, value);
    }
    reload(&here);
    let file = far.folder().join("berth.toml");
    std::fs::write(&file, "[host]\nlabels = [\"far\"]\n").unwrap();
    far = far.env("BERTH_CONFIG_FILE", &file.to_string_lossy()).env("BERTH_MODELS", &weights);
    far.up();
    until_answered("a model of the further host", &gateway, "far").await;
    let hosts = status(&here)["hosts"].as_array().unwrap().len();
    assert_eq!(hosts, 2);
    far.down();

    // Each sees its own key alone, which opens no more than its role needs. Nothing has been denied so far.
    for service in ["scheduler", "gateway", "health", "agent"] {
        let mounted = here.ok(&["exec", "-T", service, "ls", "/etc/berth/nats"]);
        assert_eq!(mounted, "ca.pem\nnats.nk", "{service}");
    }
    let logs = here.ok(&["logs", "--no-color"]);
    assert!(!logs.contains("does not let us"), "{logs}");
    let drain = here.run(&["exec", "-T", "gateway", "berth", "drain", here.value("BERTH_HOST")]);
    assert!(!drain.ok && drain.output.contains("does not let us"), "{}", drain.output);
    // Its next start, below, is with a new key.
    let _ = here.ok(&["run", "--rm", "-T", "keys", "rotate", "gateway"]);
    reload(&here);

    for service in ["agent", "gateway", "health", "scheduler", "nats"] {
        let container = here.containers(service).remove(0);
        here.kill(&container);
        until(&format!("{service} is restarted"), RECOVERY, async || {
            docker(&["inspect", "-f", "{{.RestartCount}} {{.State.Running}}", &container]) == "1 true"
        })
        .await;
        until_answered(&format!("the fleet without its {service}"), &gateway, "demo").await;
        until_answered(&format!("the container without its {service}"), &gateway, "tiny").await;
        assert_eq!(here.engines(), engines, "the engine that ran is used on after {service} was killed");
    }

    // The agent's container is replaced, as an upgrade does it: what runs is answered, and the engine stays.
    let mut stream = gateway.stream("demo", &json!({"sim": {"tokens": 40, "per_token_ms": 50}})).await;
    stream.token().await;
    here = here.env("BERTH_KEEP_ENGINES", "");
    let _ = here.ok(&["up", "-d", "--no-build", "--force-recreate", "--no-deps", "agent"]);
    let rest = at_most(RECOVERY, "the stream's end", stream.rest()).await;
    assert!(rest.contains(&Event::Done), "{rest:?}");
    until_answered("the container after the upgrade", &gateway, "tiny").await;
    assert_eq!(here.engines(), engines, "it is adopted");

    let _ = here.ok(&["run", "--rm", "-T", "keys", "rotate", "gateway", "--finish"]);
    reload(&here);
    until_answered("with the new key alone", &gateway, "demo").await;

    let told = |container: &str| docker(&["inspect", "-f", "{{.State.Health.Status}}", container]);
    for service in ["agent", "gateway", "health", "scheduler", "nats"] {
        let container = here.containers(service).remove(0);
        until(&format!("{service} is healthy"), RECOVERY, async || told(&container) == "healthy").await;
    }
    here.down();
}

#[tokio::test]
async fn and_with_three_nats_servers_loses_one_and_the_leading_scheduler() {
    let mut fleet = Compose::new(&["compose.yaml", "compose/ha.yaml"])
        .env("BERTH_PUBLISH_2", &format!("127.0.0.1:{}", free_port()));
    let models = fleet.folder().to_string_lossy().into_owned();
    fleet = fleet.env("BERTH_MODELS", &models);
    fleet.up();
    let (one, two) = (fleet.gateway("BERTH_PUBLISH"), fleet.gateway("BERTH_PUBLISH_2"));
    until_answered("the first gateway", &one, "demo").await;
    until_answered("the second gateway", &two, "demo").await;

    let leader = |fleet: &Compose| status(fleet)["leader"]["instance"].as_str().map(str::to_owned);
    let led = leader(&fleet).expect("a scheduler leads");
    let schedulers = fleet.containers("scheduler");
    assert_eq!(schedulers.len(), 2);
    let leads = schedulers.iter().find(|id| docker(&["logs", id]).contains("this scheduler leads"));
    fleet.kill(leads.expect("one of them leads"));
    until("another leads", RECOVERY, async || leader(&fleet).is_some_and(|now| now != led)).await;
    until_answered("after the leader's end", &one, "demo").await;

    // The one that the others are connected to first; it stays away.
    let _ = docker(&["kill", &fleet.containers("nats")[0]]);
    for gateway in [&one, &two] {
        until_answered("after the end of a NATS server", gateway, "demo").await;
    }
    // By the queue, whose stream has lost a copy; while its servers agree on who leads it, clients are told to try again.
    let jobs = (0..8).map(|_| until_answered("by the queue", &two, "demo"));
    at_most(RECOVERY, "eight answers", futures::future::join_all(jobs)).await;
    fleet.down();
}

/// Units as they would be installed, but for where the program is.
#[test]
fn the_units_of_systemd_are_valid_and_shut_in() {
    let version = std::process::Command::new("systemd-analyze").arg("--version").output();
    if !version.is_ok_and(|version| version.status.success()) {
        eprintln!("no systemd-analyze here: the units are not checked");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["berth.service", "berth-agent.service"] {
        let text = std::fs::read_to_string(repository().join("compose/systemd").join(name)).unwrap();
        let unit = folder.path().join(name);
        std::fs::write(&unit, text.replace("/usr/local/bin/berth", path(Part::Berth).to_str().unwrap()))
            .unwrap();
        for args in [&["verify", "--man=no"][..], &["security", "--offline=yes", "--threshold=30"]] {
            let mut command = std::process::Command::new("systemd-analyze");
            command.args(args).arg(&unit);
            let done = finish(command, SOON);
            // Verified without a word; the unit's exposure is below 3.0 of 10.
            let silent = args[0] != "verify" || done.output.trim().is_empty();
            assert!(done.ok && silent, "{name}: {}", done.output);
        }
    }
}

/// What Prometheus asks listens there.
fn are_scraped(services: &serde_json::Map<String, Value>) {
    let file = repository().join("compose/observability/prometheus.yml");
    let text = std::fs::read_to_string(file).unwrap();
    let targets = text.split('"').filter_map(|part| part.split_once(':'));
    let mut count = 0;
    for (name, port) in targets.filter(|(name, _)| services.contains_key(*name)) {
        let service = &services[name];
        let told = format!("{}{}", service["command"], service["environment"]);
        assert!(told.contains(&format!("0.0.0.0:{port}")), "{name} serves no metrics on {port}: {told}");
        count += 1;
    }
    assert_eq!(count, 4, "each role");
}

#[test]
fn every_file_in_compose_is_valid_on_top_of_it() {
    let observability = repository().join("compose/observability/prometheus.yml").exists();
    for files in [
        &["compose.yaml"][..],
        &["compose.yaml", "compose/bus.yaml"],
        &["compose.yaml", "compose/gpu.yaml"],
        &["compose.yaml", "compose/ha.yaml"],
        &["compose.yaml", "compose/observability.yaml"],
        &["compose.yaml", "compose/bus.yaml", "compose/gpu.yaml", "compose/observability.yaml"],
        &["compose/host.yaml"],
        &["compose/host.yaml", "compose/gpu.yaml"],
    ] {
        let compose = Compose::new(files)
            .env("BERTH_NATS_NAME", "10.0.0.1")
            .env("BERTH_NATS_URL", "tls://10.0.0.1:4222")
            .env("BERTH_NATS_NKEY", "a-key")
            .env("BERTH_NATS_CA_BASE64", "a-certificate");
        let config: Value = serde_json::from_str(&compose.ok(&["config", "--format", "json"])).unwrap();
        let services = config["services"].as_object().unwrap();
        if files.contains(&"compose/observability.yaml") {
            are_scraped(services);
        }
        for (name, service) in services.iter().filter(|(_, service)| service["image"] != Value::Null) {
            let sockets = service["volumes"].to_string().matches("docker.sock").count();
            assert_eq!(sockets > 0, name == "agent", "only the agent has Docker's socket: {files:?}");
            let keys: Vec<&str> = service["volumes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|volume| volume["source"].as_str()?.strip_prefix("key-"))
                .collect();
            if name == "keys" {
                assert_eq!(service["network_mode"], "none", "who has all keys hears nobody: {files:?}");
            } else {
                assert_eq!(service["restart"], "unless-stopped", "{name} of {files:?}");
                let own = match name.split('-').next().unwrap_or_default() {
                    "nats" => &["server"][..],
                    "prometheus" | "grafana" => &[],
                    role => &[role],
                };
                assert_eq!(keys, own, "its own key alone: {name} of {files:?}");
            }
            assert_eq!(service["privileged"], Value::Null, "{name} of {files:?}");
            // What is mounted from the repository is there.
            for volume in service["volumes"].as_array().into_iter().flatten() {
                let source = volume["source"].as_str().unwrap_or_default();
                let ours = source.starts_with(repository().to_str().unwrap());
                let known = !source.contains("/observability/") || observability;
                assert!(!ours || !known || std::path::Path::new(source).exists(), "{source} of {name}");
            }
        }
    }
}
