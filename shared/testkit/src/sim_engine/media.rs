//! Sound, pictures and moderation: simulated like all here, and saying so. A sound is silence, a picture one pixel.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use berth_wire::{Route, multipart};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::NAME;
use super::request::{Refusal, Request};
use super::routes::{App, compute};

/// A second of sound.
const SECOND: usize = 8000;
const SAID: &str = "This transcript is simulated by Berth: no model has heard your file.";

pub(super) fn configure(config: &mut web::ServiceConfig) {
    let form = |sim: App, request: HttpRequest, body: Bytes| async move {
        hear(&sim, &request, &body).await.unwrap_or_else(Refusal::response)
    };
    config
        .route(
            Route::Speech.path(),
            web::post()
                .to(async |sim: App, body: Bytes| speech(sim, body).await.unwrap_or_else(Refusal::response)),
        )
        .route(Route::Transcriptions.path(), web::post().to(form))
        .route(Route::Translations.path(), web::post().to(form))
        .route(Route::ImageEdits.path(), web::post().to(form))
        .route(
            Route::ImageGenerations.path(),
            web::post().to(async |sim: App, body: Bytes| {
                let answer = json!({"created": sim.script.created(), "data": [picture()], "engine": NAME});
                see(&sim, &body, answer).await.unwrap_or_else(Refusal::response)
            }),
        )
        .route(
            Route::Moderations.path(),
            web::post().to(async |sim: App, body: Bytes| {
                let result = json!({"flagged": false, "categories": {}, "category_scores": {}});
                let (id, model) = ("modr-simulated", &sim.options.id);
                let answer = json!({"id": id, "model": model, "results": [result], "engine": NAME});
                see(&sim, &body, answer).await.unwrap_or_else(Refusal::response)
            }),
        );
}

#[derive(Deserialize)]
struct Speech {
    #[serde(rename = "input")]
    _input: String,
}

/// WAV, a second for each token of the plan, at the plan's pace.
async fn speech(sim: App, body: Bytes) -> Result<HttpResponse, Refusal> {
    let request = begin(&sim, &body)?;
    serde_json::from_slice::<Speech>(&body)
        .map_err(|_| Refusal::bad("`input` must be a text".into(), Some("input")))?;
    let plan = request.plan(&sim.options);
    if let Some(status) = plan.status {
        return Err(Refusal::asked_for(status));
    }
    let mut ticket = sim.books.enter().await;
    tokio::time::sleep(plan.first_token).await;
    let seconds = plan.tokens;
    let head = wav(seconds as usize * SECOND);
    let pieces = futures::stream::unfold(0, move |piece| {
        let head = head.clone();
        let pause = if piece > 1 { plan.per_token } else { Duration::ZERO };
        if piece > seconds {
            ticket.complete();
        }
        async move {
            tokio::time::sleep(pause).await;
            let bytes = if piece == 0 { head } else { Bytes::from_static(&[128; SECOND]) };
            (piece <= seconds).then_some((Ok::<_, actix_web::Error>(bytes), piece + 1))
        }
    });
    Ok(HttpResponse::Ok().content_type("audio/wav").streaming(Box::pin(pieces)))
}

/// The header of a WAV file of 8 bit mono.
fn wav(samples: usize) -> Bytes {
    let samples = u32::try_from(samples).unwrap_or(u32::MAX - 36);
    let rate = SECOND as u32;
    let mut head = Vec::with_capacity(44);
    head.extend_from_slice(b"RIFF");
    head.extend_from_slice(&samples.saturating_add(36).to_le_bytes());
    head.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    head.extend_from_slice(&rate.to_le_bytes());
    head.extend_from_slice(&rate.to_le_bytes());
    head.extend_from_slice(b"\x01\0\x08\0data");
    head.extend_from_slice(&samples.to_le_bytes());
    head.into()
}

/// A form with a file, which is counted and not looked at.
async fn hear(sim: &App, request: &HttpRequest, body: &[u8]) -> Result<HttpResponse, Refusal> {
    let edit = request.path() == Route::ImageEdits.path();
    let bytes = form(sim, request, body, if edit { "image" } else { "file" })?;
    let said = if edit {
        json!({"created": sim.script.created(), "data": [picture()], "engine": NAME, "bytes": bytes})
    } else {
        json!({"text": SAID, "engine": NAME, "bytes": bytes})
    };
    answer(sim, &Request::parse(b"{}")?, said).await
}

/// A JSON request whose answer is known beforehand.
async fn see(sim: &App, body: &[u8], said: Value) -> Result<HttpResponse, Refusal> {
    let request = begin(sim, body)?;
    answer(sim, &request, said).await
}

/// A GIF of one pixel.
fn picture() -> Value {
    let gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    json!({"b64_json": BASE64.encode(gif), "revised_prompt": "simulated: no model has read your prompt"})
}

async fn answer(sim: &App, request: &Request<'_>, said: Value) -> Result<HttpResponse, Refusal> {
    let plan = request.plan(&sim.options);
    if let Some(status) = plan.status {
        return Err(Refusal::asked_for(status));
    }
    let ticket = sim.books.enter().await;
    compute(sim, &plan, ticket).await?;
    Ok(HttpResponse::Ok().json(said))
}

/// A request whose model is the one that is served here.
fn begin<'a>(sim: &App, body: &'a [u8]) -> Result<Request<'a>, Refusal> {
    if sim.is_loading() {
        return Err(Refusal::loading());
    }
    let request = Request::parse(body)?;
    request.check_model(&sim.options.id)?;
    Ok(request)
}

/// The same for a form; returns the size of its file.
fn form(sim: &App, request: &HttpRequest, body: &[u8], file: &'static str) -> Result<usize, Refusal> {
    if sim.is_loading() {
        return Err(Refusal::loading());
    }
    let kind = request.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let parts = multipart::parts(kind, body).map_err(|error| Refusal::bad(error.to_string(), None))?;
    let value = |name| {
        let part = parts.iter().find(|part| part.name == name)?;
        body.get(part.value.clone())
    };
    let model = value("model").ok_or_else(|| Refusal::bad("`model` is missing".into(), Some("model")))?;
    Refusal::unless_served(&String::from_utf8_lossy(model), &sim.options.id)?;
    let missing = || Refusal::bad(format!("`{file}` is missing"), Some(file));
    Ok(value(file).ok_or_else(missing)?.len())
}
