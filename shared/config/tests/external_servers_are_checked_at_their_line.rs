//! `[[external]]`: what it comes to, and what is wrong with it at its line.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use berth_config::{Config, ExternalConfig, ExternalKind, KeySource};

fn read(text: &str) -> Vec<ExternalConfig> {
    Config::parse(text, "berth.toml").unwrap().external
}

#[track_caller]
fn refuses(text: &str, at: &str, parts: &[&str]) {
    let shown = Config::parse(text, "berth.toml").unwrap_err().to_string();
    assert!(shown.starts_with(&format!("berth.toml:{at}")), "expected {at} in:\n{shown}");
    for part in parts {
        assert!(shown.contains(part), "expected `{part}` in:\n{shown}");
    }
}

const OLLAMA: &str = "[[external]]\nurl = \"http://127.0.0.1:11434/v1/\"\nkind = \"ollama\"\n";

#[test]
fn an_address_and_a_kind_are_enough() {
    let server = read(OLLAMA).remove(0);
    assert_eq!((server.name.as_str(), server.url.as_str()), ("ollama", "http://127.0.0.1:11434"));
    assert_eq!((server.kind, server.concurrency), (ExternalKind::Ollama, 1));
    assert_eq!(server.start_timeout, Duration::from_secs(600));
    let plain = read("[[external]]\nurl = \"http://h:1\"\n").remove(0);
    assert_eq!((plain.kind, plain.key), (ExternalKind::OpenAi, None));
}

#[test]
fn names_keys_and_models_are_as_they_are_written() {
    let text = format!(
        "{OLLAMA}name = \"desk\"\nkey_env = \"K\"\nmodels = [\"a*\"]\nprefix = \"d/\"\nrename = {{ \"a:1\" = \"x\" }}\n\
         aliases = {{ y = \"x\" }}\nlabels = [\"l\"]\nroutes = [\"/v1/embeddings\"]\n"
    );
    let server = read(&text).remove(0);
    assert_eq!(server.key, Some(KeySource::Env("K".into())));
    assert_eq!(server.rename.get("a:1").map(String::as_str), Some("x"));
    assert_eq!(server.aliases.get("y").map(String::as_str), Some("x"));
    assert_eq!(server.routes.as_ref().map(Vec::len), Some(1));
    let file = read(&format!("{OLLAMA}key_file = \"k\"\n")).remove(0);
    assert!(
        matches!(file.key, Some(KeySource::File(path)) if path.ends_with("k")),
        "read by its agent alone"
    );
}

#[test]
fn what_is_wrong_is_shown_where_it_is() {
    refuses("[[external]]\nkind = \"ollama\"\n", "1:1", &["missing field `url`"]);
    refuses("[[external]]\nurl = \"http://h:1\"\nkind = \"olama\"\n", "3:8", &["did you mean `ollama`?"]);
    refuses("[[external]]\nurl = \"h:1\"\n", "2:7", &["lacks http://"]);
    refuses("[[external]]\nurl = \"https://h\"\n", "2:7", &["https"]);
    refuses(&format!("{OLLAMA}{OLLAMA}"), "5:7", &["already in line 2", "remove one"]);
    let other = OLLAMA.replace("11434", "1");
    refuses(&format!("{OLLAMA}{other}"), "5:7", &["already the name of the server in line 2", "name = "]);
    refuses(&format!("{OLLAMA}concurrency = 0\n"), "4:15", &["at least 1"]);
    refuses(&format!("{OLLAMA}models = []\n"), "4:10", &["takes no model"]);
    refuses(&format!("{OLLAMA}key = \"x\"\n"), "4:1", &["unknown field `key`"]);
    refuses(&format!("{OLLAMA}key_env = \"A\"\nkey_file = \"f\"\n"), "4:11", &["both key_env and key_file"]);
    refuses(&format!("{OLLAMA}routes = [\"/v1/chat\"]\n"), "4:11", &["unknown route"]);
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    for text in [
        format!("{OLLAMA}key_env = \"sk-abc-123\"\n"),
        "[[external]]\nurl = \"http://me:abc-123@h:1\"\n".to_owned(),
        "[[external]]\nurl = \"ftp://h:1?token=abc-123\"\n".to_owned(),
    ] {
        let shown = Config::parse(&text, "berth.toml").unwrap_err().to_string();
        assert!(!shown.contains("abc-123"), "{shown}");
    }
}

#[test]
fn what_others_run_is_not_listed_as_a_model() {
    let model = "[[models]]\nid = \"m\"\n";
    refuses(&format!("{model}engine = \"ollama\"\n"), "3:10", &["[[external]]"]);
    refuses(
        &format!("{model}engine = \"vllm\"\ndriver = \"external\"\n"),
        "4:10",
        &["found, not listed", "berth add"],
    );
    refuses("[host]\ndrivers = [\"external\"]\n", "2:11", &["leave it out"]);
}

#[test]
fn a_key_may_name_models_that_are_yet_to_be_found() {
    let hash = format!("blake3:{}", "0".repeat(64));
    let key = format!("[[gateway.keys]]\nname = \"k\"\nhash = \"{hash}\"\nmodels = [\"llama3.2\"]\n");
    let model = "[[models]]\nid = \"demo\"\nengine = \"sim\"\n";
    assert_eq!(read(&format!("{key}{model}{OLLAMA}")).len(), 1);
    refuses(&format!("{key}{model}"), "4:11", &["no model is called"]);
}
