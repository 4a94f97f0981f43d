//! Other model servers on this machine's loopback ports, so that a user knows how Berth can serve their models.

use std::net::SocketAddr;
use std::time::Duration;

use berth_config::ExternalConfig;

use crate::identify::{Server, identify};

const PATIENCE: Duration = Duration::from_millis(400);

/// The ports that model servers listen on unless they are told otherwise: Ollama, LM Studio, LocalAI and
/// llama-server, vLLM, LiteLLM.
const USUAL: [u16; 5] = [11434, 1234, 8080, 8000, 4000];

/// A hint for each server that answers. Ports that are our own, or of servers that are served, are left out.
pub(super) async fn look(own: &[SocketAddr], served: &[ExternalConfig]) -> Vec<String> {
    let known = |port: u16| {
        let end = format!(":{port}");
        own.iter().any(|address| address.port() == port)
            || served.iter().any(|server| server.url.ends_with(&end))
    };
    let probes = USUAL.into_iter().filter(|port| !known(*port)).map(async |port| {
        let url = format!("http://127.0.0.1:{port}");
        identify(&url, PATIENCE).await.filter(|server| !server.is_berth).map(|server| hint(&url, server))
    });
    futures::future::join_all(probes).await.into_iter().flatten().collect()
}

fn hint(url: &str, server: Server) -> String {
    let key = if server.models.is_none() { " --key-env NAME" } else { "" };
    format!("{server} at {url}: `berth add {url}{key}` has Berth queue and serve its models")
}

#[cfg(test)]
mod tests {
    use berth_config::ExternalKind;

    use super::*;

    #[test]
    fn a_hint_says_what_was_found_and_how_to_add_it() {
        let server = Server { kind: ExternalKind::Ollama, models: Some(3), is_berth: false };
        let text = hint("http://127.0.0.1:11434", server);
        assert!(text.starts_with("Ollama (3 models) at http://127.0.0.1:11434: `berth add http"), "{text}");
        let locked = hint(
            "http://127.0.0.1:4000",
            Server { kind: ExternalKind::LiteLlm, models: None, is_berth: false },
        );
        assert!(locked.contains("wants a key") && locked.contains("--key-env"), "{locked}");
    }
}
