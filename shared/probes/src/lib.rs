//! The listener that every service has beside its work: `/metrics`, `/livez` and `/readyz`, on a thread of its own, so
//! that it still answers when the service is stuck, and says so.
//!
//! What may enter: what is the same for every service. What may not: a service's own judgement of itself; it is passed in.

use std::net::SocketAddr;
use std::sync::Arc;

use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{self, Data};
use actix_web::{App, HttpResponse, HttpServer};
use berth_actors::Vitals;
use berth_telemetry::metric;
use serde::Serialize;
use serde_json::{Value, json};
use thiserror::Error;
use tracing::{info, warn};

/// One part that a service needs to be ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// Whether it is as it must be.
    pub ready: bool,
    /// In words.
    pub detail: String,
}

impl Component {
    /// A part with what to say of it when it is ready, and when it is not.
    pub fn new(name: &str, ready: bool, yes: impl Into<String>, no: impl Into<String>) -> Self {
        Self { name: name.into(), ready, detail: if ready { yes.into() } else { no.into() } }
    }
}

/// What a service answers from.
#[derive(Clone)]
pub struct Probes {
    service: &'static str,
    vitals: Vitals,
    ready: Arc<dyn Fn() -> Vec<Component> + Send + Sync>,
}

/// The listener cannot be had.
#[derive(Debug, Error)]
#[error("cannot listen on {address} for metrics; choose another with {setting}")]
pub struct ProbeError {
    address: SocketAddr,
    setting: &'static str,
    #[source]
    source: std::io::Error,
}

/// A listener that runs.
#[must_use = "it is to be stopped"]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    handle: actix_web::dev::ServerHandle,
    running: actix_rt::task::JoinHandle<std::io::Result<()>>,
}

impl Listener {
    /// Ends it.
    pub async fn stop(self) {
        self.handle.stop(true).await;
        if let Ok(Err(error)) = self.running.await {
            warn!(%error, "the listener for metrics failed");
        }
    }
}

impl Probes {
    /// Of a service; `ready` tells of its parts.
    pub fn new(
        service: &'static str,
        vitals: Vitals,
        ready: impl Fn() -> Vec<Component> + Send + Sync + 'static,
    ) -> Self {
        Self { service, vitals, ready: Arc::new(ready) }
    }

    /// Whether every actor makes progress, and what each says of itself.
    #[must_use]
    pub fn alive(&self) -> (bool, Value) {
        let actors = self.vitals.signs();
        let healthy = actors.iter().all(|actor| actor.healthy);
        let status = if healthy { "ok" } else { "stuck" };
        (healthy, json!({ "service": self.service, "status": status, "actors": actors }))
    }

    /// Whether it can do its work, part by part.
    #[must_use]
    pub fn ready(&self) -> (bool, Value) {
        let components = (self.ready)();
        let ready = components.iter().all(|component| component.ready);
        (ready, json!({ "service": self.service, "ready": ready, "components": components }))
    }

    /// All metrics of this process, those of its actors as of now.
    fn metrics(&self) -> Option<String> {
        for actor in self.vitals.signs() {
            let idle = f64::from(u32::try_from(actor.idle_ms).unwrap_or(u32::MAX)) / 1000.0;
            metrics::gauge!(metric::ACTOR_IDLE, "actor" => actor.name).set(idle);
        }
        metric::render()
    }

    /// Listens on `address`, if there is one; `setting` names where it was set.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn listen(
        self,
        address: Option<SocketAddr>,
        setting: &'static str,
    ) -> Result<Option<Listener>, ProbeError> {
        let Some(address) = address else { return Ok(None) };
        let service = self.service;
        let server = HttpServer::new(move || {
            App::new()
                .app_data(Data::new(self.clone()))
                .route("/livez", web::get().to(livez))
                .route("/healthz", web::get().to(livez))
                .route("/readyz", web::get().to(readyz))
                .route("/metrics", web::get().to(metrics))
        })
        .workers(1)
        .shutdown_timeout(1)
        .disable_signals()
        .bind(address)
        .map_err(|source| ProbeError { address, setting, source })?;
        let address = server.addrs().first().copied().unwrap_or(address);
        let server = server.run();
        let handle = server.handle();
        info!(%address, service, "metrics, /livez and /readyz are served");
        Ok(Some(Listener { address, handle, running: actix_rt::spawn(server) }))
    }
}

fn answer((good, body): (bool, Value)) -> HttpResponse {
    if good { HttpResponse::Ok().json(body) } else { HttpResponse::ServiceUnavailable().json(body) }
}

async fn livez(probes: Data<Probes>) -> HttpResponse {
    answer(probes.alive())
}

async fn readyz(probes: Data<Probes>) -> HttpResponse {
    answer(probes.ready())
}

async fn metrics(probes: Data<Probes>) -> HttpResponse {
    match probes.metrics() {
        Some(text) => HttpResponse::Ok()
            .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
            .body(text),
        None => HttpResponse::ServiceUnavailable().body("this process records no metrics\n"),
    }
}
