//! `[[external]]`: servers that somebody else runs, whose models Berth finds and serves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::spanned::Spanned;
use berth_wire::{EngineKind, Route};
use serde::Deserialize;

use crate::problem::Findings;
use crate::raw::RawExternal;
use crate::resolve::{below, read_text};
use crate::secret::Secret;
use crate::{env, model};

/// Which server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExternalKind {
    /// Ollama: its models are loaded and unloaded as Berth decides.
    Ollama,
    /// LM Studio.
    LmStudio,
    /// LocalAI.
    LocalAi,
    /// llama.cpp's server.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// vLLM.
    Vllm,
    /// LiteLLM.
    LiteLlm,
    /// Anything that speaks OpenAI's HTTP.
    #[default]
    OpenAi,
}

/// Text, speech and images, as LM Studio has them: text alone.
const LM_STUDIO: [Route; 5] =
    [Route::ChatCompletions, Route::Completions, Route::Embeddings, Route::Responses, Route::Messages];

impl ExternalKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Ollama,
        Self::LmStudio,
        Self::LocalAi,
        Self::LlamaCpp,
        Self::Vllm,
        Self::LiteLlm,
        Self::OpenAi,
    ];

    /// The name in configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ollama => "ollama",
            Self::LmStudio => "lmstudio",
            Self::LocalAi => "localai",
            Self::LlamaCpp => "llama.cpp",
            Self::Vllm => "vllm",
            Self::LiteLlm => "litellm",
            Self::OpenAi => "openai",
        }
    }

    /// The name that people know it by.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Ollama => "Ollama",
            Self::LmStudio => "LM Studio",
            Self::LocalAi => "LocalAI",
            Self::LlamaCpp => "llama.cpp's server",
            Self::Vllm => "vLLM",
            Self::LiteLlm => "LiteLLM",
            Self::OpenAi => "an OpenAI-compatible server",
        }
    }

    /// The engine that its models are said to run on.
    #[must_use]
    pub fn engine(self) -> EngineKind {
        match self {
            Self::Ollama => EngineKind::Ollama,
            Self::LlamaCpp => EngineKind::LlamaCpp,
            Self::Vllm => EngineKind::Vllm,
            Self::LmStudio | Self::LocalAi | Self::LiteLlm | Self::OpenAi => EngineKind::Custom,
        }
    }

    fn routes(self) -> Option<Vec<Route>> {
        (self == Self::LmStudio).then(|| LM_STUDIO.to_vec())
    }

    /// Requests for one model that it takes at once unless its entry says.
    fn concurrency(self) -> u32 {
        match self {
            // What they do by default; more wait inside them, where nobody sees it.
            Self::Ollama | Self::LlamaCpp | Self::LmStudio | Self::LocalAi => 1,
            Self::Vllm | Self::LiteLlm => 32,
            Self::OpenAi => 4,
        }
    }
}

/// Where a server's key is to be found on the machine of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A variable of the agent's environment.
    Env(String),
    /// A file that holds it alone.
    File(PathBuf),
}

impl KeySource {
    /// Reads the key. Only an agent does: others that read the same file need not have it.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn read(&self) -> Result<Secret, String> {
        let text = match self {
            Self::Env(name) => env::var(name)
                .ok_or_else(|| format!("the variable {name} (key_env) is not set where the agent runs"))?,
            Self::File(path) => read_text(path)
                .map_err(|error| format!("cannot read the file {} (key_file): {error}", path.display()))?,
        };
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("what is given as its key is no key: one word without spaces is needed".into());
        }
        Ok(Secret::new(text))
    }
}

/// `[[external]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalConfig {
    /// What it is called in logs and errors.
    pub name: String,
    /// Its address, without `/v1` and without a `/` at its end. Nobody but its agent is told.
    pub url: String,
    /// Which server it is.
    pub kind: ExternalKind,
    /// Its key, if it wants one.
    pub key: Option<KeySource>,
    /// Requests for each of its models that it takes at once.
    pub concurrency: u32,
    /// The models that are taken, by its own names for them, with `*` for any characters; empty: all.
    pub models: Vec<String>,
    /// What clients call a model, by the server's name for it.
    pub rename: BTreeMap<String, String>,
    /// More names for clients to use, each for a model by either of its names.
    pub aliases: BTreeMap<String, String>,
    /// Stands before every name that `rename` does not give.
    pub prefix: String,
    /// The routes that it serves; `None`: those of its kind.
    pub routes: Option<Vec<Route>>,
    /// How long it may take to load a model.
    pub start_timeout: Duration,
    /// Unload models idle for so long, where the server can.
    pub idle_ttl: Option<Duration>,
    /// Only agents of hosts that have all of these use it.
    pub labels: Vec<String>,
}

