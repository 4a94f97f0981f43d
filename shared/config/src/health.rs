//! `[health]`: where the watcher of the fleet listens, when it raises an alert, and whom it tells.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::problem::Findings;
use crate::resolve::{authority, listener, secret_file};
use crate::schema;
use crate::secret::Secret;
use crate::spanned::Spanned;
use crate::telemetry::web_address;
use crate::value::{Size, Span};

/// `[health]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthConfig {
    /// Address to serve metrics, `/livez` and `/readyz` on; `None`: not served.
    pub listen: Option<SocketAddr>,
    /// When an alert is raised.
    pub alerts: AlertConfig,
    /// Who is told of alerts.
    pub webhooks: Vec<WebhookConfig>,
}

/// `[health.alerts]`: thresholds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertConfig {
    /// Failures of a model's engines within `failure_window`.
    pub engine_failures: u32,
    /// How far back failures and dropped messages count.
    pub failure_window: Duration,
    /// How long the oldest job of a model may wait.
    pub queue_wait: Duration,
    /// Bytes of an accelerator that nobody knows of.
    pub memory_unexplained: u64,
    /// Percent of its limits that a stream or bucket which refuses what is new may hold.
    pub jetstream_percent: u8,
    /// Bytes that must be free where an agent keeps its state.
    pub disk_free: u64,
    /// How long a value must be bad before its alert is raised, and good before it is resolved.
    pub hold: Duration,
}

impl Default for AlertConfig {
    fn default() -> Self {
        Self {
            engine_failures: 3,
            failure_window: Duration::from_secs(600),
            queue_wait: Duration::from_secs(600),
            memory_unexplained: 1 << 30,
            jetstream_percent: 80,
            disk_free: 5 << 30,
            hold: Duration::from_secs(15),
        }
    }
}

/// `[[health.webhooks]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Where alerts are posted.
    pub url: String,
    /// Sent with them, as a bearer token.
    pub secret: Option<Secret>,
    /// Certificate of the authority that it is checked against; `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
}

/// The watcher of the fleet ([health.md](health.md)).
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHealth {
    /// Where it serves `/metrics`, `/livez` and `/readyz`, without a key.
    #[schemars(extend("x-default" = "nowhere"))]
    listen: Option<Spanned<String>>,
    alerts: RawAlerts,
    webhooks: Vec<RawWebhook>,
}

/// When an alert is raised, as an event `berth.v1.evt.alert.*` and to the webhooks.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct RawAlerts {
    /// So many failures of a model's engines within `failure_window`.
    #[schemars(range(min = 1), extend("default" = AlertConfig::default().engine_failures))]
    engine_failures: Option<Spanned<u32>>,
    /// How far back failures, and messages that NATS dropped, count.
    #[schemars(extend("default" = schema::span(AlertConfig::default().failure_window)))]
    failure_window: Option<Span>,
    /// How long the oldest request of a model may wait.
    #[schemars(extend("default" = schema::span(AlertConfig::default().queue_wait)))]
    queue_wait: Option<Span>,
    /// How much of a GPU may be held by what nobody knows.
    #[schemars(extend("default" = schema::size(AlertConfig::default().memory_unexplained)))]
    memory_unexplained: Option<Size>,
    /// How full, in percent, a stream or bucket may be that refuses what is new.
    #[schemars(range(min = 1, max = 100), extend("default" = AlertConfig::default().jetstream_percent))]
    jetstream_percent: Option<Spanned<u8>>,
    /// How much disk must be free where an agent keeps its state.
    #[schemars(extend("default" = schema::size(AlertConfig::default().disk_free)))]
    disk_free: Option<Size>,
    /// How long it must be so before an alert is raised, and be better before it is resolved.
    #[schemars(extend("default" = schema::span(AlertConfig::default().hold)))]
    hold: Option<Span>,
}

/// Who is told of alerts, by a POST of JSON.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawWebhook {
    /// Where it goes: `http://` or `https://`.
    url: Spanned<String>,
    /// File that holds what is sent along as a bearer token.
    secret_file: Option<Spanned<PathBuf>>,
    /// The certificate that an https server's is checked against, instead of those that the system trusts.
    ca: Option<Spanned<PathBuf>>,
}

pub(crate) fn resolve(raw: &RawHealth, base: &Path, findings: &mut Findings<'_>) -> HealthConfig {
    HealthConfig {
        listen: listener(raw.listen.as_ref(), findings),
        alerts: alerts(&raw.alerts, findings),
        webhooks: raw.webhooks.iter().map(|raw| webhook(raw, base, findings)).collect(),
    }
}

fn alerts(raw: &RawAlerts, findings: &mut Findings<'_>) -> AlertConfig {
    let default = AlertConfig::default();
    if let Some(failures) = raw.engine_failures.as_ref().filter(|failures| *failures.get_ref() == 0) {
        findings.add(failures.span(), "engine_failures must be at least 1", "the default is 3");
    }
    if let Some(percent) =
        raw.jetstream_percent.as_ref().filter(|percent| !(1..=100).contains(percent.get_ref()))
    {
        findings.add(percent.span(), "jetstream_percent is 1 to 100", "the default is 80");
    }
    AlertConfig {
        engine_failures: raw
            .engine_failures
            .as_ref()
            .map_or(default.engine_failures, |count| *count.get_ref()),
        failure_window: raw.failure_window.map_or(default.failure_window, |span| span.0),
        queue_wait: raw.queue_wait.map_or(default.queue_wait, |span| span.0),
        memory_unexplained: raw.memory_unexplained.as_ref().map_or(default.memory_unexplained, |size| size.0),
        jetstream_percent: raw
            .jetstream_percent
            .as_ref()
            .map_or(default.jetstream_percent, |percent| *percent.get_ref()),
        disk_free: raw.disk_free.as_ref().map_or(default.disk_free, |size| size.0),
        hold: raw.hold.map_or(default.hold, |span| span.0),
    }
}

fn webhook(raw: &RawWebhook, base: &Path, findings: &mut Findings<'_>) -> WebhookConfig {
    let url = raw.url.get_ref().trim();
    if let Some(why) = web_address(url) {
        // It may hold a secret, so it is not quoted.
        let help =
            "write it as in url = \"https://alerts.example.com/berth\", and what lets in into secret_file";
        findings.add_hidden(raw.url.span(), why, help);
    }
    WebhookConfig {
        url: url.to_owned(),
        secret: secret_file(raw.secret_file.as_ref(), base, findings),
        ca: raw.ca.as_ref().map(|path| authority(path, base, findings)),
    }
}
