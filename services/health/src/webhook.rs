//! Tells others of alerts: a POST for each change, tried again with back-off, in order, never in the way of the watch.

use std::time::Duration;

use berth_actors::Backoff;
use berth_config::WebhookConfig;
use berth_telemetry::post::{PostError, Poster};
use berth_telemetry::{Chain, metric};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request};
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
    pub(crate) fn start(configured: &[WebhookConfig]) -> Result<Self, PostError> {
        let start = |hook: &WebhookConfig| {
            let (send, receive) = mpsc::channel(WAITING);
            tokio::spawn(deliver(Poster::new(hook.ca.as_deref())?, hook.clone(), receive));
            Ok::<_, PostError>(send)
        };
        Ok(Self(configured.iter().map(start).collect::<Result<_, _>>()?))
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

/// A change as it is posted.
fn request(hook: &WebhookConfig, change: &Value) -> Result<Request<Bytes>, http::Error> {
    let mut request = Request::post(&hook.url).header(CONTENT_TYPE, "application/json");
    if let Some(secret) = &hook.secret {
        let mut token = HeaderValue::try_from(format!("Bearer {}", secret.expose()))?;
        token.set_sensitive(true);
        request = request.header(AUTHORIZATION, token);
    }
    request.body(Bytes::from(change.to_string()))
}

async fn deliver(poster: Poster, hook: WebhookConfig, mut changes: mpsc::Receiver<Value>) {
    while let Some(change) = changes.recv().await {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        for tried in 1..=TRIES {
            // Its address may hold a secret, and is not written.
            let why = match request(&hook, &change) {
                Ok(request) => match poster.send(request, ANSWER).await {
                    Ok(answer) if answer.status().is_success() => break,
                    Ok(answer) => answer.status().to_string(),
                    Err(error) => Chain(&error).to_string(),
                },
                Err(_) => "its address or its secret cannot be written into a request".to_owned(),
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
