//! A real Prometheus scrapes the four services with the files of `compose/observability`: every query of the dashboard
//! and every rule finds data, or it is said here why it cannot.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use berth_tests::{Berth, Config, Gateway, Model, Part, Role, SOON, finish, path, until, until_ok};
use serde_json::{Value, json};

/// What a healthy fleet without a GPU and without API keys has none of, by the metric.
const ABSENT: [&str; 4] = [
    "berth_accelerator_unexplained_bytes",
    "berth_engine_failures_total",
    "berth_actor_restarts_total",
    "berth_key_refused_total",
];

fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/observability")
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it has an address")
}

/// Prometheus on the repository's own configuration, but for where the services are and how often they are scraped.
fn start_prometheus(folder: &Path, services: [(&str, SocketAddr); 4]) -> (Role, Gateway) {
    let mut config = std::fs::read_to_string(files().join("prometheus.yml")).expect("it is there");
    for (target, address) in services {
        assert!(config.contains(target), "{target} in prometheus.yml");
        config = config.replace(target, &address.to_string());
    }
    config = config.replace("_interval: 15s", "_interval: 1s");
    std::fs::write(folder.join("prometheus.yml"), config).expect("it can be written");
    std::fs::copy(files().join("rules.yml"), folder.join("rules.yml")).expect("it can be copied");
    let address = free();
    let mut command = Command::new(path(Part::Prometheus).join("prometheus"));
    command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
    command.arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()));
    command.arg(format!("--web.listen-address={address}"));
    (Role::start("prometheus", command), Gateway::new(&format!("http://{address}")))
}

async fn query(prometheus: &Gateway, expression: &str) -> Result<Value, String> {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let answer = prometheus.get(&format!("/api/v1/query?query={encoded}")).await;
    match answer.json["status"].as_str() {
        Some("success") => Ok(answer.json["data"]["result"].clone()),
        _ => Err(format!("{expression}: {}", answer.text)),
    }
}

/// Every query of the dashboard.
fn dashboard() -> Vec<String> {
    let text = std::fs::read_to_string(files().join("grafana/dashboards/berth.json")).expect("it is there");
    let board: Value = serde_json::from_str(&text).expect("it is JSON");
    let panels = board["panels"].as_array().expect("it has panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets
        .map(|target| target["expr"].as_str().expect("a query").replace("$__rate_interval", "1m"))
        .collect()
}

#[tokio::test]
async fn every_query_and_every_rule_finds_its_data() {
    let rules = finish(
        {
            let mut check = Command::new(path(Part::Prometheus).join("promtool"));
            check.args(["check", "rules"]).arg(files().join("rules.yml"));
            check
        },
        SOON,
    );
    assert!(rules.ok, "{}", rules.output);

    let services = [
        ("gateway:8423", "gateway", "metrics_listen"),
        ("scheduler:8424", "scheduler", "metrics_listen"),
        ("agent:8425", "host", "metrics_listen"),
        ("health:8422", "health", "listen"),
    ]
    .map(|(target, section, setting)| (target, section, setting, free()));
    let mut config = Config::of([Model::sim("sim", &[])]);
    for (_, section, setting, address) in &services {
        config = config.line(section, &format!("{setting} = \"{address}\""));
    }
    let berth = Berth::fleet(&config).await;
    let targets = services.map(|(target, _, _, address)| (target, address));
    let (mut running, prometheus) = start_prometheus(berth.folder(), targets);
    let own = prometheus.url().trim_start_matches("http://").parse().expect("an address");
    for address in targets.iter().map(|(_, address)| *address).chain([own]) {
        until("it listens", SOON, async || TcpStream::connect(address).is_ok()).await;
    }
    for (_, address) in targets {
        let service = Gateway::new(&format!("http://{address}"));
        until_ok("each service is alive and ready", SOON, async || {
            let (live, ready) = (service.get("/livez").await, service.get("/readyz").await);
            if live.status == 200 && ready.status == 200 { Ok(()) } else { Err(live.text + &ready.text) }
        })
        .await;
    }

    let mut missing: BTreeSet<String> = BTreeSet::new();
    until_ok("every query of the dashboard finds data", Duration::from_secs(90), async || {
        if let Some(status) = running.ended() {
            panic!("Prometheus has ended with {status}:\n{}", running.tail());
        }
        berth.gateway.chat("sim", &json!({"sim": {"tokens": 5, "per_token_ms": 1}})).await.content();
        berth.gateway.stream("sim", &json!({"sim": {"tokens": 5, "per_token_ms": 5}})).await.rest().await;
        let _ = berth.gateway.chat("no-such-model", &json!({})).await;
        missing.clear();
        for expression in dashboard() {
            let absent = ABSENT.iter().any(|metric| expression.contains(metric));
            let found = query(&prometheus, &expression).await?;
            let none = found.as_array().is_none_or(Vec::is_empty);
            if none != absent {
                missing.insert(expression);
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:#?}")) }
    })
    .await;

    // No rule fires, and what each compares is there.
    let told = prometheus.get("/api/v1/rules").await.json;
    let rules = told["data"]["groups"][0]["rules"].as_array().expect("rules are loaded").clone();
    assert!(rules.len() >= 10, "{told}");
    for rule in rules {
        let expression = rule["query"].as_str().expect("a query").to_owned();
        assert_ne!(rule["health"], "err", "{rule}");
        assert_ne!(rule["state"], "firing", "nothing is wrong: {rule}");
        let compared = [" > ", " < ", " == "].iter().find_map(|sign| expression.rsplit_once(sign));
        let (left, _) = compared.unwrap_or_else(|| panic!("{expression} compares nothing"));
        // No request has failed, so that there is no share of those that do.
        let absent = ABSENT.iter().any(|metric| left.contains(metric)) || left.contains("5..");
        let found = query(&prometheus, left).await.unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(found.as_array().is_none_or(Vec::is_empty), absent, "{left}: {found}");
    }

    // Names of models are those of the catalog, and the unknown one is nowhere.
    let models =
        query(&prometheus, "count by (gen_ai_request_model) (gen_ai_client_token_usage_count)").await;
    let models = models.expect("it is a query");
    assert_eq!(models.as_array().map(Vec::len), Some(1), "{models}");
    assert_eq!(models[0]["metric"]["gen_ai_request_model"], "sim");
    let shown = Gateway::new(&format!("http://{}", targets[0].1)).get("/metrics").await.text;
    assert!(!shown.contains("no-such-model"), "{shown}");
    for line in shown.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("berth_") || line.starts_with("gen_ai_") || line.is_empty(), "{line}");
    }

    // What health keeps and shows of the same.
    let report = until_ok("health keeps a slot with what was served", SOON, async || {
        let mut command = berth_tests::berth();
        command.args(["health", "report", "--json", "--nats-url", berth.nats_url()]);
        let told = finish(command, SOON);
        let json: Value = serde_json::from_str(told.output.trim()).map_err(|_| told.output.clone())?;
        let served = json["trends"].as_array().into_iter().flatten().any(|slot| {
            slot["models"]["sim"]["first_token"]["count"].as_u64().is_some_and(|count| count > 0)
        });
        if served { Ok(json) } else { Err(told.output) }
    })
    .await;
    assert_eq!(report["health"]["ready"], true, "{report}");
    assert_eq!(report["health"]["found"]["alerts"], json!([]));
}
