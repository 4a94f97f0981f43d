//! Engine templates: what Berth knows of each kind of engine. Any field of a model overrides its part.
//!
//! `args` of a model follow the template's; `command` replaces the template's program. A flag that a model gives
//! itself is left out of the template's, so that it stands alone.

use std::time::Duration;

use berth_wire::{Driver, EngineKind};

use crate::settings::MIB;

/// What a kind of engine is run with unless its model says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) image: Option<&'static str>,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) port: u16,
    pub(crate) health_path: &'static str,
    pub(crate) start_timeout: Duration,
}

/// What a template's arguments depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) driver: Driver,
    pub(crate) id: &'a str,
    pub(crate) served_name: &'a str,
    pub(crate) concurrency: u32,
    pub(crate) context: Option<u32>,
    pub(crate) accelerators: u32,
    /// The model's own command and arguments.
    pub(crate) own_words: &'a [String],
}

/// Where an engine says that it can serve, unless its model says.
pub(crate) const HEALTH_PATH: &str = "/health";

/// The image of llama.cpp's server without and with CUDA.
pub(crate) const LLAMA_IMAGE: &str = "ghcr.io/ggml-org/llama.cpp:server";
pub(crate) const LLAMA_IMAGE_CUDA: &str = "ghcr.io/ggml-org/llama.cpp:server-cuda";

/// How many requests an engine of this kind takes at once unless its model says.
pub(crate) fn default_concurrency(kind: EngineKind) -> u32 {
    match kind {
        // Each slot costs a context of its own.
        EngineKind::LlamaCpp | EngineKind::Custom | EngineKind::Ollama => 1,
        // It batches continuously and shares its cache.
        EngineKind::Vllm => 32,
        EngineKind::Sim => 4,
    }
}

/// How much memory an engine of this kind needs unless its model says; `None`: the whole accelerator.
pub(crate) fn default_memory(kind: EngineKind) -> Option<u64> {
    (kind == EngineKind::Sim).then_some(MIB)
}

/// What runs an engine of this kind unless its model says.
pub(crate) fn default_driver(kind: EngineKind, has_image: bool, has_command: bool) -> Driver {
    match kind {
        _ if has_image => Driver::Docker,
        _ if has_command => Driver::Process,
        EngineKind::Sim => Driver::Process,
        EngineKind::LlamaCpp | EngineKind::Vllm | EngineKind::Custom | EngineKind::Ollama => Driver::Docker,
    }
}

/// The image that runs an engine of this kind in a container unless its model says.
pub(crate) fn default_image(kind: EngineKind) -> Option<&'static str> {
    match kind {
        EngineKind::LlamaCpp => Some(LLAMA_IMAGE),
        EngineKind::Vllm => Some("vllm/vllm-openai:latest"),
        EngineKind::Sim | EngineKind::Custom | EngineKind::Ollama => None,
    }
}

/// The port that an engine of this kind listens on in its container unless its model says.
pub(crate) fn port(kind: EngineKind) -> u16 {
    if kind == EngineKind::Vllm { 8000 } else { 8080 }
}

/// How long an engine of this kind may take to start unless its model says.
pub(crate) fn start_timeout(kind: EngineKind) -> Duration {
    let minutes = match kind {
        EngineKind::Vllm => 30,
        EngineKind::Sim => 1,
        EngineKind::LlamaCpp | EngineKind::Custom | EngineKind::Ollama => 15,
    };
    Duration::from_secs(minutes * 60)
}

/// The flag by which an engine of this kind is told its slots; a model says `concurrency` instead.
pub(crate) fn slot_flags(kind: EngineKind) -> &'static [&'static str] {
    match kind {
        EngineKind::LlamaCpp => &["--parallel", "-np"],
        EngineKind::Vllm => &["--max-num-seqs"],
        EngineKind::Sim => &["--concurrency"],
        EngineKind::Custom | EngineKind::Ollama => &[],
    }
}

/// The template of `kind`.
pub(crate) fn of(kind: EngineKind, inputs: Inputs<'_>) -> Template {
    let process = inputs.driver == Driver::Process;
    let mut args = Args { own: inputs.own_words, list: Vec::new() };
    // An engine in a container listens on every interface of it; only its host and its network reach those.
    let host = if process { "{host}" } else { "0.0.0.0" };
    let name = if inputs.served_name == inputs.id { "{id}" } else { inputs.served_name };
    let command = match kind {
        EngineKind::LlamaCpp => {
            args.flag(&["--host"], host);
            args.flag(&["--port"], "{port}");
            args.flag(&["--alias", "-a"], name);
            args.flag(&["--parallel", "-np"], "{concurrency}");
            if let Some(context) = inputs.context {
                // llama-server divides `-c` among its slots.
                let total = u64::from(context) * u64::from(inputs.concurrency);
                args.flag(&["-c", "--ctx-size"], &total.to_string());
            }
            program(process, &["llama-server"])
        }
        EngineKind::Vllm => {
            args.flag(&["--served-model-name"], name);
            args.flag(&["--host"], host);
            args.flag(&["--port"], "{port}");
            args.flag(&["--max-num-seqs"], "{concurrency}");
            if inputs.context.is_some() {
                args.flag(&["--max-model-len"], "{context}");
            }
            if inputs.accelerators > 1 {
                args.flag(&["--tensor-parallel-size", "-tp"], &inputs.accelerators.to_string());
            }
            program(process, &["vllm", "serve"])
        }
        EngineKind::Sim => {
            args.list.push("sim-engine".into());
            args.flag(&["--host"], host);
            args.flag(&["--port"], "{port}");
            args.flag(&["--id"], name);
            args.flag(&["--concurrency"], "{concurrency}");
            program(process, &["{berth}"])
        }
        // Ollama is found by `[[external]]` and never run from a template.
        EngineKind::Custom | EngineKind::Ollama => Vec::new(),
    };
    Template {
        image: default_image(kind),
        command,
        args: args.list,
        port: port(kind),
        health_path: HEALTH_PATH,
        start_timeout: start_timeout(kind),
    }
}

/// A container starts with its image's entry point.
fn program(process: bool, words: &[&str]) -> Vec<String> {
    if process { words.iter().map(|word| (*word).to_owned()).collect() } else { Vec::new() }
}

/// The template's arguments and then the model's own. `vllm serve` takes the model as its first word alone, if it is
/// given as a bare one.
pub(crate) fn followed(kind: EngineKind, template: Vec<String>, mut own: Vec<String>) -> Vec<String> {
    let bare = kind == EngineKind::Vllm && own.first().is_some_and(|word| !word.starts_with('-'));
    let rest = if bare { own.split_off(1) } else { std::mem::take(&mut own) };
    [own, template, rest].concat()
}

struct Args<'a> {
    own: &'a [String],
    list: Vec<String>,
}

impl Args<'_> {
    /// Adds the flag by its first name, unless the model gives it by any of its names.
    fn flag(&mut self, names: &[&str], value: &str) {
        if !self.own.iter().any(|arg| is_flag(arg, names))
            && let Some(name) = names.first()
        {
            self.list.extend([(*name).to_owned(), value.to_owned()]);
        }
    }
}

/// Whether `arg` is one of the flags, alone or as `--flag=value`.
pub(crate) fn is_flag(arg: &str, names: &[&str]) -> bool {
    let name = arg.split('=').next().unwrap_or(arg);
    names.contains(&name)
}
