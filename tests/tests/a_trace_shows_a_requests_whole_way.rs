//! Traces, as a collector is told them: from a client's span down to the call of the engine, each by its own service.

use berth_tests::{Berth, Collector, Config, Gateway, Model, SOON, Told, at_most, chat, tree};
use serde_json::json;

/// Words of a prompt, which no trace may hold.
const PROMPT: &str = "the-launch-code-is-4711";
const CLIENT: &str = "00f067aa0ba902b7";

/// Streams a chat within a trace of the client's; returns the headers of the answer.
async fn ask(gateway: &Gateway, model: &str, trace: &str, flags: &str) -> reqwest::header::HeaderMap {
    let mut body = chat(model, &json!({"stream": true, "sim": {"tokens": 3, "per_token_ms": 1}}));
    body["messages"][0]["content"] = PROMPT.into();
    let request = reqwest::Client::new()
        .post(format!("{}/v1/chat/completions", gateway.url()))
        .header("traceparent", format!("00-{trace}-{CLIENT}-{flags}"))
        .json(&body);
    let answer = at_most(SOON, "an answer", request.send()).await.expect("the gateway answers");
    let headers = answer.headers().clone();
    answer.text().await.expect("a whole answer");
    headers
}

fn find<'a>(spans: &'a [Told], service: &str, name: &str) -> &'a Told {
    let found = spans.iter().find(|span| span.service == service && span.name.starts_with(name));
    found.unwrap_or_else(|| panic!("{service} {name} among {spans:#?}"))
}

#[tokio::test]
async fn of_a_cold_and_a_warm_request_and_of_one_that_is_refused() {
    let collector = Collector::start().await;
    let config = Config::of([Model::sim("sim", &[])])
        .line("telemetry", &format!("otlp = \"{}\"", collector.url()))
        // A client's own decision goes before it.
        .line("telemetry", "traces = 0.0");
    let mut berth = Berth::up(&config).await;

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let headers = ask(&berth.gateway, "sim", trace, "01").await;
    let spans = collector.trace(trace, 5).await;
    let cold = "\
        berth-gateway chat sim\n  berth-scheduler queue\n    berth-scheduler load sim\n  \
        berth-scheduler dispatch sim\n    berth-agent chat sim\n";
    assert_eq!(tree(&spans, CLIENT), cold, "{spans:#?}");
    let server = find(&spans, "berth-gateway", "chat sim");
    let said = headers["traceparent"].to_str().expect("a header is text");
    assert_eq!(said, format!("00-{trace}-{}-01", server.id), "the client is told of the gateway's span");
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/chat/completions"),
        ("http.response.status_code", "200"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "sim"),
        ("gen_ai.usage.output_tokens", "3"),
        ("berth.lane", "queue"),
        ("berth.attempts", "1"),
        ("berth.job", headers["x-berth-job"].to_str().expect("text")),
    ] {
        assert_eq!(server.attributes.get(key).map(String::as_str), Some(value), "{key} of {server:#?}");
    }
    let (queue, load) = (find(&spans, "berth-scheduler", "queue"), find(&spans, "berth-scheduler", "load"));
    assert!(load.times.0 >= queue.times.0 && load.times.1 <= queue.times.1, "{spans:#?}");
    assert!(load.times.1 > load.times.0 && !load.attributes["berth.why"].is_empty(), "{load:#?}");
    let call = find(&spans, "berth-agent", "chat sim");
    assert_eq!(call.attributes["gen_ai.provider.name"], "sim");
    assert_eq!(
        (&call.events[..], &server.events[..]),
        (&["first_token".into()][..], &["first_byte".into()][..])
    );
    assert!(call.times.0 >= queue.times.1 && call.times.1 <= server.times.1, "{spans:#?}");

    // Nobody asked for this one.
    let unsampled = "5bf92f3577b34da6a3ce929d0e0e4736";
    ask(&berth.gateway, "sim", unsampled, "00").await;

    let wrong = "6bf92f3577b34da6a3ce929d0e0e4736";
    ask(&berth.gateway, "none", wrong, "01").await;
    let spans = collector.trace(wrong, 1).await;
    let refused = find(&spans, "berth-gateway", "chat");
    assert_eq!(
        (&*refused.attributes["error.type"], &refused.error),
        ("model_not_found", &None),
        "{refused:#?}"
    );
    assert_eq!(refused.above, CLIENT);

    // What is told last is told before the end.
    let warm = "7bf92f3577b34da6a3ce929d0e0e4736";
    let headers = ask(&berth.gateway, "sim", warm, "01").await;
    assert_eq!(headers["x-berth-lane"], "express");
    let status = berth.role("up").terminate();
    assert!(status.success(), "it ended with {status}");
    let spans = collector.trace(warm, 2).await;
    assert_eq!(tree(&spans, CLIENT), "berth-gateway chat sim\n  berth-agent chat sim\n", "{spans:#?}");
    assert!(collector.trace(unsampled, 0).await.is_empty());
    assert!(!collector.heard(PROMPT), "a prompt is in a trace");
}
