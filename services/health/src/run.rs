//! The service: connect, watch, answer, end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_actors::{Vitals, supervise};
use berth_bus::{Bus, BusError, BusOptions, register};
use berth_config::Config;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::http::{Desk, serve};
use crate::watcher::{Report, Views, Watcher};

/// Renders this process's metrics as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Why health does not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HealthError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; choose another with [health] listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
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
    metrics: Option<RenderMetrics>,
) -> Result<(), HealthError> {
    let bus = Bus::connect(&options, "berth-health").await?;
    let vitals = Vitals::default();
    let views = Views::follow(&bus);
    let report = Report::default();
    let desk = Desk {
        bus: bus.clone(),
        vitals: vitals.clone(),
        views: views.clone(),
        report: Arc::clone(&report),
        metrics,
    };
    let server = match config.health.listen {
        Some(address) => {
            let (address, server) = serve(address, desk.clone())?;
            info!(%address, "health is served");
            let handle = server.handle();
            Some((handle, actix_rt::spawn(server)))
        }
        None => None,
    };
    let watcher = supervise(&vitals, "watcher", 64, {
        let (bus, views, report) = (bus.clone(), views, Arc::clone(&report));
        let host_timeout = config.scheduler.host_timeout;
        move |life| Watcher::new(life, bus.clone(), views.clone(), host_timeout, Arc::clone(&report))
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
        move || desk.report(),
    )
    .await?;

    shutdown.cancelled().await;
    drop(registered);
    if let Some((handle, running)) = server {
        handle.stop(true).await;
        if let Ok(Err(error)) = running.await {
            warn!(%error, "the health server failed");
        }
    }
    watcher.drain(Duration::from_secs(5)).await;
    bus.close().await;
    info!("health ended");
    Ok(())
}
