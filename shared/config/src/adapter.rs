//! `[[models.adapters]]`: the LoRA adapters of a model, which its engines serve beside it.
//!
//! They stand below their base, so that none can be of a model that is not there, of another adapter, or of a server
//! that others run.

use std::path::Path;

use berth_wire::{AdapterSpec, Driver, EngineKind, ModelId};

use crate::env;
use crate::model::{MOST, check_name, clean};
use crate::problem::Findings;
use crate::raw::{RawAdapter, RawModel};
use crate::template::is_flag;

/// How many a vLLM holds at a time unless its model says: each takes its share of the GPU.
pub(crate) const AT_ONCE: u32 = 4;
/// Lets vLLM be told of adapters while it runs.
const RUNTIME: &str = "VLLM_ALLOW_RUNTIME_LORA_UPDATING";

/// The adapters of a model, and how many an engine of it holds at a time.
#[derive(Debug, Default)]
pub(crate) struct Adapters {
    pub(crate) list: Vec<AdapterSpec>,
    pub(crate) at_once: Option<u32>,
}

/// Builds them; what is wrong goes to `findings`.
pub(crate) fn resolve(
    raw: &RawModel,
    kind: EngineKind,
    driver: Driver,
    base: &Path,
    findings: &mut Findings<'_>,
) -> Adapters {
    let Some(first) = raw.adapters.first() else {
        if let Some(most) = &raw.max_adapters {
            let help = "add [[models.adapters]] below, with id and path, or remove `max_adapters`";
            findings.add(most.span(), "this model has no adapters", help);
        }
        return Adapters::default();
    };
    if !matches!(kind, EngineKind::LlamaCpp | EngineKind::Vllm) {
        findings.add(
            first.id.span(),
            format!("Berth cannot tell an engine \"{}\" which adapter a request is for", kind.as_str()),
            "engines \"vllm\" and \"llama.cpp\" serve adapters",
        );
    }
    check_own_flags(raw, kind, findings);
    let list: Vec<_> =
        raw.adapters.iter().map(|adapter| one(adapter, raw, kind, driver, base, findings)).collect();
    Adapters { at_once: at_once(raw, kind, list.len(), findings), list }
}

fn at_once(raw: &RawModel, kind: EngineKind, adapters: usize, findings: &mut Findings<'_>) -> Option<u32> {
    let Some(most) = &raw.max_adapters else {
        let adapters = u32::try_from(adapters).unwrap_or(u32::MAX);
        return (kind == EngineKind::Vllm).then_some(AT_ONCE.min(adapters));
    };
    if kind == EngineKind::LlamaCpp {
        findings.add(
            most.span(),
            "llama-server loads all of its adapters at its start",
            "remove `max_adapters`; it is of engine \"vllm\"",
        );
    }
    if !(1..=MOST).contains(most.get_ref()) {
        findings.add(
            most.span(),
            "max_adapters must be at least 1",
            format!("leave it out for {AT_ONCE} at a time"),
        );
    }
    Some(*most.get_ref())
}

fn one(
    raw: &RawAdapter,
    model: &RawModel,
    kind: EngineKind,
    driver: Driver,
    base: &Path,
    findings: &mut Findings<'_>,
) -> AdapterSpec {
    check_name(&raw.id, "id", findings);
    for alias in &raw.aliases.0 {
        check_name(alias, "alias", findings);
    }
    let served = model.served_name.as_ref().map(|name| name.get_ref().as_str());
    if served == Some(raw.id.get_ref()) {
        let help = "give one of them another name: the engine tells them apart by it";
        findings.add(raw.id.span(), "this is the served_name of its base", help);
    }
    let text = raw.path.get_ref();
    let path = match driver {
        Driver::Docker => text.clone(),
        _ => std::path::absolute(base.join(env::expand_home(text)))
            .map_or_else(|_| text.clone(), |path| clean(&path)),
    };
    let wrong = if text.trim().is_empty() {
        Some(("an adapter is read from somewhere", "name its folder (vLLM) or GGUF file (llama.cpp)"))
    } else if driver == Driver::Docker && !text.starts_with('/') {
        Some(("this is no absolute path", "name the path within the container, as in \"/models/sql\""))
    } else if kind == EngineKind::LlamaCpp && path.contains(',') {
        Some(("llama-server takes a comma for the end of a path", "give it a path without one"))
    } else {
        None
    };
    if let Some((message, help)) = wrong {
        findings.add(raw.path.span(), message, help);
    }
    AdapterSpec { id: ModelId::from(raw.id.get_ref().clone()), aliases: raw.aliases.texts(), path }
}

/// Arguments that would make other adapters of those that Berth numbers or counts.
fn check_own_flags(raw: &RawModel, kind: EngineKind, findings: &mut Findings<'_>) {
    let (flags, help): (&[&str], _) = match kind {
        EngineKind::LlamaCpp => (
            &["--lora", "--lora-scaled"],
            "make it one of the [[models.adapters]], or remove those: with adapters each request says which apply",
        ),
        EngineKind::Vllm => (&["--max-loras"], "write `max_adapters = N` in this model instead"),
        _ => return,
    };
    let command = raw.command.iter().flat_map(|words| &words.get_ref().0);
    for word in command.chain(&raw.args.0).filter(|word| is_flag(word.get_ref(), flags)) {
        findings.add(word.span(), format!("Berth passes `{}` itself", word.get_ref()), help);
    }
}

impl Adapters {
    /// What its engine is started with, beside its template's arguments; none that the model gives itself.
    pub(crate) fn args(&self, kind: EngineKind, own: &[String]) -> Vec<String> {
        if self.list.is_empty() {
            return Vec::new();
        }
        let given = |flag: &str| own.iter().any(|word| is_flag(word, &[flag]));
        let mut args = Vec::new();
        match kind {
            EngineKind::LlamaCpp => {
                for adapter in &self.list {
                    args.extend(["--lora".to_owned(), adapter.path.clone()]);
                }
                args.extend(
                    (!given("--lora-init-without-apply")).then(|| "--lora-init-without-apply".into()),
                );
            }
            EngineKind::Vllm => {
                args.extend((!given("--enable-lora")).then(|| "--enable-lora".into()));
                let at_once = self.at_once.unwrap_or(AT_ONCE);
                args.extend(["--max-loras".to_owned(), at_once.to_string()]);
            }
            _ => {}
        }
        args
    }

    /// The variable that its engine needs beside the model's own.
    pub(crate) fn env(&self, kind: EngineKind, own: &[String]) -> Option<String> {
        let given = own.iter().any(|entry| entry.split('=').next() == Some(RUNTIME));
        (kind == EngineKind::Vllm && !self.list.is_empty() && !given).then(|| format!("{RUNTIME}=True"))
    }
}

/// What to do about a field that is taken for the way to write an adapter; `known` are the fields that there are.
pub(crate) fn misplaced(field: &str, known: &[&str]) -> Option<&'static str> {
    match field {
        "adapter" | "adapter_of" | "lora" | "loras" => {
            Some("an adapter stands below its base's [[models]]: [[models.adapters]], with id and path")
        }
        "adapters" if known.contains(&"url") => {
            Some("a server that others run lists its adapters among its models: they are found with those")
        }
        "adapters" if known.contains(&"path") => Some(
            "an adapter is of a model, not of an adapter: write [[models.adapters]] once more below the model",
        ),
        _ => None,
    }
}
