//! Registration with the NATS service API, so that `nats micro ls`, `info` and `stats` show every service.

use std::collections::HashMap;
use std::sync::Arc;

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

/// What a service's metadata calls the machine, or the container, that it runs on.
pub const MACHINE: &str = "machine";

/// What the server denies belongs to how a service is.
fn with_denials(mut status: serde_json::Value, bus: &Bus) -> serde_json::Value {
    let denied = bus.denied();
    if let (false, Some(fields)) = (denied.is_empty(), status.as_object_mut()) {
        fields.insert("healthy".into(), false.into());
        fields.insert("denied".into(), serde_json::json!(denied));
    }
    status
}

/// Registers `name` with a `status` endpoint on `subject` that answers what `status` returns, as JSON, and
/// so does `nats micro stats`.
///
/// # Errors
/// When the connection is closed for good.
pub async fn register<F>(
    bus: &Bus,
    name: &str,
    description: &str,
    subject: String,
    mut metadata: HashMap<String, String>,
    status: F,
) -> Result<Registered, BusError>
where
    F: Fn() -> serde_json::Value + Send + Sync + 'static,
{
    metadata.entry("role".into()).or_insert_with(|| name.trim_start_matches("berth-").to_owned());
    metadata.entry("host".into()).or_insert_with(|| berth_config::env::host_name().to_string());
    let status = {
        let bus = bus.clone();
        Arc::new(move || with_denials(status(), &bus))
    };
    let stats = Arc::clone(&status);
    let failed = |e: async_nats::Error| BusError::nats(format!("register the service {name}"), e);
    metadata.insert(MACHINE.to_owned(), berth_config::env::machine());
    let service = bus
        .client
        .service_builder()
        .description(description)
        .metadata(metadata)
        .stats_handler(move |_, _| stats())
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
