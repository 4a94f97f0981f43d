//! The HTTP routes.

use actix_web::{HttpRequest, HttpResponse, Route, guard, web};
use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{self, Shape};
use super::request::{Plan, Refusal, Request};
use super::stats::Ticket;
use super::stream::{Tokens, crash};
use super::{Crash, NAME, Sim, embed, media};

/// Bodies as large as any gateway lets through.
const BODY_LIMIT: usize = 256 * 1024 * 1024;

pub(super) type App = web::Data<Sim>;

pub(super) fn configure(config: &mut web::ServiceConfig) {
    config
        .app_data(web::PayloadConfig::new(BODY_LIMIT))
        .route("/health", read().to(health))
        .route("/v1/models", read().to(models))
        .route("/v1/models/{id:.*}", read().to(model))
        .route("/v1/chat/completions", web::post().to(chat))
        .route("/v1/completions", web::post().to(completion))
        .route("/v1/embeddings", web::post().to(embeddings))
        .configure(media::configure)
        .route("/sim/stats", read().to(stats))
        .default_service(web::to(nothing));
}

/// GET, and HEAD beside it, as of other engines.
fn read() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

async fn nothing(request: HttpRequest) -> HttpResponse {
    let message = format!("the simulator has no {} {}", request.method(), request.path());
    HttpResponse::NotFound().json(json!({
        "error": {"message": message, "type": "invalid_request_error", "param": null, "code": "not_found"}
    }))
}

async fn health(sim: App) -> HttpResponse {
    if sim.is_loading() {
        return Refusal::loading().response();
    }
    HttpResponse::Ok().json(json!({"status": "ok", "engine": NAME}))
}

async fn models(sim: App) -> HttpResponse {
    HttpResponse::Ok().json(json!({"object": "list", "data": [entry(&sim)]}))
}

async fn model(sim: App, id: web::Path<String>) -> HttpResponse {
    match Refusal::unless_served(&id, &sim.options.id) {
        Ok(()) => HttpResponse::Ok().json(entry(&sim)),
        Err(refusal) => refusal.response(),
    }
}

fn entry(sim: &Sim) -> Value {
    json!({"id": sim.options.id, "object": "model", "created": sim.script.created(), "owned_by": NAME})
}

async fn stats(sim: App) -> HttpResponse {
    let mut body = json!({
        "engine": NAME,
        "id": sim.options.id,
        "pid": std::process::id(),
        "concurrency": sim.options.concurrency,
        "loading": sim.is_loading(),
    });
    if let (Some(fields), Ok(Value::Object(counts))) =
        (body.as_object_mut(), serde_json::to_value(sim.books.stats()))
    {
        fields.extend(counts);
    }
    HttpResponse::Ok().json(body)
}

async fn chat(sim: App, body: Bytes) -> HttpResponse {
    generate(sim, Shape::Chat, body).await.unwrap_or_else(Refusal::response)
}

async fn completion(sim: App, body: Bytes) -> HttpResponse {
    generate(sim, Shape::Completion, body).await.unwrap_or_else(Refusal::response)
}

async fn embeddings(sim: App, body: Bytes) -> HttpResponse {
    embeddings_or(&sim, &body).await.unwrap_or_else(Refusal::response)
}

async fn generate(sim: App, shape: Shape, body: Bytes) -> Result<HttpResponse, Refusal> {
    if sim.is_loading() {
        return Err(Refusal::loading());
    }
    let request = Request::parse(&body)?;
    request.check_model(&sim.options.id)?;
    let prompt = match shape {
        Shape::Chat => request
            .messages
            .filter(|messages| messages.get().starts_with('['))
            .ok_or_else(|| Refusal::bad("`messages` must be a list".into(), Some("messages")))?,
        Shape::Completion => request
            .prompt
            .filter(|prompt| prompt.get().starts_with(['"', '[']))
            .ok_or_else(|| Refusal::bad("`prompt` must be a text or a list".into(), Some("prompt")))?,
    };
    let plan = request.plan(&sim.options);
    if let Some(status) = plan.status {
        return Err(Refusal::asked_for(status));
    }
    let usage = answer::usage(prompt.get().len(), plan.tokens);
    let streams = request.stream.unwrap_or(false);
    let with_usage = request.wants_usage();
    let ticket = sim.books.enter().await;

    if streams {
        let echo = plan.echo.then(|| sim.script.text(shape, &String::from_utf8_lossy(&body)));
        let tail = sim.script.close(shape, plan.cut_short, with_usage.then_some(&usage));
        let tokens = Tokens::new(sim.clone(), shape, plan, echo, tail, ticket);
        return Ok(HttpResponse::Ok()
            .content_type("text/event-stream")
            .insert_header(("cache-control", "no-cache"))
            .streaming(tokens));
    }
    let text = if plan.echo { String::from_utf8_lossy(&body).into() } else { answer::words(plan.tokens) };
    compute(&sim, &plan, ticket).await?;
    Ok(HttpResponse::Ok().json(sim.script.whole(shape, &text, plan.cut_short, &usage)))
}

/// Takes the time that the whole answer takes.
pub(super) async fn compute(sim: &App, plan: &Plan, mut ticket: Ticket) -> Result<(), Refusal> {
    let fault = plan.crash_after.or(plan.cut_after).filter(|after| *after < plan.tokens);
    let tokens = fault.unwrap_or(plan.tokens);
    let took = plan.first_token + plan.per_token.saturating_mul(tokens.saturating_sub(1));
    if !took.is_zero() {
        tokio::time::sleep(took).await;
    }
    if fault.is_some() {
        if plan.crash_after.is_some() && matches!(sim.crash, Crash::Process) {
            crash(tokens);
        }
        return Err(Refusal::asked_for(500));
    }
    ticket.complete();
    Ok(())
}

async fn embeddings_or(sim: &App, body: &[u8]) -> Result<HttpResponse, Refusal> {
    if sim.is_loading() {
        return Err(Refusal::loading());
    }
    let request = Request::parse(body)?;
    request.check_model(&sim.options.id)?;
    let (data, bytes) = embed::embed(request.input.as_ref(), request.encoding_format.as_deref())?;
    let plan = Plan { tokens: 1, ..request.plan(&sim.options) };
    if let Some(status) = plan.status {
        return Err(Refusal::asked_for(status));
    }
    let ticket = sim.books.enter().await;
    compute(sim, &plan, ticket).await?;
    let usage = answer::usage(bytes, 0);
    Ok(HttpResponse::Ok().json(json!({
        "object": "list", "model": sim.options.id, "data": data,
        "usage": usage,
    })))
}
