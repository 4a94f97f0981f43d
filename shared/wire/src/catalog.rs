//! The catalog: which models there are and how an engine for each is run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::container::ContainerSpec;
use crate::id::ModelId;
use crate::route::Route;

/// Which inference server an engine is; each has a template that configuration starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// llama.cpp's `llama-server`.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// vLLM's OpenAI server.
    Vllm,
    /// Berth's engine simulator: for demonstrations, load and faults; it says that it is simulated.
    Sim,
    /// Anything that speaks OpenAI's HTTP and has a health route.
    Custom,
    /// Ollama: one server of many models, which it loads and unloads.
    Ollama,
}

impl EngineKind {
    /// The name in configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LlamaCpp => "llama.cpp",
            Self::Vllm => "vllm",
            Self::Sim => "sim",
            Self::Custom => "custom",
            Self::Ollama => "ollama",
        }
    }
}

/// What a host runs an engine with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// A Docker container.
    Docker,
    /// A process of its own process group.
    Process,
    /// A server that somebody else runs; only the agents that were told of it know where.
    External,
}

impl Driver {
    /// The name in configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Process => "process",
            Self::External => "external",
        }
    }
}

/// How deeply an engine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SleepLevel {
    /// Level 1: its weights wait in host RAM.
    Ram,
    /// Level 2: its weights are dropped, and read from disk when it wakes.
    Disk,
}

/// That an engine is to sleep rather than to be stopped, where its host has RAM for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SleepSpec {
    /// How deeply.
    pub level: SleepLevel,
    /// Bytes of host RAM that it takes asleep, where its model says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<u64>,
}

/// How to run an engine: the template of its kind with the model's own fields over it.
///
/// `command`, `args` and `env` may hold `{port}`, `{host}`, `{id}`, `{memory}` (bytes), `{concurrency}` and
/// `{context}`; the agent fills them in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSpec {
    /// Which server it is.
    pub kind: EngineKind,
    /// What runs it.
    pub driver: Driver,
    /// Docker image; needed by the Docker driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Program and leading arguments; empty: the image's entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Arguments after `command`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `NAME=value`, or `NAME` to hand on the agent's own variable (so that a secret stays on its host).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// `source:target[:ro]`, as in Compose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// The port that the engine listens on inside its container; a process is given a free one.
    pub port: u16,
    /// Path that answers 2xx once the engine can serve.
    pub health_path: String,
    /// The model name that the engine itself answers to.
    pub served_name: String,
    /// The routes it serves; `None`: those of its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
    /// What its container may use beside its accelerators.
    #[serde(default, skip_serializing_if = "ContainerSpec::is_default")]
    pub container: ContainerSpec,
    /// How long a start may take before it counts as failed.
    #[serde(rename = "start_timeout_ms", with = "crate::time::millis")]
    pub start_timeout: Duration,
    /// How long an engine may take to stop before it is killed.
    #[serde(rename = "stop_grace_ms", with = "crate::time::millis")]
    pub stop_grace: Duration,
    /// How it sleeps; `None`: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<SleepSpec>,
}

/// A LoRA adapter: a model of its own to clients, which an engine of its base serves beside the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterSpec {
    /// The name clients use, and the one that its engine knows it by.
    pub id: ModelId,
    /// Other names for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Where the engine finds it: a folder of safetensors (vLLM), a GGUF file (llama.cpp).
    pub path: String,
}

/// One catalog entry, complete: nothing is left to defaults when it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// The name clients use.
    pub id: ModelId,
    /// Other names for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// How to run it.
    pub engine: EngineSpec,
    /// Bytes it needs over all its accelerators together; `None`: the whole of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// How many accelerators of one host it spans.
    pub accelerators: u32,
    /// Requests it serves at once: its slots.
    pub concurrency: u32,
    /// Context length in tokens, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Stop an engine idle for so long; `None`: only when the room is needed.
    #[serde(
        rename = "idle_ttl_ms",
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::time::option_millis"
    )]
    pub idle_ttl: Option<Duration>,
    /// Stop an engine that has been asleep for so long; `None`: only when its host's RAM is needed.
    #[serde(
        rename = "asleep_ttl_ms",
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::time::option_millis"
    )]
    pub asleep_ttl: Option<Duration>,
    /// Keep one engine of it ready always; it is never evicted.
    #[serde(default)]
    pub pin: bool,
    /// Engines of it at a time, at most; `None`: as many as pay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Labels that a host must have, each as in `gpu=a100`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Its LoRA adapters. To everybody but gateways and the agent that runs it they are this model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterSpec>,
    /// How many of them one engine holds at a time, at most, where it loads them as they are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_adapters: Option<u32>,
    /// What is in the slots of sessions is saved when its engine is stopped, and kept for so long; `None`: it is lost.
    #[serde(
        rename = "keep_context_ms",
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::time::option_millis"
    )]
    pub keep_context: Option<Duration>,
    /// A lease may ask for the same, for its session alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leases_keep_context: bool,
    /// For how long its engine may be silent in a stream.
    #[serde(default, skip_serializing_if = "Silence::is_default")]
    pub silence: Silence,
}

/// For how long an engine may send nothing of a stream before the attempt counts as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Until the first byte of its answer: the prompt is read.
    #[serde(rename = "first_token_ms", with = "crate::time::millis")]
    pub first_token: Duration,
    /// Between two bytes.
    #[serde(rename = "token_ms", with = "crate::time::millis")]
    pub token: Duration,
}

impl Default for Silence {
    fn default() -> Self {
        Self { first_token: Duration::from_secs(30 * 60), token: Duration::from_secs(5 * 60) }
    }
}

impl Silence {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl ModelSpec {
    /// Whether it was found on a server that Berth does not run: then it is in the catalog for as long as a host
    /// reports it, and not by configuration.
    #[must_use]
    pub fn is_found(&self) -> bool {
        self.engine.driver == Driver::External
    }

    /// Whether what its engine has read of a session may be saved when the engine is stopped.
    #[must_use]
    pub fn may_keep_context(&self) -> bool {
        self.keep_context.is_some() || self.leases_keep_context
    }

    /// Its adapter of this id, and which one it is.
    #[must_use]
    pub fn adapter(&self, id: &ModelId) -> Option<(usize, &AdapterSpec)> {
        self.adapters.iter().enumerate().find(|(_, adapter)| adapter.id == *id)
    }

    /// Every name that clients may know it or one of its adapters by.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let own = std::iter::once(self.id.as_str()).chain(self.aliases.iter().map(String::as_str));
        own.chain(self.adapters.iter().flat_map(AdapterSpec::names))
    }
}

impl AdapterSpec {
    /// Every name that clients may know it by.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.id.as_str()).chain(self.aliases.iter().map(String::as_str))
    }
}

impl Message for ModelSpec {
    const SCHEMA: &'static str = "catalog.model/1";
}
