//! Tells others of alerts: a POST for each change, tried again with back-off, in order, never in the way of the watch.

use std::time::Duration;

use berth_actors::Backoff;
use berth_config::WebhookConfig;
use berth_telemetry::metric;
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::warn;

/// Changes that may wait for a webhook that does not answer.
const WAITING: usize = 256;
/// How often one is tried.
const TRIES: u32 = 8;
const ANSWER: Duration = Duration::from_secs(10);

/// Every webhook, each with a queue and a task of its own.
#[derive(Clone, Default)]
pub(crate) struct Webhooks(Vec<mpsc::Sender<Value>>);

impl Webhooks {
    pub(crate) fn start(configured: &[WebhookConfig]) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder().timeout(ANSWER).build()?;
        let start = |hook: &WebhookConfig| {
            let (send, receive) = mpsc::channel(WAITING);
            tokio::spawn(deliver(client.clone(), hook.clone(), receive));
            send
        };
        Ok(Self(configured.iter().map(start).collect()))
    }

    /// Queues a change for all of them.
    pub(crate) fn tell(&self, change: &Value) {
        for hook in &self.0 {
            if hook.try_send(change.clone()).is_err() {
                metrics::counter!(metric::WEBHOOKS_FAILED).increment(1);
            }
        }
    }
}

async fn deliver(client: reqwest::Client, hook: WebhookConfig, mut changes: mpsc::Receiver<Value>) {
    while let Some(change) = changes.recv().await {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        for tried in 1..=TRIES {
            let mut request = client.post(&hook.url).json(&change);
            if let Some(secret) = &hook.secret {
                request = request.bearer_auth(secret.expose());
            }
            // Its address may hold a secret, so neither it nor the client's error is written.
            let why = match request.send().await {
                Ok(answer) if answer.status().is_success() => break,
                Ok(answer) => answer.status().to_string(),
                Err(error) if error.is_timeout() => "no answer in time".to_owned(),
                Err(_) => "it cannot be reached".to_owned(),
            };
            if tried == TRIES {
                metrics::counter!(metric::WEBHOOKS_FAILED).increment(1);
                warn!(why, tries = TRIES, "a webhook did not take an alert");
            } else {
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}
