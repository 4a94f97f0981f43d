//! `keep_context`: what a real llama-server has read of a session is there again after its engine was stopped.

use berth_tests::{Berth, Config, Model, SOON, until};
use serde_json::json;

/// Tokens of a session's prompt, and how many of them were not read anew.
async fn read(berth: &Berth, session: &str) -> (u64, u64) {
    let story = "The ship waits for its berth. ".repeat(40);
    let ask = json!({
        "user": session, "max_tokens": 2, "temperature": 0, "ignore_eos": true,
        "messages": [{"role": "user", "content": format!("{session}: {story}")}],
    });
    let answer = berth.gateway.chat("tiny", &ask).await;
    answer.content();
    let usage = &answer.json["usage"];
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or_else(|| panic!("{}", answer.text));
    (number(&usage["prompt_tokens"]), number(&usage["prompt_tokens_details"]["cached_tokens"]))
}

#[tokio::test]
async fn its_prompt_is_not_read_again_and_anothers_is() {
    let model = Model::llama_process("tiny").concurrency(2).field("idle_ttl", "\"1s\"");
    let berth = Berth::up(&Config::of([model.field("keep_context", "\"1h\"")])).await;
    let (prompt, cached) = read(&berth, "first").await;
    assert!(prompt > 500 && cached < 50, "{cached} of {prompt}");
    until("its engine is stopped", SOON, async || berth.engines.running().is_empty()).await;

    let (other, cached) = read(&berth, "other").await;
    assert!(cached < 50, "{cached} of {other}");
    let (again, cached) = read(&berth, "first").await;
    assert_eq!((again, cached), (prompt, prompt - 1), "all but the last, which is always read");
    until("its engine is stopped", SOON, async || berth.engines.running().is_empty()).await;

    // A file that is none costs what there was to spare.
    let kept = walk(berth.folder());
    assert_eq!(kept.len(), 2, "{kept:?}");
    for file in kept {
        std::fs::write(file, "nothing").expect("it can be written");
    }
    let (_, cached) = read(&berth, "first").await;
    assert!(cached < 50, "{cached} of {prompt}");
}

/// What is kept of contexts below a folder.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "slot"));
    files.chain(folders.iter().flat_map(|folder| walk(folder))).collect()
}
