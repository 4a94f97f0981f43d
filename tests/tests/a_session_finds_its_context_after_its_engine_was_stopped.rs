//! What a real llama-server has read of a session is there again after its engine was stopped: of every session with
//! `keep_context`, else of one whose lease asks for it.

use std::os::unix::fs::PermissionsExt;

use berth_tests::{Berth, Config, Engine, Model, SOON, docker, until};
use serde_json::json;

/// Tokens of a session's prompt, and how many of them were not read anew.
async fn read(berth: &Berth, model: &str, session: &str) -> (u64, u64) {
    let story = "The ship waits for its berth. ".repeat(40);
    let ask = json!({
        "user": session, "max_tokens": 2, "temperature": 0, "ignore_eos": true,
        "messages": [{"role": "user", "content": format!("{session}: {story}")}],
    });
    let answer = berth.gateway.chat(model, &ask).await;
    answer.content();
    let usage = &answer.json["usage"];
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or_else(|| panic!("{}", answer.text));
    (number(&usage["prompt_tokens"]), number(&usage["prompt_tokens_details"]["cached_tokens"]))
}

#[tokio::test]
async fn its_prompt_is_not_read_again_and_anothers_is() {
    let model = Model::llama_process("tiny").concurrency(2).field("idle_ttl", "\"1s\"");
    let berth = Berth::up(&Config::of([model.field("keep_context", "\"1h\"")])).await;
    let (prompt, cached) = read(&berth, "tiny", "first").await;
    assert!(prompt > 500 && cached < 50, "{cached} of {prompt}");
    until("its engine is stopped", SOON, async || berth.engines.running().is_empty()).await;

    let (other, cached) = read(&berth, "tiny", "other").await;
    assert!(cached < 50, "{cached} of {other}");
    let (again, cached) = read(&berth, "tiny", "first").await;
    assert_eq!((again, cached), (prompt, prompt - 1), "all but the last, which is always read");
    until("its engine is stopped", SOON, async || berth.engines.running().is_empty()).await;

    // A file that is none costs what there was to spare.
    let kept = walk(berth.folder());
    assert_eq!(kept.len(), 2, "{kept:?}");
    for file in kept {
        std::fs::write(file, "nothing").expect("it can be written");
    }
    let (_, cached) = read(&berth, "tiny", "first").await;
    assert!(cached < 50, "{cached} of {prompt}");
}

#[tokio::test]
async fn a_lease_has_its_sessions_kept_by_an_engine_in_a_container_when_its_agent_stops() {
    let leased = Model::llama_docker("leased").concurrency(2).list("aliases", &["also"]);
    let off = Model::llama_process("off").field("keep_context", "\"off\"");
    let mut berth = Berth::fleet(&Config::of([leased, off]).memory("8GiB")).await;
    let lease = async |model: &str, session: &str| {
        let ask = json!({"sessionKey": session, "model": model, "keepContext": true});
        berth.gateway.post("/lease", &ask).await
    };
    let refused = lease("off", "first").await;
    assert_eq!(
        (refused.status, &refused.json["error"]["param"]),
        (400, &json!("keepContext")),
        "{}",
        refused.text
    );
    let granted = lease("also", "first").await;
    assert_eq!((granted.status, &granted.json["keepContext"]), (200, &json!(true)), "{}", granted.text);

    // Somebody who has no lease has read as much, on the same engine.
    let (other, _) = read(&berth, "leased", "other").await;
    let (prompt, cached) = read(&berth, "leased", "first").await;
    assert!(prompt > 500 && cached < 50, "{cached} of {prompt}");
    let (again, cached) = read(&berth, "leased", "first").await;
    assert_eq!((again, cached), (prompt, prompt - 1), "its slot is its own");
    let Engine::Container { id, .. } = berth.engines.only() else { panic!("it is no container") };
    let format = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}";
    assert_eq!(docker(&["inspect", "-f", format, &id]), "true [ALL]");

    assert!(berth.role("agent").terminate().success());
    assert!(berth.engines.running().is_empty());
    let kept = walk(berth.folder());
    let [file] = kept.as_slice() else { panic!("one session's is kept: {kept:?}") };
    let closed = file.ancestors().nth(2).and_then(|folder| folder.metadata().ok());
    assert_eq!(
        closed.map(|folder| folder.permissions().mode() & 0o777),
        Some(0o700),
        "nobody else gets there"
    );
    berth.restart("agent");
    let (again, cached) = read(&berth, "leased", "first").await;
    assert_eq!((again, cached), (prompt, prompt - 1), "all but the last, which is always read");
    let (_, cached) = read(&berth, "leased", "other").await;
    assert!(cached < 50, "{cached} of {other}");
    assert!(walk(berth.folder()).is_empty(), "what was read again is gone");
}

/// What is kept of contexts below a folder.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "slot"));
    files.chain(folders.iter().flat_map(|folder| walk(folder))).collect()
}
