//! Which model server answers at an address: each is known by something that only it says.

use std::time::Duration;

use berth_config::ExternalKind;
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;

/// A larger list of models is none.
const LARGEST: u64 = 4 << 20;

/// A server that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) kind: ExternalKind,
    /// How many models it lists; `None`: it wants a key first.
    pub(crate) models: Option<usize>,
    /// It is a gateway of Berth.
    pub(crate) is_berth: bool,
}

/// What is said of how many there are.
impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let title = self.kind.title();
        match self.models {
            None => write!(f, "{title} (it wants a key)"),
            Some(1) => write!(f, "{title} (1 model)"),
            Some(models) => write!(f, "{title} ({models} models)"),
        }
    }
}

/// Asks a server what it is; each question is given up after `patience`.
pub(crate) async fn identify(base: &str, patience: Duration) -> Option<Server> {
    let client = Client::builder()
        .no_proxy()
        .timeout(patience)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .ok()?;
    let ask = async |path: &str| client.get(format!("{base}{path}")).send().await.ok();
    // llama-server answers Ollama's list too, but has no version to tell there.
    let version = json(ask("/api/version").await).await;
    if version.as_ref().is_some_and(|v| v.get("version").is_some_and(Value::is_string)) {
        let tags = json(ask("/api/tags").await).await?;
        let models = count(&tags, "models");
        return Some(Server { kind: ExternalKind::Ollama, models, is_berth: false });
    }
    let listed = ask("/v1/models").await?;
    let header =
        |name: &str| listed.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let by = (header("server"), header("x-litellm-version").is_some());
    let locked = matches!(listed.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let list = if locked { None } else { Some(json(Some(listed)).await?) };
    let models = list.as_ref().map(|list| count(list, "data"));
    if models == Some(None) {
        return None;
    }
    let kind = match (by, list.as_ref().and_then(owner)) {
        ((Some(server), _), _) if server == "llama.cpp" => ExternalKind::LlamaCpp,
        (_, Some("llamacpp")) => ExternalKind::LlamaCpp,
        (_, Some("vllm")) => ExternalKind::Vllm,
        (_, Some("organization_owner")) => ExternalKind::LmStudio,
        ((_, true), _) => ExternalKind::LiteLlm,
        _ => by_own_route(&ask).await,
    };
    let is_berth = list.as_ref().and_then(owner) == Some("berth");
    Some(Server { kind, models: models.flatten(), is_berth })
}

/// By routes that only one of them has.
async fn by_own_route(ask: &impl AsyncFn(&str) -> Option<Response>) -> ExternalKind {
    let alive = match ask("/health/liveliness").await {
        Some(answer) if answer.status().is_success() => answer.text().await.unwrap_or_default(),
        _ => String::new(),
    };
    if alive.contains("I'm alive") {
        return ExternalKind::LiteLlm;
    }
    let version = json(ask("/version").await).await;
    match version.as_ref().and_then(|v| v.get("version")?.as_str()) {
        Some(version) if version.starts_with('v') => ExternalKind::LocalAi,
        _ => ExternalKind::OpenAi,
    }
}

async fn json(answer: Option<Response>) -> Option<Value> {
    let answer = answer.filter(|answer| answer.status().is_success())?;
    if answer.content_length().is_some_and(|length| length > LARGEST) {
        return None;
    }
    answer.json().await.ok()
}

fn count(list: &Value, key: &str) -> Option<usize> {
    match list.get(key)? {
        Value::Null => Some(0),
        list => list.as_array().map(Vec::len),
    }
}

fn owner(list: &Value) -> Option<&str> {
    list.get("data")?.as_array()?.iter().find_map(|model| model.get("owned_by")?.as_str())
}
