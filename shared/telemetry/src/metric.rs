//! Every metric name, its meaning and its buckets. OpenTelemetry's GenAI names where they exist.
//!
//! Source: OpenTelemetry semantic conventions for generative AI metrics
//! (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>).

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Seconds from request to last byte, as the client sees it. Labels: `model`, `route`, `status`.
pub const REQUEST_DURATION: &str = "gen_ai_client_operation_duration";
/// Seconds from request to the first byte of the answer. Labels: `model`.
pub const TIME_TO_FIRST_TOKEN: &str = "gen_ai_server_time_to_first_token";
/// Tokens by `type` (input, output) and `model`.
pub const TOKENS: &str = "gen_ai_client_token_usage";
/// Seconds a job waited for a slot. Labels: `model`.
pub const QUEUE_SECONDS: &str = "berth_queue_seconds";
/// Jobs that wait now.
pub const QUEUED: &str = "berth_jobs_queued";
/// Jobs that run now.
pub const RUNNING: &str = "berth_jobs_running";
/// Jobs ended, by `outcome`.
pub const JOBS_ENDED: &str = "berth_jobs_ended_total";
/// Seconds an engine took from the start command to ready. Labels: `model`.
pub const ENGINE_START_SECONDS: &str = "berth_engine_start_seconds";
/// Engines ordered to stop: to make room, idle, or out of the catalog.
pub const ENGINE_STOPS: &str = "berth_engine_stops_total";
/// Engines that failed, by `model`.
pub const ENGINE_FAILURES: &str = "berth_engine_failures_total";
/// Microseconds-scale seconds of one decision of the core.
pub const DECISION_SECONDS: &str = "berth_decision_seconds";
/// Messages NATS dropped because a subscription was not read fast enough.
pub const BUS_SLOW_CONSUMER: &str = "berth_bus_slow_consumer_total";
/// Errors that the NATS server told us of (permission violations among them).
pub const BUS_SERVER_ERRORS: &str = "berth_bus_server_errors_total";
/// Times the connection to NATS was lost.
pub const BUS_DISCONNECTS: &str = "berth_bus_disconnects_total";
/// Payloads that could not be read, by `schema`.
pub const BUS_BAD_MESSAGES: &str = "berth_bus_bad_messages_total";
/// Restarts of an actor by its supervisor, by `actor`.
pub const ACTOR_RESTARTS: &str = "berth_actor_restarts_total";
/// Clients that left before their answer was complete, by `stage`.
pub const CLIENTS_GONE: &str = "berth_clients_gone_total";
/// Requests let in, by `key` (its name; known keys only).
pub const KEY_REQUESTS: &str = "berth_key_requests_total";
/// Tokens by `key` and `type` (input, output).
pub const KEY_TOKENS: &str = "berth_key_tokens_total";
/// Requests that a key did not allow, by `key` and `limit` (concurrency, requests_per_minute, tokens_per_minute,
/// model, scope).
pub const KEY_REFUSED: &str = "berth_key_refused_total";
/// Requests without a valid key where one is asked for, by `reason` (missing, invalid, expired).
pub const AUTH_FAILURES: &str = "berth_auth_failures_total";
/// Requests that took a waiting or finished job over: retries, and repeats under one `Idempotency-Key`.
pub const REATTACHED: &str = "berth_requests_reattached_total";
/// Offers of the express lane, by `outcome`: every one counts as `offered`, and then as `taken`, `busy` (no slot, or
/// somebody waits), `refused` (the engine or its host is going or gone), `lost` or `failed` before it began.
pub const LANE_OFFERS: &str = "berth_lane_offers_total";
/// Bytes an accelerator has, by `host` and `accelerator`.
pub const ACCELERATOR_MEMORY: &str = "berth_accelerator_memory_bytes";
/// Bytes set aside for engines, by `host` and `accelerator`.
pub const ACCELERATOR_RESERVED: &str = "berth_accelerator_reserved_bytes";

/// Cold loads take minutes, so the buckets reach 900 s.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0,
    320.0, 600.0, 900.0,
];
const MICROS: &[f64] = &[0.000_001, 0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.01];

/// Installs this process's recorder; render it with the handle.
///
/// # Errors
/// When a recorder is already installed.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets(SECONDS)?
        .set_buckets_for_metric(Matcher::Full(DECISION_SECONDS.into()), MICROS)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    describe_histogram!(REQUEST_DURATION, Unit::Seconds, "request to last byte");
    describe_histogram!(TIME_TO_FIRST_TOKEN, Unit::Seconds, "request to first byte of the answer");
    describe_counter!(TOKENS, "tokens by model and type");
    describe_histogram!(QUEUE_SECONDS, Unit::Seconds, "wait for a slot");
    describe_gauge!(QUEUED, "jobs that wait");
    describe_gauge!(RUNNING, "jobs that run");
    describe_counter!(JOBS_ENDED, "jobs ended, by outcome");
    describe_histogram!(ENGINE_START_SECONDS, Unit::Seconds, "engine start command to ready");
    describe_counter!(ENGINE_STOPS, "engines ordered to stop");
    describe_counter!(ENGINE_FAILURES, "engines that failed");
    describe_histogram!(DECISION_SECONDS, Unit::Seconds, "time of one scheduling decision");
    describe_counter!(BUS_SLOW_CONSUMER, "subscriptions that dropped messages");
    describe_counter!(BUS_SERVER_ERRORS, "errors told by the NATS server");
    describe_counter!(BUS_DISCONNECTS, "lost connections to NATS");
    describe_counter!(BUS_BAD_MESSAGES, "payloads that could not be read");
    describe_counter!(ACTOR_RESTARTS, "actors restarted");
    describe_counter!(CLIENTS_GONE, "clients that left early");
    describe_counter!(KEY_REQUESTS, "requests let in by API key");
    describe_counter!(KEY_TOKENS, "tokens by API key and type");
    describe_counter!(KEY_REFUSED, "requests that an API key did not allow");
    describe_counter!(AUTH_FAILURES, "requests without a valid API key");
    describe_counter!(REATTACHED, "requests that took a job over");
    describe_counter!(LANE_OFFERS, "offers of the express lane, by outcome");
    describe_gauge!(ACCELERATOR_MEMORY, Unit::Bytes, "memory engines may use");
    describe_gauge!(ACCELERATOR_RESERVED, Unit::Bytes, "memory set aside for engines");
}
