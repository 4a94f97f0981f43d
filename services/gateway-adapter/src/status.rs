//! `/healthz`, `/readyz`, `/metrics` and the fleet as JSON. All are passive: none wakes an engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_TYPE, RETRY_AFTER};
use actix_web::web::Data;
use berth_probes::Component;
use berth_telemetry::{metric, samples};
use serde_json::json;

use crate::caller::Admin;
use crate::error;
use crate::fleet::Fleet;
use crate::worker::Worker;

/// `GET /healthz`: the process lives and its actors make progress.
pub(crate) async fn healthz(worker: Data<Arc<Worker>>) -> HttpResponse {
    let actors = worker.fleet().vitals.signs();
    let healthy = actors.iter().all(|actor| actor.healthy);
    let body = json!({ "status": if healthy { "ok" } else { "stuck" }, "actors": actors });
    if healthy { HttpResponse::Ok().json(body) } else { HttpResponse::ServiceUnavailable().json(body) }
}

/// `GET /readyz`: a request will be taken and has somewhere to go.
pub(crate) async fn readyz(worker: Data<Arc<Worker>>) -> HttpResponse {
    let fleet = worker.fleet();
    let components = fleet.readiness();
    let draining = fleet.draining.load(Ordering::Acquire);
    let ready = !draining && components.iter().all(|component| component.ready);
    let body = json!({ "ready": ready, "draining": draining, "components": components });
    if ready {
        HttpResponse::Ok().json(body)
    } else {
        HttpResponse::ServiceUnavailable().insert_header((RETRY_AFTER, "1")).json(body)
    }
}

/// `GET /metrics`: Prometheus text.
pub(crate) async fn metrics(_: Admin, worker: Data<Arc<Worker>>) -> HttpResponse {
    match &worker.fleet().metrics {
        Some(render) => HttpResponse::Ok()
            .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
            .body(render()),
        None => error::response(&berth_wire::ApiError::new(
            berth_wire::ErrorKind::Unavailable,
            "no_metrics",
            "this process records no metrics",
        )),
    }
}

/// `GET /api/v1/fleet`: hosts, engines and the leader, as KV tells of them.
pub(crate) async fn fleet(_: Admin, worker: Data<Arc<Worker>>) -> HttpResponse {
    let fleet = worker.fleet();
    HttpResponse::Ok().json(json!({
        "leader": fleet.leader.entries().values().next(),
        "hosts": fleet.hosts.entries().values().collect::<Vec<_>>(),
        "engines": fleet.engines.entries().values().collect::<Vec<_>>(),
    }))
}

/// Its parts, as the listener for metrics tells of them.
pub(crate) fn parts(fleet: &Fleet) -> Vec<Component> {
    let draining = fleet.draining.load(Ordering::Acquire);
    let mut parts: Vec<Component> = fleet
        .readiness()
        .into_iter()
        .map(|part| Component { name: part.name.to_owned(), ready: part.ready, detail: part.detail })
        .collect();
    parts.push(Component::new("gateway", !draining, "takes requests", "is shutting down"));
    parts
}

/// What the service answers on its status subject.
pub(crate) fn report(fleet: &Fleet) -> serde_json::Value {
    let components = fleet.readiness();
    json!({
        "service": "gateway",
        "id": fleet.id,
        "version": env!("CARGO_PKG_VERSION"),
        "ready": components.iter().all(|component| component.ready),
        "components": components,
        "jobs": fleet.running.load(Ordering::Acquire),
        "lanes": fleet.lanes.observe(),
        "actors": fleet.vitals.signs(),
        "started": fleet.started,
        "times": times(),
    })
}

/// How long requests have taken so far, as cumulative histograms: health makes trends of them.
fn times() -> serde_json::Value {
    let Some(text) = metric::render() else { return serde_json::Value::Null };
    let read = |name, label| {
        let all = samples::histogram(&text, name, label);
        // JSON knows no infinity: the last bound is told as null.
        all.into_iter()
            .map(|(model, counts)| {
                let counts: Vec<_> =
                    counts.into_iter().map(|(le, n)| (le.is_finite().then_some(le), n)).collect();
                (model, counts)
            })
            .collect::<BTreeMap<_, _>>()
    };
    json!({
        "wait": read(metric::QUEUE_SECONDS, "model"),
        "load": read(metric::LOAD_SECONDS, "model"),
        "first_token": read(metric::TIME_TO_FIRST_TOKEN, "gen_ai_request_model"),
    })
}
