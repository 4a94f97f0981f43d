//! Says when a request will be taken, and how to send one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use berth_config::{Config, is_loopback};
use serde_json::Value;
use tokio::time::Instant;

use super::tell;

/// After this long it says what is missing.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks the endpoint itself until it says that it is ready.
pub(super) async fn tell_when_ready(config: &Config, addresses: &[SocketAddr]) {
    for address in addresses {
        let open = config.gateway.open && !is_loopback(*address);
        let note = if open { " (whoever reaches this address may use it)" } else { "" };
        tell("endpoint", &format!("http://{address}/v1{note}"));
    }
    let Some(url) = addresses.first().map(|address| format!("http://{}", reachable(*address))) else {
        return;
    };
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build();
    let Ok(client) = client else { return };
    let mut complain = Instant::now() + PATIENCE;
    loop {
        let missing = match client.get(format!("{url}/readyz")).send().await {
            Ok(answer) if answer.status().is_success() => break,
            Ok(answer) => missing(&answer.json().await.unwrap_or_default()),
            Err(error) => error.to_string(),
        };
        if Instant::now() > complain {
            tell("waiting", &missing);
            complain = Instant::now() + PATIENCE;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let keyed = client.get(format!("{url}/v1/models")).send().await;
    let keyed = keyed.is_ok_and(|answer| answer.status() == reqwest::StatusCode::UNAUTHORIZED);
    let (what, how) = try_it(config, &url, keyed);
    tell("ready", what);
    if let Some(how) = how {
        tell("", &how);
    }
}

/// How to send the first request, if there is a model to send it to.
fn try_it(config: &Config, url: &str, keyed: bool) -> (&'static str, Option<String>) {
    let Some(model) = config.models.first() else {
        let what = if config.external.is_empty() {
            "but there is no model to ask: add [[models]] to the configuration, or give --model FILE.gguf"
        } else {
            "GET /v1/models lists what was found"
        };
        return (what, None);
    };
    let key = if keyed { "-H \"Authorization: Bearer $BERTH_API_KEY\" " } else { "" };
    let how = format!(
        "curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' \\\n{:14}  \
         -d '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'",
        "", model.id
    );
    ("try it:", Some(how))
}

/// An address of this machine for one that stands for all.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The parts that are not ready, as the endpoint names them.
fn missing(body: &Value) -> String {
    let parts = body.get("components").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = parts
        .iter()
        .filter(|part| part.get("ready").and_then(Value::as_bool) == Some(false))
        .filter_map(|part| part.get("name").and_then(Value::as_str))
        .collect();
    if names.is_empty() {
        "the endpoint is not ready yet".into()
    } else {
        format!("for: {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_example_is_shown_only_with_a_model_that_there_is() {
        let (_, how) = try_it(&Config::builtin(), "http://x", false);
        assert!(how.unwrap().contains("\"model\": \"demo\""));
        let (what, how) = try_it(&Config::empty(), "http://x", false);
        assert_eq!(how, None);
        assert!(what.contains("no model") && what.contains("[[models]]"), "{what}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let body =
            json!({"components": [{"name": "bus", "ready": true}, {"name": "scheduler", "ready": false}]});
        assert_eq!(missing(&body), "for: scheduler");
        assert_eq!(missing(&Value::Null), "the endpoint is not ready yet");
    }
}
