//! `/`: what this is and where to go, for whoever opens the endpoint in a browser or with curl.

use actix_web::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::json;

/// Where to go, and what for.
const PLACES: [(&str, &str); 6] = [
    ("/v1", "base URL for OpenAI's clients"),
    ("/v1/models", "the models and how ready they are"),
    ("/dashboard", "the fleet, live"),
    ("/openapi.json", "every route"),
    ("/readyz", "whether a request will be taken, and what is missing"),
    ("/metrics", "metrics as Prometheus text"),
];

/// `GET /`. It tells nothing of the fleet, so nobody needs a key for it.
pub(crate) async fn about(request: HttpRequest) -> HttpResponse {
    let accepts = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let mut response = HttpResponse::Ok();
    response.insert_header((VARY, "accept"));
    if accepts.is_some_and(|accept| accept.contains("text/html")) {
        return response.insert_header((CONTENT_TYPE, "text/html; charset=utf-8")).body(page());
    }
    let places: serde_json::Map<_, _> =
        PLACES.iter().map(|(path, what)| ((*path).to_owned(), (*what).into())).collect();
    response.json(json!({
        "service": "berth",
        "version": env!("CARGO_PKG_VERSION"),
        "about": "one endpoint in front of a fleet's model engines; base URL of Anthropic's clients: this one",
        "paths": places,
    }))
}

fn page() -> String {
    let place = |(path, what): &(&str, &str)| match *path {
        // Nothing is there itself.
        "/v1" => format!("<li>{path}: {what}</li>"),
        path => format!("<li><a href=\"{path}\">{path}</a>: {what}</li>"),
    };
    let places: String = PLACES.iter().map(place).collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Berth</title><h1>Berth {}</h1>\
         <p>One endpoint in front of a fleet's model engines. The base URL of Anthropic's clients is this one.</p>\
         <ul>{places}</ul></html>\n",
        env!("CARGO_PKG_VERSION")
    )
}
