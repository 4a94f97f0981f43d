//! Other model servers on this machine's loopback ports, so that a user knows what Berth does about them: nothing.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

const PATIENCE: Duration = Duration::from_millis(400);

/// A usual port, whose it is, and the route that lists its models.
const USUAL: [(u16, &str, &str); 4] = [
    (11434, "Ollama", "/api/tags"),
    (1234, "LM Studio", "/v1/models"),
    (8080, "llama.cpp", "/v1/models"),
    (8000, "vLLM", "/v1/models"),
];

/// A hint for each server that answers. Ports that are our own are left out.
pub(super) async fn look(own: &[SocketAddr]) -> Vec<String> {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build();
    let Ok(client) = client else { return Vec::new() };
    let probes = USUAL
        .into_iter()
        .filter(|(port, ..)| own.iter().all(|address| address.port() != *port))
        .map(|(port, name, path)| probe(&client, port, name, path));
    futures::future::join_all(probes).await.into_iter().flatten().collect()
}

async fn probe(client: &reqwest::Client, port: u16, name: &str, path: &str) -> Option<String> {
    let answer = client.get(format!("http://127.0.0.1:{port}{path}")).send().await.ok()?;
    // A few kilobytes; what is larger, or no JSON, is no model list.
    if answer.content_length().is_some_and(|length| length > 1024 * 1024) {
        return None;
    }
    let list: Value = answer.error_for_status().ok()?.json().await.ok()?;
    let models = ["data", "models"].iter().find_map(|key| list.get(key)?.as_array())?;
    Some(hint(port, owner(name, models), models.len()))
}

/// These ports are popular: a server that names itself otherwise is believed.
fn owner<'a>(usual: &'a str, models: &[Value]) -> &'a str {
    let owned_by = models.iter().find_map(|model| model.get("owned_by")?.as_str());
    match (usual, owned_by) {
        (_, Some("llamacpp")) => "llama.cpp's server",
        (_, Some("vllm")) => "vLLM",
        ("llama.cpp" | "vLLM", _) => "an OpenAI-compatible server",
        _ => usual,
    }
}

fn hint(port: u16, who: &str, models: usize) -> String {
    let count = if models == 1 { "1 model".into() } else { format!("{models} models") };
    let how = match who {
        "vLLM" => "add a model with engine = \"vllm\" to the configuration",
        _ => "start Berth with `berth up --model FILE.gguf`",
    };
    format!(
        "{who} on 127.0.0.1:{port} ({count}). Berth serves engines that it starts itself: to have it serve such a \
         model, stop that server and {how}; or go on using it on its own port"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_on_a_popular_port_is_only_called_what_it_says_it_is() {
        let owned = |by: &str| vec![json!({"id": "m", "owned_by": by})];
        assert_eq!(owner("llama.cpp", &owned("llamacpp")), "llama.cpp's server");
        assert_eq!(owner("vLLM", &owned("vllm")), "vLLM");
        assert_eq!(owner("llama.cpp", &owned("somebody")), "an OpenAI-compatible server");
        assert_eq!(owner("Ollama", &[json!({"name": "m"})]), "Ollama");
    }

    #[test]
    fn a_hint_says_what_works_today() {
        let text = hint(11434, "Ollama", 3);
        assert!(text.contains("127.0.0.1:11434 (3 models)") && text.contains("--model FILE.gguf"), "{text}");
    }
}
