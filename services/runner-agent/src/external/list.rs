//! What servers say of their models, and what becomes of it as catalog entries.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_config::{ExternalConfig, ExternalKind};
use berth_wire::{Accelerator, AcceleratorKind, Driver, EngineSpec, ModelId, ModelSpec};
use serde_json::Value;

/// Models of one server; what is beyond is left out, since a report has to fit into one message.
const MOST: usize = 500;
/// What Ollama takes beside the weights, as far as it can be known before it has loaded them.
const BESIDE: u64 = 256 << 20;
/// Until then what Ollama was told to keep for ever is kept.
const ENDLESS: &str = "2200";

/// A model as its server lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    /// Bytes of its weights, where they are told.
    pub(crate) size: u64,
}

/// What a loaded model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    size: u64,
    vram: u64,
    /// It is not unloaded by itself.
    pub(crate) endless: bool,
}

impl Held {
    /// Bytes of these accelerators.
    pub(crate) fn bytes(self, accelerators: &[Accelerator]) -> u64 {
        let gpus = accelerators.iter().any(|a| a.kind == AcceleratorKind::Nvidia);
        if gpus { self.vram } else { self.size }
    }
}

fn entries<'v>(value: &'v Value, key: &str) -> Result<&'v Vec<Value>, String> {
    let list = value.get(key).ok_or("what it answers is no list of models: correct its url or kind")?;
    // Ollama and others write an empty list as null.
    static EMPTY: Vec<Value> = Vec::new();
    Ok(list.as_array().unwrap_or(&EMPTY))
}

fn text<'v>(entry: &'v Value, key: &str) -> Option<&'v str> {
    entry.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// The list of `/v1/models`.
pub(crate) fn models(value: &Value) -> Result<Vec<Listed>, String> {
    let named = entries(value, "data")?.iter().filter_map(|entry| text(entry, "id"));
    Ok(distinct(named.map(|name| Listed { name: name.into(), size: 0 })))
}

/// The list of Ollama's `/api/tags`. What Ollama itself only passes on to a machine elsewhere is left out: a prompt
/// that is queued for this host is not to leave it.
pub(crate) fn tags(value: &Value) -> Result<Vec<Listed>, String> {
    let here = entries(value, "models")?.iter().filter(|entry| text(entry, "remote_host").is_none());
    let listed = here.filter_map(|entry| {
        let size = entry.get("size").and_then(Value::as_u64).unwrap_or(0);
        Some(Listed { name: text(entry, "name")?.into(), size })
    });
    Ok(distinct(listed))
}

fn distinct(listed: impl Iterator<Item = Listed>) -> Vec<Listed> {
    let by_name: BTreeMap<String, Listed> = listed.map(|listed| (listed.name.clone(), listed)).collect();
    by_name.into_values().take(MOST).collect()
}

/// The list of Ollama's `/api/ps`.
pub(crate) fn loaded(value: &Value) -> Result<BTreeMap<String, Held>, String> {
    let number = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_u64).unwrap_or(0);
    let held = entries(value, "models")?.iter().filter_map(|entry| {
        let held = Held {
            size: number(entry, "size"),
            vram: number(entry, "size_vram"),
            endless: text(entry, "expires_at").is_some_and(|at| at > ENDLESS),
        };
        Some((text(entry, "name")?.to_owned(), held))
    });
    Ok(held.collect())
}

/// Whether the entry of a server takes a model, by the server's name for it.
pub(crate) fn is_taken(config: &ExternalConfig, name: &str) -> bool {
    config.models.is_empty() || config.models.iter().any(|pattern| matches(pattern, name))
}

/// `*` stands for any characters; the `:latest` of Ollama may be left out.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty() || rest == ":latest";
    };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

/// Catalog entries of what a server lists, each with the server's own name for it.
pub(crate) fn specs(
    config: &ExternalConfig,
    listed: &[Listed],
    accelerators: &[Accelerator],
) -> Vec<(ModelSpec, String)> {
    let taken = listed.iter().filter(|listed| is_taken(config, &listed.name));
    taken.filter_map(|listed| Some((spec(config, listed, accelerators)?, listed.name.clone()))).collect()
}

fn spec(config: &ExternalConfig, listed: &Listed, accelerators: &[Accelerator]) -> Option<ModelSpec> {
    let served = listed.name.as_str();
    let short = served.strip_suffix(":latest").filter(|_| config.kind == ExternalKind::Ollama);
    let renamed = config.rename.get(served).or_else(|| config.rename.get(short?));
    let id = renamed.cloned().unwrap_or_else(|| format!("{}{served}", config.prefix));
    if id.len() > 200 || id.trim() != id || id.chars().any(char::is_control) {
        return None;
    }
    let mut aliases: Vec<String> = config
        .aliases
        .iter()
        .filter(|(_, of)| *of == served || **of == id || Some(of.as_str()) == short)
        .map(|(alias, _)| alias.clone())
        .collect();
    if let (Some(short), None) = (short, renamed) {
        aliases.push(format!("{}{short}", config.prefix));
    }
    let (memory, spans) = memory(config, listed, accelerators);
    let mut spec = ModelSpec {
        id: ModelId::from(id),
        aliases,
        engine: EngineSpec {
            kind: config.kind.engine(),
            driver: Driver::External,
            image: None,
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            volumes: Vec::new(),
            container: berth_wire::ContainerSpec::default(),
            port: 0,
            health_path: "/".into(),
            served_name: served.into(),
            routes: config.routes.clone(),
            start_timeout: config.start_timeout,
            stop_grace: Duration::from_secs(10),
            sleep: None,
        },
        memory: Some(memory),
        accelerators: spans,
        concurrency: config.concurrency,
        context: None,
        idle_ttl: config.idle_ttl.filter(|_| config.kind == ExternalKind::Ollama),
        asleep_ttl: None,
        pin: false,
        replicas: None,
        labels: Vec::new(),
        adapters: Vec::new(),
        max_adapters: None,
        keep_context: None,
        leases_keep_context: false,
        silence: berth_wire::Silence::default(),
    };
    // Hosts whose servers have the very same share it; any other keeps its own apart.
    let written = serde_json::to_vec(&spec).ok()?;
    let mark: String = blake3::hash(&written).to_hex().chars().take(16).collect();
    spec.labels = vec![format!("external:{mark}")];
    Some(spec)
}

