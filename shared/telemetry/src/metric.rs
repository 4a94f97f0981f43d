//! Every metric's name, meaning, labels and buckets; `docs/metrics.md` is made from this table. OpenTelemetry's GenAI
//! names and attributes where they exist, in the form that Prometheus gives them.
//!
//! Source: OpenTelemetry semantic conventions for generative AI metrics
//! (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>).

use std::sync::OnceLock;

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often a value was how large.
    Histogram(Buckets),
}

impl Kind {
    /// The word of Prometheus for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// Upper bounds of a histogram's buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buckets {
    /// Of requests, waits and loads: a cold load takes minutes.
    Seconds,
    /// Of the time for one output token.
    TokenSeconds,
    /// Of decisions of the core.
    DecisionSeconds,
    /// Of tokens of a request.
    Tokens,
}

impl Buckets {
    /// The bounds.
    #[must_use]
    pub fn bounds(self) -> &'static [f64] {
        match self {
            Self::Seconds => &[
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0,
                80.0, 160.0, 320.0, 600.0, 900.0,
            ],
            Self::TokenSeconds => {
                &[0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
            }
            Self::DecisionSeconds => {
                &[0.000_001, 0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.01]
            }
            Self::Tokens => &[
                1.0,
                4.0,
                16.0,
                64.0,
                256.0,
                1024.0,
                4096.0,
                16384.0,
                65536.0,
                262_144.0,
                1_048_576.0,
                4_194_304.0,
                16_777_216.0,
                67_108_864.0,
            ],
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name in Prometheus.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// Its labels. None is unbounded: models are those of the catalog, keys those that are known, hosts and
    /// accelerators those there are.
    pub labels: &'static [&'static str],
    /// The services that record it.
    pub by: &'static str,
    /// What it means.
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($($(#[doc = $help:literal])+ $constant:ident = $name:literal, $kind:expr, [$($label:literal),*], $by:literal;)+) => {
        $($(#[doc = $help])+ pub const $constant: &str = $name;)+

        /// Every metric there is.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $name,
            kind: $kind,
            labels: &[$($label),*],
            by: $by,
            help: concat!($($help),+),
        }),+];
    };
}

const SECONDS: Kind = Kind::Histogram(Buckets::Seconds);

metrics_table! {
    /// Seconds from request to last byte, as its client sees it; `status` is `gone` if the client left before it had one.
    REQUEST_DURATION = "gen_ai_server_request_duration_seconds", SECONDS,
        ["gen_ai_request_model", "gen_ai_operation_name", "status"], "gateway";
    /// Seconds from request to the first byte of the answer, waiting and loading included.
    TIME_TO_FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds", SECONDS, ["gen_ai_request_model"], "gateway";
    /// Seconds for each output token after the first.
    TIME_PER_OUTPUT_TOKEN = "gen_ai_server_time_per_output_token_seconds", Kind::Histogram(Buckets::TokenSeconds),
        ["gen_ai_request_model"], "gateway";
    /// Tokens of a request, as its engine told them; type is `input` or `output`.
    TOKENS = "gen_ai_client_token_usage", Kind::Histogram(Buckets::Tokens),
        ["gen_ai_request_model", "gen_ai_token_type"], "gateway";
    /// Seconds from request until an engine began to serve it; none by the express lane.
    QUEUE_SECONDS = "berth_queue_seconds", SECONDS, ["model"], "gateway";
    /// The part of it in which an engine was loaded; only of requests that waited for one.
    LOAD_SECONDS = "berth_load_seconds", SECONDS, ["model"], "gateway";
    /// Bytes of answers, as engines gave them.
    OUTPUT_BYTES = "berth_output_bytes_total", Kind::Counter, ["model"], "gateway";
    /// Answers of the HTTP endpoint, by status; those that never became a job too.
    HTTP_RESPONSES = "berth_http_responses_total", Kind::Counter, ["status"], "gateway";
    /// Requests that name no model of the catalog; the names are not kept.
    UNKNOWN_MODELS = "berth_unknown_model_requests_total", Kind::Counter, [], "gateway";
    /// Clients that left before their answer was complete, by the stage it was in.
    CLIENTS_GONE = "berth_clients_gone_total", Kind::Counter, ["stage"], "gateway";
    /// Requests that took a waiting or finished job over: retries, and repeats under one `Idempotency-Key`.
    REATTACHED = "berth_requests_reattached_total", Kind::Counter, [], "gateway";
    /// Offers of the express lane: every one counts as `offered`, and then as `taken`, `busy` (no slot, or somebody
    /// waits), `refused` (the engine or its host is going or gone), `lost` or `failed` before it began.
    LANE_OFFERS = "berth_lane_offers_total", Kind::Counter, ["outcome"], "gateway";
    /// Requests let in, by the name of their API key.
    KEY_REQUESTS = "berth_key_requests_total", Kind::Counter, ["key"], "gateway";
    /// Tokens, by the name of their API key; type is `input` or `output`.
    KEY_TOKENS = "berth_key_tokens_total", Kind::Counter, ["key", "type"], "gateway";
    /// Requests that a key did not allow, by what limits it: `concurrency`, `requests_per_minute`,
    /// `tokens_per_minute`, `model`, `scope`.
    KEY_REFUSED = "berth_key_refused_total", Kind::Counter, ["key", "limit"], "gateway";
    /// Requests without a valid key where one is asked for: `missing`, `invalid` or `expired`.
    AUTH_FAILURES = "berth_auth_failures_total", Kind::Counter, ["reason"], "gateway";

    /// Whether this scheduler leads.
    LEADS = "berth_scheduler_leads", Kind::Gauge, [], "scheduler";
    /// Jobs that wait for a slot.
    QUEUED = "berth_jobs_queued", Kind::Gauge, ["model"], "scheduler";
    /// How long the one of them that came first has waited.
    OLDEST_WAIT = "berth_oldest_wait_seconds", Kind::Gauge, ["model"], "scheduler";
    /// Jobs that run.
    RUNNING = "berth_jobs_running", Kind::Gauge, [], "scheduler";
    /// Jobs that ended: `completed`, `failed` or `cancelled`.
    JOBS_ENDED = "berth_jobs_ended_total", Kind::Counter, ["outcome"], "scheduler";
    /// Jobs sent to an engine of theirs.
    DISPATCHES = "berth_dispatches_total", Kind::Counter, [], "scheduler";
    /// Attempts that were lost before any output; each is tried again, or fails its job.
    ATTEMPTS_LOST = "berth_attempts_lost_total", Kind::Counter, [], "scheduler";
    /// Leases that sessions hold.
    LEASES = "berth_leases", Kind::Gauge, ["model"], "scheduler";
    /// Leases that were refused.
    LEASES_REFUSED = "berth_leases_refused_total", Kind::Counter, [], "scheduler";
    /// Engines ordered to `start`, `wake`, `sleep` or `stop`.
    ENGINE_ORDERS = "berth_engine_orders_total", Kind::Counter, ["order"], "scheduler";
    /// Seconds that engines took from the start command to ready.
    ENGINE_START_SECONDS = "berth_engine_start_seconds", SECONDS, ["model"], "scheduler";
    /// Seconds of one decision of the core; its count is the number of decisions.
    DECISION_SECONDS = "berth_decision_seconds", Kind::Histogram(Buckets::DecisionSeconds), [], "scheduler";

    /// Engines that failed.
    ENGINE_FAILURES = "berth_engine_failures_total", Kind::Counter, ["model"], "agent";

    /// Hosts that report.
    HOSTS = "berth_hosts", Kind::Gauge, [], "health";
    /// Engines, by state.
    ENGINES = "berth_engines", Kind::Gauge, ["model", "state"], "health";
    /// Requests that a model's ready engines can run at once.
    SLOTS = "berth_slots", Kind::Gauge, ["model"], "health";
    /// Slots in use.
    SLOTS_USED = "berth_slots_used", Kind::Gauge, ["model"], "health";
    /// Ready engines that take requests by the express lane.
    LANES = "berth_lanes_open", Kind::Gauge, ["model"], "health";
    /// Bytes that engines may use of an accelerator.
    ACCELERATOR_MEMORY = "berth_accelerator_memory_bytes", Kind::Gauge, ["host", "accelerator"], "health";
    /// Bytes of it that are set aside for engines.
    ACCELERATOR_RESERVED = "berth_accelerator_reserved_bytes", Kind::Gauge, ["host", "accelerator"], "health";
    /// Bytes of it that engines were measured to hold; absent where it cannot be measured.
    ACCELERATOR_HELD = "berth_accelerator_held_bytes", Kind::Gauge, ["host", "accelerator"], "health";
    /// Bytes of it that something else holds; absent where it cannot be measured.
    ACCELERATOR_UNEXPLAINED = "berth_accelerator_unexplained_bytes", Kind::Gauge, ["host", "accelerator"], "health";
    /// Free bytes of the disk that a host's agent keeps its state on.
    DISK_FREE = "berth_disk_free_bytes", Kind::Gauge, ["host"], "health";
    /// Share of its limit that a JetStream stream has in use, 0 to 1, where a full one refuses what is new.
    JETSTREAM_USED = "berth_jetstream_used_ratio", Kind::Gauge, ["stream"], "health";
    /// Alerts that are raised now, by kind.
    ALERTS = "berth_alerts", Kind::Gauge, ["alert"], "health";
    /// Alerts that no webhook took, after all tries.
    WEBHOOKS_FAILED = "berth_webhooks_failed_total", Kind::Counter, [], "health";

    /// Subscriptions that NATS dropped messages of because they were not read fast enough.
    BUS_SLOW_CONSUMER = "berth_bus_slow_consumer_total", Kind::Counter, [], "all";
    /// Errors that the NATS server told of, permission violations among them.
    BUS_SERVER_ERRORS = "berth_bus_server_errors_total", Kind::Counter, [], "all";
    /// Connections made to NATS; more than there are connections: it was lost and made again.
    BUS_CONNECTS = "berth_bus_connects_total", Kind::Counter, [], "all";
    /// Connections to NATS that were lost.
    BUS_DISCONNECTS = "berth_bus_disconnects_total", Kind::Counter, [], "all";
    /// Messages that could not be read.
    BUS_BAD_MESSAGES = "berth_bus_bad_messages_total", Kind::Counter, ["schema"], "all";
    /// Restarts of an actor by its supervisor.
    ACTOR_RESTARTS = "berth_actor_restarts_total", Kind::Counter, ["actor"], "all";
    /// Seconds since an actor last came to its heartbeat, which it does every second once its mailbox leaves it the
    /// time; 10 is stuck.
    ACTOR_IDLE = "berth_actor_idle_seconds", Kind::Gauge, ["actor"], "all";
    /// Spans of traces, by what became of them: `sent`, `dropped` because too many waited, or `failed` because the
    /// collector did not take them.
    SPANS = "berth_trace_spans_total", Kind::Counter, ["outcome"], "gateway, scheduler, agent";
}

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Installs this process's recorder; [`render`] writes what it holds from then on.
///
/// # Errors
/// When a recorder is already installed.
pub fn install() -> Result<(), BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets.bounds())?;
        }
    }
    let handle = builder.install_recorder()?;
    describe();
    // What is counted without labels is there from the start, at 0: a rate of what is absent is nothing.
    for metric in ALL.iter().filter(|metric| metric.labels.is_empty() && metric.kind == Kind::Counter) {
        metrics::counter!(metric.name).absolute(0);
    }
    let _ = RECORDER.set(handle);
    Ok(())
}

