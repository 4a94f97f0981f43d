//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::add::{self, AddArgs};
use crate::apply::{self, ApplyArgs};
use crate::chat::{self, ChatArgs};
use crate::drain::{self, DrainArgs, UndrainArgs};
use crate::events::{self, EventsArgs};
use crate::explain::{self, ExplainArgs};
use crate::health::{self, HealthArgs};
use crate::healthcheck::{self, HealthcheckArgs};
use crate::hint::{self, HintArgs, HintsArgs};
use crate::key::{self, KeyArgs};
use crate::lease::{self, LeaseArgs, LeasesArgs, ReleaseArgs};
use crate::load::{self, LoadArgs, PinArgs, UnloadArgs};
use crate::logs::{self, LogsArgs};
use crate::models::{self, ModelsArgs};
use crate::nats::{self, NatsArgs};
use crate::pages::{self, CompletionsArgs, ManArgs};
use crate::queue::{self, JobsArgs};
use crate::replay::ReplayArgs;
use crate::simulate::{self, SimulateArgs};

const EXAMPLES: &str = "\
Examples:
  berth up                             everything on this machine; a simulated model answers at once
  berth up --model qwen2.5-7b.gguf     serve a model file, without any configuration
  berth up --config my.toml            serve the models of a configuration file
  berth check my.toml                  see whether a configuration is right, and what it amounts to
  berth add http://127.0.0.1:11434     serve the models of an Ollama that runs already
  berth status                         hosts, engines and models; `berth top` shows them live
  berth queue                          what waits and why; `berth explain JOB` for one of them
  berth events -f                      what happens on the fleet, and why
  berth load demo                      start a model; unload, pin and unpin do what they say
  berth apply fleet.toml               change the models and limits of a running fleet
  berth chat demo                      talk with a model
  berth logs demo -f                   what the engine of a model logs
  berth lease my-session demo          keep a model warm for a conversation
  berth key create laptop              an API key; from then on every request needs one
  berth simulate --trace requests.csv --accelerators 4    what waits a fleet would have

A fleet of several machines shares one nats-server (with JetStream). Each role runs on its own:
  berth scheduler --nats-url nats://nats.example:4222 --config fleet.toml
  berth gateway   --nats-url nats://nats.example:4222 --listen 0.0.0.0:8421
  berth agent     --nats-url nats://nats.example:4222        on every machine that runs engines
  berth health    --nats-url nats://nats.example:4222

Environment: BERTH_CONFIG, BERTH_NATS_URL, BERTH_NATS_TOKEN, BERTH_NATS_NKEY, BERTH_NATS_NKEY_FILE,
BERTH_NATS_CREDENTIALS, BERTH_NATS_REPLICAS, BERTH_NATS_CA, BERTH_LISTEN, BERTH_METRICS_LISTEN,
BERTH_PUBLISHED, BERTH_HOST, BERTH_DOCKER_NETWORK, BERTH_KEEP_ENGINES, BERTH_DATA_DIR,
BERTH_LOG_FORMAT=json, RUST_LOG. Options go before them.
Exit status: 0 done, 1 failed, 2 wrong command line or configuration, 130 stopped at once.";