/// What a model takes, and of how many accelerators: nothing where its server does not load it for us.
fn memory(config: &ExternalConfig, listed: &Listed, accelerators: &[Accelerator]) -> (u64, u32) {
    if config.kind != ExternalKind::Ollama {
        return (0, 1);
    }
    let need = listed.size.saturating_add(listed.size / 5).saturating_add(BESIDE);
    let each = accelerators.iter().map(|accelerator| accelerator.memory).min().unwrap_or(0).max(1);
    // It spreads what is too large for one over all, and the rest over the RAM.
    let count = u64::try_from(accelerators.len()).unwrap_or(1).max(1);
    let spans = need.div_ceil(each).clamp(1, count);
    (need.min(each.saturating_mul(spans)), u32::try_from(spans).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use berth_config::Config;
    use serde_json::json;

    use super::*;

    fn config(more: &str) -> ExternalConfig {
        let text = format!("[[external]]\nurl = \"http://127.0.0.1:1\"\nkind = \"ollama\"\n{more}");
        Config::parse(&text, &Path::new("f").display().to_string()).unwrap().external.remove(0)
    }

    fn ram(memory: u64) -> Vec<Accelerator> {
        vec![Accelerator::new("ram".into(), AcceleratorKind::Ram, "RAM", memory)]
    }

    fn found(config: &ExternalConfig, names: &[&str]) -> Vec<(String, Vec<String>)> {
        let listed: Vec<_> = names.iter().map(|n| Listed { name: (*n).into(), size: 1 << 20 }).collect();
        let specs = specs(config, &listed, &ram(4 << 30));
        specs.into_iter().map(|(spec, _)| (spec.id.to_string(), spec.aliases)).collect()
    }

    #[test]
    fn names_are_filtered_renamed_and_prefixed() {
        let all = ["llama3.2:latest", "llama3.2:1b", "nomic-embed-text:latest"];
        let plain = found(&config(""), &all);
        assert_eq!(plain[0], ("llama3.2:latest".into(), vec!["llama3.2".into()]));
        assert_eq!(plain.len(), 3);
        let some = found(&config("models = [\"llama*\"]\nprefix = \"desk/\""), &all);
        assert_eq!(some[1], ("desk/llama3.2:1b".into(), vec![]));
        assert_eq!(some.len(), 2);
        let text =
            "models = [\"llama3.2\"]\nrename = { \"llama3.2\" = \"small\" }\naliases = { \"s\" = \"small\" }";
        assert_eq!(found(&config(text), &all), [("small".into(), vec!["s".into()])]);
    }

    #[test]
    fn a_pattern_matches_as_in_a_shell() {
        for (pattern, name) in
            [("*", "a"), ("a*c", "abc"), ("*b*", "abc"), ("a", "a:latest"), ("a*c*e", "abcde"), ("a", "a")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a", "ab"), ("a*d", "abc"), ("*x*", "abc"), ("b*", "ab")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn what_a_server_says_is_read_and_what_runs_elsewhere_is_left_out() {
        let tags_of = json!({"models": [
            {"name": "b", "size": 5}, {"name": "a", "size": 7}, {"name": "c", "remote_host": "https://ollama.com"},
            {"size": 1},
        ]});
        let names: Vec<_> = tags(&tags_of).unwrap().into_iter().map(|l| (l.name, l.size)).collect();
        assert_eq!(names, [("a".to_owned(), 7), ("b".to_owned(), 5)]);
        assert_eq!(tags(&json!({"models": null})).unwrap(), []);
        assert!(models(&json!({"error": "x"})).unwrap_err().contains("url or kind"));
        let ps = json!({"models": [{"name": "a", "size": 9, "size_vram": 3, "expires_at": "2318-03-01T00:00:00Z"},
            {"name": "b", "size": 9, "size_vram": 3, "expires_at": "2026-11-21T00:00:00Z"}]});
        let held = loaded(&ps).unwrap();
        assert!(held["a"].endless && !held["b"].endless);
        assert_eq!(held["a"].bytes(&ram(1)), 9);
    }

    #[test]
    fn only_the_same_entry_of_another_host_shares_its_label() {
        let label = |more: &str, memory: u64| {
            let listed = [Listed { name: "m".into(), size: 1 }];
            specs(&config(more), &listed, &ram(memory)).remove(0).0.labels
        };
        assert_eq!(label("", 1 << 30), label("", 2 << 30));
        assert_ne!(label("", 1 << 30), label("concurrency = 2", 1 << 30));
    }

    #[test]
    fn a_model_larger_than_one_accelerator_spans_several() {
        let (need, spans) = memory(&config(""), &Listed { name: "m".into(), size: 10 << 30 }, &ram(4 << 30));
        assert_eq!((need, spans), (4 << 30, 1), "the rest lies elsewhere");
        let two = [ram(8 << 30), ram(8 << 30)].concat();
        let (need, spans) = memory(&config(""), &Listed { name: "m".into(), size: 10 << 30 }, &two);
        assert!(spans == 2 && need > 12 << 30);
    }
}
