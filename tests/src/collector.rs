//! An OTLP collector: takes spans as OpenTelemetry's own protocol buffers, and shows their trees.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use berth_testkit::wait::until_ok;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::run::SOON;

/// A span, with the service that told of it.
#[derive(Debug, Clone)]
pub struct Told {
    /// `service.name` of its resource.
    pub service: String,
    /// Its name.
    pub name: String,
    /// The trace, in hexadecimal digits.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// The id of the span above it; empty if there is none.
    pub above: String,
    /// From the beginning to the end, in nanoseconds since 1970.
    pub times: (u64, u64),
    /// What is said of it, as text.
    pub attributes: BTreeMap<String, String>,
    /// The names of its events.
    pub events: Vec<String>,
    /// The code of its error.
    pub error: Option<String>,
}

/// A collector that listens on a port of its own.
#[derive(Debug)]
pub struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Told>>>,
    /// All that came, as it came.
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    /// Starts it on the current runtime.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it has an address"));
        let (spans, bytes) = (Arc::<Mutex<Vec<Told>>>::default(), Arc::<Mutex<Vec<u8>>>::default());
        let (to_spans, to_bytes) = (Arc::clone(&spans), Arc::clone(&bytes));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&to_spans), Arc::clone(&to_bytes)));
            }
        });
        Self { url, spans, bytes }
    }

    /// Its address, without a path.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether these words came, anywhere.
    #[must_use]
    pub fn heard(&self, words: &str) -> bool {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        memchr::memmem::find(&bytes, words.as_bytes()).is_some()
    }

    /// The spans of a trace, once there are so many.
    ///
    /// # Panics
    /// When they do not come.
    pub async fn trace(&self, trace: &str, count: usize) -> Vec<Told> {
        until_ok("the spans of a trace have come", SOON, async || {
            let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
            let mut spans: Vec<Told> = spans.iter().filter(|span| span.trace == trace).cloned().collect();
            spans.sort_by_key(|span| span.times);
            if spans.len() >= count { Ok(spans) } else { Err(format!("{spans:#?}")) }
        })
        .await
    }
}

/// Spans as a tree, one a line: the service, the name, and how it failed.
#[must_use]
pub fn tree(spans: &[Told], above: &str) -> String {
    fn write(spans: &[Told], above: &str, depth: usize, text: &mut String) {
        for span in spans.iter().filter(|span| span.above == above) {
            let error = span.error.as_deref().map_or(String::new(), |code| format!(" ({code})"));
            text.push_str(&format!("{}{} {}{error}\n", "  ".repeat(depth), span.service, span.name));
            write(spans, &span.id, depth + 1, text);
        }
    }
    let mut text = String::new();
    write(spans, above, 0, &mut text);
    text
}

/// Takes posts on one connection until it is closed.
async fn serve(mut stream: TcpStream, spans: Arc<Mutex<Vec<Told>>>, heard: Arc<Mutex<Vec<u8>>>) {
    let mut read = Vec::new();
    loop {
        let taken = loop {
            if let Some(taken) = complete(&read) {
                break taken;
            }
            match stream.read_buf(&mut read).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let (path, body) = taken;
        let rest = read.split_off(body.end);
        let told = ExportTraceServiceRequest::decode(&read[body]).expect("it is OTLP");
        assert_eq!(path, "/v1/traces");
        spans.lock().unwrap_or_else(PoisonError::into_inner).extend(flat(told));
        heard.lock().unwrap_or_else(PoisonError::into_inner).extend(std::mem::replace(&mut read, rest));
        // An empty answer is one that took all.
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The path and the body's place of a request that is there as a whole.
fn complete(read: &[u8]) -> Option<(String, std::ops::Range<usize>)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(read).expect("it is HTTP") else { return None };
    let of = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        std::str::from_utf8(found.expect("a header").value).expect("a header is text").to_owned()
    };
    assert_eq!(of("content-type"), "application/x-protobuf");
    let end = head + of("content-length").parse::<usize>().expect("a length");
    (read.len() >= end).then(|| (request.path.unwrap_or_default().to_owned(), head..end))
}

fn flat(request: ExportTraceServiceRequest) -> Vec<Told> {
    let mut told = Vec::new();
    for group in request.resource_spans {
        let resource = attributes(group.resource.map(|resource| resource.attributes).unwrap_or_default());
        for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let status = span.status.unwrap_or_default();
            told.push(Told {
                service: resource.get("service.name").cloned().unwrap_or_default(),
                name: span.name,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                above: hex(&span.parent_span_id),
                times: (span.start_time_unix_nano, span.end_time_unix_nano),
                attributes: attributes(span.attributes),
                events: span.events.into_iter().map(|event| event.name).collect(),
                error: (status.code == 2).then_some(status.message),
            });
        }
    }
    told
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    pairs.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}
