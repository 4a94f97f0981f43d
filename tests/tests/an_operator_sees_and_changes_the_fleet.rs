//! The commands and `/api/v1` by which a person looks at a fleet and changes it, on one fleet.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use berth_tests::{Berth, Config, Finished, Model, SOON, berth, finish, until_ok};
use serde_json::{Value, json};

/// A command of this fleet's.
fn run(fleet: &Berth, args: &[&str]) -> Finished {
    let mut command = berth();
    command.args(args).args(["--nats-url", fleet.nats_url()]).current_dir(fleet.folder());
    finish(command, SOON)
}

fn done(fleet: &Berth, args: &[&str]) -> String {
    let finished = run(fleet, args);
    assert!(finished.ok, "{args:?}: {}", finished.output);
    finished.output
}

fn refused(fleet: &Berth, args: &[&str]) -> String {
    let finished = run(fleet, args);
    assert!(!finished.ok, "{args:?}: {}", finished.output);
    finished.output
}

fn as_json(fleet: &Berth, args: &[&str]) -> Value {
    let output = done(fleet, &[args, &["--json"]].concat());
    let line = output.lines().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{args:?}: {error}: {output}"))
}

fn slow(id: &str) -> Model {
    Model::sim(id, &["--load", "300ms", "--first-token", "6s"]).concurrency(1).memory("1GiB")
}

fn quick(id: &str) -> Model {
    Model::sim(id, &["--load", "300ms"]).concurrency(1).memory("1GiB")
}

#[tokio::test]
async fn jobs_are_explained_models_loaded_and_unloaded_and_a_configuration_applied() {
    let fleet = Berth::fleet(&Config::of([slow("a").list("aliases", &["first"]), quick("b")])).await;
    let bus = fleet.bus().await;

    // Loaded by hand, and shown.
    assert!(done(&fleet, &["load", "first"]).contains("a is ready on "));
    assert!(done(&fleet, &["load", "a"]).contains("ready already"));
    for command in ["load", "unload"] {
        let told = refused(&fleet, &[command, "a", "--host", "nowhere"]);
        assert!(told.contains("no host is called `nowhere`"), "{command}: {told}");
    }
    assert!(refused(&fleet, &["load", "none"]).contains("there are a, b"));
    let models = as_json(&fleet, &["models"]);
    assert_eq!(
        (&models["models"][0]["state"], &models["models"][1]["state"]),
        (&json!("ready"), &json!("stopped"))
    );
    let status = done(&fleet, &["status"]);
    assert!(status.contains('█') && status.contains('%'), "{status}");

    // One job runs and one waits: listed, explained, and in the way of an unload.
    let ask = |session: &'static str| {
        let gateway = fleet.gateway.clone();
        tokio::spawn(async move {
            gateway.chat("a", &json!({"max_tokens": 2, "user": session})).await.content();
        })
    };
    let first = ask("one");
    until_ok("the first runs", SOON, async || match as_json(&fleet, &["jobs"])["jobs"][0]["running"] {
        Value::Bool(true) => Ok(()),
        ref other => Err(other.to_string()),
    })
    .await;
    let second = ask("two");
    let waiting = until_ok("the second waits", SOON, async || {
        let answer = fleet.gateway.get("/api/v1/queue").await;
        answer.json["jobs"].get(0).cloned().ok_or(answer.text)
    })
    .await;
    let id = waiting["job"].as_str().unwrap();
    assert_eq!((&waiting["session"], &waiting["position"]), (&json!("two"), &json!(0)), "{waiting}");
    let queue = done(&fleet, &["queue"]);
    assert!(queue.contains(id) && queue.contains("the only slot of its model is taken"), "{queue}");
    assert!(refused(&fleet, &["unload", "a"]).contains("1 job runs on it"));
    let why = done(&fleet, &["explain", id]);
    assert!(why.contains("it is the first of its model") && why.contains("waits for a"), "{why}");
    let why = fleet.gateway.get(&format!("/api/v1/explain/{id}")).await;
    assert_eq!(why.json["now"]["job"], *id, "{}", why.text);
    first.await.unwrap();
    second.await.unwrap();
    let ended = until_ok("its end is told", SOON, async || {
        let told = done(&fleet, &["explain", id]);
        if told.contains("ended: completed") { Ok(told) } else { Err(told) }
    })
    .await;
    assert!(ended.contains("goes to engine") && !ended.contains("it is the first"), "{ended}");
    assert!(refused(&fleet, &["explain", "0123456789abcdef0123456789abcdef"]).contains("no such job"));

    // Hints replace each other and are taken back; leases and pins keep a model from being unloaded.
    done(&fleet, &["hint", "s", "b", "--in", "20m"]);
    done(&fleet, &["hint", "s", "b", "--in", "10m"]);
    let hints = as_json(&fleet, &["hints"]);
    let due = hints["hints"][0]["due_s"].as_f64().unwrap();
    assert!(hints["hints"].as_array().unwrap().len() == 1 && (500.0..=600.0).contains(&due), "{hints}");
    assert!(done(&fleet, &["hint", "s", "--withdraw"]).contains("withdrawn: b"));
    assert_eq!(as_json(&fleet, &["hints"]), json!({"hints": []}));
    done(&fleet, &["lease", "s", "a"]);
    assert!(refused(&fleet, &["unload", "a"]).contains("1 lease keeps it"));
    assert!(done(&fleet, &["pin", "a"]).contains("is pinned"));
    let refusal = until_ok("the pin holds", SOON, async || {
        let answer = fleet.gateway.post("/api/v1/unload", &json!({"model": "a"})).await;
        if answer.text.contains("pinned") { Ok(answer) } else { Err(answer.text) }
    })
    .await;
    assert_eq!((refusal.status, &refusal.json["error"]["code"]), (400, &json!("model_in_use")));
    assert!(done(&fleet, &["unload", "a", "--force"]).contains("a is unloaded"));
    until_ok("neither pin nor lease brings it back", SOON, async || {
        let models = as_json(&fleet, &["models"]);
        let a = &models["models"][0];
        let none = a["pinned"] == false && a["leases"] == 0 && a["state"] == "stopped";
        if none { Ok(()) } else { Err(models.to_string()) }
    })
    .await;

    // A configuration becomes the fleet's, and another of the same moment is told of.
    let file = fleet.folder().join("berth.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let same = done(&fleet, &["apply", &path(&file)]);
    assert!(same.contains("the fleet runs this already"), "{same}");
    let other = fleet.folder().join("other.toml");
    let third = "\n[[models]]\nid = \"c\"\nengine = \"sim\"\ndriver = \"process\"\n";
    std::fs::write(&other, text.replace("concurrency = 1", "concurrency = 3") + third).unwrap();
    let refusal = refused(&fleet, &["apply", &path(&other)]);
    assert!(refusal.contains("concurrency: 1 -> 3") && refusal.contains("+ c") && refusal.contains("--yes"));
    assert!(done(&fleet, &["apply", &path(&other), "--yes"]).contains("applied 3 changes"));
    until_ok("everybody knows", SOON, async || {
        let listed = fleet.gateway.get("/v1/models").await.text;
        let models = as_json(&fleet, &["models"]);
        let known =
            models["models"].as_array().is_some_and(|all| all.len() == 3 && all[0]["concurrency"] == 3);
        if known && listed.contains("\"c\"") { Ok(()) } else { Err(format!("{models} {listed}")) }
    })
    .await;

    two_at_once(&fleet, &std::fs::read_to_string(&other).unwrap());

    // The story has all of it.
    let story = done(&fleet, &["events", "--since", "10m"]);
    for part in ["an operator asked for it", "an operator unloaded it", "a was pinned", "catalog of 3 models"]
    {
        assert!(story.contains(part), "`{part}` in:\n{story}");
    }
    assert!(!bus.facts("model_pinned").await.is_empty());
    let page = fleet.gateway.get("/dashboard").await;
    assert!(page.status == 200 && page.text.contains("/api/v1/events"), "{}", page.text);
    let said = done_at(&fleet, &["chat", "b", "hi", "--max-tokens", "3"]);
    assert!(said.contains("This answer is"), "{said}");
}

