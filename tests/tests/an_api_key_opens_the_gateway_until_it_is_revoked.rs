//! API keys are made, used by the openai client, kept apart from each other, and revoked, while the fleet runs.

use berth_tests::{Berth, Config, Finished, Model, SOON, at_most, berth, finish, python, until, until_ok};
use reqwest::Response;
use serde_json::{Value, json};

fn key_command(fleet: &Berth, args: &[&str]) -> Finished {
    let mut command = berth();
    // Where there is no configuration: whoever can use the bus can do this.
    command.current_dir("/").arg("key").args(args).arg("--data-dir").arg(fleet.folder().join("data"));
    finish(command, SOON)
}

/// Makes a key; what is printed is the key and a sentence about it.
fn create(fleet: &Berth, args: &[&str]) -> String {
    let made = key_command(fleet, &[&["create"], args].concat());
    assert!(made.ok, "{}", made.output);
    let key = made.output.lines().find(|line| line.starts_with("berth-")).expect("the key stands alone");
    key.to_owned()
}

async fn with(fleet: &Berth, key: &str, path: &str, body: Option<Value>) -> Response {
    let url = format!("{}{path}", fleet.gateway.url());
    let client = reqwest::Client::new();
    let request = body.map_or_else(|| client.get(&url), |body| client.post(&url).json(&body));
    request.bearer_auth(key).send().await.expect("the gateway answers")
}

async fn json_of(response: Response) -> (u16, Value) {
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn is_open(fleet: &Berth, key: &str) -> bool {
    with(fleet, key, "/v1/models", None).await.status() == 200
}

#[tokio::test]
async fn the_openai_client_meets_it_and_a_running_answer_outlives_its_revocation() {
    let model = Model::sim("sim", &["--tokens", "400", "--per-token", "10ms"]);
    let mut fleet = Berth::up(&Config::of([model])).await;
    assert!(is_open(&fleet, "none").await, "loopback is open while there is no key");
    let limited = create(&fleet, &["ci", "--rpm", "3"]);
    until("the gateway asks for a key", SOON, async || !is_open(&fleet, "none").await).await;

    for _ in 0..5 {
        assert!(!is_open(&fleet, "berth-wrong-0123456789").await);
    }
    let told = until_ok("the log tells who came without a key", SOON, async || {
        let mut lines = fleet.role("up").lines();
        lines.retain(|line| line.contains("without a valid API key"));
        if lines.is_empty() { Err("it does not") } else { Ok(lines) }
    })
    .await;
    assert!(told.len() == 1 && told[0].contains("from=127.0.0.1"), "once a minute: {told:?}");
    assert!(!fleet.role("up").lines().join("\n").contains("berth-wrong"), "no key is in the log");

    let args = [format!("{}/v1", fleet.gateway.url()), "sim".into(), limited.clone(), "3".into()];
    let said = tokio::task::spawn_blocking(move || {
        python("openai_keys.py", &args.iter().map(String::as_str).collect::<Vec<_>>())
    });
    assert!(said.await.expect("it ends").contains("all as it should be"));

    let key = create(&fleet, &["laptop", "--class", "interactive", "--expires", "30d"]);
    until("the new key opens", SOON, async || is_open(&fleet, &key).await).await;
    let again = key_command(&fleet, &["create", "laptop"]);
    assert!(!again.ok && again.output.contains("there is a key `laptop`"), "{}", again.output);
    let body = json!({"model": "sim", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let mut running = with(&fleet, &key, "/v1/chat/completions", Some(body)).await;
    assert!(running.chunk().await.expect("it streams").is_some());
    let revoked = key_command(&fleet, &["revoke", "laptop"]);
    assert!(revoked.ok && revoked.output.contains("revoked laptop"), "{}", revoked.output);
    until("the revoked key opens nothing", SOON, async || !is_open(&fleet, &key).await).await;
    let rest = running.text().await.expect("it goes on");
    assert!(rest.trim_end().ends_with("data: [DONE]"), "{rest}");

    let list = key_command(&fleet, &["list", "--json"]);
    let listed: Value = serde_json::from_str(&list.output).expect("JSON");
    assert_eq!((&listed["keys"][0]["name"], &listed["keys"][0]["from"]), (&json!("ci"), &json!("fleet")));
    assert_eq!(listed["keys"].as_array().expect("a list").len(), 1, "{listed}");
    let unknown = key_command(&fleet, &["revoke", "laptop"]);
    assert!(!unknown.ok && unknown.output.contains("there are ci"), "{}", unknown.output);

    let metrics = create(&fleet, &["metrics", "--scope", "admin"]);
    until("the admin's key opens", SOON, async || is_open(&fleet, &metrics).await).await;
    let shown = with(&fleet, &metrics, "/metrics", None).await.text().await.expect("text");
    assert!(shown.contains("berth_key_requests_total{key=\"ci\"} 3"), "{shown}");
    // What has no end of its own ends with the right to it.
    let mut story = with(&fleet, &metrics, "/api/v1/events", None).await;
    assert!(story.chunk().await.expect("it streams").is_some());
    assert!(key_command(&fleet, &["revoke", "metrics"]).ok);
    let over = async { while story.chunk().await.is_ok_and(|piece| piece.is_some()) {} };
    at_most(SOON, "the end of a story that its key opens no more", over).await;
    let logs = fleet.role("up").lines().join("\n");
    for secret in [&limited, &key, &metrics] {
        let hash = berth_wire::KeyHash::of(secret).to_text();
        for text in [&shown, &logs, &list.output] {
            assert!(!text.contains(secret.as_str()) && !text.contains(&hash), "{text}");
        }
    }
}

#[tokio::test]
async fn one_key_does_not_touch_the_leases_of_another() {
    let fleet = Berth::up(&Config::of([Model::sim("sim", &[])])).await;
    let (one, two) = (create(&fleet, &["one"]), create(&fleet, &["two"]));
    let admin = create(&fleet, &["admin", "--scope", "admin"]);
    for key in [&one, &two, &admin] {
        until("the key opens", SOON, async || is_open(&fleet, key).await).await;
    }
    let ask = json!({"sessionKey": "chat", "model": "sim"});
    let lease = async |key: &str| json_of(with(&fleet, key, "/lease", Some(ask.clone())).await).await;
    let held = async |key: &str| json_of(with(&fleet, key, "/leases", None).await).await.1["total"].clone();
    let release = async |key: &str| {
        let body = json!({"sessionKey": "chat"});
        json_of(with(&fleet, key, "/release", Some(body)).await).await.1["released"].clone()
    };
    assert_eq!(lease(&one).await.0, 200);
    assert_eq!((held(&one).await, held(&two).await, held(&admin).await), (json!(1), json!(0), json!(1)));
    let (status, refused) = lease(&two).await;
    assert_eq!((status, &refused["error"]["code"]), (403, &json!("session_of_another_key")), "{refused}");
    assert_eq!(release(&two).await, json!([]));
    assert_eq!(held(&one).await, json!(1));
    assert_eq!(lease(&one).await.0, 200, "its own is renewed");
    assert_eq!(release(&admin).await, json!(["sim"]));
    assert_eq!(held(&one).await, json!(0));
}
