//! `/openapi.json`: the endpoint described, from the same table of routes that it is served by.

use std::sync::OnceLock;

use actix_web::HttpResponse;
use actix_web::http::Method;
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
    /// Another status that is no error, when it is given, and what comes with it.
    also: Option<(&'static str, &'static str, Shape)>,
    /// Whether it needs no key where keys are asked for.
    open: bool,
}

fn own() -> Vec<Own> {
    let own = |method, path, summary, takes, gives| Own {
        method,
        path,
        summary,
        takes,
        gives,
        also: None,
        open: false,
    };
    let get = |path, summary, gives| own(HttpMethod::Get, path, summary, None, ("200", gives));
    let order = |path, summary, takes| Own {
        also: Some(("202", "It is being done", shapes::DONE)),
        ..own(HttpMethod::Post, path, summary, Some(takes), ("200", shapes::DONE))
    };
    let probe = |path, summary, gives| Own {
        also: Some(("503", "It does not", gives)),
        open: true,
        ..get(path, summary, gives)
    };
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
        Own {
            also: Some(("202", "It is being cancelled", shapes::JOB)),
            ..own(
                HttpMethod::Delete,
                "/api/v1/jobs/{id}",
                "Cancel an asynchronous job",
                None,
                ("200", shapes::JOB),
            )
        },
        Own {
            also: Some(("202", "It waits or runs still", shapes::JOB)),
            ..get(
                "/api/v1/jobs/{id}/result",
                "The engine's answer to an asynchronous job, with the engine's own status",
                shapes::ANYTHING,
            )
        },
        get("/api/v1/models", "The models as they stand", shapes::MODEL_VIEWS),
        get("/api/v1/queue", "The jobs that wait, those of the caller's key", shapes::JOB_VIEWS),
        get("/api/v1/jobs", "The jobs that wait and run, those of the caller's key", shapes::JOB_VIEWS),
        get("/api/v1/explain/{id}", "Why a job waits, or what became of it", shapes::EXPLAINED),
        order("/api/v1/load", "Have an engine of a model started; scope admin", shapes::LOAD_ASKED),
        order("/api/v1/unload", "Have the engines of a model stopped; scope admin", shapes::UNLOAD_ASKED),
        order("/api/v1/pin", "Keep one engine of a model ready always; scope admin", shapes::PIN_ASKED),
        order("/api/v1/unpin", "Take a pin off; scope admin", shapes::PIN_ASKED),
        get("/api/v1/leases", "The leases there are", shapes::LEASES),
        get("/api/v1/hints", "What sessions said they will need", shapes::HINT_VIEWS),
        own(
            HttpMethod::Delete,
            "/api/v1/hints",
            "Take hints back: ?sessionKey=...[&model=...]",
            None,
            ("200", shapes::WITHDRAWN),
        ),
        get("/api/v1/hosts", "Each host's last heartbeat; scope admin", shapes::HOSTS),
        get("/api/v1/engines", "Each engine; scope admin", shapes::ENGINES),
        get("/api/v1/fleet", "Hosts, engines and the leader", shapes::FLEET),
        Own { open: true, ..get("/", "What this is and where to go", shapes::ABOUT) },
        probe("/healthz", "Whether the process makes progress", shapes::HEALTH),
        probe("/livez", "The same as /healthz", shapes::HEALTH),
        probe("/readyz", "Whether a request will be taken", shapes::READY),
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
    items.push(("/upstream/{model}/{path}", upstream()));
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
    let page = |summary: &str, kind: &str| {
        OperationBuilder::new()
            .tag("operate")
            .summary(Some(summary))
            .response("200", ResponseBuilder::new().description(summary).content(kind, Content::default()))
    };
    let events = page("What happened and happens, as server-sent events; scope admin", "text/event-stream")
        .security(needs_key());
    items.push(("/api/v1/events", PathItem::new(HttpMethod::Get, events)));
    let dashboard = page("A page that shows the fleet; it asks for a key itself", "text/html");
    items.push(("/dashboard", PathItem::new(HttpMethod::Get, dashboard)));
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
        .description(
            "What is wrong and what to do; 429 and 503 say when to come back, where that is of use, and x-should-retry: \
             false where it is not",
        )
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
    let operation = OperationBuilder::new()
        .tag(tag)
        .summary(Some(format!("{} of the model's engine", route.path())))
        .security(needs_key());
    job(operation)
        .request_body(Some(
            RequestBodyBuilder::new()
                .description(Some("As the engine takes it; `model` is a name of /v1/models"))
                .required(Some(Required::True))
                .content(kind, json(shapes::ASKED))
                .build(),
        ))
        .response("200", answer)
        .response("default", error(route.dialect()))
        .build()
}

/// What every request may say that becomes a job, and that it may be fetched later.
fn job(operation: OperationBuilder) -> OperationBuilder {
    let header = |name: &str, what: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(what))
            .schema(Some(shapes::text()))
    };
    operation
        .parameter(header("x-berth-session", "The conversation that it belongs to"))
        .parameter(header(
            "x-berth-deadline",
            "Seconds after which nobody wants the answer: all of a plain one, of a stream its first data",
        ))
        .parameter(header("x-berth-class", "interactive, standard or batch; never above its key's"))
        .parameter(header("Prefer", "respond-async: 202 at once and the answer by /api/v1/jobs"))
        .parameter(header("Idempotency-Key", "The same key and body are one job"))
        .response(
            "202",
            ResponseBuilder::new()
                .description("It was asked for asynchronously")
                .content(JSON, json(shapes::JOB)),
        )
}