/// LLM requests queue for GPU slots across a fleet; one OpenAI-compatible endpoint.
#[derive(Debug, Parser)]
#[command(name = "berth", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// What to log to standard error, in the syntax of RUST_LOG, as in `info,berth_scheduler=debug`.
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole fleet on this machine: NATS, gateway, scheduler, agent and health.
    #[command(after_help = UP_EXAMPLES)]
    Up(UpArgs),
    /// Run a gateway: the HTTP endpoint.
    Gateway(RoleArgs),
    /// Run a scheduler: it publishes the catalog and decides what runs where. Several elect a leader.
    Scheduler(RoleArgs),
    /// Run this machine's agent: it starts engines and streams their answers.
    Agent(RoleArgs),
    /// Run the watcher of the fleet, or show what it has found.
    #[command(after_help = health::EXAMPLES)]
    Health(HealthArgs),
    /// Show hosts with their memory, engines, models and leases.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Show hosts, engines, models and jobs, live.
    #[command(after_help = TOP_EXAMPLES)]
    Top(TopArgs),
    /// Talk with a model in the terminal, through the gateway.
    #[command(after_help = chat::EXAMPLES)]
    Chat(ChatArgs),
    /// Grant a session a lease on a model, or renew it: the model is loaded where there is room, and kept warm.
    #[command(after_help = lease::LEASE_EXAMPLES)]
    Lease(LeaseArgs),
    /// Give a session's lease on a model back, or all of its leases.
    #[command(after_help = lease::RELEASE_EXAMPLES)]
    Release(ReleaseArgs),
    /// Show the leases that sessions hold.
    #[command(after_help = lease::LEASES_EXAMPLES)]
    Leases(LeasesArgs),
    /// Make a configuration the catalog and the policy of the running fleet.
    #[command(after_help = apply::EXAMPLES)]
    Apply(ApplyArgs),
    /// Show the models: their state, where they are, what they take and who waits.
    #[command(after_help = models::EXAMPLES)]
    Models(ModelsArgs),
    /// Show what waits, in which order and why.
    #[command(after_help = queue::QUEUE_EXAMPLES)]
    Queue(JobsArgs),
    /// Show the jobs that wait and those that run.
    #[command(after_help = queue::JOBS_EXAMPLES)]
    Jobs(JobsArgs),
    /// Say why a job waits, or what became of it.
    #[command(after_help = explain::EXAMPLES)]
    Explain(ExplainArgs),
    /// Start an engine of a model, and wait until it is ready.
    #[command(after_help = load::LOAD_EXAMPLES)]
    Load(LoadArgs),
    /// Stop the engines of a model.
    #[command(after_help = load::UNLOAD_EXAMPLES)]
    Unload(UnloadArgs),
    /// Keep one engine of a model ready always.
    #[command(after_help = load::PIN_EXAMPLES)]
    Pin(PinArgs),
    /// Take a pin off.
    #[command(after_help = load::PIN_EXAMPLES)]
    Unpin(PinArgs),
    /// Say that a session will need a model soon, or that it will not.
    #[command(after_help = hint::HINT_EXAMPLES)]
    Hint(HintArgs),
    /// Show what sessions said they will need.
    #[command(after_help = hint::HINTS_EXAMPLES)]
    Hints(HintsArgs),
    /// Tell what happened on the fleet, and why.
    #[command(after_help = events::EXAMPLES)]
    Events(EventsArgs),
    /// Have a host finish what it runs and take nothing new.
    #[command(after_help = drain::DRAIN_EXAMPLES)]
    Drain(DrainArgs),
    /// Have a drained host take work again.
    Undrain(UndrainArgs),
    /// Make, list and revoke API keys.
    #[command(after_help = key::EXAMPLES)]
    Key(KeyArgs),
    /// Show what an engine logs.
    #[command(after_help = logs::EXAMPLES)]
    Logs(LogsArgs),
    /// Whether a gateway, scheduler, agent or health of this machine works: for containers and their likes.
    #[command(after_help = healthcheck::EXAMPLES)]
    Healthcheck(HealthcheckArgs),
    /// Keys, permissions and certificates of a fleet's nats-server.
    #[command(after_help = nats::EXAMPLES)]
    Nats(NatsArgs),
    /// Check a configuration: says what it amounts to, or points at what is wrong.
    Check(CheckArgs),
    /// Add a server that runs already (Ollama, LM Studio, vLLM, ...) to the configuration: its models are served too.
    #[command(after_help = add::EXAMPLES)]
    Add(AddArgs),
    /// Run a trace of requests in virtual time: what waits would be under Berth, and under simpler rules.
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(Box<SimulateArgs>),
    /// Replay a scheduler's log: what it decided and why, and whether it would decide so now.
    Replay(ReplayArgs),
    /// Print what a shell needs to complete commands and options.
    #[command(after_help = pages::COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
    /// Write the manual pages.
    #[command(after_help = pages::MAN_EXAMPLES)]
    Man(ManArgs),
    /// Turn a message of the bus (standard input) into JSON; payload bytes are shown as their number.
    ///
    /// For the NATS CLI: nats sub 'berth.v1.>' --translate 'berth translate {{Subject}}'
    Translate {
        /// The subject it came on; for the NATS CLI, not needed.
        subject: Option<String>,
    },
    /// Run the engine simulator, an OpenAI-compatible server that computes nothing and says so.
    SimEngine(Box<SimArgs>),
}

const UP_EXAMPLES: &str = "\
Without --config it uses $BERTH_CONFIG, else ./berth.toml, else a built-in example. Without --nats-url it
runs a nats-server of its own on loopback: from PATH (2.11 or newer), else fetched once.
The first Ctrl-C lets running answers end and stops what was started; a second one stops at once.

Examples:
  berth up
  berth up --model llama.gguf --model qwen.gguf
  berth up --config my.toml --listen 0.0.0.0:8421";

