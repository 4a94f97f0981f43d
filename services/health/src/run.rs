//! The service: connect, watch, answer, end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_actors::{Vitals, supervise};
use berth_bus::{Bus, BusError, BusOptions, register};
use berth_config::Config;
use berth_probes::{Component, ProbeError, Probes};
use berth_telemetry::post::PostError;
use serde_json::json;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::watcher::{Report, Views, Watcher};
use crate::webhook::Webhooks;

/// Why health does not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HealthError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ProbeError),
    /// The client that tells webhooks.
    #[error("cannot tell a webhook of alerts")]
    Http(#[from] PostError),
    /// NATS.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Watches the fleet on this thread's actix system until `shutdown`.
///
/// # Errors
/// When NATS cannot be reached, or `[health] listen` cannot be had.
pub async fn run(
    config: Arc<Config>,
    options: BusOptions,
    shutdown: CancellationToken,
) -> Result<(), HealthError> {
    let bus = Bus::connect(&options, "berth-health").await?;
    let vitals = Vitals::default();
    let views = Views::follow(&bus);
    let report = Report::default();
    let probes = {
        let (bus, views, report) = (bus.clone(), views.clone(), Arc::clone(&report));
        Probes::new("health", vitals.clone(), move || components(&bus, &views, &report))
    };
    let listener = probes.clone().listen(config.health.listen, "[health] listen")?;
    let webhooks = Webhooks::start(&config.health.webhooks)?;
    let watcher = supervise(&vitals, "watcher", 64, {
        let (bus, report) = (bus.clone(), Arc::clone(&report));
        move |life| {
            Watcher::new(
                life,
                bus.clone(),
                views.clone(),
                config.scheduler.host_timeout,
                &config.health,
                webhooks.clone(),
                Arc::clone(&report),
            )
        }
    });
    // The connection's inbox prefix is unique and a subject token at its end.
    let id = bus.client.new_inbox().rsplit('.').next().unwrap_or("health").to_string();
    let subject = format!("{}.status.health.{id}", bus.subjects.root());
    let registered = register(
        &bus,
        "berth-health",
        "watches the fleet",
        subject,
        HashMap::from([("instance".to_owned(), id)]),
        move || {
            let (ready, parts) = probes.ready();
            let found = report.read().map(|found| found.report.clone()).unwrap_or_default();
            json!({
                "service": "health",
                "version": env!("CARGO_PKG_VERSION"),
                "ready": ready,
                "components": parts.get("components"),
                "found": found,
                "actors": vitals.signs(),
            })
        },
    )
    .await?;

    shutdown.cancelled().await;
    drop(registered);
    if let Some(listener) = listener {
        listener.stop().await;
    }
    watcher.drain(Duration::from_secs(5)).await;
    bus.close().await;
    info!("health ended");
    Ok(())
}

/// What the fleet needs to serve, part by part.
fn components(bus: &Bus, views: &Views, report: &Report) -> Vec<Component> {
    let leader = views.leader.entries().values().next().map(|record| record.instance.clone());
    let hosts = views.hosts.entries().values().filter(|beat| !beat.draining).count();
    let gateways = report
        .read()
        .ok()
        .and_then(|found| found.services.get("berth-gateway").map(Vec::len))
        .unwrap_or_default();
    vec![
        Component::new("bus", bus.is_connected(), "connected", "not connected to NATS"),
        Component::new(
            "permissions",
            bus.denied().is_empty(),
            "nothing is denied",
            "NATS denies something that health needs; its log and `nats micro stats berth-health` name it",
        ),
        Component::new("scheduler", leader.is_some(), leader.unwrap_or_default(), "no scheduler leads"),
        Component::new("gateways", gateways > 0, gateways.to_string(), "no gateway answers"),
        Component::new("hosts", hosts > 0, hosts.to_string(), "no host takes jobs"),
    ]
}
