//! What can be said at once is said at once, as an OpenAI error object with its own status.

use reqwest::Method;

use crate::support::*;

async fn refused(gateway: &Gateway, method: Method, path: &str, body: &str) -> (u16, serde_json::Value) {
    let request = reqwest::Client::new().request(method, gateway.url(path)).body(body.to_owned());
    let response = request.send().await.unwrap();
    assert!(response.headers().contains_key("x-request-id"));
    (response.status().as_u16(), error_of(response).await)
}

#[tokio::test]
async fn a_wrong_request_is_answered_with_what_is_wrong() {
    let (_nats, _played, gateway) = house(|config| config.gateway.body_limit = 1000).await;
    let chat = "/v1/chat/completions";

    let (status, error) = refused(&gateway, Method::POST, chat, "{\"model\":\"tiny\",\n oops").await;
    assert_eq!((status, error["type"].as_str()), (400, Some("invalid_request_error")));
    assert!(error["message"].as_str().unwrap().contains("line 2 column"), "{error}");

    let (status, error) = refused(&gateway, Method::POST, chat, "{}").await;
    assert_eq!((status, error["param"].as_str()), (400, Some("model")));

    let (status, error) = refused(&gateway, Method::POST, chat, r#"{"model":"tinny"}"#).await;
    assert_eq!((status, error["code"].as_str()), (404, Some("model_not_found")));
    assert!(error["message"].as_str().unwrap().contains("`tiny`"), "{error}");

    let (status, error) = refused(&gateway, Method::POST, chat, &"x".repeat(1001)).await;
    assert_eq!((status, error["code"].as_str()), (413, Some("request_too_large")));

    let (status, error) = refused(&gateway, Method::GET, chat, "").await;
    assert_eq!((status, error["code"].as_str()), (405, Some("method_not_allowed")));

    let (status, error) = refused(&gateway, Method::POST, "/v1/nothing", "").await;
    assert_eq!((status, error["code"].as_str()), (404, Some("unknown_url")));

    for (path, meant) in
        [("/v1/chat/completions/", chat), ("/chat/completions", chat), ("/leases/", "/leases")]
    {
        let (status, error) = refused(&gateway, Method::POST, path, "{}").await;
        assert_eq!((status, error["code"].as_str()), (404, Some("unknown_url")));
        assert!(error["message"].as_str().unwrap().ends_with(&format!("; write {meant}")), "{error}");
    }

    let (_, error) = refused(&gateway, Method::POST, chat, "--x\r\n").await;
    assert!(error["message"].as_str().unwrap().contains("the body is a form"), "{error}");
    let form = reqwest::Client::new().post(gateway.url(chat)).body("--x--");
    let form = form.header("content-type", "multipart/form-data; boundary=x").send().await.unwrap();
    assert_eq!((form.status().as_u16(), error_of(form).await["param"].as_str()), (400, Some("content-type")));

    let (status, error) = refused(&gateway, Method::GET, "/v1/models/none", "").await;
    assert_eq!((status, error["code"].as_str()), (404, Some("model_not_found")));
}

#[tokio::test]
async fn a_byte_order_mark_before_json_is_passed_over() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/chat/completions", format!("\u{feff}{}", chat(false)));
    let job = played.job().await;
    assert_eq!(job.body, berth_wire::Body::Inline(chat(false).into()));
    played.answer(&job, 200, "application/json", b"{}").await;
    assert_eq!(request.await.unwrap().status(), 200);
    let lease = "\u{feff}{\"sessionKey\":\"s\"}";
    let (status, error) = refused(&gateway, Method::POST, "/lease", lease).await;
    assert_eq!((status, error["param"].as_str()), (400, Some("model")));
}

#[tokio::test]
async fn a_compressed_body_is_refused_as_such() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let send = async |encoding: &'static str, body: Vec<u8>| {
        let request = reqwest::Client::new().post(gateway.url("/v1/chat/completions"));
        request.header("content-encoding", encoding).body(body).send().await.unwrap()
    };
    let response = send("gzip", b"\x1f\x8b\x08".to_vec()).await;
    assert_eq!(response.status(), 415);
    let error = error_of(response).await;
    assert_eq!(error["code"], "unsupported_encoding");
    assert!(error["message"].as_str().unwrap().contains("`gzip` is not taken"), "{error}");

    let answered = async {
        let job = played.job().await;
        played.answer(&job, 200, "application/json", b"{}").await;
    };
    let (response, ()) = tokio::join!(send("identity", chat(false).into_bytes()), answered);
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_also_when_its_length_is_not_told() {
    let (_nats, _played, gateway) = house(|config| config.gateway.body_limit = 1 << 20).await;
    let chunks = futures::stream::iter((0..40).map(|_| Ok::<_, std::io::Error>(vec![b' '; 64 * 1024])));
    let request = reqwest::Client::new()
        .post(gateway.url("/v1/chat/completions"))
        .body(reqwest::Body::wrap_stream(chunks));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(error_of(response).await["code"], "request_too_large");
}

#[tokio::test]
async fn models_are_listed_and_found_with_slashes_and_by_alias() {
    let (_nats, _played, gateway) = house(|_| {}).await;
    let get = async |path: &str| -> serde_json::Value {
        reqwest::get(gateway.url(path)).await.unwrap().json().await.unwrap()
    };
    let list = get("/v1/models").await;
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!((model["id"].as_str(), model["object"].as_str()), (Some(MODEL), Some("model")));
    assert_eq!((model["state"].as_str(), model["context_length"].as_u64()), (Some("stopped"), Some(4096)));
    for path in ["/v1/models", "/v1/models/tiny", "/healthz"] {
        let asked = reqwest::Client::new().head(gateway.url(path)).send().await.unwrap();
        assert_eq!(asked.status(), 200, "{path}");
        assert_ne!(asked.headers()["content-length"], "0", "{path}");
        assert_eq!(asked.bytes().await.unwrap().len(), 0, "{path}");
    }
    for path in ["/v1/models/org/tiny:1.5", "/v1/models/org%2Ftiny%3A1.5", "/v1/models/tiny"] {
        assert_eq!(get(path).await["id"], MODEL, "{path}");
    }
}

/// By the HTTP library, which lets nobody write a body. If this fails, it may by now.
#[tokio::test]
async fn what_is_not_http_gets_a_status_and_the_end_of_its_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (_nats, _played, gateway) = house(|_| {}).await;
    let long = format!("GET /v1/models HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(200_000));
    for (sent, status) in [("NONSENSE\r\n\r\n", "400"), (long.as_str(), "431")] {
        let mut socket = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let _ = socket.write_all(sent.as_bytes()).await;
        let mut told = Vec::new();
        let read =
            tokio::time::timeout(PATIENCE, socket.read_to_end(&mut told)).await.expect("it stays open");
        let told = String::from_utf8_lossy(&told).into_owned();
        // A reset may overtake the answer to one who is still sending.
        assert!(told.starts_with(&format!("HTTP/1.1 {status} ")) || read.is_err(), "{told}");
        assert!(told.is_empty() || told.ends_with("\r\n\r\n"), "it has a body: {told}");
    }
}