/// How long a server may take to load a model unless its entry says.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(600);

/// Requests that kinds of servers take at once, for a person.
pub(crate) fn default_concurrency() -> String {
    let kinds = ExternalKind::ALL.map(|kind| format!("{} {}", kind.as_str(), kind.concurrency()));
    kinds.join(", ")
}

pub(crate) fn resolve(
    raw: &[RawExternal],
    idle_ttl: Option<Duration>,
    base: &Path,
    findings: &mut Findings<'_>,
) -> Vec<ExternalConfig> {
    let all: Vec<ExternalConfig> = raw.iter().map(|raw| entry(raw, idle_ttl, base, findings)).collect();
    for (n, (this, config)) in raw.iter().zip(&all).enumerate() {
        let before = || raw.iter().zip(&all).take(n);
        if let Some((first, _)) = before().find(|(_, other)| is_same_server(&other.url, &config.url)) {
            let line = findings.line(&first.url.span());
            findings.add(
                this.url.span(),
                format!("this server is already in line {line}"),
                "one entry serves all of its models: remove one",
            );
        } else if let Some((first, _)) = before().find(|(_, other)| other.name == config.name) {
            let line = findings.line(&first.url.span());
            findings.add(
                this.name.as_ref().map_or_else(|| this.url.span(), Spanned::span),
                format!("`{}` is already the name of the server in line {line}", config.name),
                "give each a name of its own, as in name = \"desk\"",
            );
        }
    }
    all
}

fn entry(
    raw: &RawExternal,
    idle_ttl: Option<Duration>,
    base: &Path,
    findings: &mut Findings<'_>,
) -> ExternalConfig {
    let kind = raw.kind.as_ref().map_or(ExternalKind::default(), |kind| *kind.get_ref());
    if let Some(name) = raw.name.as_ref().filter(|name| !is_name(name.get_ref())) {
        findings.add(name.span(), "this is no name of a server", "use letters, digits, `-`, `_` and `.`");
    }
    model::check_labels(&raw.labels, findings);
    for pattern in raw.models.iter().flat_map(|models| &models.get_ref().0) {
        if pattern.get_ref().trim().is_empty() {
            findings.add(pattern.span(), "this names no model", "leave `models` out for all of them");
        }
    }
    if let Some(models) = raw.models.as_ref().filter(|models| models.get_ref().0.is_empty()) {
        findings.add(models.span(), "this takes no model at all", "leave `models` out for all of them");
    }
    for name in raw.rename.values().chain(raw.aliases.keys()) {
        model::check_name(name, "name", findings);
    }
    if let Some(prefix) = raw.prefix.as_ref().filter(|p| !p.get_ref().is_empty()) {
        model::check_name(prefix, "prefix", findings);
    }
    let start_timeout = raw.start_timeout.as_ref().map_or(START_TIMEOUT, |span| {
        if span.get_ref().0 < Duration::from_secs(1) {
            findings.add(span.span(), "no model loads in less than a second", "the default is \"10m\"");
        }
        span.get_ref().0
    });
    ExternalConfig {
        name: raw.name.as_ref().map_or_else(|| kind.as_str().to_owned(), |name| name.get_ref().clone()),
        url: url(&raw.url, findings),
        kind,
        key: key(raw, base, findings),
        concurrency: model::positive(raw.concurrency.as_ref(), kind.concurrency(), "concurrency", findings),
        models: raw.models.as_ref().map(|models| models.get_ref().texts()).unwrap_or_default(),
        rename: raw.rename.iter().map(|(from, to)| (from.clone(), to.get_ref().clone())).collect(),
        aliases: raw.aliases.iter().map(|(alias, of)| (alias.get_ref().clone(), of.clone())).collect(),
        prefix: raw.prefix.as_ref().map(|prefix| prefix.get_ref().clone()).unwrap_or_default(),
        routes: match &raw.routes {
            Some(words) => model::read_routes(words, findings),
            None => kind.routes(),
        },
        start_timeout,
        idle_ttl,
        labels: raw.labels.texts(),
    }
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    (1..=64).contains(&name.len()) && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn url(raw: &Spanned<String>, findings: &mut Findings<'_>) -> String {
    match parse_url(raw.get_ref()) {
        Ok(url) => url,
        Err(why) => {
            findings.add_hidden(raw.span(), why, "write it as in url = \"http://127.0.0.1:11434\"");
            raw.get_ref().clone()
        }
    }
}

/// Whether two addresses are of one server, as far as they themselves tell.
#[must_use]
pub fn is_same_server(one: &str, other: &str) -> bool {
    let known = |url: &str| {
        ["localhost", "[::1]"].iter().fold(url.to_owned(), |url, name| {
            let named = format!("http://{name}");
            match url.strip_prefix(&named).filter(|rest| rest.is_empty() || rest.starts_with([':', '/'])) {
                Some(rest) => format!("http://127.0.0.1{rest}"),
                None => url,
            }
        })
    };
    known(one) == known(other)
}

/// The address of a server as it is kept: without `/v1` and without a `/` at its end.
///
/// # Errors
/// What is wrong with it; it may hold a password, so it is not quoted.
pub fn parse_url(text: &str) -> Result<String, &'static str> {
    let text = text.trim().trim_end_matches('/');
    let text = text.strip_suffix("/v1").unwrap_or(text).trim_end_matches('/');
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some(("https", _)) => {
            return Err("https is not spoken here: an agent is meant to run next to its servers");
        }
        Some(_) => return Err("the address of a server begins with http://"),
        None => return Err("this address lacks http:// in front"),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return Err("a password does not belong into an address: name its variable by key_env");
    }
    if rest.contains(['?', '#']) || rest.contains(char::is_whitespace) {
        return Err("this is no address of a server");
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    if host.is_empty() || port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
        return Err("this address has no host or no port that can be used");
    }
    Ok(text.to_owned())
}

