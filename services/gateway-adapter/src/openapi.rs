//! `/openapi.json`: the endpoint described, from the same table of routes that it is served by.

use std::sync::OnceLock;

use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_TYPE, HeaderValue};
use berth_wire::{Dialect, Route};
use bytes::Bytes;
use utoipa::openapi::path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Content, HttpMethod, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, PathItem,
    PathsBuilder, Ref, Required, ResponseBuilder,
};

use crate::shapes::{self, Shape};

/// The name of the security scheme.
const KEY: &str = "key";
const JSON: &str = "application/json";

/// `GET /openapi.json`
pub(crate) async fn openapi() -> HttpResponse {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    let document = DOCUMENT.get_or_init(|| document().to_json().unwrap_or_default().into());
    HttpResponse::Ok().insert_header((CONTENT_TYPE, HeaderValue::from_static(JSON))).body(document.clone())
}

/// Berth's own routes beside those of engines: method, path, what it is for, what it takes and what it gives.
struct Own {
    method: HttpMethod,
    path: &'static str,
    summary: &'static str,
    takes: Option<Shape>,
    gives: (&'static str, Shape),
    /// Whether it needs no key where keys are asked for.
    open: bool,
}

fn own() -> Vec<Own> {
    let own = |method, path, summary, takes, gives| Own { method, path, summary, takes, gives, open: false };
    let get = |path, summary, gives| own(HttpMethod::Get, path, summary, None, ("200", gives));
    vec![
        get("/v1/models", "The models of the catalog", shapes::MODELS),
        get("/v1/models/{id}", "One model, by its name or an alias", shapes::MODEL),
        own(
            HttpMethod::Post,
            "/lease",
            "Keep a model warm for a session",
            Some(shapes::LEASE_ASKED),
            ("200", shapes::LEASE),
        ),
        own(
            HttpMethod::Post,
            "/release",
            "Give a session's leases back",
            Some(shapes::RELEASE_ASKED),
            ("200", shapes::RELEASED),
        ),
        get("/leases", "The leases there are", shapes::LEASES),
        own(
            HttpMethod::Post,
            "/hint",
            "Say that a model will be needed soon",
            Some(shapes::HINT),
            ("202", shapes::HINT),
        ),
        get("/api/v1/jobs/{id}", "How far an asynchronous job is", shapes::JOB),
        own(
            HttpMethod::Delete,
            "/api/v1/jobs/{id}",
            "Cancel an asynchronous job",
            None,
            ("200", shapes::JOB),
        ),
        get("/api/v1/jobs/{id}/result", "The engine's answer to an asynchronous job", shapes::ANYTHING),
        get("/api/v1/fleet", "Hosts, engines and the leader", shapes::FLEET),
        Own { open: true, ..get("/healthz", "Whether the process makes progress", shapes::HEALTH) },
        Own { open: true, ..get("/livez", "The same as /healthz", shapes::HEALTH) },
        Own { open: true, ..get("/readyz", "Whether a request will be taken", shapes::READY) },
        get("/openapi.json", "This document", shapes::ANYTHING),
    ]
}

/// The whole document.
fn document() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Berth")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "One endpoint in front of the model engines of a fleet. Requests wait for a slot; bodies of engines' routes \
             are theirs and are relayed as they come, but for the name of the model.",
        ))
        .license(Some(LicenseBuilder::new().name("MIT OR Apache-2.0").build()))
        .build();
    let mut paths = PathsBuilder::new();
    let mut items: Vec<(&str, PathItem)> = Vec::new();
    for route in Route::ALL {
        for path in std::iter::once(&route.path()).chain(route.aliases()) {
            items.push((path, PathItem::new(HttpMethod::Post, engines(route))));
        }
    }
    let upstream = upstream();
    let methods = [HttpMethod::Get, HttpMethod::Post, HttpMethod::Put, HttpMethod::Patch, HttpMethod::Delete];
    items.push(("/upstream/{model}/{path}", PathItem::from_http_methods(methods, upstream)));
    for own in own() {
        let operation = of_berth(&own);
        match items.iter_mut().find(|(path, _)| *path == own.path) {
            Some((_, item)) => item.merge_operations(PathItem::new(own.method, operation)),
            None => items.push((own.path, PathItem::new(own.method, operation))),
        }
    }
    let metrics = OperationBuilder::new()
        .tag("operate")
        .summary(Some("Metrics of this process, as Prometheus text"))
        .security(needs_key())
        .response(
            "200",
            ResponseBuilder::new().description("Metrics").content("text/plain", Content::default()),
        );
    items.push(("/metrics", PathItem::new(HttpMethod::Get, metrics)));
    for (path, item) in items {
        paths = paths.path(path, item);
    }
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "An API key of `berth key create`; `x-api-key` does as well. Asked for once there is a key.",
        ))
        .build();
    let mut components = ComponentsBuilder::new().security_scheme(KEY, SecurityScheme::Http(scheme));
    for shape in shapes::ALL {
        components = components.schema(shape.name, shape.schema());
    }
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components.build())).build()
}