/// `berth apply` at a terminal, up to its question.
fn asked(fleet: &Berth, file: &Path) -> Child {
    let berth = berth_tests::path(berth_tests::Part::Berth);
    let command = format!("{} apply {} --nats-url {}", berth.display(), file.display(), fleet.nats_url());
    let mut child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`script` runs it at a terminal");
    let mut told = String::new();
    while !told.ends_with("[y/N] ") {
        let mut byte = [0];
        let read = child.stdout.as_mut().unwrap().read(&mut byte).unwrap();
        assert!(read == 1, "it asks: {told}");
        told.push(char::from(byte[0]));
    }
    child
}

/// Two people have looked at what they would change, and both say yes.
fn two_at_once(fleet: &Berth, text: &str) {
    let children: Vec<(u32, Child)> = [5, 6]
        .into_iter()
        .map(|slots| {
            let file = fleet.folder().join(format!("{slots}.toml"));
            std::fs::write(&file, text.replace("concurrency = 3", &format!("concurrency = {slots}")))
                .unwrap();
            (slots, asked(fleet, &file))
        })
        .collect();
    let said = children.into_iter().map(|(slots, mut child)| {
        child.stdin.as_mut().unwrap().write_all(b"y\n").unwrap();
        (slots, child)
    });
    let mut ended: Vec<(u32, bool, String)> = said
        .collect::<Vec<_>>()
        .into_iter()
        .map(|(slots, child)| {
            let output = child.wait_with_output().unwrap();
            (slots, output.status.success(), String::from_utf8(output.stdout).unwrap())
        })
        .collect();
    ended.sort_by_key(|(_, won, _)| !won);
    let [(slots, true, won), (_, false, lost)] = ended.as_slice() else { panic!("one wins: {ended:?}") };
    assert!(won.contains("applied 2 changes"), "{won}");
    for part in ["nothing was changed", &format!("concurrency: 3 -> {slots}"), "run it again"] {
        assert!(lost.contains(part), "`{part}` in:\n{lost}");
    }
    let models = as_json(fleet, &["models"]);
    assert_eq!(
        (&models["models"][0]["concurrency"], &models["models"][1]["concurrency"]),
        (&json!(slots), &json!(slots))
    );
}

/// A command that speaks with the gateway.
fn done_at(fleet: &Berth, args: &[&str]) -> String {
    let mut command = berth();
    command.args(args).args(["--url", fleet.gateway.url()]).current_dir(fleet.folder());
    let finished = finish(command, SOON);
    assert!(finished.ok, "{args:?}: {}", finished.output);
    finished.output
}

#[tokio::test]
async fn what_was_applied_outlives_a_scheduler_of_the_same_configuration() {
    let mut fleet = Berth::fleet(&Config::of([slow("a")])).await;
    let file = fleet.folder().join("berth.toml");
    let other = fleet.folder().join("other.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&other, text.replace("concurrency = 1", "concurrency = 5")).unwrap();
    done(&fleet, &["apply", &other.to_string_lossy(), "--yes"]);
    fleet.role("scheduler").kill9();
    fleet.restart("scheduler");
    until_ok("the new leader knows the catalog", SOON, async || {
        let finished = run(&fleet, &["models", "--json"]);
        if finished.output.contains("\"concurrency\":5") { Ok(()) } else { Err(finished.output) }
    })
    .await;
}