fn key(raw: &RawExternal, base: &Path, findings: &mut Findings<'_>) -> Option<KeySource> {
    if let (Some(name), Some(_)) = (&raw.key_env, &raw.key_file) {
        findings.add(name.span(), "there are both key_env and key_file", "remove one");
    }
    if let Some(name) = &raw.key_env {
        let text = name.get_ref();
        let good = text
            .chars()
            .enumerate()
            .all(|(n, c)| c == '_' || c.is_ascii_alphabetic() || (n > 0 && c.is_ascii_digit()));
        if text.is_empty() || !good {
            findings.add_hidden(
                name.span(),
                "this is no name of a variable; it may be the key itself, which must not stand here",
                "write the name of the variable that holds it, as in key_env = \"OLLAMA_KEY\"",
            );
        }
        return Some(KeySource::Env(text.clone()));
    }
    raw.key_file.as_ref().map(|path| KeySource::File(below(base, path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_as_people_copy_it() {
        for text in ["http://127.0.0.1:11434", "http://127.0.0.1:11434/", "http://127.0.0.1:11434/v1/"] {
            assert_eq!(parse_url(text), Ok("http://127.0.0.1:11434".to_owned()));
        }
        assert_eq!(parse_url("http://h/openai/v1"), Ok("http://h/openai".to_owned()));
        assert_eq!(parse_url("http://[::1]:1"), Ok("http://[::1]:1".to_owned()));
        for text in [
            "",
            "127.0.0.1:1",
            "https://h",
            "ftp://h",
            "http://",
            "http://u:p@h",
            "http://h:0",
            "http://h?x=1",
        ] {
            assert!(parse_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn this_machine_is_the_same_by_every_name() {
        assert!(is_same_server("http://localhost:1", "http://127.0.0.1:1"));
        assert!(is_same_server("http://[::1]:1/x", "http://localhost:1/x"));
        for other in ["http://127.0.0.1:2", "http://localhost.example:1", "http://127.0.0.1:1/x"] {
            assert!(!is_same_server("http://localhost:1", other), "{other}");
        }
    }
}
