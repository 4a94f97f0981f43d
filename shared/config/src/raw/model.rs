//! `[[models]]` as written.

use berth_wire::{Driver, EngineKind, Silence};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::{self, Keep};
use crate::model::{MOST, MOST_MEMORY};
use crate::schema;
use crate::sleep::Depth;
use crate::spanned::Spanned;
use crate::template;
use crate::value::{Size, Span, Ttl, Words};

/// The catalog: one entry for each model that clients may name. The kind of engine is a template for image, command,
/// arguments, port, health route and times; each field that is given here overrides it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawModel {
    /// The name that clients send as `model`; 200 bytes at most.
    pub(crate) id: Spanned<String>,
    /// Other names for it.
    #[serde(default)]
    pub(crate) aliases: Words,
    /// The kind of engine; `"custom"` is anything that speaks OpenAI's HTTP.
    #[schemars(schema_with = "schema::engine")]
    pub(crate) engine: Spanned<EngineKind>,
    /// `"docker"` runs an image, `"process"` a program on the host.
    #[schemars(default, schema_with = "schema::driver")]
    #[schemars(extend("x-default" = "`docker`; `process` for sim, and where there is a `command` and no `image`"))]
    pub(crate) driver: Option<Spanned<Driver>>,
    /// The image of its container.
    #[schemars(extend("x-default" = schema::by_engine(template::default_image)))]
    pub(crate) image: Option<Spanned<String>>,
    /// Replaces the program (a process) or the entry point (a container); `args` still follow. Placeholders: `{port}`, `{host}`,
    /// `{id}`, `{memory}` (bytes), `{concurrency}`, `{context}`, `{berth}` (Berth's own program).
    pub(crate) command: Option<Spanned<Words>>,
    /// Added after the template's own arguments, which tell the engine its port, its name, its slots and its context.
    /// Placeholders as in `command`.
    #[serde(default)]
    pub(crate) args: Words,
    /// `"NAME=value"`, or `"NAME"` alone to hand on the agent's own variable. Values are kept in clear in the catalog on NATS:
    /// hand secrets on by name.
    #[serde(default)]
    pub(crate) env: Words,
    /// `"source:target[:ro]"` as in Compose: a path (relative ones start at this file) or a named volume. Docker only.
    #[serde(default)]
    pub(crate) volumes: Words,
    /// What an engine needs of its accelerators in all ([memory.md](memory.md)).
    #[schemars(extend("x-default" = "what its files say, else all of each", "x-least" = "1B", "x-most" = schema::size(MOST_MEMORY)))]
    pub(crate) memory: Option<Spanned<Size>>,
    /// How many accelerators of one host an engine spans; vLLM is told by `--tensor-parallel-size`.
    #[schemars(range(min = 1, max = MOST), extend("default" = 1))]
    pub(crate) accelerators: Option<Spanned<u32>>,
    /// Requests that an engine serves at once.
    #[schemars(range(min = 1, max = MOST))]
    #[schemars(extend("x-default" = schema::by_engine(|kind| Some(template::default_concurrency(kind)))))]
    pub(crate) concurrency: Option<Spanned<u32>>,
    /// Tokens of context for each request.
    #[schemars(range(min = 1), extend("x-default" = "the engine's own"))]
    pub(crate) context: Option<Spanned<u32>>,
    /// As under `[scheduler]`, for this model alone.
    #[schemars(extend("x-default" = "that of `[scheduler]`"))]
    pub(crate) idle_ttl: Option<Ttl>,
    /// As under `[scheduler]`, for this model alone.
    #[schemars(extend("x-default" = "that of `[scheduler]`"))]
    pub(crate) asleep_ttl: Option<Ttl>,
    /// How its engines sleep: 1, weights in host RAM; 2, weights are read again by waking; `"off"`: they are stopped instead.
    /// vLLM only ([sleeping.md](sleeping.md)).
    #[schemars(extend("x-default" = "vllm 1"))]
    pub(crate) sleep: Option<Spanned<Depth>>,
    /// What an engine takes of host RAM asleep.
    #[schemars(extend("x-default" = "`memory`, then what was measured", "x-most" = schema::size(MOST_MEMORY)))]
    pub(crate) sleep_memory: Option<Spanned<Size>>,
    /// Keeps one engine of it running always.
    #[serde(default)]
    #[schemars(extend("default" = false))]
    pub(crate) pin: bool,
    /// How many engines of it may run at a time.
    #[schemars(range(min = 1), extend("x-default" = "as many as its queue is worth"))]
    pub(crate) replicas: Option<Spanned<u32>>,
    /// The route that answers 2xx once the engine can serve.
    #[schemars(extend("default" = template::HEALTH_PATH))]
    pub(crate) health_path: Option<Spanned<String>>,
    /// How long that may take from its start.
    #[schemars(extend("x-default" = schema::by_engine(|kind| Some(schema::span(template::start_timeout(kind)))), "x-least" = "1s"))]
    pub(crate) start_timeout: Option<Spanned<Span>>,
    /// How long the engine may send nothing of a stream before its first token. Then the request fails, or is tried again where
    /// nothing of it has reached the client.
    #[schemars(extend("default" = schema::span(Silence::default().first_token), "x-least" = "1s"))]
    pub(crate) first_token_timeout: Option<Spanned<Span>>,
    /// The same between two tokens; longer than the default has no effect, since a gateway gives up then.
    #[schemars(extend("default" = schema::span(Silence::default().token), "x-least" = "1s"))]
    pub(crate) token_timeout: Option<Spanned<Span>>,
    /// How long an engine may take to stop before it is killed.
    #[schemars(extend("x-default" = "that of `[host]`"))]
    pub(crate) stop_grace: Option<Span>,
    /// The port that it listens on inside its container; a process is given a free one.
    #[schemars(range(min = 1), extend("x-default" = schema::by_engine(|kind| Some(template::port(kind)))))]
    pub(crate) port: Option<Spanned<u16>>,
    /// The name that the engine itself knows the model by.
    #[schemars(extend("x-default" = "its id"))]
    pub(crate) served_name: Option<Spanned<String>>,
    /// Shared memory of its container.
    #[schemars(extend("x-default" = "vllm 2GiB, else Docker's", "x-least" = "1B"))]
    pub(crate) shm_size: Option<Spanned<Size>>,
    /// Whom its container shares memory with.
    #[schemars(default, schema_with = "schema::ipc", extend("x-default" = "Docker's"))]
    pub(crate) ipc: Option<Spanned<String>>,
    /// Limits of its container's processes: `name=limit` or `name=soft:hard`, -1 is none.
    #[serde(default)]
    pub(crate) ulimits: Words,
    /// CPUs that its container, or its process where its host can limit it, may run on, as in `"0-3,8"`.
    #[schemars(extend("x-default" = "all"))]
    pub(crate) cpuset: Option<Spanned<String>>,
    /// Its image is read-only to its container, which then writes to its volumes and `/tmp` alone.
    #[schemars(extend("x-default" = "true for llama.cpp, unless it fetches weights without a volume"))]
    pub(crate) read_only: Option<Spanned<bool>>,
    /// Processes and threads that its container, or its process where its host can limit it, may have.
    #[schemars(range(min = 16), extend("x-default" = "32768"))]
    pub(crate) pids_limit: Option<Spanned<u32>>,
    /// RAM that its container, or its process where its host can limit it, may use where its accelerators are GPUs; elsewhere
    /// `memory` is the limit.
    #[schemars(extend("x-default" = "no limit", "x-least" = "1B", "x-most" = schema::size(MOST_MEMORY)))]
    pub(crate) ram: Option<Spanned<Size>>,
    /// How long the pull of its image may make no progress; it is tried again later.
    #[schemars(extend("x-default" = "3m", "x-least" = "1s"))]
    pub(crate) pull_timeout: Option<Spanned<Span>>,
    /// The routes that it serves; others get 501 ([http.md](http.md)).
    #[schemars(default, schema_with = "schema::routes", extend("x-default" = "those of its kind; custom: all"))]
    pub(crate) routes: Option<Spanned<Words>>,
    /// Only hosts that have all of these run it.
    #[serde(default)]
    pub(crate) labels: Words,
    /// How many of its adapters an engine holds at a time: the one used longest ago makes room. vLLM only.
    #[schemars(range(min = 1, max = MOST), extend("x-default" = crate::adapter::AT_ONCE.to_string()))]
    pub(crate) max_adapters: Option<Spanned<u32>>,
    /// What an engine has read of a session is saved when it is stopped, and kept for so long; `"off"`: not for sessions whose
    /// lease asks for it either. A llama.cpp that Berth runs, without adapters ([sleeping.md](sleeping.md)).
    #[schemars(extend("x-default" = "for sessions whose lease asks for it", "x-least" = "1s", "x-most" = schema::span(context::MOST)))]
    pub(crate) keep_context: Option<Spanned<Keep>>,
    #[serde(default)]
    pub(crate) adapters: Vec<RawAdapter>,
}

/// LoRA adapters of the model above: models of their own to clients, served by its engines ([adapters.md](adapters.md)).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAdapter {
    /// The name that clients send as `model`.
    pub(crate) id: Spanned<String>,
    /// Other names for it.
    #[serde(default)]
    pub(crate) aliases: Words,
    /// Where the engine finds it: a GGUF file for llama.cpp, a folder with `adapter_config.json` for vLLM.
    pub(crate) path: Spanned<String>,
}

impl RawModel {
    /// Every name that it gives, each with the id that it is of: its own, and those of its adapters.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&Spanned<String>, &Spanned<String>)> {
        let own = std::iter::once(&self.id).chain(&self.aliases.0).map(|name| (name, &self.id));
        own.chain(self.adapters.iter().flat_map(|adapter| {
            std::iter::once(&adapter.id).chain(&adapter.aliases.0).map(|name| (name, &adapter.id))
        }))
    }
}