/// Everything else that engines serve, by each method that is passed on.
fn upstream() -> PathItem {
    let mut all = PathItem::default();
    for method in crate::upstream::METHODS.iter().filter_map(of_http) {
        let takes = matches!(method, HttpMethod::Post | HttpMethod::Put | HttpMethod::Patch);
        all.merge_operations(PathItem::new(method, upstream_by(takes)));
    }
    all
}

fn of_http(method: &Method) -> Option<HttpMethod> {
    Some(match method.as_str() {
        "GET" => HttpMethod::Get,
        "HEAD" => HttpMethod::Head,
        "POST" => HttpMethod::Post,
        "PUT" => HttpMethod::Put,
        "PATCH" => HttpMethod::Patch,
        "DELETE" => HttpMethod::Delete,
        "OPTIONS" => HttpMethod::Options,
        _ => return None,
    })
}

/// The path that was probably meant by one that is not there: without the slash at its end, or with the `/v1` that clients
/// put before it, once.
pub(crate) fn meant(path: &str) -> Option<String> {
    let known = |path: &str| Route::of_path(path).is_some() || own().iter().any(|own| own.path == path);
    let bare = path.trim_end_matches('/');
    let once = bare.strip_prefix("/v1").filter(|rest| rest.starts_with("/v1/"));
    let candidates = [bare.to_owned(), format!("/v1{bare}"), once.unwrap_or_default().to_owned()];
    candidates.into_iter().find(|candidate| candidate != path && known(candidate))
}

/// The methods that a route takes, for `Allow`; its pattern is the server's.
pub(crate) fn methods(pattern: &str) -> Vec<&'static str> {
    if pattern.starts_with(crate::upstream::PREFIX) {
        return vec!["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    }
    if Route::of_path(pattern).is_some() {
        return vec!["POST"];
    }
    // The server's patterns say of what an id may be.
    let known = |path: &str| {
        path == pattern || pattern.split_once(':').is_some_and(|(p, _)| path == format!("{p}}}"))
    };
    let own = own().into_iter().filter(|own| known(own.path)).flat_map(|own| match own.method {
        HttpMethod::Get => vec!["GET", "HEAD"],
        HttpMethod::Post => vec!["POST"],
        HttpMethod::Put => vec!["PUT"],
        HttpMethod::Patch => vec!["PATCH"],
        HttpMethod::Delete => vec!["DELETE"],
        _ => Vec::new(),
    });
    let own: Vec<_> = own.collect();
    // Metrics alone are no JSON, and described apart.
    if own.is_empty() { vec!["GET", "HEAD"] } else { own }
}

fn upstream_by(takes_body: bool) -> Operation {
    let part = |name: &str, what: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some(what))
            .schema(Some(shapes::text()))
    };
    let mut operation = OperationBuilder::new()
        .tag("engines")
        .summary(Some("Anything else that the model's engine serves"))
        .security(needs_key())
        .parameter(part("model", "A name of /v1/models; its slashes may stand as they are"))
        .parameter(part("path", "The engine's path, with its query"))
        .response(
            "200",
            ResponseBuilder::new()
                .description("The engine's answer as it came, whatever its status and type")
                .content("*/*", Content::default()),
        )
        .response("default", error(Dialect::OpenAi));
    if takes_body {
        let body = RequestBodyBuilder::new()
            .description(Some("Of any type; as the engine takes it"))
            .content("*/*", Content::default())
            .build();
        operation = operation.request_body(Some(body));
    }
    job(operation).build()
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
    if let Some((status, when, shape)) = own.also {
        let other = ResponseBuilder::new().description(when).content(JSON, json(shape));
        operation = operation.response(status, other);
    }
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
    if matches!(own.path, "/leases" | "/api/v1/leases" | "/api/v1/hints") {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_that_is_registered_is_described() {
        let described = document().paths.paths;
        let registered =
            include_str!("server.rs").split("resource(\"").skip(1).filter_map(|rest| rest.split('"').next());
        let mut seen = 0;
        for pattern in registered {
            let path =
                pattern.split_once(':').map_or_else(|| pattern.to_owned(), |(path, _)| format!("{path}}}"));
            assert!(described.contains_key(&path), "{pattern} is missing");
            assert!(!methods(pattern).is_empty());
            seen += 1;
        }
        assert!(seen > 10, "only {seen} are found in server.rs");
        assert_eq!(methods("/v1/models/{id:.+}"), ["GET", "HEAD"]);
        for (path, meant_by) in [
            ("/v1/chat/completions/", Some("/v1/chat/completions")),
            ("/v1/models/", Some("/v1/models")),
            ("/chat/completions", Some("/v1/chat/completions")),
            ("/v1/v1/messages", Some("/v1/messages")),
            ("/v1/nothing/", None),
            ("/v1", None),
        ] {
            assert_eq!(meant(path).as_deref(), meant_by, "{path}");
        }
        assert_eq!(methods("/api/v1/jobs/{id}"), ["GET", "HEAD", "DELETE"]);
    }
}
