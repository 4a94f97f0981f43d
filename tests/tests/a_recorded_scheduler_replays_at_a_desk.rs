//! A scheduler that writes its decisions down, and `berth replay` that takes them once more.

use std::collections::BTreeSet;
use std::path::Path;

use berth_tests::{Berth, Config, Finished, Model, SOON, berth, finish, until_ok};
use serde_json::{Value, json};

fn replay(log: &Path, options: &[&str]) -> Finished {
    let mut run = berth();
    run.arg("replay").arg(log).args(options);
    finish(run, SOON)
}

/// Waits until a log has so many terms and tells how so many jobs ended.
async fn until_told(log: &Path, terms: usize, jobs: usize) {
    until_ok("the last answer is on disk", SOON, async || {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let begun = text.lines().filter(|line| line.starts_with("{\"berth_log\"")).count();
        // An agent may tell a new leader once more of what ended.
        let ended = text.lines().filter(|line| line.contains("Completed"));
        let ended = ended.filter_map(|line| {
            let step: Value = serde_json::from_str(line).ok()?;
            Some(step["event"]["AttemptEnded"]["job"].as_str()?.to_owned())
        });
        let answered = ended.collect::<BTreeSet<_>>().len();
        if (begun, answered) == (terms, jobs) {
            Ok(())
        } else {
            Err(format!("{begun} terms, {answered} answers"))
        }
    })
    .await;
}

/// A fleet that takes turns between two models, killed and restarted in between; its log.
async fn recorded() -> (Berth, std::path::PathBuf) {
    let models = ["one", "two"].map(|id| Model::sim(id, &[]).memory("3GiB"));
    let config = Config::of(models).line("scheduler", "record = \"decisions.jsonl\"");
    let mut berth = Berth::fleet(&config).await;
    for model in ["one", "two"] {
        let answer = berth.gateway.chat(model, &json!({"secret-prompt": "do not write me down"})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let log = berth.folder().join("decisions.jsonl");
    // A client has its answer before the scheduler hears of it, and what a killed one heard may be on no disk.
    until_told(&log, 1, 2).await;
    berth.role("scheduler").kill9();
    berth.restart("scheduler");
    assert_eq!(berth.gateway.chat("one", &json!({})).await.status, 200);
    until_told(&log, 2, 3).await;
    assert!(berth.role("scheduler").terminate().success());
    (berth, log)
}

#[tokio::test]
async fn every_decision_of_two_terms_is_the_same_at_the_desk() {
    let (_berth, log) = recorded().await;
    let all = replay(&log, &[]);
    assert!(all.ok, "{}", all.output);
    for word in ["of one on", "evicted: two needs the memory", "1 job waits for it", "all as they were then"]
    {
        assert!(all.output.contains(word), "`{word}` is told:\n{}", all.output);
    }
    let two = replay(&log, &["--model", "two"]).output;
    assert!(two.contains("of two on") && !two.contains("of one on"), "{two}");
    let json = replay(&log, &["--json"]);
    let steps: Vec<Value> = json.output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(steps.len() > 10 && steps.iter().all(|step| step["same"] == true), "{}", json.output);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("write me down"), "no prompt is written down");
    let mut piped = berth();
    let piped = piped.args(["replay", "-"]).stdin(std::fs::File::open(&log).unwrap()).output().unwrap();
    assert!(piped.status.success(), "{piped:?}");
    assert_eq!(String::from_utf8(piped.stdout).unwrap().trim(), all.output.trim());
    for (option, wrong, said) in [
        ("--model", "three", "no model `three` is in "),
        ("--model", "three", "there are: one, two"),
        ("--job", "019ab300000070008000000000000000", "no job 019ab300000070008000000000000000 is in "),
    ] {
        let refused = replay(&log, &[option, wrong]);
        assert!(!refused.ok && refused.output.contains(said), "{}", refused.output);
    }
    let job = steps.iter().find_map(|step| step["event"]["JobSubmitted"]["id"].as_str()).unwrap();
    let way = replay(&log, &["--job", job]).output;
    assert!(way.contains("goes to") && way.contains("completed"), "{way}");
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&log, [&lines[..5], &lines[7..]].concat().join("\n")).unwrap();
    let holed = replay(&log, &[]);
    let said = "line 6: this is event 7 of its term where event 5 should be: 2 lines before it are missing";
    assert!(!holed.ok && holed.output.contains(said), "{}", holed.output);
    std::fs::write(&log, &text.trim_end()[..text.trim_end().len() - 40]).unwrap();
    let cut = replay(&log, &[]);
    assert!(cut.ok && cut.output.contains("1 unfinished last line"), "{}", cut.output);
}

#[tokio::test]
async fn a_log_that_was_tampered_with_or_is_none_is_told_at_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.jsonl");
    let missing = replay(&file, &[]);
    assert!(!missing.ok && missing.output.contains("log.jsonl"), "{}", missing.output);
    for (text, said) in [
        ("", "holds no events"),
        ("hello\n", "line 1: this is no line of a scheduler's log"),
        (
            "{\"at\":1,\"event\":\"Timer\",\"decided\":\"00\"}\n",
            "line 1: the log does not begin with a header",
        ),
        ("{\"berth_log\":2,\"epoch\":1,\"at\":1,\"policy\":{}}\n{\"at\":1,\"event\":\"Timer\"}\n", "line 2"),
        ("{\"berth_log\":7,\"epoch\":1,\"at\":1,\"policy\":{}}\n", "line 1: the log has form 7"),
    ] {
        std::fs::write(&file, text).unwrap();
        let refused = replay(&file, &[]);
        assert!(!refused.ok && refused.output.contains(said), "{text}: {}", refused.output);
    }
    let header = "{\"berth_log\":1,\"epoch\":1,\"at\":1,\"policy\":{}}";
    std::fs::write(&file, format!("{header}\n{{\"at\":1,\"event\":\"Timer\",\"decided\":\"00\"}}\n"))
        .unwrap();
    let other = replay(&file, &[]);
    assert!(!other.ok && other.output.contains("DECIDED OTHERWISE THEN"), "{}", other.output);
}

#[tokio::test]
async fn a_file_that_is_no_log_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let (diary, config) = (folder.path().join("diary"), folder.path().join("berth.toml"));
    std::fs::write(&diary, "Dear diary\n").unwrap();
    std::fs::write(&config, "[scheduler]\nrecord = \"diary\"\n").unwrap();
    for command in ["check", "scheduler"] {
        let mut run = berth();
        run.arg(command).arg("--config").arg(&config);
        let refused = finish(run, SOON);
        let said = "berth.toml:2:10: decisions cannot be written to ";
        assert!(!refused.ok && refused.output.contains(said), "{}", refused.output);
    }
    assert_eq!(std::fs::read_to_string(&diary).unwrap(), "Dear diary\n");
}
