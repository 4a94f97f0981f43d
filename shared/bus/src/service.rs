//! Registration with the NATS service API, so that `nats micro ls`, `info` and `stats` show every service.

use std::collections::HashMap;

use async_nats::service::{Service, ServiceExt};
use futures::StreamExt;
use tracing::debug;

use crate::connect::{Bus, slow_consumers};
use crate::error::BusError;

/// Keeps a service registered while it lives.
pub struct Registered {
    _service: Service,
    answers: tokio::task::JoinHandle<()>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

/// Registers `name` with a `status` endpoint on `subject` that answers what `status` returns, as JSON.
///
/// # Errors
/// When the connection is closed for good.
pub async fn register<F>(
    bus: &Bus,
    name: &str,
    description: &str,
    subject: String,
    metadata: HashMap<String, String>,
    status: F,
) -> Result<Registered, BusError>
where
    F: Fn() -> serde_json::Value + Send + Sync + 'static,
{
    let failed = |e: async_nats::Error| BusError::nats(format!("register the service {name}"), e);
    let service = bus
        .client
        .service_builder()
        .description(description)
        .metadata(metadata)
        .start(name, env!("CARGO_PKG_VERSION"))
        .await
        .map_err(failed)?;
    // No queue group: every instance answers, and callers that want one take the first answer.
    let mut endpoint = service
        .endpoint_builder()
        .name("status")
        .queue_group(uuid::Uuid::now_v7().simple().to_string())
        .add(subject)
        .await
        .map_err(failed)?;
    let answers = tokio::spawn(async move {
        while let Some(request) = endpoint.next().await {
            let mut report = status();
            if let Some(report) = report.as_object_mut() {
                report.insert("slow_consumers".into(), slow_consumers().into());
            }
            let body = serde_json::to_vec(&report).unwrap_or_default();
            if let Err(error) = request.respond(Ok(body.into())).await {
                debug!(%error, "could not answer a status request");
            }
        }
    });
    Ok(Registered { _service: service, answers })
}
