//! The OpenAPI document is true: what it names is served, and what is answered has the shape that it tells.

use berth_wire::Route;
use reqwest::Method;
use serde_json::Value;

use crate::support::*;

async fn document(gateway: &Gateway) -> Value {
    let response = reqwest::get(gateway.url("/openapi.json")).await.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// Fails unless `value` has the fields of a schema of the document, and no others.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        let named = &document["components"]["schemas"][name];
        assert!(named.is_object(), "{name} is not there");
        return fits(document, named, value, at);
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
        other => panic!("{at}: type {other}"),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let whole = kind == "integer" && kinds.contains(&"number");
    assert!(kinds.contains(&kind) || whole, "{at}: {kind}, and told was {kinds:?}");
    if let Value::Array(items) = value {
        for (n, item) in items.iter().enumerate() {
            fits(document, &schema["items"], item, &format!("{at}[{n}]"));
        }
    }
    let (Value::Object(fields), Some(known)) = (value, schema["properties"].as_object()) else { return };
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(fields.contains_key(name.as_str().unwrap()), "{at} lacks {name}");
    }
    for (name, field) in fields {
        match known.get(name) {
            Some(schema) => fits(document, schema, field, &format!("{at}.{name}")),
            None => assert_ne!(schema["additionalProperties"], false, "{at}.{name} is not told of"),
        }
    }
}

#[tokio::test]
async fn what_the_document_names_is_served_and_every_route_is_named() {
    let (_nats, _played, gateway) = house(|_| {}).await;
    let document = document(&gateway).await;
    let paths = document["paths"].as_object().unwrap();
    for route in Route::ALL {
        assert!(paths.contains_key(route.path()), "{}", route.path());
        for other in route.aliases() {
            assert!(paths.contains_key(*other), "{other}");
        }
    }
    let client = reqwest::Client::new();
    let tried = paths.iter().flat_map(|(path, item)| {
        let methods = ["get", "head", "post", "put", "patch", "delete", "options"];
        methods.map(|method| (path.clone(), method, item))
    });
    // Together: those that ask a leader wait for one.
    let tried = tried.map(|(path, method, item)| {
        // Whoever takes GET takes HEAD, and nobody describes that but /upstream, where engines answer it.
        let told = item.get(method).is_some() || method == "head" && item.get("get").is_some();
        let path = path.replace("{id}", "x").replace("{model}", "none").replace("{path}", "x");
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let request = client.request(method.clone(), gateway.url(&path)).send();
        async move {
            let response = request.await.unwrap();
            let status = response.status();
            let allow = header(&response, "allow").unwrap_or_default();
            let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
            // Events have no end.
            let endless = kind == Some("text/event-stream");
            let text = if endless { String::new() } else { response.text().await.unwrap() };
            let served = status != 405 && !text.contains("unknown_url");
            assert_eq!(served, told, "{method} {path}: {status} {text}");
            if !told {
                let allowed = |name: &str| allow.split(", ").any(|allowed| allowed == name);
                assert!(!allowed(method.as_str()), "{method} {path}: {allow}");
                for (name, _) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters") {
                    assert!(allowed(&name.to_uppercase()), "{method} {path}: {name} is missing in {allow}");
                }
            }
        }
    });
    futures::future::join_all(tried).await;
}

#[tokio::test]
async fn what_it_is_is_told_to_people_and_programs_alike() {
    let (_nats, _played, gateway) = house(|_| {}).await;
    let told = document(&gateway).await;
    let about: Value = reqwest::get(gateway.url("/")).await.unwrap().json().await.unwrap();
    assert_eq!(about["service"], "berth");
    let page = reqwest::Client::new().get(gateway.url("/")).header("accept", "text/html,*/*;q=0.8").send();
    let page = page.await.unwrap();
    assert_eq!(header(&page, "content-type").as_deref(), Some("text/html; charset=utf-8"));
    let page = page.text().await.unwrap();
    for path in about["paths"].as_object().unwrap().keys().filter(|path| *path != "/v1") {
        assert!(page.contains(&format!("href=\"{path}\"")), "{path}");
        assert!(told["paths"].get(path).is_some(), "{path} is not served");
    }
}

#[tokio::test]
async fn answers_have_the_shape_that_is_told() {
    let (_nats, played, gateway) = house(|_| {}).await;
    played.appear().await;
    let document = document(&gateway).await;
    for (path, asked) in [
        ("/", "/"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/{id}", "/v1/models/tiny"),
        ("/api/v1/fleet", "/api/v1/fleet"),
        ("/api/v1/hosts", "/api/v1/hosts"),
        ("/api/v1/engines", "/api/v1/engines"),
        ("/healthz", "/healthz"),
        ("/readyz", "/readyz"),
    ] {
        let told =
            &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        let answer: Value = reqwest::get(gateway.url(asked)).await.unwrap().json().await.unwrap();
        fits(&document, told, &answer, path);
    }
    let wrong = |path: &'static str| {
        let request = reqwest::Client::new().post(gateway.url(path)).body("{}").send();
        async move { request.await.unwrap().json::<Value>().await.unwrap() }
    };
    for (path, name) in
        [("/v1/chat/completions", "Error"), ("/v1/messages", "AnthropicError"), ("/lease", "Error")]
    {
        fits(&document, &document["components"]["schemas"][name], &wrong(path).await, path);
    }
}