fn needs_key() -> SecurityRequirement {
    SecurityRequirement::new::<_, [&str; 0], &str>(KEY, [])
}

fn json(shape: Shape) -> Content {
    Content::new(Some(Ref::from_schema_name(shape.name)))
}

fn error(dialect: Dialect) -> ResponseBuilder {
    let shape = match dialect {
        Dialect::OpenAi => shapes::ERROR,
        Dialect::Anthropic => shapes::ANTHROPIC_ERROR,
    };
    ResponseBuilder::new()
        .description("What is wrong and what to do; 429 and 503 say when to come back")
        .content(JSON, json(shape))
}

/// A route that engines serve.
fn engines(route: Route) -> Operation {
    let kind = if route.takes_form() { "multipart/form-data" } else { JSON };
    let mut answer = ResponseBuilder::new()
        .description("The engine's answer as it came")
        .content(JSON, json(shapes::ANYTHING));
    if route.streams() {
        answer = answer.content("text/event-stream", Content::default());
    }
    let tag = match route.dialect() {
        Dialect::OpenAi => "openai",
        Dialect::Anthropic => "anthropic",
    };
    let header = |name: &str, what: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(what))
            .schema(Some(shapes::text()))
    };
    OperationBuilder::new()
        .tag(tag)
        .summary(Some(format!("{} of the model's engine", route.path())))
        .security(needs_key())
        .parameter(header("x-berth-session", "The conversation that it belongs to"))
        .parameter(header("x-berth-deadline", "Seconds that its answer may take to begin"))
        .parameter(header("x-berth-class", "interactive, standard or batch; never above its key's"))
        .parameter(header("Prefer", "respond-async: 202 at once and the answer by /api/v1/jobs"))
        .parameter(header("Idempotency-Key", "The same key and body are one job"))
        .request_body(Some(
            RequestBodyBuilder::new()
                .description(Some("As the engine takes it; `model` is a name of /v1/models"))
                .required(Some(Required::True))
                .content(kind, json(shapes::ASKED))
                .build(),
        ))
        .response("200", answer)
        .response(
            "202",
            ResponseBuilder::new()
                .description("It was asked for asynchronously")
                .content(JSON, json(shapes::JOB)),
        )
        .response("default", error(route.dialect()))
        .build()
}

fn upstream() -> Operation {
    let part = |name: &str, what: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some(what))
            .schema(Some(shapes::text()))
    };
    OperationBuilder::new()
        .tag("engines")
        .summary(Some("Anything else that the model's engine serves"))
        .security(needs_key())
        .parameter(part("model", "A name of /v1/models; its slashes may stand as they are"))
        .parameter(part("path", "The engine's path, with its query"))
        .response("200", ResponseBuilder::new().description("The engine's answer as it came"))
        .response("default", error(Dialect::OpenAi))
        .build()
}

fn of_berth(own: &Own) -> Operation {
    let mut operation = OperationBuilder::new()
        .tag(if own.path.starts_with("/v1") { "openai" } else { "berth" })
        .summary(Some(own.summary))
        .response(
            own.gives.0,
            ResponseBuilder::new().description(own.summary).content(JSON, json(own.gives.1)),
        )
        .response("default", error(Dialect::OpenAi));
    if !own.open {
        operation = operation.security(needs_key());
    }
    if own.path.contains("{id}") {
        let id = ParameterBuilder::new()
            .name("id")
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(shapes::text()));
        operation = operation.parameter(id);
    }
    if own.path == "/leases" {
        let session = ParameterBuilder::new()
            .name("sessionKey")
            .parameter_in(ParameterIn::Query)
            .required(Required::False)
            .description(Some("Only this session's"))
            .schema(Some(shapes::text()));
        operation = operation.parameter(session);
    }
    if let Some(takes) = own.takes {
        let body =
            RequestBodyBuilder::new().required(Some(Required::True)).content(JSON, json(takes)).build();
        operation = operation.request_body(Some(body));
    }
    operation.build()
}