/// All metrics of this process as Prometheus text; `None`: it records none.
#[must_use]
pub fn render() -> Option<String> {
    RECORDER.get().map(PrometheusHandle::render)
}

/// To be called every few seconds: else histograms that nobody scrapes would grow.
pub fn upkeep() {
    if let Some(handle) = RECORDER.get() {
        handle.run_upkeep();
    }
}

fn describe() {
    for metric in ALL {
        let help = metric.help.trim();
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, help),
            Kind::Gauge => describe_gauge!(metric.name, help),
            Kind::Histogram(_) => describe_histogram!(metric.name, help),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_end_in_what_they_count() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        }
    }

    #[test]
    fn no_label_is_unbounded() {
        let unbounded = ["job", "session", "key_id", "request", "engine", "url", "path", "user"];
        for metric in ALL {
            assert!(metric.labels.iter().all(|label| !unbounded.contains(label)), "{}", metric.name);
        }
    }

    #[test]
    fn buckets_of_waits_reach_a_cold_load() {
        assert_eq!(Buckets::Seconds.bounds().last(), Some(&900.0));
        for buckets in [Buckets::Seconds, Buckets::TokenSeconds, Buckets::DecisionSeconds, Buckets::Tokens] {
            assert!(buckets.bounds().is_sorted());
        }
    }
}
