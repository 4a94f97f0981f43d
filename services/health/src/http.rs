//! `/healthz`, `/readyz` and `/metrics`, where `[health] listen` asks for them.

use std::net::SocketAddr;

use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{self, Data};
use actix_web::{App, HttpResponse, HttpServer};
use berth_actors::Vitals;
use berth_bus::Bus;
use serde_json::json;

use crate::run::{HealthError, RenderMetrics};
use crate::watcher::{Report, Views};

/// What the routes answer from.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) bus: Bus,
    pub(crate) vitals: Vitals,
    pub(crate) views: Views,
    pub(crate) report: Report,
    pub(crate) metrics: Option<RenderMetrics>,
}

impl Desk {
    pub(crate) fn ready(&self) -> bool {
        !self.views.leader.entries().is_empty() && !self.views.hosts.entries().is_empty()
    }

    pub(crate) fn report(&self) -> serde_json::Value {
        let found = self.report.read().map(|report| report.clone()).unwrap_or_default();
        json!({
            "service": "health",
            "version": env!("CARGO_PKG_VERSION"),
            "ready": self.ready(),
            "found": found,
            "actors": self.vitals.signs(),
        })
    }
}

/// Binds and returns the running server.
pub(crate) fn serve(
    address: SocketAddr,
    desk: Desk,
) -> Result<(SocketAddr, actix_web::dev::Server), HealthError> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(Data::new(desk.clone()))
            .route("/healthz", web::get().to(healthz))
            .route("/readyz", web::get().to(readyz))
            .route("/metrics", web::get().to(metrics))
    })
    .workers(1)
    .shutdown_timeout(1)
    .disable_signals()
    .bind(address)
    .map_err(|source| HealthError::Listen { address, source })?;
    let bound = server.addrs().first().copied().unwrap_or(address);
    Ok((bound, server.run()))
}

async fn healthz(desk: Data<Desk>) -> HttpResponse {
    let actors = desk.vitals.signs();
    let denied = desk.bus.denied();
    let healthy = denied.is_empty() && actors.iter().all(|actor| actor.healthy);
    let status = match (healthy, denied.is_empty()) {
        (true, _) => "ok",
        (false, true) => "stuck",
        (false, false) => "denied",
    };
    let body = json!({ "status": status, "denied": denied, "actors": actors });
    if healthy { HttpResponse::Ok().json(body) } else { HttpResponse::ServiceUnavailable().json(body) }
}

async fn readyz(desk: Data<Desk>) -> HttpResponse {
    let body = desk.report();
    if desk.ready() { HttpResponse::Ok().json(body) } else { HttpResponse::ServiceUnavailable().json(body) }
}

async fn metrics(desk: Data<Desk>) -> HttpResponse {
    match &desk.metrics {
        Some(render) => HttpResponse::Ok()
            .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
            .body(render()),
        None => HttpResponse::ServiceUnavailable().body("this process records no metrics\n"),
    }
}
