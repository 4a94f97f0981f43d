//! Every scenario of the SDKs gives the same through Berth as at the engine itself, apart from ids, times and the shape of
//! errors on Anthropic's routes.

use berth_tests::{Berth, Config, Model, node, python};
use serde_json::{Value, json};

/// A real llama-server with a template that knows tools and reasoning.
fn model() -> Model {
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/harbour.jinja");
    Model::llama_process("org/tiny:0.5b").also_args(&["--jinja", "--chat-template-file", template])
}

/// The scenarios' outcomes, in their order.
fn outcomes(text: &str) -> Vec<(String, Value)> {
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON"));
    let all: Vec<(String, Value)> = lines.collect();
    assert!(all.len() > 15, "too few scenarios: {text}");
    all
}

async fn both(run: fn(&str, &[&str]) -> String, script: &'static str) -> Berth {
    let berth = Berth::up(&Config::of([model()])).await;
    // The first request has the engine started.
    berth.gateway.chat("org/tiny:0.5b", &json!({"max_tokens": 1})).await.content();
    let (engine, gateway) = (berth.engines.only().url(), berth.gateway.url().to_owned());
    let at = async |url: String| {
        let said = tokio::task::spawn_blocking(move || run(script, &[&url, "org/tiny:0.5b"])).await;
        outcomes(&said.expect("the client runs"))
    };
    let (there, here) = (at(engine).await, at(gateway).await);
    for (there, here) in there.iter().zip(&here) {
        assert_eq!(here, there, "through Berth, and at the engine");
    }
    assert_eq!(here.len(), there.len());
    // A grammar forces the one and a parameter the other, so that neither may be missing at both ends.
    let said = |name: &str| {
        let found = here.iter().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("no scenario `{name}`")).1.to_string()
    };
    for name in ["a JSON schema", "a JSON schema streamed"] {
        assert!(said(name).contains("free"), "{name}: {}", said(name));
    }
    for name in ["a tool that must be called", "a tool streamed"] {
        assert!(said(name).contains("assign"), "{name} brings no call: {}", said(name));
        assert!(said(name).contains("\"tool_calls\""), "{name}: {}", said(name));
    }
    for name in ["logprobs", "logprobs streamed"] {
        assert!(said(name).contains("top_logprobs"), "{name}: {}", said(name));
    }
    let known = |value: &Value| value.get("status").is_none() && value.get("error").is_none();
    let answered = here.iter().filter(|(_, value)| known(value)).count();
    assert!(answered * 3 > here.len() * 2, "most are answers and no errors: {here:?}");
    berth
}

#[tokio::test]
async fn in_python() {
    let berth = both(python, "conformance.py").await;
    let url = berth.gateway.url().to_owned();
    let told =
        tokio::task::spawn_blocking(move || python("anthropic_errors.py", &[&url, "org/tiny:0.5b"])).await;
    assert_eq!(told.expect("the client runs").lines().count(), 4);
}

#[tokio::test]
async fn in_node() {
    both(node, "conformance.cjs").await;
}