/// Options of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Configuration file.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address of the endpoint [default: 127.0.0.1:8421].
    #[arg(long, short, value_name = "ADDRESS", value_parser = berth_config::parse_listen)]
    pub(crate) listen: Option<SocketAddr>,
    /// Where the queue, logs and NATS keep their data [default: ~/.local/share/berth].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Use this NATS server (with JetStream) instead of one's own; may be given several times.
    #[arg(long, value_name = "URL")]
    pub(crate) nats_url: Vec<String>,
    /// Serve this GGUF file by llama.cpp's server (on PATH, else its Docker image); may be given several times.
    ///
    /// Without --config these are then all the models. A model is named after its file; its memory is taken to be
    /// 1.2 times the file's size plus 512 MiB, its context is 8192 tokens.
    #[arg(long, short, value_name = "FILE.gguf")]
    pub(crate) model: Vec<PathBuf>,
    /// Let everybody in without an API key, on every address that it listens on.
    #[arg(long)]
    pub(crate) open: bool,
}

/// Options of a single role.
#[derive(Debug, Args)]
pub(crate) struct RoleArgs {
    /// Configuration file [default: $BERTH_CONFIG, else ./berth.toml, else a built-in example].
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// NATS server; may be given several times [default: [bus] urls, nats://127.0.0.1:4222].
    #[arg(long, value_name = "URL")]
    pub(crate) nats_url: Vec<String>,
    /// Address to serve HTTP on: a gateway its endpoint (127.0.0.1:8421 by default); the others /metrics, /livez
    /// and /readyz (none by default).
    #[arg(long, short, value_name = "ADDRESS", value_parser = berth_config::parse_listen)]
    pub(crate) listen: Option<SocketAddr>,
    /// Where the agent keeps its notes and engine logs [default: ~/.local/share/berth].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Gateway: let everybody in without an API key, on every address that it listens on.
    #[arg(long)]
    pub(crate) open: bool,
    /// Agent: leave the containers that serve running when it ends, for the next agent of this host to adopt.
    #[arg(long)]
    pub(crate) keep_engines: bool,
}

/// Which fleet to ask.
#[derive(Debug, Args)]
pub(crate) struct FleetArgs {
    /// Configuration file, for its [bus] section.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// NATS server [default: that of a running `berth up`, else [bus] urls].
    #[arg(long, value_name = "URL")]
    pub(crate) nats_url: Vec<String>,
    /// Data directory of the `berth up` to ask.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Show it again whenever it changes, until Ctrl-C.
    #[arg(long, short)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
    /// One JSON object instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  berth status
  berth status --watch
  berth status --json | jq '.engines[] | {model, state}'
  berth top                 the same with the jobs, live";

const TOP_EXAMPLES: &str = "\
Ctrl-C ends it.

Examples:
  berth top
  berth top --nats-url nats://nats.example:4222";

/// Options of `top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
}

/// Options of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Configuration file [default: $BERTH_CONFIG, else ./berth.toml].
    pub(crate) file: Option<PathBuf>,
    /// The same as FILE, as the other commands write it.
    #[arg(long, short, value_name = "FILE", conflicts_with = "file")]
    pub(crate) config: Option<PathBuf>,
    /// Print the JSON Schema of such a file, for editors, and check nothing.
    #[arg(long, conflicts_with_all = ["file", "config"])]
    pub(crate) schema: bool,
}

/// Options of `sim-engine`. Durations are written 250ms, 2s.
#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// The model it says it serves.
    #[arg(long, default_value = "simulator")]
    pub(crate) id: String,
    /// Requests served at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) concurrency: u32,
    /// How long it loads before it is healthy.
    #[arg(long, default_value = "0s", value_parser = berth_config::parse_duration)]
    pub(crate) load: Duration,
    /// Time to the first token.
    #[arg(long, default_value = "20ms", value_parser = berth_config::parse_duration)]
    pub(crate) first_token: Duration,
    /// Time between tokens.
    #[arg(long, default_value = "5ms", value_parser = berth_config::parse_duration)]
    pub(crate) per_token: Duration,
    /// Tokens of an answer, where the request sets no lower limit.
    #[arg(long, default_value_t = 26)]
    pub(crate) tokens: u32,
    /// Say this on standard error and fail once the load is over.
    #[arg(long, value_name = "MESSAGE")]
    pub(crate) fail_start: Option<String>,
    /// End the process in the middle of an answer, after so many of its tokens.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) crash_after_tokens: Option<u32>,
    /// Stay when told to stop.
    #[arg(long)]
    pub(crate) ignore_sigterm: bool,
    /// Threads that serve HTTP.
    #[arg(long, default_value_t = 1)]
    pub(crate) workers: usize,
}
